"""Bounded growth of the embedded log: compaction and retention, a small step at a time.

Each step is one short transaction of the writer thread, between two commits. A round can be left
off after any step, or cut by a crash, and the next one starts afresh without harm.
"""

import itertools
import sqlite3
from array import array
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from bss_stream._engine import pack, unpack
from bss_stream.log.sqlite_file import Row, offsets_of

STEP_ROWS_MAX: Final = 64
STEP_BYTES_MAX: Final = 256 * 1024
STEP_RECORDS_MAX: Final = 2_000
ROUND_RECORDS_MAX: Final = 250_000
"""Newest offsets by key are held in memory for this many records at most; the rest waits."""


@dataclass(frozen=True, slots=True)
class Policy:
    """When the log gives space back."""

    keep_consumed_ms: int = 24 * 3600 * 1000
    """Signals and outbox records that every group has consumed are trimmed past this age."""

    compact_records_min: int = 10_000
    """A compacted partition is left alone until this many records were appended to it."""


class Trim(NamedTuple):
    """A stream now starts here."""

    stream: int
    start: int


class Known(Protocol):
    """What the writer knows of the file, as it is at each step."""

    ends: dict[int, int]
    offsets: dict[tuple[str, int], int]


class Upkeep:
    """What is due on which streams; the writer drives it."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        compacted: Sequence[int],
        trimmed: Sequence[int],
        policy: Policy,
        clock_ms: Callable[[], int],
    ) -> None:
        self._connection = connection
        self._compacted = compacted
        self._trimmed = trimmed
        self._policy = policy
        self._clock_ms = clock_ms

    def steps(self, known: Known) -> Generator[Trim | None]:
        """One round over all streams; each item is one transaction done."""
        for stream in self._trimmed:
            yield from self._trim(stream, known)
        for stream in self._compacted:
            yield from self._compact(stream, known.ends[stream] - 1)

    def _trim(self, stream: int, known: Known) -> Generator[Trim | None]:
        """Drop old rows that every group has consumed, oldest first: what is left has no hole."""
        oldest_ms = self._clock_ms() - self._policy.keep_consumed_ms
        # The offsets are looked at in each step: a group may join between two.
        while last := self._last_consumed(stream, known, oldest_ms):
            self._connection.execute(
                "DELETE FROM chunk WHERE stream = ? AND last_offset < ?", (stream, last)
            )
            yield Trim(stream, last)

    def _last_consumed(self, stream: int, known: Known, oldest_ms: int) -> int:
        """Up to where the next step may trim, 0 for not at all."""
        consumed = [next_ for (_, part), next_ in known.offsets.items() if part == stream]
        # The newest row stays: it says where the stream ends.
        floor = min(*consumed, known.ends[stream] - 1) if consumed else 0
        rows = self._connection.execute(
            "SELECT last_offset, appended_ms FROM chunk WHERE stream = ? AND last_offset < ?"
            " ORDER BY last_offset LIMIT ?",
            (stream, floor, STEP_ROWS_MAX),
        ).fetchall()
        old = itertools.takewhile(lambda row: row[1] < oldest_ms, rows)
        return max((last_offset + 1 for last_offset, _ in old), default=0)

    def _compact(self, stream: int, end: int) -> Generator[Trim | None]:
        """Keep the newest record of each key below `end`, and no tombstone."""
        clean_end, kept = self._connection.execute(
            "SELECT clean_end, kept FROM compaction WHERE stream = ? UNION ALL SELECT 0, 0 LIMIT 1",
            (stream,),
        ).fetchone()
        # Waiting until the new part is as large as the old keeps the work per record constant.
        if end - clean_end < max(self._policy.compact_records_min, kept):
            return
        newest: dict[bytes, int] = {}
        reach = clean_end
        while reach < end and reach - clean_end < ROUND_RECORDS_MAX:
            rows = self._rows(stream, reach, end)
            if not rows:
                break
            for row in rows:
                keys = (key for key, _ in unpack(row.data))
                newest.update(zip(keys, offsets_of(row), strict=True))
            reach = rows[-1].last_offset + 1
            yield None
        kept = 0
        position = 0
        while rows := self._rows(stream, position, reach):
            kept += self._rewrite(stream, rows, newest)
            position = rows[-1].last_offset + 1
            yield None
        self._connection.execute(
            "INSERT OR REPLACE INTO compaction VALUES (?, ?, ?)", (stream, reach, kept)
        )
        yield None

    def _rows(self, stream: int, start: int, end: int) -> list[Row]:
        cursor = self._connection.execute(
            "SELECT base_offset, last_offset, offsets, data, records FROM chunk"
            " WHERE stream = ? AND last_offset >= ? AND last_offset < ? ORDER BY last_offset",
            (stream, start, end),
        )
        rows: list[Row] = []
        size = records = 0
        for base_offset, last_offset, offsets, data, count in cursor:
            rows.append(Row(base_offset, last_offset, offsets, data))
            size += len(data)
            records += count
            if len(rows) >= STEP_ROWS_MAX or size >= STEP_BYTES_MAX or records >= STEP_RECORDS_MAX:
                break
        cursor.close()
        return rows

    def _rewrite(self, stream: int, rows: Sequence[Row], newest: Mapping[bytes, int]) -> int:
        """Put one row in the place of several, without what a newer record replaced.

        A tombstone goes too: the rewriting runs from the start on, so what it deletes is gone
        from all rows before. Returns the records kept.
        """
        offsets = array("q")
        records: list[tuple[bytes, bytes | None]] = []
        seen = 0
        for row in rows:
            for offset, record in zip(offsets_of(row), unpack(row.data), strict=True):
                seen += 1
                key, value = record
                if value is not None and newest.get(key, offset) <= offset:
                    offsets.append(offset)
                    records.append(record)
        if len(records) == seen and len(rows) == 1:
            return seen
        with self._transaction():
            self._connection.execute(
                "DELETE FROM chunk WHERE stream = ? AND last_offset BETWEEN ? AND ?",
                (stream, rows[0].last_offset, rows[-1].last_offset),
            )
            if records:
                self._connection.execute(
                    "INSERT INTO chunk"
                    " (stream, last_offset, base_offset, records, appended_ms, offsets, data)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (
                        stream,
                        rows[-1].last_offset,
                        rows[0].base_offset,
                        len(records),
                        self._clock_ms(),
                        offsets.tobytes(),
                        pack(records),
                    ),
                )
        return len(records)

    @contextmanager
    def _transaction(self) -> Generator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")
