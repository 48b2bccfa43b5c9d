"""One table of what the engine does and costs: `python -m bench.report [--quick] [--large]`.

Engine and baseline take turns on the same batches, a block of batches each: a busy moment of the
machine meets both, and neither finds the caches full of the other's data at every call.
"""

import argparse
import gc
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from bench.limits import batch_bytes, copy_calls, hash_calls, scan_calls
from bench.recording import (
    BATCH_RECORDS,
    Call,
    Recording,
    baseline_calls,
    copies,
    engine_calls,
    large_setup,
    one_service_state,
    open_engine,
    plan_states,
    record,
    restored_calls,
    wide_setup,
)
from bss_stream import _engine, topics
from bss_stream.setup import compile_setup, load_setup


class Size(NamedTuple):
    """How much is measured."""

    plans: int
    blocks: int
    """How often each contestant has its turn."""
    block_calls: int
    """Batches a turn."""
    copies: int
    """How many times as many plans the largest engine has."""


QUICK = Size(plans=20_000, blocks=7, block_calls=6, copies=10)
FULL = Size(plans=100_000, blocks=9, block_calls=10, copies=10)


def timed(
    contestants: Sequence[Iterator[Call]],
    size: Size,
    clock: Callable[[], float] = time.thread_time,
) -> list[list[float]]:
    """Seconds of each call of each contestant, in the order of calls.

    The clock is this thread's CPU time unless the calls use threads of their own.
    """
    times: list[list[float]] = [[] for _ in contestants]
    for block in range(size.blocks):
        order = list(zip(contestants, times, strict=True))
        for calls, own in order if block % 2 else reversed(order):
            for _ in range(size.block_calls):
                call = next(calls)
                started_s = clock()
                call()
                own.append(clock() - started_s)
    return times


def rate(times: Sequence[float], records: float = BATCH_RECORDS) -> str:
    """Records a second at the median."""
    return f"{records / statistics.median(times):,.0f}"


def ratio(slow: Sequence[float], fast: Sequence[float]) -> str:
    """How many times as fast: the median over the same batches."""
    return f"{statistics.median(s / f for s, f in zip(slow, fast, strict=True)):.3g}"


