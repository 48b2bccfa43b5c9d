"""The wire contract as types and documents: what clients, ARM, Odoo and readers of the log rely on.

The engine reads and writes these bodies itself (`rust/engine`); the types here say the same for
programs in other languages, and tests hold them to the engine (docs/contract.md).
"""
