"""Riders' queries answered out of the ledger database: swap history, balance, stations nearby."""

from bss_stream.queries.catalogue import Catalogue
from bss_stream.queries.loop import Queries, QueriesCounters, QueriesSettings

__all__ = ["Catalogue", "Queries", "QueriesCounters", "QueriesSettings"]
