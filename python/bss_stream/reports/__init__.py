"""What operators and asset managers ask of the ledger database (docs/operator-workflow.md).

Each report is a function of rows: states of stations, entries of the ledgers, the set-up. None
reads a clock or decides anything.
"""
