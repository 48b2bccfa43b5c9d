"""The Kafka log's writers: the bridge's appender and the shards' transactional producers.

Records go out in batches that are built here, in the chunk's order. aiokafka counts a batch's
sequence numbers when it sends it and never takes them back, so after a batch has failed its
producer can no longer write to that partition: it is given up and replaced.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from aiokafka import AIOKafkaProducer  # type: ignore[import-untyped]
from aiokafka.errors import KafkaError  # type: ignore[import-untyped]
from aiokafka.structs import TopicPartition as KafkaPartition  # type: ignore[import-untyped]

from bss_stream._engine import unpack
from bss_stream.errors import FencedError, LogError
from bss_stream.log.kafka_client import (
    RECORD_BYTES_MAX,
    STOP_TIMEOUT_S,
    KafkaOptions,
    as_log_error,
    connecting,
    hangs_up_at_once,
    translated,
    within,
)
from bss_stream.log.protocol import Chunk, Offsets, TopicPartition

OPEN_TIMEOUT_S: Final = 60.0
APPEND_TIMEOUT_S: Final = 30.0
COMMIT_TIMEOUT_S: Final = 30.0
ABORT_TIMEOUT_S: Final = 10.0
TRANSACTION_TIMEOUT_MS: Final = 60_000
"""The broker aborts what a dead owner left; the next owner of the id does so at once."""

BATCH_BYTES_MAX: Final = 512 * 1024
"""A batch is closed before it passes this; a larger single record goes out alone."""

LANE_BYTES_MAX: Final = 2 * 1024 * 1024
"""How much of a partition's waiting appends goes out together."""

RECORD_OVERHEAD_BYTES: Final = 256
"""A batch's and a record's own fields, with room to spare."""


async def start_producer(options: KafkaOptions, role: str, **settings: Any) -> Any:
    """A started aiokafka producer with acks=all and idempotence. Raises LogError."""
    async with connecting(options, f"open the producer {role} on {options.bootstrap_servers}"):
        producer = AIOKafkaProducer(
            **options.client(role),
            acks="all",
            enable_idempotence=True,
            max_batch_size=BATCH_BYTES_MAX,
            max_request_size=RECORD_BYTES_MAX,
            **settings,
        )
        hangs_up_at_once(producer.client)
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                await producer.start()
        except BaseException:
            await stop_producer(producer)
            raise
        return producer


async def stop_producer(producer: Any) -> None:
    """End a producer, also one that aiokafka would wait for in vain while no broker answers."""
    _retrieve_failures(producer)
    if await within(STOP_TIMEOUT_S, _quietly(producer.stop())):
        return
    producer._message_accumulator.fail_all(KafkaError("the producer was given up"))
    await within(STOP_TIMEOUT_S, _quietly(producer._sender.close()))
    await within(STOP_TIMEOUT_S, _quietly(producer.client.close()))


def _retrieve_failures(producer: Any) -> None:
    """Take note of failures that aiokafka leaves in futures of its own.

    Whoever wrote has been told already; asyncio would report them once more as never retrieved.
    """
    waiting = [
        batch for queue in producer._message_accumulator._batches.values() for batch in queue
    ]
    futures = [future for batch in waiting for future in (batch.future, batch._drain_waiter)]
    if producer._txn_manager._transaction_waiter is not None:
        futures.append(producer._txn_manager._transaction_waiter)
    for future in futures:
        if future.done() and not future.cancelled():
            future.exception()


async def _quietly(stopping: Any) -> None:
    """A dead sender tells again at the end what its callers have already been told."""
    await asyncio.gather(stopping, return_exceptions=True)


def check_chunk(chunk: Chunk, partitions: int) -> list[tuple[bytes, bytes | None]]:
    """The records of a chunk. Raises LogError for what the log cannot take."""
    topic, partition, count, data = chunk
    where = f"a chunk for {topic}/{partition}"
    if not 0 <= partition < partitions:
        raise LogError(f"{where}: expected a partition of 0..{partitions - 1}")
    try:
        records = unpack(data)
    except ValueError as error:
        raise LogError(f"{where} is damaged: {error}") from error
    if not records or len(records) != count:
        raise LogError(f"{where} says {count} records and has {len(records)}: expected at least 1")
    for key, value in records:
        size = len(key) + len(value or b"") + RECORD_OVERHEAD_BYTES
        if size > RECORD_BYTES_MAX:
            raise LogError(f"{where} has a record of {size} bytes: at most {RECORD_BYTES_MAX}")
    return records


def batches(producer: Any, records: Iterable[tuple[bytes, bytes | None]]) -> list[Any]:
    """The records in as few batches as they fit into, in order."""
    built: list[Any] = []
    for key, value in records:
        if not built or built[-1].append(key=key, value=value, timestamp=None) is None:
            built.append(producer.create_batch())
            built[-1].append(key=key, value=value, timestamp=None)
    for batch in built:
        batch.close()
    return built


async def send(producer: Any, topic: str, partition: int, built: Sequence[Any]) -> None:
    """Send batches in order and wait until each is acknowledged."""
    sent = [await producer.send_batch(batch, topic, partition=partition) for batch in built]
    for failure in await asyncio.gather(*sent, return_exceptions=True):
        if isinstance(failure, BaseException):
            raise failure


