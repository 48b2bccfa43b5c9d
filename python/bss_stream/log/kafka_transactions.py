"""An idempotent Kafka producer: records in order and once, and transactions of three round trips.

A transaction's records and offsets are all known when it is sent. So all its partitions are made
known to the coordinator in one request and the group beside it; then all records go out, and the
offsets beside them; then it ends.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final

from aiokafka import errors  # type: ignore[import-untyped]
from aiokafka.protocol.produce import ProduceRequest  # type: ignore[import-untyped]
from aiokafka.protocol.transaction import (  # type: ignore[import-untyped]
    AddOffsetsToTxnRequest,
    AddPartitionsToTxnRequest,
    EndTxnRequest,
    InitProducerIdRequest,
    TxnOffsetCommitRequest,
)
from aiokafka.structs import TopicPartition as KafkaPartition  # type: ignore[import-untyped]

from bss_stream._engine import sequence_after, write_batches
from bss_stream.clock import epoch_ms
from bss_stream.log.kafka_client import REQUEST_TIMEOUT_MS
from bss_stream.log.kafka_requests import Failure, KafkaRequests, failure_of, is_passing

ACKS_ALL: Final = -1
BATCH_BYTES_MAX: Final = 512 * 1024
"""A batch is closed before it passes this; a larger single record goes out alone."""

REQUEST_BYTES_MAX: Final = 8 * 1024 * 1024
TRANSACTION_TIMEOUT_MS: Final = 60_000
"""The broker aborts what a dead owner left; the next owner of the id does so at once."""

Chunks = Mapping[Any, bytes]
"""Packed records by aiokafka's partition."""

Batch = tuple[int, bytes]
"""How many records, and their batch."""

GroupOffsets = Mapping[str, Mapping[Any, int]]
"""The next offsets to read, by group and aiokafka's partition."""


