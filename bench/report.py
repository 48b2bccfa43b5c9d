"""One table of what the engine does and costs: `python -m bench.report [--quick]`.

Engine and baseline take turns on the same batches, so a busy moment of the machine meets both.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.table import Table

from bench.recording import (
    BATCH_RECORDS,
    Call,
    Recording,
    baseline_calls,
    engine_calls,
    record,
    settled_engine,
    state_bytes,
)
from bss_stream import topics


def timed(
    calls: Sequence[Iterator[Call]], clock: Callable[[], float] = time.thread_time
) -> list[list[float]]:
    """Seconds of each call, taking one of every sequence in turn.

    The clock is this thread's CPU time unless the calls use threads of their own.
    """
    times: list[list[float]] = [[] for _ in calls]
    for turn, together in enumerate(zip(*calls, strict=True)):
        order = list(enumerate(together))
        for at, call in order if turn % 2 else reversed(order):
            started_s = clock()
            call()
            times[at].append(clock() - started_s)
    return times


def rate(times: Sequence[float], records: int = BATCH_RECORDS) -> float:
    """Records a second at the median."""
    return records / statistics.median(times)


def resident_bytes() -> int:
    """What this process has in memory (Linux)."""
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - no file of ours
        return int(file.read().split()[1]) * 4096


def bytes_a_plan(recording: Recording) -> float:
    """Growth of this process by an engine that holds the recording's plans, a plan."""
    gc.collect()
    engines, growth = [], []
    # The first ones fill what the recording has left free; the last takes new memory throughout.
    for _ in range(5):
        before = resident_bytes()
        engines.append(settled_engine(recording))
        growth.append(resident_bytes() - before)
    return max(growth) / recording.plans


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer plans and rounds")
    quick = parser.parse_args().quick
    plans, rounds = (20_000, 40) if quick else (100_000, 100)
    one, two = record(plans, rounds), record(plans, rounds, partitions=2)
    memory = bytes_a_plan(one)
    sizes = state_bytes(one)
    gc.disable()
    engine, baseline = timed([engine_calls(one), baseline_calls(one)])
    shards = [engine_calls(two), engine_calls(two, threads=2)]
    single, double = timed(shards, time.perf_counter)
    table = Table(
        title=f"{plans:,} plans, batches of {BATCH_RECORDS:,} raw signals, medians of {rounds}"
    )
    table.add_column("what")
    table.add_column("figure", justify="right")
    table.add_column("ratio", justify="right")
    pairs = statistics.median(b / e for e, b in zip(engine, baseline, strict=True))
    table.add_row("plain Python, one core, signals/s", f"{rate(baseline):,.0f}", "1.0")
    table.add_row("engine, one core, signals/s", f"{rate(engine):,.0f}", f"{pairs:.1f}")
    table.add_row("engine, 2 shards on 1 thread, signals/s", f"{rate(single):,.0f}", "1.0")
    scale = statistics.median(s / d for s, d in zip(single, double, strict=True))
    table.add_row(
        "engine, 2 shards on 2 threads, signals/s", f"{rate(double):,.0f}", f"{scale:.2f}"
    )
    table.add_row(
        "engine memory, bytes a plan (with its batteries and stations)", f"{memory:,.0f}", ""
    )
    state = sizes[topics.STATE_PLAN] / sizes[f"{topics.STATE_PLAN} entities"]
    table.add_row("changelog record of a plan, bytes", f"{state:,.0f}", "")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
