"""Both backends of the log for tests: how to open one, and what only its own tools can do to it."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from aiokafka import AIOKafkaProducer  # type: ignore[import-untyped]
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete  # type: ignore[import-untyped]
from aiokafka.structs import TopicPartition as KafkaPartition  # type: ignore[import-untyped]

from bss_stream._engine import pack, unpack
from bss_stream.log.embedded import EmbeddedLog, Policy
from bss_stream.log.kafka import KafkaLog, KafkaOptions
from bss_stream.log.protocol import Chunk, Consumer, Fetched, Log, TopicPartition

PARTITIONS = 4

IN_VAIN_S = 60.0
"""What no passing test comes near: then it has failed."""

Record = tuple[bytes, bytes | None]


def chunk(topic: str, partition: int, *records: Record) -> Chunk:
    """A chunk of these records."""
    return Chunk(topic, partition, len(records), pack(records))


def numbered(first: int, count: int, key: bytes = b"key") -> list[Record]:
    """Records whose values are consecutive numbers."""
    return [(key, str(first + i).encode()) for i in range(count)]


def values(fetched: Sequence[Fetched]) -> list[bytes | None]:
    """The values of all records, in order."""
    return [value for one in fetched for _, value in unpack(one.data)]


async def replayed(log: Log, topic: str, partition: int) -> list[Fetched]:
    """All that a replay gives."""
    return [fetched async for fetched in log.replay(topic, partition)]


async def poll_until(consumer: Consumer, records: int) -> list[Fetched]:
    """Poll until so many records have come."""
    found: list[Fetched] = []
    async with asyncio.timeout(IN_VAIN_S):
        while sum(len(one.offsets) for one in found) < records:
            found += await consumer.poll(1000, 5.0)
    return found


async def join(consumer: Consumer) -> frozenset[TopicPartition]:
    """Poll until the group has given this member something and it knows where to read on."""
    async with asyncio.timeout(IN_VAIN_S):
        while not await consumer.lag():
            await consumer.poll(1, 0.1)
    return consumer.assignment()


async def settle(log: Log, transactional_id: str) -> None:
    """Wait until a producer's transactions are over everywhere, by taking its id.

    Kafka answers a commit a little before its records and offsets are there for others.
    """
    await (await log.transactional_producer(transactional_id)).close()


async def abort_records(log: Log, topic: str, partition: int) -> None:
    """End a transaction with records for a partition by an exception, which aborts it."""
    producer = await log.transactional_producer("aborting")
    try:
        async with producer.transaction() as transaction:
            transaction.append([chunk(topic, partition, *numbered(0, 3))])
            raise InterruptedError
    except InterruptedError:
        pass
    finally:
        await producer.close()


class Backend(Protocol):
    """One log that can be opened again and again, also from another process."""

    def log(self) -> Log:
        """A new handle, to be opened."""

    def description(self) -> str:
        """What `described` makes a backend of again."""

    async def abort_records(self, log: Log, topic: str, partition: int) -> None:
        """End a transaction with records for a partition by aborting it."""

    async def trim(self, log: Log, topic: str, partition: int, start: int) -> None:
        """Make the log start later. The groups have consumed everything."""


@dataclass
class EmbeddedBackend:
    """A log in a directory."""

    directory: Path
    # Everything that has been consumed is old enough to be trimmed, unless told otherwise.
    keep_consumed_ms: int = -1_000

    def log(self) -> Log:
        policy = Policy(keep_consumed_ms=self.keep_consumed_ms)
        return EmbeddedLog(
            self.directory, partitions=PARTITIONS, durability="process", policy=policy
        )

    def description(self) -> str:
        return json.dumps({"directory": str(self.directory), "keep": self.keep_consumed_ms})

    async def abort_records(self, log: Log, topic: str, partition: int) -> None:
        await abort_records(log, topic, partition)

    async def trim(self, log: Log, topic: str, partition: int, start: int) -> None:
        assert isinstance(log, EmbeddedLog)
        await log.tidy()


@dataclass
class KafkaBackend:
    """A log under a prefix of its own on a shared broker."""

    options: KafkaOptions

    def log(self) -> Log:
        return KafkaLog(self.options, partitions=PARTITIONS)

    def description(self) -> str:
        return json.dumps({"options": asdict(self.options)})

    async def abort_records(self, log: Log, topic: str, partition: int) -> None:
        producer = AIOKafkaProducer(
            bootstrap_servers=self.options.bootstrap_servers,
            transactional_id=self.options.name("aborting"),
        )
        await producer.start()
        try:
            await producer.begin_transaction()
            for _ in range(3):
                await producer.send_and_wait(
                    self.options.name(topic), b"aborted", b"key", partition=partition
                )
            await producer.abort_transaction()
        finally:
            await producer.stop()
        await settle(log, "aborting")

    async def trim(self, log: Log, topic: str, partition: int, start: int) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.options.bootstrap_servers)
        await admin.start()
        try:
            part = KafkaPartition(self.options.name(topic), partition)
            await admin.delete_records({part: RecordsToDelete(before_offset=start)})
        finally:
            await admin.close()


def kafka_options(bootstrap: str, prefix: str) -> KafkaOptions:
    """Options for a single broker; a dead member is given up after two seconds."""
    return KafkaOptions(
        bootstrap,
        replication_factor=1,
        min_insync_replicas=1,
        session_timeout_ms=2_000,
        topic_prefix=f"{prefix}.",
    )


def described(description: str) -> Backend:
    """The backend that `description` was made of."""
    parts = json.loads(description)
    if "directory" in parts:
        return EmbeddedBackend(Path(parts["directory"]), parts["keep"])
    return KafkaBackend(KafkaOptions(**parts["options"]))
