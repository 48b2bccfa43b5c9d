"""A consumer of the embedded log: rows come from memory while it keeps up, else from the file."""

import asyncio
import sqlite3
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from bss_stream.errors import RECORDS_GONE, LogError, OffsetOutOfRangeError
from bss_stream.log.embedded_store import Store
from bss_stream.log.groups import Group
from bss_stream.log.protocol import Fetched, Offsets, RebalanceListener, TopicPartition
from bss_stream.log.sqlite_file import READ_BYTES_MAX, Position, Row, join
from bss_stream.log.sqlite_writer import Write

BUFFER_BYTES_MAX: Final = 16 * 1024 * 1024
"""Rows held in memory for one consumer, whatever its number of partitions; one that falls behind
reads them from the file."""

ROW_BYTES: Final = 200
"""What a row takes in memory beside its data."""


class Buffered:
    """How much a consumer holds in memory, over all its partitions."""

    __slots__ = ("size",)

    def __init__(self) -> None:
        self.size = 0


class Owned:
    """A partition being read: its position, and the rows in memory that start there."""

    __slots__ = ("_buffered", "_wake", "part", "position", "rows", "stream")

    def __init__(
        self, part: TopicPartition, stream: int, buffered: Buffered, wake: Callable[[], None]
    ) -> None:
        self.part = part
        self.stream = stream
        self.position = -1
        """Below 0 until the partition is sought or its committed offset is known."""
        self.rows: deque[Row] = deque()
        self._buffered = buffered
        self._wake = wake

    def push(self, row: Row) -> None:
        """Keep a new row if it continues what is here; what is left out the file has."""
        end = self.rows[-1].last_offset + 1 if self.rows else self.position
        if row.base_offset == end and self._buffered.size < BUFFER_BYTES_MAX:
            self.rows.append(row)
            self._buffered.size += len(row.data) + ROW_BYTES
        self._wake()

    def take(self, records_max: int, bytes_max: int) -> list[Row]:
        """Whole rows: one at least, about `records_max` records and `bytes_max` bytes."""
        taken: list[Row] = []
        while self.rows and records_max > 0 and bytes_max > 0:
            row = self.rows.popleft()
            taken.append(row)
            records_max -= row.last_offset - row.base_offset + 1
            bytes_max -= len(row.data)
            self._buffered.size -= len(row.data) + ROW_BYTES
        return taken

    def move(self, position: int) -> None:
        """Read on from elsewhere."""
        self.position = position
        self._buffered.size -= sum(len(row.data) + ROW_BYTES for row in self.rows)
        self.rows.clear()


