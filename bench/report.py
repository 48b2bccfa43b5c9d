"""One table of what everything does, and what it costs: `python -m bench.report [PART ...]`.

Parts: the engine beside plain Python and its limits; peers that do the same work; each role beside
the least that its work could cost; the pipeline on a real Kafka; swaps' latency at half of what the
machine can do. `--repeat 3` runs it all three times and shows how far the figures lie apart.

Contestants take turns on the same batches, a block of batches each: a busy moment of the machine
meets all of them, and none finds the caches full of the other's data at every call.
"""

import argparse
import gc
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import uvloop
from rich.console import Console

from bench import kafka, latency, roles
from bench.limits import batch_bytes, copy_calls, hash_calls, scan_calls
from bench.recording import (
    BATCH_RECORDS,
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
from bench.sheet import Sheet, shown
from bench.turns import Size, rate, ratio, timed
from bss_stream import _engine, topics
from bss_stream.setup import compile_setup, load_setup

QUICK = Size(plans=20_000, blocks=7, block_calls=6, copies=10)
FULL = Size(plans=100_000, blocks=9, block_calls=10, copies=10)

PARTS: Final = ("engine", "peers", "roles", "kafka", "latency")
QUICK_PARTS: Final = ("engine", "peers", "roles")
"""What a machine without Java, or with little time, can do."""

PEERS: Final = ("transitions", "statemachine", "bytewax", "limits", "pyrate_limiter")
"""What the extra `peers` brings."""


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


def speed(sheet: Sheet, one: Recording, size: Size) -> None:
    """Engine against baseline, on one core."""
    engine, baseline = timed(
        [engine_calls(one, one.traffic), baseline_calls(one, one.traffic)], size
    )
    sheet.add("plain Python: signals of plans", rate(baseline))
    sheet.add("engine: signals of plans", rate(engine), ratio(baseline, engine), to="plain Python")
    engine, baseline = timed(
        [engine_calls(one, one.everything), baseline_calls(one, one.everything)], size
    )
    sheet.add("plain Python: records, with all that follow", rate(baseline))
    sheet.add(
        "engine: records, with all that follow",
        rate(engine),
        ratio(baseline, engine),
        to="plain Python",
    )
    outside = statistics.fmean(
        sum(arrival.external for arrival in batch.arrivals) for batch in one.everything
    )
    sheet.add("engine: requests from outside among them", rate(engine, outside))


def limits(sheet: Sheet, one: Recording, size: Size) -> None:
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
    sheet.section()
    for what, times in (
        ("copy of the same bytes in and out", copied),
        ("SHA-256 of the bytes that the ledgers' chains hash", hashed),
        ("scan of the payloads' JSON", scanned),
    ):
        sheet.add(f"limit: {what}, signals", rate(times), ratio(engine, times), to="engine")
    for what, sizes in (
        ("taken in", [len(b.taken) for b in batches]),
        ("given out", [len(b.given) for b in batches]),
        ("hashed", [len(b.hashed) for b in batches]),
    ):
        mean = statistics.fmean(sizes) / BATCH_RECORDS
        sheet.add(f"{what} a signal", mean, unit=" bytes")


def setups(sheet: Sheet, one: Recording, size: Size, *, wide: bool) -> None:
    """The same traffic under the shipped set-up, under a large one, and with wide bundles."""
    large = one._replace(setup=large_setup(10_000, 1_000))
    small, great = timed([engine_calls(one, one.traffic), engine_calls(large, large.traffic)], size)
    sheet.section()
    sheet.add(
        "engine, 10,000 stations and 1,000 templates",
        rate(great),
        ratio(small, great),
        to="shipped set-up",
    )
    if wide:
        bundles = record(size.plans, size.blocks * size.block_calls, setup=wide_setup(64))
        [much] = timed([engine_calls(bundles, bundles.traffic)], size)
        sheet.add(
            "engine, 64 services a bundle", rate(much), ratio(small, much), to="shipped set-up"
        )


def many_plans(sheet: Sheet, one: Recording, size: Size) -> None:
    """Speed and memory with more plans than any cache holds."""
    states = plan_states(one)
    many = size.plans * size.copies
    few, large = timed(
        [engine_calls(one, one.traffic), restored_calls(one, states, size.copies)], size
    )
    sheet.add(
        f"engine with {many:,} plans: signals of plans",
        rate(large),
        ratio(few, large),
        to=f"{size.plans:,} plans",
    )
    sheet.add(
        f"engine with {many:,} plans: memory a plan",
        bytes_a_plan(states, size.copies),
        unit=" bytes",
    )
    mean = statistics.fmean(len(value) for _, value in states)
    sheet.add("changelog record of a plan, mean", mean, unit=" bytes")
    single = len(one_service_state())
    sheet.add("changelog record of a plan with one service", single, unit=" bytes")


def shards(sheet: Sheet, size: Size) -> None:
    """One thread against two."""
    two = record(size.plans, size.blocks * size.block_calls, partitions=2)
    calls = [engine_calls(two, two.traffic), engine_calls(two, two.traffic, threads=2)]
    single, double = timed(calls, size, time.perf_counter)
    sheet.add(
        "engine: 2 shards on 2 threads, signals",
        rate(double),
        ratio(single, double),
        to="1 thread",
    )


def engine(sheet: Sheet, size: Size, *, large: bool) -> None:
    """All that the engine does alone."""
    one = record(size.plans, size.blocks * size.block_calls)
    gc.collect()
    gc.freeze()
    gc.disable()
    speed(sheet, one, size)
    limits(sheet, one, size)
    setups(sheet, one, size, wide=large)
    many_plans(sheet, one, size)
    shards(sheet, size)
    gc.enable()
    gc.unfreeze()


def peers(sheet: Sheet, *, quick: bool) -> None:
    """What users could pick instead, where it is installed."""
    missing = [name for name in PEERS if find_spec(name) is None]
    if missing:
        sheet.note(f"no peers: {', '.join(missing)} not installed (extra `peers`)")
        return
    # Imported here: these are the libraries that may be missing.
    from bench.peers import work

    work.compare(sheet, work.QUICK if quick else work.FULL)


async def servers(sheet: Sheet, parts: Sequence[str], *, quick: bool) -> None:
    """The parts that run on servers."""
    if "roles" in parts:
        await roles.compare(sheet, roles.QUICK if quick else roles.FULL)
        sheet.section()
    if "latency" in parts:
        await latency.on_embedded_log(sheet)
        sheet.section()
    wanted = [part for part in ("kafka", "latency") if part in parts]
    if not wanted:
        return
    if not kafka.is_there():
        sheet.note("no Kafka: neither a `java` on PATH nor its jars in the cache")
        return
    async with kafka.one_broker() as bootstrap:
        if "kafka" in wanted:
            await kafka.throughput(sheet, bootstrap)
            sheet.section()
        if "latency" in wanted:
            await latency.on_kafka(sheet, bootstrap)


def run(arguments: argparse.Namespace) -> Sheet:
    """Everything that was asked for, once."""
    sheet = Sheet()
    size = QUICK if arguments.quick else FULL
    if arguments.large:
        size = size._replace(copies=50)
    parts = arguments.parts or (QUICK_PARTS if arguments.quick else PARTS)
    left_out = [part for part in PARTS if part not in parts]
    if left_out:
        sheet.note(f"left out: {', '.join(left_out)}")
    if "engine" in parts:
        engine(sheet, size, large=arguments.large)
        sheet.section()
    if "peers" in parts:
        peers(sheet, quick=arguments.quick)
        sheet.section()
    uvloop.run(servers(sheet, parts, quick=arguments.quick))
    return sheet


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar=f"PART ({', '.join(PARTS)})")
    parser.add_argument("--quick", action="store_true", help="less of it, and no Kafka")
    parser.add_argument(
        "--large",
        action="store_true",
        help="fifty times the plans instead of ten, and bundles of 64 services: takes 5 GB",
    )
    parser.add_argument(
        "--repeat", type=int, default=1, metavar="N", help="runs, one after another"
    )
    parser.add_argument("--weigh", nargs=2, metavar=("FILE", "TIMES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.weigh:
        file, times = arguments.weigh
        print(weigh(Path(file), int(times)))
        return
    unknown = sorted(set(arguments.parts) - set(PARTS))
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}; expected {', '.join(PARTS)}")
    sheets = [run(arguments) for _ in range(arguments.repeat)]
    Console(width=140).print(shown(sheets, "bss_stream, on this machine"))


if __name__ == "__main__":
    main()
