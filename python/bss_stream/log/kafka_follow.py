"""The Kafka log followed without a group: committed records as they come."""

from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final

from aiokafka import AIOKafkaConsumer  # type: ignore[import-untyped]
from aiokafka.structs import TopicPartition as KafkaPartition  # type: ignore[import-untyped]

from bss_stream._engine import pack
from bss_stream.log.kafka_client import (
    RECORD_BYTES_MAX,
    STOP_TIMEOUT_S,
    KafkaOptions,
    connecting,
    hangs_up_at_once,
    quietly,
    translated,
    within,
)
from bss_stream.log.protocol import Fetched, TopicPartition

FETCH_WAIT_MS: Final = 100
RECORDS_MAX: Final = 10_000


async def follow(
    options: KafkaOptions, starts: Mapping[TopicPartition, int]
) -> AsyncGenerator[Fetched, None]:
    """Records of these partitions from these offsets on, as they are committed; never ends.

    What lies below a partition's start by now is passed over: who follows looks on, and answers
    for nothing. Raises LogError.
    """
    parts = {KafkaPartition(options.name(part.topic), part.partition): part for part in starts}
    async with connecting(options, f"follow the log on {options.bootstrap_servers}"):
        consumer = AIOKafkaConsumer(
            **options.client("follow"),
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=FETCH_WAIT_MS,
            max_partition_fetch_bytes=RECORD_BYTES_MAX,
        )
        hangs_up_at_once(consumer._client)
        try:
            await consumer.start()
            consumer.assign(list(parts))
            for part, start in starts.items():
                consumer.seek(KafkaPartition(options.name(part.topic), part.partition), start)
        except BaseException:
            await within(STOP_TIMEOUT_S, quietly(consumer.stop()))
            raise
    try:
        while True:
            with translated("follow the log"):
                found = await consumer.getmany(timeout_ms=1_000, max_records=RECORDS_MAX)
            for part, records in found.items():
                if records:
                    yield _fetched(parts[part], records)
    finally:
        await within(STOP_TIMEOUT_S, quietly(consumer.stop()))


def _fetched(part: TopicPartition, records: list[Any]) -> Fetched:
    offsets = [record.offset for record in records]
    data = pack([(record.key or b"", record.value) for record in records])
    return Fetched(*part, offsets, data, offsets[-1] + 1)
