"""A latency recorder of fixed memory: a log-linear histogram in microseconds.

Each power of two is cut into 64 equal buckets, so a percentile is at most 1/64 (1.6 %) above the
value that was recorded, over the whole range of 1 microsecond to 19 hours.
"""

from array import array
from typing import Final

_SUB_BITS: Final = 6
_SUB: Final = 1 << _SUB_BITS
_LINEAR: Final = _SUB * 2
_VALUE_BITS: Final = 36
_VALUE_MAX: Final = (1 << _VALUE_BITS) - 1


def _index(value_us: int) -> int:
    if value_us < _LINEAR:
        return value_us
    shift = value_us.bit_length() - _SUB_BITS - 1
    return (shift << _SUB_BITS) + (value_us >> shift)


def _highest(index: int) -> int:
    """The largest value that `_index` maps to `index`."""
    if index < _LINEAR:
        return index
    shift = (index >> _SUB_BITS) - 1
    return (((index & (_SUB - 1)) + _SUB + 1) << shift) - 1


_BUCKETS: Final = _index(_VALUE_MAX) + 1


class LatencyRecorder:
    """Counts of latencies by size.

    What lies outside 0..19 hours is counted at the nearer end; `max_us` is exact within it.
    """

    __slots__ = ("_buckets", "count", "max_us")

    def __init__(self) -> None:
        self._buckets = array("Q", bytes(8 * _BUCKETS))
        self.count = 0
        self.max_us = 0

    def record(self, latency_us: int) -> None:
        """Add one latency in microseconds."""
        value = min(max(latency_us, 0), _VALUE_MAX)
        self._buckets[_index(value)] += 1
        self.count += 1
        if value > self.max_us:
            self.max_us = value

    def add(self, other: "LatencyRecorder") -> None:
        """Add every latency of another recorder."""
        for index, count in enumerate(other._buckets):
            if count:
                self._buckets[index] += count
        self.count += other.count
        self.max_us = max(self.max_us, other.max_us)

    def percentile_us(self, percent: float) -> int:
        """The latency that `percent` (0..100) of all stay at or below; 0 when there are none."""
        wanted = max(1, -int(-self.count * percent // 100))
        seen = 0
        for index, count in enumerate(self._buckets):
            seen += count
            if seen >= wanted:
                return min(_highest(index), self.max_us)
        return 0
