"""The embedded log's store as the event loop sees it: what is durable, and who waits for more.

All of this runs on the event loop and touches no file: writes go to the writer thread, reads to
reader threads, and a follower that keeps up gets each row as the commit that holds it is told.
"""

import asyncio
import copy
import sqlite3
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final, ParamSpec, Protocol, TypeVar

from bss_stream import topics
from bss_stream.errors import LogError
from bss_stream.log.giveway import GiveWay
from bss_stream.log.protocol import Chunk, Extent, Fetched, Offsets, TopicPartition
from bss_stream.log.sqlite_file import (
    READ_BYTES_MAX,
    Durability,
    Lock,
    Position,
    Row,
    add_streams,
    connect_reader,
    connect_writer,
    explained,
    join,
    load_bounds,
    load_streams,
    read_rows,
)
from bss_stream.log.sqlite_upkeep import Policy, Upkeep
from bss_stream.log.sqlite_writer import (
    Commit,
    Fence,
    Part,
    Register,
    Request,
    State,
    Tidy,
    Write,
    Writer,
    fenced,
)

TRIMMED: Final = (*topics.SIGNALS, topics.OUTBOX)
"""Given back to the disk once every group has consumed them and they have aged."""

CHUNK_BYTES_MAX: Final = 64 * 1024 * 1024
READERS: Final = 2
REPLAY_RECORDS: Final = 10_000


P = ParamSpec("P")
T = TypeVar("T")


class Follower(Protocol):
    """Told of every row that a stream gains, in order."""

    def push(self, row: Row) -> None: ...


class Store:
    """The open file, its writer and its readers; used from one event loop."""

    def __init__(
        self,
        path: Path,
        partitions: int,
        durability: Durability,
        policy: Policy,
        clock_ms: Callable[[], int],
    ) -> None:
        self.path = path
        self.partitions = partitions
        self.streams: dict[TopicPartition, int] = {}
        self.state = State({}, {}, {}, {})
        self.compacted: frozenset[int] = frozenset()
        self.followers: defaultdict[int, list[Follower]] = defaultdict(list)
        self._durability: Durability = durability
        self._policy = policy
        self._clock_ms = clock_ms
        self._lock: Lock | None = None
        self._connection: sqlite3.Connection | None = None
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="bss-log-reader")
        self._writer: Writer | None = None
        self._give_way = GiveWay()

    async def open(self) -> None:
        """Raises LogError when another process owns the directory or the file does not fit."""
        try:
            connection = await asyncio.to_thread(self._open)
        except BaseException:
            await asyncio.to_thread(self._release)
            raise
        trimmed = [self.streams[part] for part in self.streams if part.topic in TRIMMED]
        upkeep = Upkeep(connection, sorted(self.compacted), trimmed, self._policy, self._clock_ms)
        # The writer has a state of its own: it is ahead of what the loop has been told.
        self._writer = Writer(
            self.path,
            connection,
            copy.deepcopy(self.state),
            upkeep,
            self._clock_ms,
            self._delivered,
        )

    def _open(self) -> sqlite3.Connection:
        directory = self.path.parent
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LogError(f"cannot make the log's directory {directory}: {error}") from error
        self._lock = Lock(directory)
        with explained(self.path, "open"):
            connection = connect_writer(self.path, self._durability)
            self._connection = connection
            self.streams = add_streams(connection, self.path, topics.ALL, self.partitions)
            self.compacted = frozenset(
                stream for part, stream in self.streams.items() if part.topic in topics.STATES
            )
            for stream in self.streams.values():
                start, end = load_bounds(connection, stream)
                # Compaction leaves gaps, also at the start, but loses nothing.
                self.state.starts[stream] = 0 if stream in self.compacted else start
                self.state.ends[stream] = end
            for group, stream, next_offset in connection.execute("SELECT * FROM committed"):
                self.state.offsets[group, stream] = next_offset
            self.state.epochs.update(connection.execute("SELECT * FROM producer"))
        return connection

    async def close(self) -> None:
        """Finish what was submitted, then let the directory go."""
        writer, self._writer = self._writer, None
        if writer is not None:
            await asyncio.to_thread(writer.stop)
        await asyncio.to_thread(self._release)

    def _release(self) -> None:
        self._readers.shutdown()
        if self._connection is not None:
            with explained(self.path, "close"):
                self._connection.close()
            self._connection = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def stream(self, topic: str, partition: int) -> int:
        """The number of a partition. Raises LogError naming what is unknown."""
        stream = self.streams.get(TopicPartition(topic, partition))
        if stream is None:
            known = any(part.topic == topic for part in self.streams)
            right = f"partitions 0..{self.partitions - 1}" if known else ", ".join(topics.ALL)
            raise LogError(f"the log has no {topic}/{partition}: expected one of {right}")
        return stream

    def parts(self, chunks: Sequence[Chunk]) -> list[Part]:
        """Chunks as the writer takes them. Raises LogError for one that no log can hold."""
        parts = []
        for topic, partition, records, data in chunks:
            if not (records > 0 and 0 < len(data) <= CHUNK_BYTES_MAX):
                raise LogError(
                    f"a chunk for {topic}/{partition} has {records} records in {len(data)} bytes: "
                    f"expected at least 1 record and at most {CHUNK_BYTES_MAX} bytes"
                )
            # Kept: live consumers get the same bytes from memory.
            parts.append(Part(self.stream(topic, partition), records, bytes(data)))
        return parts

    def offsets(self, group: str, offsets: Offsets) -> dict[tuple[str, int], int]:
        """A group's offsets as the writer takes them. Raises LogError for an unknown partition."""
        return {(group, self.stream(*part)): offset for part, offset in offsets.items()}

    async def write(self, request: Write) -> None:
        """Durable, or not written at all, also when the caller is cancelled meanwhile."""
        self._submit(request)
        try:
            await asyncio.shield(request.future)
        except asyncio.CancelledError:
            await asyncio.wait([request.future])
            request.future.exception()  # Retrieved here; the cancellation is what goes on.
            raise

    async def register(self, group: str, parts: Sequence[TopicPartition]) -> None:
        """Make a group known, so that nothing it has yet to read is trimmed."""
        streams = [self.streams[part] for part in parts]
        if any((group, stream) not in self.state.offsets for stream in streams):
            request = Register(self.future(), group, streams)
            self._submit(request)
            await request.future

    async def fence(self, transactional_id: str) -> int:
        """Take a transactional id from whoever had it; the epoch that is now valid."""
        request = Fence(self.future(), transactional_id)
        self._submit(request)
        await request.future
        return request.epoch

    async def tidy(self) -> None:
        """Do all the compaction and retention that is due."""
        request = Tidy(self.future())
        self._submit(request)
        await request.future

    def check_epoch(self, transactional_id: str, epoch: int) -> None:
        """Raises FencedError when the id has been taken again since."""
        newest = self.state.epochs[transactional_id]
        if newest != epoch:
            raise fenced(transactional_id, epoch, newest)

    def future(self) -> asyncio.Future[None]:
        """Where the answer to a request will be."""
        return asyncio.get_running_loop().create_future()

    def _submit(self, request: Request) -> None:
        if self._writer is None:
            raise LogError(f"the log {self.path} is closed")
        self._give_way.begin()
        self._writer.submit(request)

    def _delivered(self, commit: Commit) -> None:
        for stream, row in commit.rows:
            self.state.ends[stream] = row.last_offset + 1
            for follower in self.followers[stream]:
                follower.push(row)
        self.state.offsets.update(commit.offsets)
        self.state.epochs.update(commit.epochs)
        for trim in commit.trims:
            self.state.starts[trim.stream] = trim.start
        for future, error in commit.answers:
            self._give_way.end()
            if future.done():
                continue
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

    async def _run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        self._give_way.begin()
        try:
            return await loop.run_in_executor(self._readers, partial(work, *args, **kwargs))
        finally:
            self._give_way.end()

    async def read(
        self, connection: sqlite3.Connection, positions: Sequence[Position], records_max: int
    ) -> list[list[Row]]:
        """Rows at each position until `records_max` records, or READ_BYTES_MAX, are together."""

        def read() -> list[list[Row]]:
            found = []
            left, bytes_left = records_max, READ_BYTES_MAX
            for position in positions:
                rows = []
                if left > 0 and bytes_left > 0:
                    rows = read_rows(connection, position, left, bytes_left)
                left -= sum(row.last_offset - row.base_offset + 1 for row in rows)
                bytes_left -= sum(len(row.data) for row in rows)
                found.append(rows)
            return found

        with explained(self.path, "read"):
            return await self._run(read)

    async def connect(self) -> sqlite3.Connection:
        """A connection for `read`, to be given back by `disconnect`."""
        with explained(self.path, "read"):
            return await self._run(connect_reader, self.path)

    async def disconnect(self, connection: sqlite3.Connection) -> None:
        """Close a connection once no read uses it."""
        await self._run(connection.close)

    def replay(self, topic: str, partition: int, start: int) -> AsyncIterator[Fetched]:
        """Every committed record of a partition from `start` to its present end."""
        part = TopicPartition(topic, partition)
        return replay(self.path, self._readers, part, self.stream(topic, partition), start)

    def extent(self, topic: str, partition: int) -> Extent:
        """Where a partition begins and ends, as far as the loop has been told."""
        stream = self.stream(topic, partition)
        return Extent("", self.state.starts[stream], self.state.ends[stream])


