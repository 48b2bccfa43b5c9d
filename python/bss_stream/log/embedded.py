"""The embedded log: the log protocol on one SQLite file, for one process and no server."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

from bss_stream.clock import epoch_ms
from bss_stream.errors import LogError
from bss_stream.log.embedded_consumer import EmbeddedConsumer
from bss_stream.log.embedded_follow import follow
from bss_stream.log.embedded_store import Store, load_extent, load_topics, replay
from bss_stream.log.groups import Group
from bss_stream.log.protocol import (
    Chunk,
    Extent,
    Fetched,
    Offsets,
    RebalanceListener,
    TopicPartition,
)
from bss_stream.log.sqlite_file import FILE, Durability
from bss_stream.log.sqlite_upkeep import Policy
from bss_stream.log.sqlite_writer import Part, Write

__all__ = ["Durability", "EmbeddedLog", "EmbeddedReader", "Policy"]


class EmbeddedLog:
    """A log in a directory of its own, which one process at a time owns.

    Used from one event loop, which it never blocks: SQLite runs in threads.
    """

    def __init__(
        self,
        directory: Path,
        *,
        partitions: int,
        durability: Durability = "power",
        policy: Policy | None = None,
        clock_ms: Callable[[], int] = epoch_ms,
    ) -> None:
        """`open` makes the directory; `clock_ms` stamps chunks and tells their age."""
        self.partitions = partitions
        self._store = Store(directory / FILE, partitions, durability, policy or Policy(), clock_ms)
        self._groups: dict[str, Group] = {}
        self._consumers: list[EmbeddedConsumer] = []

    @staticmethod
    def read_only(directory: Path) -> "EmbeddedReader":
        """The log as another process may see it, also while its owner runs."""
        return EmbeddedReader(directory)

    async def open(self) -> None:
        """Take the directory's lock, open the file and create the topics that are missing.

        Raises LogError when another process has the log, or it has other partitions.
        """
        await self._store.open()

    async def appender(self) -> "EmbeddedAppender":
        """A writer without transactions. What one `append` call gets is kept whole or not."""
        return EmbeddedAppender(self._store)

    async def consumer(
        self, group: str, topics: Sequence[str], listener: RebalanceListener | None = None
    ) -> EmbeddedConsumer:
        """Join a group; partitions come with a later poll. Registers the group for retention."""
        await self._store.register(
            group,
            [TopicPartition(topic, part) for topic in topics for part in range(self.partitions)],
        )
        members = self._groups.setdefault(group, Group(self.partitions))
        consumer = EmbeddedConsumer(self._store, members, group, tuple(topics), listener)
        self._consumers = [*(other for other in self._consumers if not other.closed), consumer]
        members.join(consumer)
        return consumer

    async def transactional_producer(self, transactional_id: str) -> "EmbeddedProducer":
        """The writer of a shard; from here on an older one with this id is fenced."""
        epoch = await self._store.fence(transactional_id)
        return EmbeddedProducer(self._store, transactional_id, epoch)

    def replay(self, topic: str, partition: int, start: int = 0) -> AsyncIterator[Fetched]:
        """Every committed record of a partition from `start` to its present end, then stop."""
        return self._store.replay(topic, partition, start)

    async def extent(self, topic: str, partition: int) -> Extent:
        """Where a partition begins and ends by now."""
        return self._store.extent(topic, partition)

    async def tidy(self) -> None:
        """Compact and trim now what is due; otherwise the writer does it between commits."""
        await self._store.tidy()

    async def close(self) -> None:
        """Close the consumers that are left, finish what was submitted, release the directory."""
        try:
            for consumer in self._consumers:
                await consumer.close()
        finally:
            for group in self._groups.values():
                await group.close()
            await self._store.close()


class EmbeddedAppender:
    """A writer without transactions: the bridge's."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def append(self, chunks: Sequence[Chunk]) -> None:
        """Return once every record is durable. Raises LogError, and then none was kept."""
        await self._store.write(Write(self._store.future(), self._store.parts(chunks)))

    async def close(self) -> None:
        """Nothing to let go: every append has already been answered."""


