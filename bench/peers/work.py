"""The engine beside what users could pick instead: the peers' part of `python -m bench.report`.

Needs the extra `peers`. Every peer that does the whole work must give the baseline's records, byte
for byte, before it is timed. All figures are CPU time of one core, taken in turns in the same run.
"""

import gc
import statistics
import time
from collections.abc import Iterator
from importlib.metadata import version
from random import Random

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
from bench.sheet import Sheet
from bench.turns import Size, rate, ratio, timed

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


def whole_work(sheet: Sheet, one: Recording, size: Size) -> list[float]:
    """The engine and all who do its whole work; returns the engine's times."""
    names = ["plain Python, msgspec and tables"]
    contestants = [engine_calls(one, one.traffic), baseline_calls(one, one.traffic)]
    for library, model in MODELS.items():
        names.append(f"the same, machines by {named(library)}")
        contestants.append(baseline_calls(one, one.traffic, model=model))
    engine, *others = timed(contestants, size)
    sheet.add(f"engine beside its peers, {size.plans:,} plans: signals of plans", rate(engine))
    for name, times in zip(names, others, strict=True):
        sheet.add(f"peer: {name}", rate(times), ratio(engine, times), to="engine")
    flow = [seconds_of(bytewax_call(one, one.traffic)) / len(one.traffic)]
    sheet.add(
        f"peer: the same in a dataflow of {named('bytewax')}",
        rate(flow),
        statistics.median(engine) / flow[0],
        to="engine",
    )
    return engine


def rate_checks(sheet: Sheet, one: Recording, size: Size, engine: list[float]) -> None:
    """The rate limit alone by libraries, beside all that the engine does for a signal."""
    random = Random(1)
    plans = [f"plan-{random.randrange(one.plans):07}" for _ in range(BATCH_RECORDS)]

    def calls(check: limiters.Check) -> Iterator[Call]:
        while True:
            yield lambda: [check(plan) for plan in plans]

    checks = {"limits": limiters.limits(), "pyrate-limiter": limiters.pyrate_limiter()}
    for library, check in checks.items():
        [times] = timed([calls(check)], size)
        sheet.add(
            f"peer: the rate limit alone, {named(library)}",
            rate(times),
            statistics.median(engine) / statistics.median(times),
            to="engine, whole signal",
        )


def seconds_of(call: Call) -> float:
    """CPU time of the process: frameworks use threads of their own."""
    started_s = time.process_time()
    call()
    return time.process_time() - started_s


def named(library: str) -> str:
    """A library with its version."""
    return f"{library} {version(library)}"


def compare(sheet: Sheet, size: Size) -> None:
    """Check, measure and write down."""
    one = record(size.plans, size.blocks * size.block_calls)
    check_same_work(one)
    gc.collect()
    gc.freeze()
    gc.disable()
    engine = whole_work(sheet, one, size)
    rate_checks(sheet, one, size, engine)
    gc.enable()
    gc.unfreeze()
