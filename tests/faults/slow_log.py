"""A real log that is slow where processors must bear it: at restoring, and at committing."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from bss_stream.log.protocol import Fetched, Log, TopicPartition, Transaction, TransactionalProducer
from tests.integration.held_log import HeldLog


class SlowLog(HeldLog):
    """Another log with one more gate, which is open at first, and a pause before each commit."""

    def __init__(self, log: Log, *, commit_pause_s: float = 0.0) -> None:
        super().__init__(log)
        self.restoring = asyncio.Event()
        self.restoring.set()
        """While cleared replays wait."""
        self.waiting = 0
        """Replays that have waited or wait."""
        self.commit_pause_s = commit_pause_s

    async def replay(self, topic: str, partition: int, start: int = 0) -> AsyncIterator[Fetched]:
        self.waiting += not self.restoring.is_set()
        await self.restoring.wait()
        async for fetched in super().replay(topic, partition, start):
            yield fetched

    async def transactional_producer(self, transactional_id: str) -> TransactionalProducer:
        return _SlowProducer(self, await super().transactional_producer(transactional_id))


class _SlowProducer:
    def __init__(self, log: SlowLog, producer: TransactionalProducer) -> None:
        self._log = log
        self._producer = producer

    @property
    def ends(self) -> Mapping[TopicPartition, int]:
        return self._producer.ends

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        async with self._producer.transaction() as transaction:
            yield transaction
            await asyncio.sleep(self._log.commit_pause_s)

    async def close(self) -> None:
        await self._producer.close()
