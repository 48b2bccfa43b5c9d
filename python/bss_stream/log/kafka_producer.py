"""The Kafka log's writers: the bridge's appender and the shards' transactional producers.

A producer's sequence numbers are never taken back, so after a batch has failed it can no longer
write to that partition: it is given up and replaced.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from aiokafka.structs import TopicPartition as KafkaPartition  # type: ignore[import-untyped]

from bss_stream import topics
from bss_stream._engine import measure
from bss_stream.errors import FencedError, LogError
from bss_stream.log.kafka_client import (
    RECORD_BYTES_MAX,
    KafkaOptions,
    as_log_error,
    connecting,
    quietly,
    translated,
    within,
)
from bss_stream.log.kafka_requests import KafkaRequests
from bss_stream.log.kafka_transactions import IdempotentProducer
from bss_stream.log.protocol import Chunk, Offsets, TopicPartition

OPEN_TIMEOUT_S: Final = 60.0
APPEND_TIMEOUT_S: Final = 30.0
ABORT_TIMEOUT_S: Final = 2.0

ROUND_BYTES_MAX: Final = 8 * 1024 * 1024
"""How much of what waits at an appender goes out together."""

RECORD_OVERHEAD_BYTES: Final = 768
"""A batch's and a record's own fields and headers, with room to spare."""


def check_chunk(chunk: Chunk, partitions: int) -> None:
    """Raises LogError for what the log cannot take."""
    topic, partition, count, data = chunk
    where = f"a chunk for {topic}/{partition}"
    if topic not in topics.ALL or not 0 <= partition < partitions:
        raise LogError(
            f"{where}: expected a partition of 0..{partitions - 1} of {', '.join(topics.ALL)}"
        )
    try:
        records, largest = measure(data)
    except ValueError as error:
        raise LogError(f"{where} is damaged: {error}") from error
    if not records or records != count:
        raise LogError(f"{where} says {count} records and has {records}: expected at least 1")
    if largest + RECORD_OVERHEAD_BYTES > RECORD_BYTES_MAX:
        raise LogError(f"{where} has a record of {largest} bytes: at most {RECORD_BYTES_MAX}")


class _Producer:
    """An idempotent producer with connections of its own."""

    def __init__(self, options: KafkaOptions, role: str, transactional_id: str | None) -> None:
        self._options = options
        self._role = role
        self._requests = KafkaRequests(options, role)
        events = self._event if options.cloudevents else None
        self.writes = IdempotentProducer(self._requests, transactional_id, events)

    def _event(self, part: Any) -> tuple[str, str]:
        """The source of a partition's events, and what their types begin with."""
        topic = part.topic.removeprefix(self._options.topic_prefix)
        return f"/{part.topic}/{part.partition}", topic

    async def open(self) -> None:
        """Connect and get a producer id. Raises LogError."""
        where = self._options.bootstrap_servers
        async with connecting(self._options, f"open the producer {self._role} on {where}"):
            try:
                async with asyncio.timeout(OPEN_TIMEOUT_S):
                    await self._requests.open(topics.ALL)
                    await self.writes.open()
            except BaseException:
                await self._requests.close()
                raise

    def named(
        self, data: Mapping[TopicPartition, Sequence[bytes | memoryview]]
    ) -> dict[Any, bytes]:
        """The chunks of each partition as one, under the partition's name on the cluster."""
        name = self._options.name
        return {KafkaPartition(name(t), p): b"".join(parts) for (t, p), parts in data.items()}

    async def close(self) -> None:
        """Disconnect."""
        await self._requests.close()


class _Append:
    """What one call brings, and what it is told."""

    def __init__(self, chunks: Sequence[Chunk]) -> None:
        self.chunks = chunks
        self.size = sum(len(chunk.data) for chunk in chunks)
        self.answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def tell(self, failure: BaseException | None) -> None:
        """Answer, unless the caller has gone away."""
        if self.answer.done():
            return
        if failure is None:
            self.answer.set_result(None)
        else:
            self.answer.set_exception(failure)


