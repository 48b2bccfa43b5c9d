"""The ledger sink: ledger topics in, SQL rows out, each entry once."""

from bss_stream.sink.loop import LedgerSink, SinkCounters, SinkSettings
from bss_stream.sink.store import (
    LedgerReader,
    LedgerStore,
    Snapshot,
    StoreUnavailableError,
    Written,
    open_ledger_store,
)

__all__ = [
    "LedgerReader",
    "LedgerSink",
    "LedgerStore",
    "SinkCounters",
    "SinkSettings",
    "Snapshot",
    "StoreUnavailableError",
    "Written",
    "open_ledger_store",
]
