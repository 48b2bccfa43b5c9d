"""Contestants that take turns on the same batches, and what their times come to."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from bench.recording import BATCH_RECORDS, Call


class Size(NamedTuple):
    """How much is measured."""

    plans: int
    blocks: int
    """How often each contestant has its turn."""
    block_calls: int
    """Batches a turn."""
    copies: int
    """How many times as many plans the largest engine has."""


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


def rate(times: Sequence[float], records: float = BATCH_RECORDS) -> float:
    """Records a second at the median."""
    return records / statistics.median(times)


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """How many times as fast: the median over the same batches."""
    return statistics.median(s / f for s, f in zip(slow, fast, strict=True))