class EmbeddedConsumer:
    """A member of a group; made by EmbeddedLog.consumer."""

    def __init__(
        self,
        store: Store,
        group: Group,
        group_name: str,
        topics: Sequence[str],
        listener: RebalanceListener | None,
    ) -> None:
        self.topics = topics
        self._store = store
        self._group = group
        self._group_name = group_name
        self._listener = listener
        self._owned: dict[TopicPartition, Owned] = {}
        self._buffered = Buffered()
        self._reading = False
        self._generation = 0
        """Rises whenever positions change other than by reading on: what was read is then void."""
        self._turn = 0
        self._wake = asyncio.Event()
        self._moving = asyncio.Lock()
        self._file = asyncio.Lock()
        self._leaving = False
        self._failure: BaseException | None = None
        self._connection: sqlite3.Connection | None = None

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._leaving

    def assignment(self) -> frozenset[TopicPartition]:
        """The partitions that this member owns now."""
        return frozenset(self._owned)

    async def poll(self, records_max: int, timeout_s: float) -> list[Fetched]:
        """See log.protocol.Consumer.

        Whole chunks: the last may pass `records_max`, and READ_BYTES_MAX over all partitions.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while True:
            self._wake.clear()
            self._check_usable()
            fetched = await self._take(records_max) if self._reading else []
            left = deadline - loop.time()
            if fetched or left <= 0:
                return fetched
            try:
                async with asyncio.timeout(left):
                    await self._wake.wait()
            except TimeoutError:
                return []

    def _check_usable(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._leaving:
            raise LogError(f"this consumer of group {self._group_name} is closed")

    async def _take(self, records_max: int) -> list[Fetched]:
        behind = self._behind()
        if not behind:
            return []
        # Either memory or the file, by whose turn it is: so neither keeps the other waiting, and
        # what memory gives needs no second look at who owns it after a wait for the file.
        if not behind[0].rows:
            return await self._take_from_file(
                [owned for owned in behind if not owned.rows], records_max
            )
        fetched = []
        bytes_max = READ_BYTES_MAX
        for owned in behind:
            if owned.rows and records_max > 0 and bytes_max > 0:
                rows = owned.take(records_max, bytes_max)
                records_max -= rows[-1].last_offset - rows[0].base_offset + 1
                bytes_max -= sum(len(row.data) for row in rows)
                fetched.append(self._read_on(owned, rows))
        return fetched

    def _behind(self) -> list[Owned]:
        """The partitions with something to read, another one first each time."""
        owned = list(self._owned.values())
        self._turn = (self._turn + 1) % max(1, len(owned))
        state = self._store.state
        behind = []
        for one in (*owned[self._turn :], *owned[: self._turn]):
            if not state.starts[one.stream] <= one.position <= state.ends[one.stream]:
                raise self._out_of_range(one)
            if one.position < state.ends[one.stream]:
                behind.append(one)
        return behind

    async def _take_from_file(self, cold: Sequence[Owned], records_max: int) -> list[Fetched]:
        generation = self._generation
        ends = self._store.state.ends
        positions = [Position(one.stream, one.position, ends[one.stream]) for one in cold]
        async with self._file:
            if self._connection is None:
                self._connection = await self._store.connect()
            found = await self._store.read(self._connection, positions, records_max)
        if generation != self._generation:
            return []
        fetched = []
        for owned, rows in zip(cold, found, strict=True):
            if not rows:
                continue
            gap = rows[0].base_offset > owned.position
            if gap and owned.stream not in self._store.compacted:
                raise self._out_of_range(owned)
            fetched.append(self._read_on(owned, rows))
        return fetched

    def _read_on(self, owned: Owned, rows: Sequence[Row]) -> Fetched:
        fetched = join(owned.part, owned.position, rows)
        owned.position = fetched.next_offset
        return fetched

    def _out_of_range(self, owned: Owned) -> OffsetOutOfRangeError:
        state, part = self._store.state, owned.part
        return OffsetOutOfRangeError(
            f"group {self._group_name} is to read {part.topic}/{part.partition} at offset "
            f"{owned.position} and the log has {state.starts[owned.stream]} to "
            f"{state.ends[owned.stream]}: {RECORDS_GONE}"
        )

    async def commit(self, offsets: Offsets) -> None:
        """Durable when it returns. Raises LogError for a partition that is not owned."""
        self._check_owned(offsets, "commit")
        entries = self._store.offsets(self._group_name, offsets)
        await self._store.write(Write(self._store.future(), offsets=entries))

    async def seek(self, offsets: Offsets) -> None:
        """Raises LogError for a partition that is not owned; poll tells what is out of range."""
        self._check_owned(offsets, "seek in")
        self._generation += 1
        for part, offset in offsets.items():
            self._owned[part].move(offset)
        self._wake.set()

    def _check_owned(self, offsets: Offsets, doing: str) -> None:
        for part in offsets:
            if part not in self._owned:
                raise LogError(
                    f"cannot {doing} {part.topic}/{part.partition}: this member of group "
                    f"{self._group_name} does not own it"
                )

    async def lag(self) -> dict[TopicPartition, int]:
        """Records between this member's position and the end, for each partition it owns."""
        ends = self._store.state.ends
        return {
            part: ends[one.stream] - one.position
            for part, one in self._owned.items()
            if one.position >= 0
        }

    async def revoke(self) -> None:
        """Let go of everything, once the listener has returned."""
        async with self._moving:
            if not self._owned:
                return
            self._reading = False
            self._generation += 1
            if self._listener is not None:
                await self._tell(self._listener.on_revoked)
            for owned in self._owned.values():
                self._store.followers[owned.stream].remove(owned)
                owned.move(-1)
            self._owned = {}

    async def assign(self, parts: Sequence[TopicPartition]) -> None:
        """Own these partitions and read them, once the listener has returned."""
        async with self._moving:
            if self._leaving or not parts:
                return
            for part in sorted(parts):
                self._owned[part] = Owned(
                    part, self._store.stream(*part), self._buffered, self._wake.set
                )
            if self._listener is not None:
                await self._tell(self._listener.on_assigned)
            # Only now: the listener has taken over the shards' producers, so that nothing a
            # former owner has under way can move the committed offsets any more.
            for owned in self._owned.values():
                self._store.followers[owned.stream].append(owned)
                if owned.position < 0:
                    owned.move(self._store.state.offsets[self._group_name, owned.stream])
            self._reading = True
            self._wake.set()

    async def _tell(self, listener: Callable[[Sequence[TopicPartition]], Awaitable[None]]) -> None:
        """Await a listener; what it raises is raised by the next poll, as its own error."""
        (failure,) = await asyncio.gather(listener(list(self._owned)), return_exceptions=True)
        if failure is not None:
            self._failure = failure
            self._wake.set()

    async def close(self) -> None:
        """Leave the group; raises what the listener raises at letting go."""
        if self._leaving:
            return
        self._leaving = True
        told = self._failure
        await self.revoke()
        self._group.leave(self)
        self._wake.set()
        async with self._file:
            if self._connection is not None:
                await self._store.disconnect(self._connection)
                self._connection = None
        if self._failure is not None and self._failure is not told:
            raise self._failure