class KafkaAppender:
    """A writer without transactions: the bridge's. What waits during a send goes out together."""

    def __init__(self, options: KafkaOptions, partitions: int) -> None:
        self._options = options
        self._partitions = partitions
        self._waiting: deque[_Append] = deque()
        self._task: asyncio.Task[None] | None = None
        self._producer: _Producer | None = None
        self._closed = False

    async def open(self) -> None:
        """Connect. Raises LogError."""
        await self._usable()

    async def append(self, chunks: Sequence[Chunk]) -> None:
        """Return once every record is acknowledged. Raises LogError otherwise.

        After an error some of the records may be in the log all the same. Appends to one
        partition keep the order of the calls.
        """
        if self._closed:
            raise LogError("this appender is closed")
        for chunk in chunks:
            check_chunk(chunk, self._partitions)
        append = _Append(chunks)
        self._waiting.append(append)
        if self._task is None:
            self._task = asyncio.create_task(self._drain())
        await append.answer

    async def _drain(self) -> None:
        while self._waiting:
            taken = [self._waiting.popleft()]
            size = taken[0].size
            while self._waiting and size + self._waiting[0].size <= ROUND_BYTES_MAX:
                taken.append(self._waiting.popleft())
                size += taken[-1].size
            await self._send(taken)
        self._task = None

    async def _send(self, appends: Sequence[_Append]) -> None:
        data: dict[TopicPartition, list[bytes | memoryview]] = {}
        for append in appends:
            for chunk in append.chunks:
                part = TopicPartition(chunk.topic, chunk.partition)
                data.setdefault(part, []).append(chunk.data)
        # Whatever it is, the callers get it: a task that ends would keep them waiting.
        (outcome,) = await asyncio.gather(self._produce(data), return_exceptions=True)
        for append in appends:
            if isinstance(outcome, BaseException):
                append.tell(outcome)
                continue
            parts = (TopicPartition(c.topic, c.partition) for c in append.chunks)
            append.tell(next((outcome[part] for part in parts if part in outcome), None))

    async def _produce(
        self, data: Mapping[TopicPartition, Sequence[bytes | memoryview]]
    ) -> dict[TopicPartition, LogError]:
        """Send; returns what was refused, by partition. Raises LogError if it is unknown."""
        doing = "append to " + ", ".join(f"{topic}/{partition}" for topic, partition in data)
        try:
            with translated(doing):
                producer = await self._usable()
                async with asyncio.timeout(APPEND_TIMEOUT_S):
                    named = producer.named(data)
                    refused = await producer.writes.produce(named)
        except LogError:
            await self._give_up()
            raise
        if refused:
            await self._give_up()
        parts = dict(zip(named, data, strict=True))
        return {
            parts[part]: as_log_error(f"append to {parts[part].topic}/{parts[part].partition}", why)
            for part, why in refused.items()
        }

    async def _usable(self) -> _Producer:
        if self._producer is None:
            producer = _Producer(self._options, "appender", None)
            await producer.open()
            self._producer = producer
        return self._producer

    async def _give_up(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            await producer.close()

    async def close(self) -> None:
        """Finish what was submitted, then disconnect."""
        self._closed = True
        if self._task is not None:
            await asyncio.wait([self._task])
        await self._give_up()


class KafkaTransaction:
    """What commits together or not at all; nothing is sent before its end."""

    def __init__(self, partitions: int) -> None:
        self._partitions = partitions
        self._ended = False
        self.data: dict[TopicPartition, list[bytes | memoryview]] = {}
        self.groups: dict[str, dict[TopicPartition, int]] = {}

    def append(self, chunks: Sequence[Chunk]) -> None:
        """Add records. Raises LogError for a chunk that the log cannot take."""
        self._check_open()
        for chunk in chunks:
            check_chunk(chunk, self._partitions)
            part = TopicPartition(chunk.topic, chunk.partition)
            self.data.setdefault(part, []).append(chunk.data)

    def offsets(self, group: str, offsets: Offsets) -> None:
        """Add the inputs' offsets of a consumer group."""
        self._check_open()
        if offsets:
            self.groups.setdefault(group, {}).update(offsets)

    def _check_open(self) -> None:
        if self._ended:
            raise LogError("this transaction has ended: open another one")

    def end(self) -> None:
        """Nothing can be added any more."""
        self._ended = True


class KafkaTransactionalProducer:
    """The one writer of a shard; a newer one with the same id fences it.

    After a transaction has failed at its end this producer is of no use any more: close it and
    open another, which also settles what the failed one left.
    """

    def __init__(self, options: KafkaOptions, partitions: int, transactional_id: str) -> None:
        self._options = options
        self._partitions = partitions
        self._id = transactional_id
        self._producer: _Producer | None = None
        self._busy = False
        self._failure: LogError | None = None
        self._ends: dict[TopicPartition, int] = {}

    @property
    def ends(self) -> Mapping[TopicPartition, int]:
        """The offset behind the last record committed to a partition, as far as it was told."""
        return self._ends

    async def open(self) -> None:
        """Take the id: fences its older owner and ends that one's transaction."""
        producer = _Producer(self._options, f"shard-{self._id}", self._options.name(self._id))
        await producer.open()
        self._producer = producer

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[KafkaTransaction]:
        """Commit on a clean exit, abort on an exception (which is raised on).

        Raises FencedError on entry or exit once another producer holds the id. A cancellation
        that arrives during the commit waits for its outcome, so none is under way afterwards.
        """
        if self._failure is not None:
            raise self._again(self._failure)
        if self._busy or self._producer is None:
            state = "in a transaction" if self._busy else "closed"
            raise LogError(f"the producer {self._id} is {state}")
        self._busy = True
        transaction = KafkaTransaction(self._partitions)
        try:
            # Nothing reaches Kafka before the clean exit, so an exception has nothing to abort.
            yield transaction
            transaction.end()
            if transaction.data or transaction.groups:
                commit = self._commit(self._producer, transaction)
                await self._settle(asyncio.create_task(commit))
        finally:
            transaction.end()
            self._busy = False

    def _again(self, failure: LogError) -> LogError:
        kind = FencedError if isinstance(failure, FencedError) else LogError
        return kind(f"the producer {self._id} failed before: {failure}")

    async def _settle(self, commit: asyncio.Task[None]) -> None:
        try:
            await asyncio.shield(commit)
        except asyncio.CancelledError:
            await asyncio.wait([commit])
            commit.exception()  # Retrieved here; the cancellation is what goes on.
            raise

    async def _commit(self, producer: _Producer, transaction: KafkaTransaction) -> None:
        name = self._options.name
        groups = {
            name(group): {KafkaPartition(name(t), p): offset for (t, p), offset in offsets.items()}
            for group, offsets in transaction.groups.items()
        }
        try:
            with translated(f"commit a transaction of {self._id}"):
                async with asyncio.timeout(self._options.commit_timeout_ms / 1000):
                    named = producer.named(transaction.data)
                    await producer.writes.commit(named, groups)
        except LogError as error:
            self._failure = error
            # So that readers need not wait until the id is taken again, which settles it as well.
            await within(ABORT_TIMEOUT_S, quietly(producer.writes.abort()))
            raise
        for part, named_part in zip(transaction.data, named, strict=True):
            self._ends[part] = producer.writes.ends.get(named_part, 0)

    async def close(self) -> None:
        """Disconnect; the id can be taken again at any time."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await producer.close()
