"""The operators' console: what the ledger database and the log say, as web pages."""
