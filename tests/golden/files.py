"""Golden files of the two databases, and their schemas."""

import asyncio
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Final

from bss_stream import topics
from bss_stream._engine import pack, unpack
from bss_stream.log.embedded import EmbeddedLog
from bss_stream.log.protocol import Chunk, Fetched, TopicPartition
from bss_stream.log.sqlite_file import FILE
from bss_stream.sink.entry import decode_fetched
from bss_stream.sink.sqlite import SqliteLedgerStore
from bss_stream.testing import START_MS, Produced

LOG: Final = "log.sqlite3"
LEDGERS: Final = "ledgers.sqlite3"
PARTITIONS: Final = 4
OFFSETS: Final = {TopicPartition(topics.SIGNALS_PLAN, 0): 1}
"""What the group `processor` has committed in a golden log."""


def write_log(directory: Path, records: Iterable[Produced]) -> None:
    """A log of these records, half of them in transactions."""

    async def write() -> None:
        log = EmbeddedLog(directory, partitions=PARTITIONS, clock_ms=lambda: START_MS)
        await log.open()
        appender = await log.appender()
        producer = await log.transactional_producer("shard-0")
        for number, (topic, partition, key, value) in enumerate(records):
            chunk = Chunk(topic, partition, 1, pack([(key, value)]))
            if number % 2:
                await appender.append([chunk])
                continue
            async with producer.transaction() as transaction:
                transaction.append([chunk])
                transaction.offsets("processor", OFFSETS)
        await producer.close()
        await log.close()

    asyncio.run(write())
    fold(directory / FILE)


def read_log(directory: Path) -> list[Produced]:
    """All that a log holds, by topic and partition."""

    async def read() -> list[Produced]:
        log = EmbeddedLog(directory, partitions=PARTITIONS)
        await log.open()
        try:
            return [
                Produced(topic, partition, key, value or b"")
                for topic in topics.ALL
                for partition in range(PARTITIONS)
                async for fetched in log.replay(topic, partition)
                for key, value in unpack(fetched.data)
            ]
        finally:
            await log.close()

    return asyncio.run(read())


def write_ledgers(file: Path, records: Iterable[Produced]) -> None:
    """A sink's database of the ledger entries among these records."""
    store = SqliteLedgerStore(file)
    store.open()
    fetched = [
        Fetched(topic, partition, [number], pack([(key, value)]), number + 1)
        for number, (topic, partition, key, value) in enumerate(records)
        if topic in (*topics.LEDGERS, topics.STATE_STATION)
    ]
    offsets = {TopicPartition(one.topic, one.partition): one.next_offset for one in fetched}
    store.write(decode_fetched(fetched), offsets)
    store.close()
    fold(file)


def fold(file: Path) -> None:
    """Make one file of a database, without a log beside it."""
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("VACUUM")


def schema(file: Path) -> list[str]:
    """The statements that a database's schema consists of."""
    with closing(sqlite3.connect(file)) as connection:
        rows = connection.execute("SELECT sql FROM sqlite_master WHERE sql NOT NULL ORDER BY name")
        return [sql for (sql,) in rows]