class _Lane:
    """One partition's waiting appends; those that arrive during a send go out together."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[list[tuple[bytes, bytes | None]], int, Any]] = deque()
        self.task: asyncio.Task[None] | None = None


class KafkaAppender:
    """A writer without transactions: the bridge's."""

    def __init__(self, options: KafkaOptions, partitions: int) -> None:
        self._options = options
        self._partitions = partitions
        self._lanes: dict[TopicPartition, _Lane] = {}
        self._producer: Any = None
        self._opening = asyncio.Lock()
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
        checked = [(chunk, check_chunk(chunk, self._partitions)) for chunk in chunks]
        loop = asyncio.get_running_loop()
        answers = []
        for chunk, records in checked:
            answer = loop.create_future()
            part = TopicPartition(chunk.topic, chunk.partition)
            lane = self._lanes.setdefault(part, _Lane())
            lane.waiting.append((records, len(chunk.data), answer))
            if lane.task is None:
                lane.task = asyncio.create_task(self._drain(part, lane))
            answers.append(answer)
        failures = await asyncio.gather(*answers, return_exceptions=True)
        for failure in failures:
            if isinstance(failure, BaseException):
                raise failure

    async def _drain(self, part: TopicPartition, lane: _Lane) -> None:
        while lane.waiting:
            answers = []
            records: list[tuple[bytes, bytes | None]] = []
            size = 0
            while lane.waiting and size < LANE_BYTES_MAX:
                more, bytes_, answer = lane.waiting.popleft()
                records += more
                size += bytes_
                answers.append(answer)
            # Whatever it is, the callers get it: a lane that ends would keep them waiting.
            (failure,) = await asyncio.gather(self._send(part, records), return_exceptions=True)
            for answer in answers:
                if answer.done():
                    continue
                if failure is None:
                    answer.set_result(None)
                else:
                    answer.set_exception(failure)
        lane.task = None

    async def _send(
        self, part: TopicPartition, records: Sequence[tuple[bytes, bytes | None]]
    ) -> None:
        topic, partition = part
        producer = None
        try:
            with translated(f"append to {topic}/{partition}"):
                producer = await self._usable()
                async with asyncio.timeout(APPEND_TIMEOUT_S):
                    built = batches(producer, records)
                    await send(producer, self._options.name(topic), partition, built)
        except LogError:
            await self._give_up(producer)
            raise

    async def _usable(self) -> Any:
        async with self._opening:
            if self._producer is None:
                self._producer = await start_producer(self._options, "appender")
            return self._producer

    async def _give_up(self, producer: Any) -> None:
        if producer is not None and producer is self._producer:
            self._producer = None
            await stop_producer(producer)

    async def close(self) -> None:
        """Finish what was submitted, then disconnect."""
        self._closed = True
        tasks = [lane.task for lane in self._lanes.values() if lane.task is not None]
        if tasks:
            await asyncio.wait(tasks)
        await self._give_up(self._producer)


class KafkaTransaction:
    """What commits together or not at all; nothing is sent before its end."""

    def __init__(self, partitions: int) -> None:
        self._partitions = partitions
        self._ended = False
        self.records: dict[TopicPartition, list[tuple[bytes, bytes | None]]] = {}
        self.groups: dict[str, dict[TopicPartition, int]] = {}

    def append(self, chunks: Sequence[Chunk]) -> None:
        """Add records. Raises LogError for a chunk that the log cannot take."""
        self._check_open()
        for chunk in chunks:
            records = check_chunk(chunk, self._partitions)
            part = TopicPartition(chunk.topic, chunk.partition)
            self.records.setdefault(part, []).extend(records)

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
        self._producer: Any = None
        self._busy = False
        self._failure: LogError | None = None

    async def open(self) -> None:
        """Take the id: fences its older owner and ends that one's transaction."""
        self._producer = await start_producer(
            self._options,
            f"shard-{self._id}",
            transactional_id=self._options.name(self._id),
            transaction_timeout_ms=TRANSACTION_TIMEOUT_MS,
        )

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
            if transaction.records or transaction.groups:
                await self._settle(asyncio.create_task(self._commit(transaction)))
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

    async def _commit(self, transaction: KafkaTransaction) -> None:
        doing = f"commit a transaction of {self._id}"
        try:
            with translated(doing):
                async with asyncio.timeout(COMMIT_TIMEOUT_S):
                    await self._producer.begin_transaction()
                    await self._send(transaction)
                    await self._producer.commit_transaction()
        except LogError as error:
            self._failure = error
            await within(ABORT_TIMEOUT_S, _quietly(self._abort()))
            raise

    async def _send(self, transaction: KafkaTransaction) -> None:
        """Send everything and see every acknowledgement.

        aiokafka commits a transaction of which a batch was refused, so none may be overlooked.
        """
        work = [
            send(
                self._producer,
                self._options.name(topic),
                partition,
                batches(self._producer, records),
            )
            for (topic, partition), records in transaction.records.items()
        ]
        outcomes = await asyncio.gather(
            *work, self._send_offsets(transaction), return_exceptions=True
        )
        failures = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        for failure in failures:
            # The sender's end fails everything at once; that it was fenced is the reason.
            if isinstance(as_log_error("", failure), FencedError):
                raise failure
        if failures:
            raise failures[0]

    async def _send_offsets(self, transaction: KafkaTransaction) -> None:
        name = self._options.name
        for group, offsets in transaction.groups.items():
            named = {KafkaPartition(name(t), p): offset for (t, p), offset in offsets.items()}
            await self._producer.send_offsets_to_transaction(named, name(group))

    async def _abort(self) -> None:
        await self._producer.abort_transaction()

    async def close(self) -> None:
        """Disconnect; the id can be taken again at any time."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await stop_producer(producer)
