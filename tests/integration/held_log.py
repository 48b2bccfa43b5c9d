"""A real log that keeps its consumers waiting: for entry, or for what there is to read."""

import asyncio
from collections.abc import AsyncIterator, Sequence

from bss_stream.log.protocol import (
    Appender,
    Consumer,
    Extent,
    Fetched,
    Log,
    Offsets,
    RebalanceListener,
    TopicPartition,
    TransactionalProducer,
)


class HeldLog:
    """Another log, with two gates that are open at first."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.partitions = log.partitions
        self.joining = asyncio.Event()
        self.joining.set()
        """While cleared nobody joins a group."""
        self.reading = asyncio.Event()
        self.reading.set()
        """While cleared the group moves on, and no position is known: as in a rebalance."""

    async def open(self) -> None:
        await self._log.open()

    def replay(self, topic: str, partition: int, start: int = 0) -> AsyncIterator[Fetched]:
        return self._log.replay(topic, partition, start)

    async def settle(self, topic: str, partition: int) -> None:
        await self._log.settle(topic, partition)

    async def extent(self, topic: str, partition: int) -> Extent:
        return await self._log.extent(topic, partition)

    async def close(self) -> None:
        await self._log.close()

    async def appender(self) -> Appender:
        return await self._log.appender()

    async def consumer(
        self, group: str, topics: Sequence[str], listener: RebalanceListener | None = None
    ) -> Consumer:
        await self.joining.wait()
        return _HeldConsumer(await self._log.consumer(group, topics, listener), self.reading)

    async def transactional_producer(self, transactional_id: str) -> TransactionalProducer:
        return await self._log.transactional_producer(transactional_id)


class _HeldConsumer:
    def __init__(self, consumer: Consumer, reading: asyncio.Event) -> None:
        self._consumer = consumer
        self._reading = reading

    async def poll(self, records_max: int, timeout_s: float) -> list[Fetched]:
        if self._reading.is_set():
            return await self._consumer.poll(records_max, timeout_s)
        await asyncio.sleep(timeout_s)
        return []

    async def lag(self) -> dict[TopicPartition, int]:
        return await self._consumer.lag() if self._reading.is_set() else {}

    def assignment(self) -> frozenset[TopicPartition]:
        return self._consumer.assignment()

    async def commit(self, offsets: Offsets) -> None:
        await self._consumer.commit(offsets)

    async def seek(self, offsets: Offsets) -> None:
        await self._consumer.seek(offsets)

    async def close(self) -> None:
        await self._consumer.close()
