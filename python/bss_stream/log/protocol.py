"""What the pipeline needs of a log, whichever backend keeps it.

Records travel in chunks (rust/engine/src/core/chunk.rs): `_engine.pack` and `_engine.unpack`
convert. Every topic of one log has the same number of partitions.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol


class TopicPartition(NamedTuple):
    """One partition of one topic."""

    topic: str
    partition: int


class Chunk(NamedTuple):
    """Records to append to one partition, in order."""

    topic: str
    partition: int
    records: int
    data: bytes | memoryview


class Fetched(NamedTuple):
    """Records read from one partition, in offset order.

    Offsets may have gaps (transaction markers, compaction), so each record has its own.
    `next_offset` is where reading goes on: past the last record, and past any gap behind it.
    """

    topic: str
    partition: int
    offsets: Sequence[int]
    data: bytes
    next_offset: int


class Extent(NamedTuple):
    """What a partition holds: its first offset, and the one behind all that is committed.

    Offsets mean the same only within one `incarnation`, which a topic that is made anew does not
    share with the old one. It is empty for a log that is itself a local file: there is nothing to
    be won by keeping a copy of what it holds.
    """

    incarnation: str
    start: int
    end: int


Offsets = Mapping[TopicPartition, int]
"""The next offset to read, by partition."""


class RebalanceListener(Protocol):
    """Told of partitions won and lost; the consumer waits for both calls to return.

    At every change of members each of them loses all it owns and then wins its new share. Within
    `on_revoked` the partitions are still owned, so their offsets can be committed; within
    `on_assigned` they are already owned, so they can be sought. Never called with no partitions.

    The committed offsets are looked up after `on_assigned` has returned. So open the shards'
    transactional producers within it: that ends what the former owner had under way, and the
    offsets are then the last word.
    """

    async def on_revoked(self, partitions: Sequence[TopicPartition]) -> None: ...

    async def on_assigned(self, partitions: Sequence[TopicPartition]) -> None: ...


class Consumer(Protocol):
    """A member of a consumer group; reads committed records only."""

    async def poll(self, records_max: int, timeout_s: float) -> list[Fetched]:
        """Wait until something can be read or `timeout_s` has passed.

        Starts each partition at the group's committed offset, or at the beginning of the log.
        Raises OffsetOutOfRangeError when a committed offset lies below the log's start (on Kafka,
        which forgets the offsets of a group long without members, also when there is none and the
        start was trimmed), and what the listener raised if it failed. One task polls;
        `records_max` is kept roughly (a backend may hand out whole chunks).
        """

    def assignment(self) -> frozenset[TopicPartition]:
        """The partitions that this member owns now."""

    async def commit(self, offsets: Offsets) -> None:
        """Commit outside a transaction (at least once: the publisher's way).

        Raises LogError for a partition that this member does not own (any more).
        """

    async def seek(self, offsets: Offsets) -> None:
        """Read on from these offsets."""

    async def lag(self) -> dict[TopicPartition, int]:
        """Records between this member's position and the end, of whatever is committed by now.

        Has the owned partitions whose position is known, so nothing during a rebalance. On Kafka
        all that is written counts until a poll has passed it: a transaction's marker, and the
        records of a transaction that is not over.
        """

    async def close(self) -> None:
        """Leave the group; `on_revoked` is awaited for what this member still owns."""


class Transaction(Protocol):
    """What commits together or not at all; used only within its `async with`."""

    def append(self, chunks: Sequence[Chunk]) -> None:
        """Add records."""

    def offsets(self, group: str, offsets: Offsets) -> None:
        """Add the inputs' offsets of a consumer group."""


class TransactionalProducer(Protocol):
    """The one writer of a shard; opening a second with the same id fences the first."""

    @property
    def ends(self) -> Mapping[TopicPartition, int]:
        """The offset behind the last record that this producer has committed to a partition, as
        far as the log has told."""

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """Commit on a clean exit, abort on an exception (which is raised on).

        Raises FencedError on entry or exit once another producer holds the id. Once an exit has
        raised LogError the outcome may be unknown: close the producer, open another one with the
        same id (which settles it) and go on from what the log then has.
        """

    async def close(self) -> None: ...


class Appender(Protocol):
    """A writer without transactions: the bridge's."""

    async def append(self, chunks: Sequence[Chunk]) -> None:
        """Return once every record is durable in the log; raise LogError otherwise."""

    async def close(self) -> None: ...


class ReadableLog(Protocol):
    """What an audit needs: every committed record, and nothing that changes the log."""

    partitions: int
    """Known once `open` has returned."""

    async def open(self) -> None:
        """Connect. Raises LogError when the log is not there or does not fit."""

    def replay(self, topic: str, partition: int, start: int = 0) -> AsyncIterator[Fetched]:
        """Every committed record of a partition from `start`, or its own start if that is later,
        to its present end, then stop."""

    async def close(self) -> None:
        """Let the log go."""


class FollowableLog(ReadableLog, Protocol):
    """What whoever looks on needs: a log to be read from anywhere, and then as it grows."""

    async def extent(self, topic: str, partition: int) -> Extent:
        """Where a partition begins and ends by now. Raises LogError."""

    def follow(self, starts: Offsets) -> AsyncGenerator[Fetched, None]:
        """Every committed record of these partitions from these offsets on, then what comes.

        In no consumer group, so nobody is disturbed and nothing kept back. It ends by being
        closed. Raises LogError.
        """


class Log(ReadableLog, Protocol):
    """A set of topics, each with `partitions` partitions."""

    async def open(self) -> None:
        """Connect and create the topics that are missing (topics.ALL), compacted or not."""

    async def appender(self) -> Appender: ...

    async def consumer(
        self, group: str, topics: Sequence[str], listener: RebalanceListener | None = None
    ) -> Consumer: ...

    async def transactional_producer(self, transactional_id: str) -> TransactionalProducer: ...

    async def extent(self, topic: str, partition: int) -> Extent:
        """Where a partition begins and ends by now. Raises LogError."""


LogFactory = Callable[[], Awaitable[Log]]
