"""The pipeline on a real Kafka: a part of `python -m bench.report`.

Records a second of one processor against a bare transactional copy of the same records by aiokafka.
How long a group takes to move its shards: `python -m bench.kafka`.
"""

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import uvloop
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer  # type: ignore[import-untyped]
from rich.console import Console

from bench.brokers import kafka_broker
from bench.sheet import Sheet, shown
from bench.traffic import Arrival, City
from bss_stream import topics
from bss_stream._engine import pack
from bss_stream.log.kafka import KafkaLog, KafkaOptions
from bss_stream.log.protocol import Chunk
from bss_stream.processor import Processor, ProcessorSettings
from bss_stream.setup import compile_setup, load_setup
from tests.eventually import eventually
from tests.integration.processing import GROUP, shard_id
from tests.logs import KafkaBackend
from tests.servers.kafka import STAMP, jars_directory

PARTITIONS = 4
PLANS = 2_000
REQUESTS = 20_000
APPEND_RECORDS = 2_000
BATCH_RECORDS = 5_000
ROUNDS = 2
IN_VAIN_S = 300.0
SESSION_MS = 6_000


def options(bootstrap: str, prefix: str) -> KafkaOptions:
    """A log of its own on the broker."""
    return KafkaOptions(
        bootstrap,
        replication_factor=1,
        min_insync_replicas=1,
        session_timeout_ms=SESSION_MS,
        topic_prefix=f"{prefix}.",
    )


async def filled(bootstrap: str, prefix: str, arrivals: list[Arrival]) -> KafkaLog:
    """A log that holds these records."""
    log = KafkaLog(options(bootstrap, prefix), partitions=PARTITIONS)
    await log.open()
    appender = await log.appender()
    for first in range(0, len(arrivals), APPEND_RECORDS):
        placed: dict[tuple[str, int], list[tuple[bytes, bytes | None]]] = {}
        for arrival in arrivals[first : first + APPEND_RECORDS]:
            at = (arrival.topic, arrival.partition)
            placed.setdefault(at, []).append((arrival.key, arrival.value))
        await appender.append(
            [Chunk(*at, len(records), pack(records)) for at, records in placed.items()]
        )
    await appender.close()
    return log


def processor(log: KafkaLog, setup: bytes) -> Processor:
    """A processor whose timers do not fire."""
    settings = ProcessorSettings(
        group=GROUP, transactional_id=shard_id, batch_records_max=BATCH_RECORDS
    )
    return Processor(log, setup, settings, clock_ms=lambda: 0)


async def process(
    bootstrap: str, prefix: str, setup: bytes, arrivals: list[Arrival]
) -> tuple[float, float]:
    """Records a second that a processor takes in: of these, and with those that follow."""
    log = await filled(bootstrap, prefix, arrivals)
    one = processor(log, setup)
    task = asyncio.create_task(one.run())
    await eventually(lambda: bool(one.counters.records), IN_VAIN_S)
    first, started_s = one.counters.records, time.monotonic()
    one.stop(drain=True)
    await task
    rate = (one.counters.records - first) / (time.monotonic() - started_s)
    return rate * len(arrivals) / one.counters.records, rate


async def copy(bootstrap: str, prefix: str, arrivals: list[Arrival]) -> float:
    """Records a second that are copied to the outbox, a transaction for each batch, with aiokafka
    alone."""
    log = await filled(bootstrap, prefix, arrivals)
    named = options(bootstrap, prefix).name
    group = named("copy")
    consumer = AIOKafkaConsumer(
        *map(named, topics.SIGNALS),
        bootstrap_servers=bootstrap,
        group_id=group,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        isolation_level="read_committed",
    )
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, transactional_id=group)
    await consumer.start()
    await producer.start()
    done, started_s = 0, 0.0
    while done < len(arrivals):
        found = await consumer.getmany(timeout_ms=1_000, max_records=BATCH_RECORDS)
        started_s = started_s or time.monotonic()
        if not found:
            continue
        async with producer.transaction():
            offsets = {}
            for part, records in found.items():
                for record in records:
                    await producer.send(
                        named(topics.OUTBOX), record.value, record.key, partition=part.partition
                    )
                offsets[part] = records[-1].offset + 1
                done += len(records)
            await producer.send_offsets_to_transaction(offsets, group)
    taken_s = time.monotonic() - started_s
    await consumer.stop()
    await producer.stop()
    await log.close()
    return done / taken_s


