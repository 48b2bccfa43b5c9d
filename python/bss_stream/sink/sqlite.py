"""The ledger database in one SQLite file, in WAL mode."""

import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from bss_stream.clock import epoch_ms
from bss_stream.errors import SinkError
from bss_stream.log.protocol import Offsets, TopicPartition
from bss_stream.sink.entry import Batch, EntryRow, Reject, conflict
from bss_stream.sink.store import (
    ENTRY_COLUMNS,
    Snapshot,
    StoreUnavailableError,
    Written,
    schema_too_new,
)

MIGRATIONS: Final = (
    (
        """CREATE TABLE ledger_entries (
             entry_id TEXT NOT NULL PRIMARY KEY,
             ledger TEXT NOT NULL CHECK (ledger IN ('payment', 'service')),
             plan_id TEXT NOT NULL,
             seq INTEGER NOT NULL,
             kind TEXT NOT NULL,
             service_id TEXT,
             signal_id TEXT,
             source TEXT NOT NULL,
             event_at_ms INTEGER NOT NULL,
             recorded_at_ms INTEGER NOT NULL,
             units INTEGER NOT NULL,
             amount_minor INTEGER NOT NULL,
             currency TEXT NOT NULL,
             entry TEXT NOT NULL,
             UNIQUE (plan_id, seq)
           ) STRICT""",
        "CREATE INDEX ledger_entries_kind_time ON ledger_entries (kind, event_at_ms)",
        "CREATE INDEX ledger_entries_signal ON ledger_entries (signal_id)",
        """CREATE TABLE sink_offsets (
             topic TEXT NOT NULL,
             "partition" INTEGER NOT NULL,
             next_offset INTEGER NOT NULL,
             PRIMARY KEY (topic, "partition")
           ) STRICT, WITHOUT ROWID""",
        """CREATE TABLE sink_rejects (
             topic TEXT NOT NULL,
             "partition" INTEGER NOT NULL,
             "offset" INTEGER NOT NULL,
             reason TEXT NOT NULL,
             error TEXT NOT NULL,
             record_key BLOB NOT NULL,
             raw BLOB,
             PRIMARY KEY (topic, "partition", "offset")
           ) STRICT""",
    ),
    (
        "ALTER TABLE sink_offsets ADD COLUMN recorded_at_ms INTEGER",
        """UPDATE sink_offsets
             SET recorded_at_ms = (SELECT max(recorded_at_ms) FROM ledger_entries)
             WHERE topic LIKE 'bss.ledger.%'""",
        "CREATE INDEX ledger_entries_service ON ledger_entries (plan_id, service_id, seq)",
        """CREATE INDEX ledger_entries_payment ON ledger_entries (plan_id, seq)
             WHERE ledger = 'payment'""",
        """CREATE TABLE station_states (
             location_id TEXT NOT NULL PRIMARY KEY,
             "offset" INTEGER NOT NULL,
             state BLOB
           ) STRICT, WITHOUT ROWID""",
    ),
)
"""The statements that lead to each schema version, from 1 on. A released one never changes."""

_INSERT_ENTRY: Final = (
    f"INSERT INTO ledger_entries ({ENTRY_COLUMNS}) "
    f"VALUES ({', '.join('?' * len(EntryRow._fields))}) ON CONFLICT DO NOTHING"
)
_INSERT_REJECT: Final = (
    f"INSERT INTO sink_rejects VALUES ({', '.join('?' * len(Reject._fields))}) "
    "ON CONFLICT DO NOTHING"
)
# Max, because a member that lost the partition may still write a batch that it had in hand.
_UPSERT_OFFSET: Final = """
    INSERT INTO sink_offsets VALUES (?, ?, ?, ?)
    ON CONFLICT DO UPDATE SET
      next_offset = max(next_offset, excluded.next_offset),
      recorded_at_ms = max(coalesce(recorded_at_ms, excluded.recorded_at_ms),
                           coalesce(excluded.recorded_at_ms, recorded_at_ms))"""
_UPSERT_STATION: Final = """
    INSERT INTO station_states VALUES (?, ?, ?)
    ON CONFLICT DO UPDATE SET "offset" = excluded."offset", state = excluded.state
    WHERE station_states."offset" < excluded."offset"
"""


# What waiting may mend: another process is writing, the disk is full, or it refused a write.
_TRANSIENT_CODES: Final = (
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
)


@contextmanager
def faults(path: str) -> Iterator[None]:
    """Turn sqlite3's errors into the sink's."""
    try:
        yield
    except sqlite3.Error as error:
        message = f"ledger database {path}: {error}"
        code = getattr(error, "sqlite_errorcode", None) or 0
        if code & 0xFF in _TRANSIENT_CODES:
            raise StoreUnavailableError(message) from error
        raise SinkError(message) from error


