"""How long shards take to be restored: `python -m bench.restore [--plans 1000000]`.

Plans' states are put into the changelogs of a log; then one processor starts three times: from the
changelogs alone, from the checkpoints that the first one left at its clean stop, and once more.
"""

import argparse
import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

from bench.brokers import kafka_broker
from bench.recording import copies, plan_states, record
from bss_stream import _engine, topics
from bss_stream.log.embedded import EmbeddedLog
from bss_stream.log.kafka import KafkaLog, KafkaOptions
from bss_stream.log.protocol import Chunk, Log
from bss_stream.processor import Processor, ProcessorSettings
from bss_stream.setup import compile_setup, load_setup
from tests.eventually import eventually

PARTITIONS = 4
DISTINCT_PLANS = 2_000
"""So many plans are made by traffic; the rest are copies of them under other ids."""

IN_VAIN_S = 600.0


def states(plans: int) -> Iterator[bytes]:
    """Chunks of so many plans' states."""
    distinct = plan_states(record(min(plans, DISTINCT_PLANS), 20))
    yield from copies(distinct, max(1, plans // len(distinct)))


async def fill(log: Log, plans: int) -> int:
    """Put plans' states into the changelogs; returns how many."""
    appender = await log.appender()
    done = 0
    for chunk in states(plans):
        placed: dict[int, list[tuple[bytes, bytes | None]]] = {}
        for key, value in _engine.unpack(chunk):
            placed.setdefault(_engine.partition_for(key, PARTITIONS), []).append((key, value))
            done += 1
        await appender.append(
            [
                Chunk(topics.STATE_PLAN, part, len(records), _engine.pack(records))
                for part, records in placed.items()
            ]
        )
    await appender.close()
    return done


async def start(log: Log, setup: bytes, checkpoints: Path) -> tuple[float, float, Processor]:
    """Seconds until a processor has all its shards, and of its clean stop."""
    settings = ProcessorSettings(
        group="restored",
        transactional_id="shard-{}".format,
        checkpoint_directory=checkpoints,
        checkpoint_interval_s=3_600,
    )
    processor = Processor(log, setup, settings, clock_ms=lambda: 0)
    started_s = time.monotonic()
    task = asyncio.create_task(processor.run())
    await eventually(lambda: len(processor.shards) == PARTITIONS or task.done(), IN_VAIN_S)
    restored_s = time.monotonic() - started_s
    processor.stop()
    stopped_s = time.monotonic()
    await task
    return restored_s, time.monotonic() - stopped_s, processor


async def measure(table: Table, name: str, log: Log, plans: int) -> None:
    """The rows of one log."""
    setup = compile_setup(load_setup())
    await log.open()
    try:
        count = await fill(log, plans)
        with TemporaryDirectory() as directory:
            for nth in ("first", "second"):
                restored_s, stopped_s, processor = await start(log, setup, Path(directory))
                counters = processor.counters
                source = "checkpoints" if counters.from_checkpoints else "changelogs"
                table.add_row(
                    f"{name}: {count:,} plans, {nth} start, out of {source}",
                    f"{restored_s:.2f} s",
                    f"{stopped_s:.2f} s",
                )
                assert counters.restored == count
    finally:
        await log.close()


@asynccontextmanager
async def logs(directory: Path) -> AsyncIterator[dict[str, Log]]:
    """Both backends, empty."""
    async with kafka_broker(directory) as bootstrap:
        options = KafkaOptions(bootstrap, replication_factor=1, min_insync_replicas=1)
        yield {
            "embedded": EmbeddedLog(directory / "log", partitions=PARTITIONS),
            "Kafka": KafkaLog(options, partitions=PARTITIONS),
        }


async def main(plans: int) -> None:
    """Measure and print."""
    table = Table(title=f"{PARTITIONS} shards of one processor")
    table.add_column("what")
    table.add_column("until all are at work", justify="right")
    table.add_column("clean stop", justify="right")
    with TemporaryDirectory() as directory:
        async with logs(Path(directory)) as both:
            for name, log in both.items():
                await measure(table, name, log, plans)
    Console(width=100).print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plans", type=int, default=20_000)
    asyncio.run(main(parser.parse_args().plans))
