"""What the sink and the audit need of a ledger database, whichever server keeps it."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Final, NamedTuple, Protocol

from bss_stream.errors import ConfigError, SinkError
from bss_stream.log.protocol import Offsets, TopicPartition
from bss_stream.sink.entry import Batch, EntryRow

ENTRY_COLUMNS: Final = ", ".join(EntryRow._fields)


class StoreUnavailableError(SinkError):
    """The database is not there or not ready now: the same call may succeed later."""


class Written(NamedTuple):
    """What a batch came to."""

    inserted: int
    duplicates: int
    """Entries that the database had already, byte for byte."""
    rejects: Mapping[str, int]
    """Rows added to sink_rejects, by reason: the batch's own and the conflicts found."""


class Snapshot(Protocol):
    """One consistent view of the ledgers, however long it is read."""

    def entries(self) -> Iterator[EntryRow]:
        """Every entry, by plan (in byte order) and seq, without holding them all in memory."""

    def rejects(self) -> dict[str, int]:
        """The number of rows in sink_rejects by reason."""


class LedgerReader(Protocol):
    """Where an audit reads the ledgers."""

    def snapshot(self) -> AbstractContextManager[Snapshot]:
        """Open a view on a connection of its own. Raises SinkError."""


class LedgerStore(LedgerReader, Protocol):
    """Where the sink writes.

    Calls block, so the sink makes them in one thread, one at a time. Each raises
    StoreUnavailableError when the database has gone away, after which a new call connects
    again, and SinkError for a fault that waiting does not mend. No call is half done.
    """

    def open(self) -> None:
        """Connect and bring the schema to this program's version."""

    def offsets(self) -> dict[TopicPartition, int]:
        """The next offset to read of every partition that was ever written from."""

    def write(self, batch: Batch, offsets: Offsets) -> Written:
        """Take entries, rejects, stations' states and offsets in one transaction.

        An entry that is there already is left alone; one that contradicts what is there goes to
        sink_rejects. An offset never goes back, nor does a station's state.
        """

    def close(self) -> None:
        """Disconnect; harmless when there is no connection."""


def open_ledger_store(url: str) -> LedgerStore:
    """The store of `sqlite:PATH` or `postgresql://...`, not connected yet. Raises ConfigError."""
    scheme, _, rest = url.partition(":")
    if scheme == "sqlite" and rest:
        from bss_stream.sink.sqlite import SqliteLedgerStore

        return SqliteLedgerStore(rest.removeprefix("//"))
    if scheme in ("postgresql", "postgres"):
        try:
            from bss_stream.sink.postgres import PostgresLedgerStore
        except ImportError as error:
            raise driver_missing(scheme, error) from error
        return PostgresLedgerStore(url)
    raise unknown_scheme(scheme)


def driver_missing(scheme: str, error: ImportError) -> ConfigError:
    """The error for a PostgreSQL url without the extra that it needs."""
    return ConfigError(
        [
            f"ledger database {scheme}://...: the PostgreSQL driver does not import "
            f"({error}): install the extra, pip install 'bss_stream[postgres]'"
        ]
    )


def unknown_scheme(scheme: str) -> ConfigError:
    """The error for a url of another kind."""
    return ConfigError(
        [f"ledger database {scheme!r}: expected sqlite:PATH or postgresql://USER@HOST/DATABASE"]
    )


def schema_too_new(version: int, known: int) -> SinkError:
    """The error for a database that a later program has written."""
    return SinkError(
        f"ledger database has schema version {version}, this program knows up to {known}: "
        "upgrade bss_stream"
    )
