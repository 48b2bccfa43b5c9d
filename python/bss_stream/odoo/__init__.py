"""Billing with Odoo over its external API: ledgers and life cycles out, payment states in.

Import from the modules: `config` is read wherever settings are, and the others need the extra
`odoo` (httpx).
"""
