"""A processor that only copies, for the crash tests: run as a process of its own, then killed.

It writes each input's offset to the output in the transaction that commits the input. Told
`once`, it ends when it has copied everything; otherwise it goes on until it is killed. It prints
`start PARTITION OFFSET` for the first record that it sees of a partition, and `done` for each
transaction.
"""

import asyncio
import sys
from collections.abc import Sequence

from bss_stream import topics
from bss_stream.log.protocol import Fetched, Log, TopicPartition, TransactionalProducer
from tests.logs import chunk, described

GROUP = "copier"
SOURCE = topics.SIGNALS_PLAN
TARGET = topics.OUTBOX


class Worker:
    """A member of the group, with a producer for each of its shards."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._producers: dict[int, TransactionalProducer] = {}
        self._seen: set[int] = set()

    async def on_assigned(self, partitions: Sequence[TopicPartition]) -> None:
        """Take the shards, which settles what a killed owner had under way."""
        for _, partition in partitions:
            self._producers[partition] = await self._log.transactional_producer(
                f"copier-{partition}"
            )

    async def on_revoked(self, partitions: Sequence[TopicPartition]) -> None:
        """Let the shards go."""
        for _, partition in partitions:
            await self._producers.pop(partition).close()

    async def copy(self, fetched: Fetched) -> None:
        """One transaction: offsets as outputs, and the inputs' offset."""
        partition = fetched.partition
        if partition not in self._seen:
            self._seen.add(partition)
            print("start", partition, fetched.offsets[0], flush=True)
        async with self._producers[partition].transaction() as transaction:
            outputs = [(b"copy", str(offset).encode()) for offset in fetched.offsets]
            transaction.append([chunk(TARGET, partition, *outputs)])
            transaction.offsets(GROUP, {TopicPartition(SOURCE, partition): fetched.next_offset})
        print("done", partition, flush=True)


async def main(description: str, mode: str) -> None:
    """Copy until killed, or until everything is copied."""
    log = described(description).log()
    await log.open()
    worker = Worker(log)
    consumer = await log.consumer(GROUP, [SOURCE], worker)
    records_max = 1000 if mode == "once" else 5
    while True:
        found = await consumer.poll(records_max, 0.5)
        await asyncio.gather(*map(worker.copy, found))
        lag = await consumer.lag()
        if mode == "once" and lag and not any(lag.values()):
            break
    await consumer.close()
    await log.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
