"""What metrics cost: `python -m bench.observe [--quick]`.

The processor and the sink work off one day's signals, in turns: without distributions, with them,
and with somebody who asks for all metrics every second, fifteen times as often as Prometheus does.
Figures are CPU time of the whole process a record, so other work on the machine matters little.
"""

import argparse
import asyncio
import logging
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final
from unittest.mock import patch

import uvloop
from rich.console import Console
from rich.table import Table

from bench.roles import FULL, PARTITIONS, QUICK, Day, Size, a_day, append
from bss_stream.config import Config, EmbeddedLog, Http, Log
from bss_stream.counters import Distribution
from bss_stream.log.embedded import EmbeddedLog as OpenLog
from bss_stream.observe.server import observed
from bss_stream.roles import Platform

SCRAPE_S: Final = 1.0

BARE, COUNTED, ASKED = "no distributions", "distributions", "and asked every second"


@contextmanager
def _as(way: str) -> Iterator[None]:
    """Without distributions for the first of the ways."""
    if way != BARE:
        yield
        return
    with patch.object(Distribution, "observe", lambda self, value, times=1: None):
        yield


async def _ask(port: int) -> None:
    while True:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
        await reader.read()
        writer.close()
        await asyncio.sleep(SCRAPE_S)


async def one_turn(day: Day, way: str) -> tuple[int, float]:
    """Records that were consumed, and the CPU seconds that it took."""
    with TemporaryDirectory() as name:
        config = Config(
            data_dir=name,
            partitions=PARTITIONS,
            log=Log(embedded=EmbeddedLog(durability="process")),
            http=Http(port=0 if way == ASKED else None),
        )
        log = OpenLog(config.log_directory, partitions=PARTITIONS, durability="process")
        await asyncio.to_thread(Path(name).mkdir, exist_ok=True)
        await log.open()
        await append(log, day)
        await log.close()
        platform = Platform(config, ("processor", "sink"), clock_ms=lambda: day.now_ms)
        started_s = time.process_time()
        with _as(way):
            async with observed(config.http, platform) as port, platform:
                asking = None if port is None else asyncio.create_task(_ask(port))
                await platform.drain()
                if asking is not None:
                    asking.cancel()
        taken_s = time.process_time() - started_s
        assert platform.processor is not None
        return platform.processor.counters.records, taken_s


async def measure(size: Size) -> None:
    """Measure and print."""
    day = a_day(size)
    micros: dict[str, list[float]] = defaultdict(list)
    records = 0
    for _ in range(2 * size.rounds + 1):
        for way in (BARE, COUNTED, ASKED):
            records, taken_s = await one_turn(day, way)
            micros[way].append(taken_s * 1_000_000 / records)
    table = Table(title=f"{records:,} records through processor and sink", caption="medians")
    table.add_column("what")
    table.add_column("µs of CPU a record", justify="right")
    table.add_column("of the first", justify="right")
    for way in (BARE, COUNTED, ASKED):
        share = statistics.median(m / b for m, b in zip(micros[way], micros[BARE], strict=True))
        table.add_row(way, f"{statistics.median(micros[way]):.2f}", f"{share:.1%}")
    Console(width=100).print(table)


def main() -> None:
    """Read the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer messages, fewer rounds")
    logging.disable(logging.WARNING)
    uvloop.run(measure(QUICK if parser.parse_args().quick else FULL))


if __name__ == "__main__":
    main()