async def replay(
    path: Path, readers: ThreadPoolExecutor, part: TopicPartition, stream: int, start: int
) -> AsyncIterator[Fetched]:
    """Read a partition from `start` to its end within one snapshot.

    Compaction meanwhile must not take a key's newest record before it was read and its older one
    after: the snapshot keeps all of them.
    """
    run = asyncio.get_running_loop().run_in_executor
    with explained(path, "replay"):
        connection = await run(readers, connect_reader, path)
        try:
            await run(readers, connection.execute, "BEGIN")
            _, end = await run(readers, load_bounds, connection, stream)
            while start < end:
                position = Position(stream, start, end)
                rows = await run(readers, read_rows, connection, position, REPLAY_RECORDS)
                fetched = join(part, max(start, rows[0].base_offset), rows)
                yield fetched
                start = fetched.next_offset
        finally:
            await run(readers, connection.close)


async def load_topics(path: Path, readers: ThreadPoolExecutor) -> dict[TopicPartition, int]:
    """The partitions of a log that another process may own."""

    def load() -> dict[TopicPartition, int]:
        with explained(path, "open"):
            connection = connect_reader(path)
            try:
                return load_streams(connection)
            finally:
                connection.close()

    return await asyncio.get_running_loop().run_in_executor(readers, load)


async def load_extent(path: Path, readers: ThreadPoolExecutor, stream: int) -> tuple[int, int]:
    """Where a partition of a log that another process may own begins and ends."""

    def load() -> tuple[int, int]:
        with explained(path, "read"):
            connection = connect_reader(path)
            try:
                return load_bounds(connection, stream)
            finally:
                connection.close()

    return await asyncio.get_running_loop().run_in_executor(readers, load)