@contextmanager
def transaction(connection: sqlite3.Connection, mode: str) -> Iterator[None]:
    connection.execute(f"BEGIN {mode}")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # A full disk or the like makes SQLite roll back by itself, but not always.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


class SqliteLedgerStore:
    """A LedgerStore in the file at `path`, created when missing."""

    def __init__(self, path: str | Path, busy_timeout_s: float = 10.0) -> None:
        """A write waits for `busy_timeout_s` on another process that is writing."""
        self._path = str(path)
        self._busy_timeout_s = busy_timeout_s
        self._connection: sqlite3.Connection | None = None

    def open(self) -> None:
        with faults(self._path):
            self._open()

    def offsets(self) -> dict[TopicPartition, int]:
        with faults(self._path):
            rows = self._open().execute("SELECT topic, partition, next_offset FROM sink_offsets")
            return {TopicPartition(topic, partition): offset for topic, partition, offset in rows}

    def write(self, batch: Batch, offsets: Offsets) -> Written:
        with faults(self._path):
            connection = self._open()
            with transaction(connection, "IMMEDIATE"):
                inserted = connection.executemany(_INSERT_ENTRY, batch.entries).rowcount
                inserted = max(inserted, 0)  # -1 when the batch has no entry
                conflicts: list[Reject] = []
                if inserted < len(batch.entries):
                    conflicts = _conflicts(connection, batch)
                rejects = batch.rejects + conflicts
                connection.executemany(_INSERT_REJECT, rejects)
                connection.executemany(_UPSERT_STATION, batch.stations)
                newest_ms = batch.newest_ms()
                connection.executemany(
                    _UPSERT_OFFSET,
                    [(*place, offset, newest_ms.get(place)) for place, offset in offsets.items()],
                )
        duplicates = len(batch.entries) - inserted - len(conflicts)
        return Written(inserted, duplicates, Counter(reject.reason.value for reject in rejects))

    @contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        with faults(self._path):
            self._open()
            with (
                closing(_connect(self._path, self._busy_timeout_s)) as connection,
                transaction(connection, "DEFERRED"),
            ):
                yield _SqliteSnapshot(connection)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            connection = _connect(self._path, self._busy_timeout_s)
            try:
                _migrate(connection)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection


class _SqliteSnapshot:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def entries(self) -> Iterator[EntryRow]:
        rows = self._connection.execute(
            f"SELECT {ENTRY_COLUMNS} FROM ledger_entries ORDER BY plan_id, seq"
        )
        return map(EntryRow._make, rows)

    def rejects(self) -> dict[str, int]:
        rows = self._connection.execute(
            "SELECT reason, count(*) FROM sink_rejects GROUP BY reason ORDER BY reason"
        )
        return dict(rows.fetchall())


def _connect(path: str, busy_timeout_s: float) -> sqlite3.Connection:
    # The sink's one thread makes all calls, but another may close what it left open.
    connection = sqlite3.connect(
        path, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False
    )
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        # A power cut may undo the last transactions, each whole: the log has them still.
        connection.execute("PRAGMA synchronous = NORMAL")
    except BaseException:
        connection.close()
        raise
    return connection


def _migrate(connection: sqlite3.Connection) -> None:
    with transaction(connection, "IMMEDIATE"):
        connection.execute(
            "CREATE TABLE IF NOT EXISTS sink_migrations "
            "(version INTEGER PRIMARY KEY, applied_at_ms INTEGER NOT NULL) STRICT"
        )
        (version,) = connection.execute(
            "SELECT coalesce(max(version), 0) FROM sink_migrations"
        ).fetchone()
        if version > len(MIGRATIONS):
            raise schema_too_new(version, len(MIGRATIONS))
        for number, statements in enumerate(MIGRATIONS[version:], version + 1):
            for statement in statements:
                connection.execute(statement)
            applied_at_ms = epoch_ms()
            connection.execute("INSERT INTO sink_migrations VALUES (?, ?)", (number, applied_at_ms))


def _conflicts(connection: sqlite3.Connection, batch: Batch) -> list[Reject]:
    found = []
    for index, row in enumerate(batch.entries):
        stored = connection.execute(
            "SELECT entry FROM ledger_entries WHERE entry_id = ?", (row.entry_id,)
        ).fetchone()
        holder = None
        if stored is None:
            holder = connection.execute(
                "SELECT entry_id FROM ledger_entries WHERE plan_id = ? AND seq = ?",
                (row.plan_id, row.seq),
            ).fetchone()
        reject = conflict(
            batch, index, stored[0] if stored else None, holder[0] if holder else None
        )
        if reject is not None:
            found.append(reject)
    return found
