"""A time zone as a table of UTC offsets: the engine reads no tz database."""

import datetime
import functools
from typing import Final
from zoneinfo import ZoneInfo

SCAN_FROM_S: Final = 0
SCAN_TO_S: Final = int(datetime.datetime(2101, 1, 1, tzinfo=datetime.UTC).timestamp())

_STEP_S: Final = 12 * 3600
"""Transitions closer than this that cancel each other out would be missed; no zone has any."""


@functools.cache
def offsets(name: str) -> tuple[tuple[int | None, int], ...]:
    """The zone's (from_epoch_ms, UTC offset in seconds), ascending, 1970 through 2100.

    The first entry has None: it holds for all time before the second.
    Raises zoneinfo.ZoneInfoNotFoundError or ValueError for a name that the system does not know.
    """
    zone = ZoneInfo(name)
    table: list[tuple[int | None, int]] = [(None, _offset_s(zone, SCAN_FROM_S))]
    for start in range(SCAN_FROM_S, SCAN_TO_S, _STEP_S):
        end = min(start + _STEP_S, SCAN_TO_S)
        after = _offset_s(zone, end)
        if after != table[-1][1]:
            table.append((_transition_s(zone, start, end) * 1000, after))
    return tuple(table)


def _offset_s(zone: ZoneInfo, epoch_s: int) -> int:
    offset = datetime.datetime.fromtimestamp(epoch_s, zone).utcoffset()
    assert offset is not None  # an aware datetime always has one
    return int(offset.total_seconds())


def _transition_s(zone: ZoneInfo, low: int, high: int) -> int:
    """The first second with the offset of `high`, by bisection: `low` still has another."""
    after = _offset_s(zone, high)
    while high - low > 1:
        middle = (low + high) // 2
        if _offset_s(zone, middle) == after:
            high = middle
        else:
            low = middle
    return high