class EmbeddedTransaction:
    """What commits together or not at all."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._parts: list[Part] = []
        self._offsets: dict[tuple[str, int], int] = {}
        self._ended = False

    def append(self, chunks: Sequence[Chunk]) -> None:
        """Add records. Raises LogError for a chunk that no log can hold."""
        self._check_open()
        self._parts += self._store.parts(chunks)

    def offsets(self, group: str, offsets: Offsets) -> None:
        """Add the inputs' offsets of a consumer group."""
        self._check_open()
        self._offsets |= self._store.offsets(group, offsets)

    def _check_open(self) -> None:
        if self._ended:
            raise LogError("this transaction has ended: open another one")

    def end(self) -> tuple[list[Part], dict[tuple[str, int], int]]:
        """All that was added; nothing can be added any more."""
        self._ended = True
        return self._parts, self._offsets


class EmbeddedProducer:
    """The one writer of a shard; a newer one with the same id fences it."""

    def __init__(self, store: Store, transactional_id: str, epoch: int) -> None:
        self._store = store
        self._transactional_id = transactional_id
        self._epoch = epoch
        self._busy = False
        self._closed = False

    @property
    def ends(self) -> Mapping[TopicPartition, int]:
        """Not told: a log that is a local file is not copied into checkpoints."""
        return {}

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[EmbeddedTransaction]:
        """Commit on a clean exit, abort on an exception (which is raised on).

        Raises FencedError on entry or exit once another producer holds the id. A cancellation
        that arrives during the commit waits for its outcome, so none is under way afterwards.
        """
        if self._busy or self._closed:
            state = "in a transaction" if self._busy else "closed"
            raise LogError(f"the producer {self._transactional_id} is {state}")
        self._store.check_epoch(self._transactional_id, self._epoch)
        self._busy = True
        transaction = EmbeddedTransaction(self._store)
        try:
            yield transaction
            parts, offsets = transaction.end()
            producer = (self._transactional_id, self._epoch)
            await self._store.write(Write(self._store.future(), parts, offsets, producer))
        finally:
            transaction.end()
            self._busy = False

    async def close(self) -> None:
        """End this producer; its id can be taken again at any time."""
        self._closed = True


class EmbeddedReader:
    """Another process's view of a log: committed records, and nothing that changes it."""

    def __init__(self, directory: Path) -> None:
        self.partitions = 0
        self._path = directory / FILE
        self._readers = ThreadPoolExecutor(1, thread_name_prefix="bss-log-replay")
        self._streams: dict[TopicPartition, int] = {}

    async def open(self) -> None:
        """Read which topics there are. Raises LogError when there is no log."""
        self._streams = await load_topics(self._path, self._readers)
        self.partitions = 1 + max((part.partition for part in self._streams), default=-1)

    def replay(self, topic: str, partition: int, start: int = 0) -> AsyncIterator[Fetched]:
        """Every committed record of a partition from `start` to its present end, then stop."""
        part = TopicPartition(topic, partition)
        return replay(self._path, self._readers, part, self._stream(part), start)

    async def extent(self, topic: str, partition: int) -> Extent:
        """Where a partition begins and ends by now. Raises LogError."""
        stream = self._stream(TopicPartition(topic, partition))
        return Extent("", *await load_extent(self._path, self._readers, stream))

    def follow(self, starts: Offsets) -> AsyncGenerator[Fetched, None]:
        """Records of these partitions from these offsets on, as the log's owner commits them."""
        streams = {part: self._stream(part) for part in starts}
        return follow(self._path, self._readers, streams, starts)

    def _stream(self, part: TopicPartition) -> int:
        stream = self._streams.get(part)
        if stream is None:
            raise LogError(
                f"the log {self._path} has no {part.topic}/{part.partition}: it has "
                f"{self.partitions} partitions of "
                f"{', '.join(sorted({part.topic for part in self._streams}))}"
            )
        return stream

    async def close(self) -> None:
        """End the reading thread."""
        self._readers.shutdown(wait=False)
