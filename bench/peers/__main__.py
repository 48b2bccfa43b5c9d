"""One table of the engine beside what users could pick instead: `python -m bench.peers [--quick]`.

Needs the extra `peers`. Every peer that does the whole work must give the baseline's records, byte
for byte, before it is timed. All figures are CPU time of one core, taken in turns in the same run.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Iterator
from importlib.metadata import version
from random import Random

from rich.console import Console
from rich.table import Table

from bench.baselines.plain_tables import Model
from bench.peers import limiters
from bench.peers.flows import bytewax_call
from bench.peers.machines import StateMachineModel, TransitionsModel
from bench.recording import (
    BATCH_RECORDS,
    Call,
    Recording,
    baseline_calls,
    engine_calls,
    record,
)
from bench.report import Size, rate, ratio, timed

QUICK = Size(plans=5_000, blocks=5, block_calls=4, copies=1)
FULL = Size(plans=100_000, blocks=7, block_calls=6, copies=1)

MODELS: dict[str, type[Model]] = {
    "transitions": TransitionsModel,
    "python-statemachine": StateMachineModel,
}


class DifferentWorkError(Exception):
    """A peer's records are not the baseline's, so its speed says nothing."""


def check_same_work(one: Recording) -> None:
    """Compare what each library's machines make of some traffic. Raises DifferentWorkError."""
    some = one.everything[:3]
    want = [call() for call in baseline_calls(one, some)]
    for library, model in MODELS.items():
        if [call() for call in baseline_calls(one, some, model=model)] != want:
            raise DifferentWorkError(f"{library} gives other records than the baseline")


def whole_work(table: Table, one: Recording, size: Size) -> list[float]:
    """The engine and all who do its whole work; returns the engine's times."""
    names = ["plain Python, msgspec and tables"]
    contestants = [engine_calls(one, one.traffic), baseline_calls(one, one.traffic)]
    for library, model in MODELS.items():
        names.append(f"the same, machines by {named(library)}")
        contestants.append(baseline_calls(one, one.traffic, model=model))
    engine, *others = timed(contestants, size)
    table.add_row("bss_stream's engine: signals of plans a second", rate(engine), "1")
    for name, times in zip(names, others, strict=True):
        table.add_row(name, rate(times), ratio(times, engine))
    flow = [seconds_of(bytewax_call(one, one.traffic)) / len(one.traffic)]
    table.add_row(
        f"the same in a dataflow of {named('bytewax')}",
        rate(flow),
        f"{flow[0] / statistics.median(engine):.1f}",
    )
    return engine


def rate_checks(table: Table, one: Recording, size: Size, engine: list[float]) -> None:
    """The rate limit alone by libraries, beside all that the engine does for a signal."""
    random = Random(1)
    plans = [f"plan-{random.randrange(one.plans):07}" for _ in range(BATCH_RECORDS)]

    def calls(check: limiters.Check) -> Iterator[Call]:
        while True:
            yield lambda: [check(plan) for plan in plans]

    checks = {"limits": limiters.limits(), "pyrate-limiter": limiters.pyrate_limiter()}
    table.add_section()
    table.add_row("bss_stream's engine, the whole signal", rate(engine), "1")
    for library, check in checks.items():
        [times] = timed([calls(check)], size)
        share = f"{statistics.median(times) / statistics.median(engine):.1f}"
        table.add_row(f"the rate limit alone, {named(library)}", rate(times), share)


def seconds_of(call: Call) -> float:
    """CPU time of the process: frameworks use threads of their own."""
    started_s = time.process_time()
    call()
    return time.process_time() - started_s


def named(library: str) -> str:
    """A library with its version."""
    return f"{library} {version(library)}"


def main() -> None:
    """Check, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer plans and rounds")
    size = QUICK if parser.parse_args().quick else FULL
    one = record(size.plans, size.blocks * size.block_calls)
    check_same_work(one)
    gc.collect()
    gc.freeze()
    gc.disable()
    table = Table(
        title=f"{size.plans:,} plans, batches of {BATCH_RECORDS:,}, "
        f"medians of {size.blocks} times {size.block_calls}",
        caption="how many times as long as the line with 1",
    )
    table.add_column("what")
    table.add_column("a second", justify="right")
    table.add_column("times", justify="right")
    engine = whole_work(table, one, size)
    rate_checks(table, one, size, engine)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