def resident_bytes() -> int:
    """What this process has in memory (Linux)."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096


def bytes_a_plan(states: Sequence[tuple[bytes, bytes]], times: int) -> float:
    """Memory of an engine with so many plans, measured in a process of its own, a plan."""
    with TemporaryDirectory() as directory:
        file = Path(directory) / "states"
        file.write_bytes(_engine.pack(list(states)))
        child = [sys.executable, "-m", "bench.report", "--weigh", str(file), str(times)]
        grown = subprocess.run(child, check=True, capture_output=True, text=True).stdout
    return int(grown) / (len(states) * times)


def weigh(file: Path, times: int) -> int:
    """Growth of this process by an engine that restores the states so many times over."""
    states = [(key, value or b"") for key, value in _engine.unpack(file.read_bytes())]
    # The first chunk is made beforehand, so that what making one takes is not counted.
    list(copies(states[:5_000], 1))
    engine = open_engine(compile_setup(load_setup()))
    before = resident_bytes()
    for chunk in copies(states, times):
        engine.restore(0, topics.STATE_PLAN, chunk)
    return resident_bytes() - before


def speed(table: Table, one: Recording, size: Size) -> None:
    """Engine against baseline, on one core."""
    engine, baseline = timed(
        [engine_calls(one, one.traffic), baseline_calls(one, one.traffic)], size
    )
    table.add_row("plain Python: signals of plans a second", rate(baseline), "1")
    table.add_row("engine: signals of plans a second", rate(engine), ratio(baseline, engine))
    engine, baseline = timed(
        [engine_calls(one, one.everything), baseline_calls(one, one.everything)], size
    )
    table.add_section()
    table.add_row("plain Python: records a second, with all that follow", rate(baseline), "1")
    table.add_row(
        "engine: records a second, with all that follow", rate(engine), ratio(baseline, engine)
    )
    outside = statistics.fmean(
        sum(arrival.external for arrival in batch.arrivals) for batch in one.everything
    )
    table.add_row("engine: requests from outside among them, a second", rate(engine, outside), "")


def limits(table: Table, one: Recording, size: Size) -> None:
    """The engine against parts of its work done alone on the same bytes."""
    batches = batch_bytes(one, one.traffic)
    engine, copied, hashed, scanned = timed(
        [
            engine_calls(one, one.traffic),
            copy_calls(batches),
            hash_calls(batches),
            scan_calls(batches),
        ],
        size,
    )
    table.add_section()
    table.add_row("engine again: signals of plans a second", rate(engine), "1")
    for what, times in (
        ("copy of the same bytes in and out", copied),
        ("SHA-256 of the bytes that the ledgers' chains hash", hashed),
        ("scan of the payloads' JSON", scanned),
    ):
        table.add_row(f"limit: {what}, signals a second", rate(times), ratio(engine, times))
    for what, sizes in (
        ("taken in", [len(b.taken) for b in batches]),
        ("given out", [len(b.given) for b in batches]),
        ("hashed", [len(b.hashed) for b in batches]),
    ):
        mean = statistics.fmean(sizes) / BATCH_RECORDS
        table.add_row(f"bytes {what} a signal", f"{mean:,.0f}", "")


def setups(table: Table, one: Recording, size: Size, *, wide: bool) -> None:
    """The same traffic under the shipped set-up, under a large one, and with wide bundles."""
    large = one._replace(setup=large_setup(10_000, 1_000))
    small, great = timed([engine_calls(one, one.traffic), engine_calls(large, large.traffic)], size)
    table.add_section()
    table.add_row("engine, shipped set-up: signals of plans a second", rate(small), "1")
    table.add_row(
        "engine, 10,000 stations and 1,000 templates: the same", rate(great), ratio(small, great)
    )
    if wide:
        bundles = record(size.plans, size.blocks * size.block_calls, setup=wide_setup(64))
        [much] = timed([engine_calls(bundles, bundles.traffic)], size)
        table.add_row("engine, 64 services a bundle: the same", rate(much), ratio(small, much))


def shards(table: Table, size: Size) -> None:
    """One thread against two."""
    two = record(size.plans, size.blocks * size.block_calls, partitions=2)
    calls = [engine_calls(two, two.traffic), engine_calls(two, two.traffic, threads=2)]
    single, double = timed(calls, size, time.perf_counter)
    table.add_section()
    table.add_row("engine: 2 shards on 1 thread, signals a second", rate(single), "1")
    table.add_row(
        "engine: 2 shards on 2 threads, signals a second", rate(double), ratio(single, double)
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer plans and rounds")
    parser.add_argument(
        "--large",
        action="store_true",
        help="fifty times the plans instead of ten, and bundles of 64 services: takes 5 GB",
    )
    parser.add_argument("--weigh", nargs=2, metavar=("FILE", "TIMES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.weigh:
        file, times = arguments.weigh
        print(weigh(Path(file), int(times)))
        return
    size = QUICK if arguments.quick else FULL
    if arguments.large:
        size = size._replace(copies=50)
    one = record(size.plans, size.blocks * size.block_calls)
    states = plan_states(one)
    gc.collect()
    gc.freeze()
    gc.disable()
    table = Table(
        title=f"{size.plans:,} plans, batches of {BATCH_RECORDS:,}, "
        f"medians of {size.blocks} times {size.block_calls}",
        caption="the ratio is to the line above that has 1",
    )
    table.add_column("what")
    table.add_column("figure", justify="right")
    table.add_column("ratio", justify="right")
    speed(table, one, size)
    limits(table, one, size)
    setups(table, one, size, wide=arguments.large)
    many = size.plans * size.copies
    [large] = timed([restored_calls(one, states, size.copies)], size)
    table.add_section()
    table.add_row(f"engine with {many:,} plans: signals of plans a second", rate(large), "")
    grown = bytes_a_plan(states, size.copies)
    table.add_row(f"engine with {many:,} plans: bytes of memory a plan", f"{grown:,.0f}", "")
    mean = statistics.fmean(len(value) for _, value in states)
    table.add_row("changelog record of a plan, mean bytes", f"{mean:,.0f}", "")
    single = len(one_service_state())
    table.add_row("changelog record of a plan with one service, bytes", f"{single:,}", "")
    shards(table, size)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