class IdempotentProducer:
    """One life of a producer id, up to its first failure: then nothing more can be written to a
    partition of which a batch was refused, and another one has to be opened."""

    def __init__(
        self,
        requests: KafkaRequests,
        transactional_id: str | None = None,
        events: Callable[[Any], tuple[str, str]] | None = None,
    ) -> None:
        """With `events`, which knows a partition's CloudEvents source and what its types begin
        with, records have CloudEvents headers."""
        self._requests = requests
        self._id = transactional_id
        self._events = events
        self._producer = (-1, -1)
        self._sequences: dict[Any, int] = {}
        self.ends: dict[Any, int] = {}
        """The offset behind the last batch of each partition, as far as it was told."""

    async def open(self) -> None:
        """Get a producer id; with a transactional id, fence its older owner and end what that one
        had under way."""
        await self._requests.until_done(self._init)

    async def _init(self) -> Failure:
        request = InitProducerIdRequest(self._id, TRANSACTION_TIMEOUT_MS)
        answer = await self._ask_coordinator(request)
        failure = failure_of([answer.error_code])
        if failure is None:
            self._producer = (answer.producer_id, answer.producer_epoch)
        return failure

    async def _ask_coordinator(self, request: Any) -> Any:
        if self._id is None:
            return await self._requests.ask_any(request)
        return await self._requests.ask_transactions(self._id, request)

    async def produce(self, chunks: Chunks) -> dict[Any, BaseException]:
        """Send records and see every acknowledgement; returns what was refused, by partition."""
        refused: dict[Any, BaseException] = {}
        waiting = {part: self._batches(part, data) for part, data in chunks.items()}
        while waiting:
            await self._requests.until_done(partial(self._send_first, waiting, refused))
        return refused

    def _batches(self, part: Any, data: bytes) -> deque[Batch]:
        first = self._sequences.get(part, 0)
        batches = write_batches(
            data,
            producer=self._producer,
            base_sequence=first,
            transactional=self._id is not None,
            timestamp_ms=epoch_ms(),
            bytes_max=BATCH_BYTES_MAX,
            events=None if self._events is None else self._events(part),
        )
        self._sequences[part] = sequence_after(first, sum(records for records, _ in batches))
        return deque(batches)

    async def _send_first(
        self, waiting: dict[Any, deque[Batch]], refused: dict[Any, BaseException]
    ) -> Failure:
        """Send each partition's first batch, of as many as fit into one request a broker."""
        by_leader: dict[int, list[Any]] = {}
        sizes: dict[int, int] = {}
        for part, batches in waiting.items():
            leader = self._requests.leader(part)
            sizes[leader] = sizes.get(leader, 0) + len(batches[0][1])
            if leader not in by_leader or sizes[leader] <= REQUEST_BYTES_MAX:
                by_leader.setdefault(leader, []).append(part)
        sending = [
            self._send_to(leader, {part: waiting[part][0] for part in parts})
            for leader, parts in by_leader.items()
        ]
        passing: Failure = None
        for answered in await asyncio.gather(*sending):
            for part, failure in answered.items():
                if failure is not None and is_passing(failure):
                    passing = failure
                    continue
                waiting[part].popleft()
                if failure is not None:
                    refused[part] = failure
                if failure is not None or not waiting[part]:
                    del waiting[part]
        return passing

    async def _send_to(self, leader: int, batches: Mapping[Any, Batch]) -> dict[Any, Failure]:
        topics: dict[str, list[tuple[int, bytes]]] = {}
        for part, (_, batch) in batches.items():
            topics.setdefault(part.topic, []).append((part.partition, batch))
        request = ProduceRequest(self._id, ACKS_ALL, REQUEST_TIMEOUT_MS, list(topics.items()))
        try:
            answer = await self._requests.ask_leader(leader, request)
        except errors.KafkaError as failure:
            return dict.fromkeys(batches, failure)
        outcomes = {}
        for topic, partitions in answer.topics:
            for partition, code, base_offset, *_ in partitions:
                part = KafkaPartition(topic, partition)
                outcomes[part] = _refusal(code)
                # Below 0 where the broker remembers a batch only by its sequence numbers.
                if outcomes[part] is None and base_offset >= 0:
                    self.ends[part] = base_offset + batches[part][0]
        return outcomes

    async def commit(self, chunks: Chunks, groups: GroupOffsets) -> None:
        """Write records and offsets in one transaction; nothing of it is there if this raises an
        answer of the broker's, and nobody knows if it raises for want of one."""
        await _all(
            self._repeat(self._add_partitions, list(chunks)),
            *(self._repeat(self._add_group, group) for group in groups),
        )
        await _all(
            self._produce_all(chunks),
            *(self._repeat(self._commit_offsets, *group) for group in groups.items()),
        )
        await self._repeat(self._end, True)

    async def abort(self) -> None:
        """End a transaction that has failed."""
        await self._repeat(self._end, False)

    async def _repeat(self, attempt: Any, *arguments: Any) -> None:
        await self._requests.until_done(partial(attempt, *arguments))

    async def _produce_all(self, chunks: Chunks) -> None:
        refused = await self.produce(chunks)
        # The sequence breaks off at a partition that was fenced, too: that it was is the reason.
        fenced = (f for f in refused.values() if isinstance(f, errors.InvalidProducerEpoch))
        failure = next(fenced, next(iter(refused.values()), None))
        if failure is not None:
            raise failure

    async def _add_partitions(self, parts: list[Any]) -> Failure:
        if not parts:
            return None
        topics: dict[str, list[int]] = {}
        for part in parts:
            topics.setdefault(part.topic, []).append(part.partition)
        request = AddPartitionsToTxnRequest(self._id, *self._producer, list(topics.items()))
        answer = await self._ask_coordinator(request)
        return failure_of(code for _, partitions in answer.errors for _, code in partitions)

    async def _add_group(self, group: str) -> Failure:
        request = AddOffsetsToTxnRequest(self._id, *self._producer, group)
        answer = await self._ask_coordinator(request)
        return failure_of([answer.error_code])

    async def _commit_offsets(self, group: str, offsets: Mapping[Any, int]) -> Failure:
        topics: dict[str, list[tuple[int, int, str]]] = {}
        for part, offset in offsets.items():
            topics.setdefault(part.topic, []).append((part.partition, offset, ""))
        request = TxnOffsetCommitRequest(self._id, group, *self._producer, list(topics.items()))
        answer = await self._requests.ask_group(group, request)
        return failure_of(code for _, partitions in answer.errors for _, code in partitions)

    async def _end(self, commit: bool) -> Failure:
        request = EndTxnRequest(self._id, *self._producer, commit)
        return failure_of([(await self._ask_coordinator(request)).error_code])


def _refusal(code: int) -> Failure:
    kind = errors.for_code(code)
    # A batch whose acknowledgement was lost, and which is there already.
    if kind is errors.NoError or kind is errors.DuplicateSequenceNumber:
        return None
    failure: Failure = kind()
    return failure


async def _all(*work: Awaitable[None]) -> None:
    """Await all; the first to fail stops the others, and is raised."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
