"""When to charge a station's batteries so that none is missing and the load is level (AM5).

The wire carries no state of charge: a battery in stock counts as charged, one that was brought back
as empty, and one that charges in an hour as ready for the next.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

HOURS: Final = 24


class Plan(NamedTuple):
    """How many batteries to charge in each hour of a day."""

    charge: tuple[int, ...]
    short: tuple[int, ...]
    """Riders who will find none, however much is charged."""

    @property
    def peak(self) -> int:
        """The most that charge at a time."""
        return max(self.charge, default=0)


def level(issued: Sequence[int], returned: Sequence[int], charged: int, empty: int) -> Plan:
    """The plan with the lowest peak of those that leave the fewest riders without a battery.

    `issued` and `returned` are what is expected hour by hour; `charged` and `empty` batteries are
    there at the day's start.
    """
    low, high = 0, empty + sum(returned)
    fewest = sum(_charging(issued, returned, charged, empty, high).short)
    while low < high:
        middle = (low + high) // 2
        if sum(_charging(issued, returned, charged, empty, middle).short) == fewest:
            high = middle
        else:
            low = middle + 1
    return _charging(issued, returned, charged, empty, low)


def _charging(
    issued: Sequence[int], returned: Sequence[int], charged: int, empty: int, most: int
) -> Plan:
    """As soon as there is one to charge, and never more than `most` at a time."""
    charge, short = [], []
    for wanted, brought in zip(issued, returned, strict=True):
        given = min(wanted, charged)
        now = min(most, empty)
        charge.append(now)
        short.append(wanted - given)
        charged += now - given
        empty += brought - now
    return Plan(tuple(charge), tuple(short))
