"""The embedded log's file: its layout, its lock, and how committed chunks are read from it.

A chunk is one row, whatever its number of records, so the cost of a record is its bytes. The end
of a partition is the last row's last offset, which is why neither retention nor compaction ever
removes a partition's newest row.
"""

import os
import sqlite3
import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal, NamedTuple

from bss_stream._engine import pack, unpack
from bss_stream.errors import LogError, LogInUseError
from bss_stream.log.protocol import Fetched, TopicPartition

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

Durability = Literal["power", "process"]
"""What a commit survives: a power cut (an fsync each), or only the end of the process."""

LAYOUT: Final = 1
FILE: Final = "log.sqlite3"
LOCK: Final = "lock"
BUSY_WAIT_S: Final = 5.0
_LOCKED_BYTE: Final = 4096
"""Of the lock file on Windows, where nobody reads what is locked: far behind the text."""
READ_BYTES_MAX: Final = 8 * 1024 * 1024
"""A read, of one partition or of several, stops after the chunk that passes this, however many
records were asked for."""

_SCHEMA: Final = """
CREATE TABLE stream (
    stream INTEGER PRIMARY KEY,
    topic TEXT NOT NULL,
    partition INTEGER NOT NULL,
    UNIQUE (topic, partition)
);
CREATE TABLE chunk (
    stream INTEGER NOT NULL REFERENCES stream,
    last_offset INTEGER NOT NULL,
    base_offset INTEGER NOT NULL,
    records INTEGER NOT NULL,
    appended_ms INTEGER NOT NULL,
    offsets BLOB,  -- NULL: every offset from base to last; else the records' own, i64 LE each
    data BLOB NOT NULL,
    PRIMARY KEY (stream, last_offset)
);
CREATE TABLE committed (
    group_name TEXT NOT NULL,
    stream INTEGER NOT NULL REFERENCES stream,
    next_offset INTEGER NOT NULL,
    PRIMARY KEY (group_name, stream)
) WITHOUT ROWID;
CREATE TABLE producer (
    transactional_id TEXT PRIMARY KEY,
    epoch INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE compaction (
    stream INTEGER PRIMARY KEY REFERENCES stream,
    clean_end INTEGER NOT NULL,
    kept INTEGER NOT NULL
);
"""


class Row(NamedTuple):
    """One stored chunk; `offsets` is None when they run from base to last without a gap."""

    base_offset: int
    last_offset: int
    offsets: bytes | None
    data: bytes


class Position(NamedTuple):
    """Where to read a stream: rows that hold offsets in [start, end)."""

    stream: int
    start: int
    end: int


def log_error(path: Path, doing: str, error: sqlite3.Error) -> LogError:
    """What an SQLite error means for the operator of this log."""
    code = getattr(error, "sqlite_errorcode", None)
    primary = None if code is None else code & 0xFF
    advice = {
        sqlite3.SQLITE_FULL: "the disk is full: free space there and go on",
        sqlite3.SQLITE_BUSY: "another program holds the file locked: end it",
        sqlite3.SQLITE_CORRUPT: "the file is damaged: restore it from a backup",
        sqlite3.SQLITE_NOTADB: "the file is no SQLite database: restore it from a backup",
        sqlite3.SQLITE_CANTOPEN: "the file cannot be opened: check that it exists and its rights",
        sqlite3.SQLITE_READONLY: "the file cannot be written: check its rights and its disk",
        sqlite3.SQLITE_IOERR: "the disk failed or is full: check it",
    }.get(primary if primary is not None else -1, "nothing of this step was kept")
    return LogError(f"cannot {doing} the log {path}: {error} ({advice})")


@contextmanager
def explained(path: Path, doing: str) -> Iterator[None]:
    """Raise SQLite's errors as LogError."""
    try:
        yield
    except sqlite3.Error as error:
        raise log_error(path, doing, error) from error


class Lock:
    """The lock that keeps a second process away from a log's directory."""

    def __init__(self, directory: Path) -> None:
        """Take the lock. Raises LogInUseError naming the holder when another has it."""
        path = directory / LOCK
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise LogError(f"cannot open the lock file {path}: {error}") from error
        try:
            _lock(self._file)
        except OSError as error:
            holder = os.read(self._file, 20).decode("ascii", "replace").strip() or "unknown"
            os.close(self._file)
            raise LogInUseError(
                f"the log {directory} is in use by process {holder} (it holds {path}): "
                "stop that process or give this one a directory of its own"
            ) from error
        os.truncate(self._file, 0)
        os.write(self._file, f"{os.getpid()}\n".encode())

    def release(self) -> None:
        """Let others have the log; closing the file drops the lock."""
        os.close(self._file)


