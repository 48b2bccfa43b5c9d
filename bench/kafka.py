"""The pipeline on a real Kafka: `python -m bench.kafka [--plans ...] [--rate ...]`.

Records a second of one processor against a bare transactional copy of the same records by aiokafka,
swaps' latency from rider's publish to rider's echo, and how long a group takes to move its shards.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import uvloop
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer  # type: ignore[import-untyped]
from rich.console import Console
from rich.table import Table

from bench.brokers import kafka_broker
from bench.traffic import Arrival, City
from bss_stream import topics
from bss_stream._engine import pack
from bss_stream.config import Bridge, Config, Log, Mqtt
from bss_stream.config import KafkaLog as KafkaConfig
from bss_stream.log.kafka import KafkaLog, KafkaOptions
from bss_stream.log.protocol import Chunk
from bss_stream.processor import Processor, ProcessorSettings
from bss_stream.roles import Platform, mqtt_settings
from bss_stream.setup import compile_setup, load_setup
from bss_stream.simulate import SimulationConfig, SimulatorProcess, Snapshot
from tests.eventually import eventually
from tests.integration.processing import GROUP, shard_id
from tests.logs import KafkaBackend

PARTITIONS = 4
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


async def throughput(table: Table, bootstrap: str, plans: int, requests: int) -> None:
    """Processor against bare copy, of what comes in from outside."""
    setup = compile_setup(load_setup())
    city = City(setup, plans, partitions=PARTITIONS)
    everything = [*city.settle(), *city.requests(requests)]
    arrivals = [arrival for arrival in everything if arrival.external]
    # By turns; the first of each warms the broker up.
    copied: list[float] = []
    taken: list[tuple[float, float]] = []
    for nth in range(1 + ROUNDS):
        copied.append(await copy(bootstrap, f"copy-{nth}", arrivals))
        taken.append(await process(bootstrap, f"process-{nth}", setup, arrivals))
    bare, (outside, everything_s) = max(copied[1:]), max(taken[1:])
    table.add_row(f"bare aiokafka copy: records/s, best of {ROUNDS}", f"{bare:,.0f}")
    table.add_row("processor: the same records/s", f"{outside:,.0f}")
    table.add_row("processor: records/s with those that follow", f"{everything_s:,.0f}")
    table.add_row("the same records, processor to bare copy", f"{outside / bare:.2f}")


async def latency(table: Table, bootstrap: str, rate: float, plans: int, duration_s: float) -> None:
    """All roles in one process, riders in another."""
    with tempfile.TemporaryDirectory() as directory:
        config = Config(
            data_dir=directory,
            partitions=PARTITIONS,
            log=Log(
                backend="kafka",
                kafka=KafkaConfig(
                    bootstrap_servers=(bootstrap,),
                    replication_factor=1,
                    min_insync_replicas=1,
                    topic_prefix="latency.",
                ),
            ),
            mqtt=Mqtt(port=0),
            bridge=Bridge(linger_ms=1),
        )
        simulation = SimulationConfig(rate=rate, plans=plans, joining_rate=max(200.0, rate))
        last: Snapshot | None = None
        async with Platform(config) as platform:
            broker = mqtt_settings(config, "simulate", platform.broker)
            async with SimulatorProcess(
                platform.setup, broker, simulation, duration_s=duration_s
            ) as simulator:
                async for snapshot in simulator.snapshots():
                    last = snapshot
        assert last is not None, "the simulator ended before it reported anything"
    found = last.swap_latency
    table.add_row(f"swaps/s at {rate:,.0f} asked for", f"{last.swaps_per_s:,.0f}")
    table.add_row(
        "rider's publish to rider's echo, p50, p99, p99.9",
        ", ".join(f"{ms:.0f}" for ms in (found.p50_ms, found.p99_ms, found.p999_ms)) + " ms",
    )
    table.add_row("answers that no rule explains", f"{last.unexpected_total}")


async def rebalance(table: Table, bootstrap: str, members: int) -> None:
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

    async def until_whole() -> str:
        started_s = time.monotonic()
        await eventually(whole, IN_VAIN_S)
        return f"{time.monotonic() - started_s:.2f} s"

    join()
    table.add_row("group of 1: at work", await until_whole())
    join()
    table.add_row("a second joins", await until_whole())
    for _ in range(members - 2):
        join()
    table.add_row(f"{members - 2} more join at once", await until_whole())
    leaving, task = group.pop(0)
    leaving.stop()
    await task
    table.add_row("one stops", await until_whole())
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
    table.add_row(f"one is killed, sessions of {SESSION_MS / 1000:.0f} s", await until_whole())
    for one, task in group:
        one.stop()
        await task


@asynccontextmanager
async def _broker() -> AsyncIterator[str]:
    with tempfile.TemporaryDirectory() as directory:
        async with kafka_broker(Path(directory)) as bootstrap:
            yield bootstrap


async def main(arguments: argparse.Namespace) -> None:
    """Measure and print."""
    table = Table(title=f"one Kafka node, {PARTITIONS} partitions")
    table.add_column("what")
    table.add_column("figure", justify="right")
    async with _broker() as bootstrap:
        if "throughput" in arguments.parts:
            await throughput(table, bootstrap, arguments.plans, arguments.requests)
            table.add_section()
        if "latency" in arguments.parts:
            await latency(table, bootstrap, arguments.rate, arguments.plans, arguments.duration)
            table.add_section()
        if "rebalance" in arguments.parts:
            await rebalance(table, bootstrap, arguments.members)
    Console(width=100).print(table)


PARTS = ("throughput", "latency", "rebalance")

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=PARTS, metavar=f"PART ({', '.join(PARTS)})")
    parser.add_argument("--plans", type=int, default=2_000)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--rate", type=float, default=50.0, help="swaps a second")
    parser.add_argument("--duration", type=float, default=15.0, help="seconds of swaps")
    parser.add_argument("--members", type=int, default=4)
    uvloop.run(main(parser.parse_args()))