async def throughput(sheet: Sheet, bootstrap: str) -> None:
    """Processor against bare copy, of what comes in from outside."""
    setup = compile_setup(load_setup())
    city = City(setup, PLANS, partitions=PARTITIONS)
    everything = [*city.settle(), *city.requests(REQUESTS)]
    arrivals = [arrival for arrival in everything if arrival.external]
    # By turns; the first of each warms the broker up.
    copied: list[float] = []
    taken: list[tuple[float, float]] = []
    for nth in range(1 + ROUNDS):
        copied.append(await copy(bootstrap, f"copy-{nth}", arrivals))
        taken.append(await process(bootstrap, f"process-{nth}", setup, arrivals))
    bare, (outside, everything_s) = max(copied[1:]), max(taken[1:])
    sheet.add(f"limit: bare aiokafka copy, best of {ROUNDS}: records", bare)
    sheet.add("processor on Kafka: the same records", outside, outside / bare, to="its limit")
    sheet.add("processor on Kafka: records with those that follow", everything_s)


async def rebalance(sheet: Sheet, bootstrap: str, members: int) -> None:
    """Until every shard is at work again."""
    setup = compile_setup(load_setup())
    city = City(setup, 200, partitions=PARTITIONS)
    log = await filled(bootstrap, "moved", [a for a in city.settle() if a.external])
    group: list[tuple[Processor, asyncio.Task[None]]] = []

    def join() -> None:
        one = processor(log, setup)
        group.append((one, asyncio.create_task(one.run())))

    def whole() -> bool:
        shares = [one.shards for one, _ in group]
        return sum(map(len, shares)) == PARTITIONS and len(shares) - shares.count(
            frozenset()
        ) == min(len(group), PARTITIONS)

    async def until_whole() -> float:
        started_s = time.monotonic()
        await eventually(whole, IN_VAIN_S)
        return time.monotonic() - started_s

    join()
    sheet.add("group of 1: at work", await until_whole(), unit=" s")
    join()
    sheet.add("a second joins", await until_whole(), unit=" s")
    for _ in range(members - 2):
        join()
    sheet.add(f"{members - 2} more join at once", await until_whole(), unit=" s")
    leaving, task = group.pop(0)
    leaving.stop()
    await task
    sheet.add("one stops", await until_whole(), unit=" s")
    while len(group) > 1:
        leaving, task = group.pop(0)
        leaving.stop()
        await task
    await until_whole()
    one, _ = group[0]
    command = (sys.executable, "-m", "tests.integration.processor_process")
    described = KafkaBackend(options(bootstrap, "moved")).description()
    killed = await asyncio.create_subprocess_exec(
        *command, described, stdout=asyncio.subprocess.DEVNULL
    )
    await eventually(lambda: 0 < len(one.shards) < PARTITIONS, IN_VAIN_S)
    killed.kill()
    await killed.wait()
    sheet.add(
        f"one is killed, sessions of {SESSION_MS / 1000:.0f} s", await until_whole(), unit=" s"
    )
    for one, task in group:
        one.stop()
        await task


def is_there() -> bool:
    """Whether a broker can be started here."""
    return shutil.which("java") is not None and (
        shutil.which("mvn") is not None or (jars_directory() / STAMP).is_file()
    )


@asynccontextmanager
async def one_broker() -> AsyncIterator[str]:
    """The bootstrap address of a broker of one node."""
    with tempfile.TemporaryDirectory() as directory:
        async with kafka_broker(Path(directory)) as bootstrap:
            yield bootstrap


async def main(members: int) -> None:
    """Measure and print how long shards take to move."""
    sheet = Sheet()
    async with one_broker() as bootstrap:
        await rebalance(sheet, bootstrap, members)
    Console(width=100).print(shown([sheet], f"one Kafka node, {PARTITIONS} partitions"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=int, default=4)
    uvloop.run(main(parser.parse_args().members))
