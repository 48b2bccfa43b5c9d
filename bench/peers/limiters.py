"""The day's rate limit alone, by the libraries that people take for it.

The engine counts by the local calendar day of the market's zone and can do so from the signal's own
time stamp; these count by their own clock. Each has a bucket of its own for every plan.
"""

from collections.abc import Callable
from typing import Final

from limits import RateLimitItemPerDay
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter
from pyrate_limiter import (
    AbstractBucket,
    BucketFactory,
    Duration,
    InMemoryBucket,
    Limiter,
    MonotonicClock,
    Rate,
    RateItem,
)

SWAPS_A_DAY: Final = 100

Check = Callable[[str], bool]
"""Counts one swap of a plan; False if it is one too many."""


class _BucketOfPlan(BucketFactory):
    def __init__(self) -> None:
        self._clock = MonotonicClock()
        self._rates = [Rate(SWAPS_A_DAY, Duration.DAY)]
        self._buckets: dict[str, InMemoryBucket] = {}

    def wrap_item(self, name: str, weight: int = 1) -> RateItem:
        return RateItem(name, self._clock.now(), weight=weight)

    def get(self, item: RateItem) -> AbstractBucket:
        bucket = self._buckets.get(item.name)
        if bucket is None:
            bucket = self._buckets[item.name] = InMemoryBucket(self._rates)
        return bucket


def pyrate_limiter() -> Check:
    """`pyrate-limiter`, a sliding window in memory."""
    limiter = Limiter(_BucketOfPlan())

    def check(plan_id: str) -> bool:
        return bool(limiter.try_acquire(plan_id, blocking=False))

    return check


def limits() -> Check:
    """`limits`, a fixed window in memory."""
    limiter = FixedWindowRateLimiter(MemoryStorage())
    rate = RateLimitItemPerDay(SWAPS_A_DAY)

    def check(plan_id: str) -> bool:
        return limiter.hit(rate, plan_id)

    return check
