"""The replay of one partition of the Kafka log: fetched ahead, and no object for a record."""

import asyncio
from bisect import bisect_left
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from aiokafka.consumer.fetcher import (  # type: ignore[import-untyped]
    READ_COMMITTED,
    READ_UNCOMMITTED,
)
from aiokafka.protocol.fetch import FetchRequest  # type: ignore[import-untyped]
from aiokafka.structs import TopicPartition as KafkaPartition  # type: ignore[import-untyped]

from bss_stream._engine import byte_after
from bss_stream.errors import LogError
from bss_stream.log.kafka_client import KafkaOptions, translated
from bss_stream.log.kafka_fetch import (
    EARLIEST,
    FETCH_BYTES_MAX,
    LATEST,
    Page,
    look_up,
    read_page,
)
from bss_stream.log.kafka_requests import Failure, KafkaRequests, failure_of
from bss_stream.log.kafka_topic_ids import topic_id
from bss_stream.log.protocol import Extent, Fetched, TopicPartition

FETCH_WAIT_MS: Final = 25
ANSWER_TIMEOUT_S: Final = 60.0
SETTLE_S: Final = 1.0
HANGING_S: Final = 30.0
"""A transaction whose coordinator has ended it is ended in its partitions long before."""
SETTLE_PAUSE_S: Final = 0.01
EMPTY_FETCHES_MAX: Final = 3
"""So many empty answers at one offset below the end: what was there has been compacted away."""


async def extent(options: KafkaOptions, part: TopicPartition) -> Extent:
    """Where a partition begins and ends, and which incarnation of it that is. Raises LogError."""
    with translated(f"look up where {part.topic}/{part.partition} ends"):
        async with _asking(options, part, "extent") as partition, asyncio.timeout(ANSWER_TIMEOUT_S):
            incarnation = await topic_id(partition.requests, options.name(part.topic))
            start = await partition.offset(EARLIEST, READ_COMMITTED)
            end = await partition.offset(LATEST, READ_COMMITTED)
    return Extent(incarnation.hex, start, end)


async def settle(options: KafkaOptions, part: TopicPartition) -> None:
    """Return once no transaction is open in a partition. Raises LogError if one stays open.

    A broker that was cut off from its controller can have a transaction ended without its markers
    in the partitions. Whoever took the records below it for all there is would do its work again.
    """
    where = f"{part.topic}/{part.partition}"
    with translated(f"see whether transactions are open in {where}"):
        async with _asking(options, part, "settle") as partition, asyncio.timeout(ANSWER_TIMEOUT_S):
            stable, written = await partition.ends(HANGING_S)
    if stable < written:
        raise LogError(
            f"{where}: a transaction is open from offset {stable} on, {HANGING_S:g} s after its "
            "producer was replaced: Kafka has lost its end. Find it with `kafka-transactions.sh "
            "find-hanging`, end it with `abort`, then start again"
        )


async def replay(options: KafkaOptions, part: TopicPartition, start: int) -> AsyncIterator[Fetched]:
    """Every committed record from `start` to the last stable offset of now."""
    with translated(f"replay {part.topic}/{part.partition}"):
        async with _asking(options, part, "replay") as partition:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                position = max(start, await partition.offset(EARLIEST, READ_COMMITTED))
                end = await partition.stable_end()
            # Closed here when the replay is left off: a fetch may be under way.
            async with aclosing(partition.pages(position, end)) as pages:
                async for offsets, data, next_offset in pages:
                    if offsets:
                        yield Fetched(*part, offsets, data, next_offset)


@asynccontextmanager
async def _asking(
    options: KafkaOptions, part: TopicPartition, purpose: str
) -> AsyncIterator["_Partition"]:
    """A partition that its leader can be asked about."""
    requests = KafkaRequests(options, purpose)
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            await requests.open([part.topic])
        yield _Partition(requests, KafkaPartition(options.name(part.topic), part.partition))
    finally:
        await requests.close()


@dataclass(frozen=True, slots=True)
class _Partition:
    requests: KafkaRequests
    part: Any

    async def offset(self, which: int, isolation: int) -> int:
        """The first offset or the one behind the last, as `isolation` sees it."""
        return (await look_up(self.requests, [self.part], which, isolation))[self.part]

    async def stable_end(self) -> int:
        """The last stable offset, past what had been committed before this call.

        Kafka answers a commit before its markers are in the partitions. So this gives
        transactions that are open at the call a moment to end; a dead owner's may stay open for
        longer.
        """
        stable, written = await self.ends(SETTLE_S)
        return min(stable, written)

    async def ends(self, patience_s: float) -> tuple[int, int]:
        """The last stable offset, and the end that the partition had at the call; the former is the
        lesser if transactions have stayed open for `patience_s`."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + patience_s
        written = await self.offset(LATEST, READ_UNCOMMITTED)
        while True:
            stable = await self.offset(LATEST, READ_COMMITTED)
            if stable >= written or loop.time() > deadline_s:
                return stable, written
            await asyncio.sleep(SETTLE_PAUSE_S)

    async def pages(self, position: int, end: int) -> AsyncGenerator[Page, None]:
        """What is committed below `end`, the next page being fetched while one is worked on."""
        empty = 0
        coming: asyncio.Task[Page] | None = None
        try:
            while position < end and empty < EMPTY_FETCHES_MAX:
                page = await (coming or asyncio.create_task(self._page(position)))
                offsets, data, next_offset = page
                empty = empty + 1 if next_offset == position else 0
                position = next_offset
                coming = asyncio.create_task(self._page(position)) if position < end else None
                if next_offset > end:
                    below = bisect_left(offsets, end)
                    offsets, data = offsets[:below], data[: byte_after(data, below)]
                yield Page(offsets, data, min(end, next_offset))
        finally:
            if coming is not None:
                coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)

    async def _page(self, position: int) -> Page:
        found: list[Page] = []

        async def ask() -> Failure:
            topic, partition = self.part
            wanted = [(topic, [(partition, position, FETCH_BYTES_MAX)])]
            request = FetchRequest(FETCH_WAIT_MS, 1, FETCH_BYTES_MAX, READ_COMMITTED, wanted)
            answer = await self.requests.ask_leader(self.requests.leader(self.part), request)
            ((_, ((_, code, *fields),)),) = answer.topics
            failure = failure_of([code])
            if failure is None:
                found.append(await read_page(fields, position))
            return failure

        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            await self.requests.until_done(ask)
        return found[-1]