def _lock(file: int) -> None:
    """Lock an open file, or raise OSError at once; its holder's text can be read all the same."""
    if sys.platform == "win32":
        os.lseek(file, _LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        finally:
            os.lseek(file, 0, os.SEEK_SET)
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def connect_writer(path: Path, durability: Durability) -> sqlite3.Connection:
    """Open for writing, making the file and its tables if need be."""
    connection = sqlite3.connect(
        path,
        timeout=BUSY_WAIT_S,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=512,
    )
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA synchronous = {'FULL' if durability == 'power' else 'NORMAL'}")
    layout = _layout(connection)
    if layout == 0:
        connection.executescript(f"BEGIN;{_SCHEMA}PRAGMA user_version = {LAYOUT};COMMIT;")
    elif layout != LAYOUT:
        connection.close()
        raise _wrong_layout(path, layout)
    return connection


def connect_reader(path: Path) -> sqlite3.Connection:
    """Open read-only; used by one thread at a time, not always the same."""
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro",
        uri=True,
        timeout=BUSY_WAIT_S,
        isolation_level=None,
        check_same_thread=False,
    )
    layout = _layout(connection)
    if layout != LAYOUT:
        connection.close()
        raise _wrong_layout(path, layout)
    return connection


def _layout(connection: sqlite3.Connection) -> int:
    (layout,) = connection.execute("PRAGMA user_version").fetchone()
    return int(layout)


def _wrong_layout(path: Path, layout: int) -> LogError:
    what = "upgrade bss_stream" if layout > LAYOUT else "it is no log of bss_stream"
    return LogError(f"the log {path} has layout {layout}, this program reads {LAYOUT}: {what}")


def load_streams(connection: sqlite3.Connection) -> dict[TopicPartition, int]:
    """The number of every partition of every topic in the file."""
    rows = connection.execute("SELECT topic, partition, stream FROM stream ORDER BY stream")
    return {TopicPartition(topic, partition): stream for topic, partition, stream in rows}


def add_streams(
    connection: sqlite3.Connection, path: Path, topics: Sequence[str], partitions: int
) -> dict[TopicPartition, int]:
    """Create the topics that are missing.

    Raises LogError when the file was made with another number of partitions.
    """
    present = load_streams(connection)
    made_with = 1 + max((part.partition for part in present), default=partitions - 1)
    if made_with != partitions:
        raise LogError(
            f"the log {path} has {made_with} partitions a topic and {partitions} were asked for: "
            f"set partitions to {made_with}, or start a new log"
        )
    wanted = [TopicPartition(topic, part) for topic in topics for part in range(partitions)]
    missing = [part for part in wanted if part not in present]
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany("INSERT INTO stream (topic, partition) VALUES (?, ?)", missing)
    connection.execute("COMMIT")
    return load_streams(connection)


def load_bounds(connection: sqlite3.Connection, stream: int) -> tuple[int, int]:
    """The first offset still stored and the one after the last, (0, 0) for an empty stream."""
    first, last = connection.execute(
        "SELECT (SELECT base_offset FROM chunk WHERE stream = ?1 ORDER BY last_offset LIMIT 1),"
        " (SELECT max(last_offset) FROM chunk WHERE stream = ?1)",
        (stream,),
    ).fetchone()
    return (0, 0) if last is None else (first, last + 1)


def read_rows(
    connection: sqlite3.Connection,
    position: Position,
    records_max: int,
    bytes_max: int = READ_BYTES_MAX,
) -> list[Row]:
    """Whole rows from a position on: at least one if there is one, about `records_max` records
    and `bytes_max` bytes."""
    cursor = connection.execute(
        "SELECT base_offset, last_offset, offsets, data, records FROM chunk"
        " WHERE stream = ? AND last_offset >= ? AND last_offset < ? ORDER BY last_offset",
        position,
    )
    rows: list[Row] = []
    records = size = 0
    for base_offset, last_offset, offsets, data, count in cursor:
        rows.append(Row(base_offset, last_offset, offsets, data))
        records += count
        size += len(data)
        if records >= records_max or size >= bytes_max:
            break
    cursor.close()
    return rows


def offsets_of(row: Row) -> Sequence[int]:
    """The offset of each record of a row."""
    if row.offsets is None:
        return range(row.base_offset, row.last_offset + 1)
    offsets = array("q")
    offsets.frombytes(row.offsets)
    return offsets


def join(part: TopicPartition, start: int, rows: Sequence[Row]) -> Fetched:
    """Consecutive rows as one Fetched, without the records below `start`."""
    first = rows[0]
    if first.base_offset < start:
        first = _cut(part, first, start)
    rows = (first, *rows[1:])
    next_offset = rows[-1].last_offset + 1
    data = first.data if len(rows) == 1 else b"".join(row.data for row in rows)
    if all(row.offsets is None for row in rows):
        # Appends are dense and a dense row follows a dense row, so one range says it all.
        return Fetched(*part, range(first.base_offset, next_offset), data, next_offset)
    offsets = array("q")
    for row in rows:
        offsets.extend(offsets_of(row))
    return Fetched(*part, offsets, data, next_offset)


def _cut(part: TopicPartition, row: Row, start: int) -> Row:
    offsets = offsets_of(row)
    keep = bisect_left(offsets, start)
    try:
        data = pack(unpack(row.data)[keep:])
    except ValueError as error:
        raise LogError(
            f"{part.topic}/{part.partition} is damaged at offset {row.base_offset}: {error}"
        ) from error
    kept = None if row.offsets is None else array("q", offsets[keep:]).tobytes()
    return Row(start, row.last_offset, kept, data)
