"""When swaps are due: at a constant rate, or by a market's day with its two commutes.

Arrivals are open loop: they come when they come, however slow the answers are. A source holds the
time of its next arrival in microseconds on the caller's clock.
"""

import math
from collections.abc import Sequence
from random import Random
from typing import Final, Protocol

_SLOTS: Final = 96
_DAY_S: Final = 86_400
_SLOT_S: Final = _DAY_S // _SLOTS

_BASE: Final = 0.35
_COMMUTES: Final = ((7.25, 1.1, 2.4), (17.75, 1.5, 2.6))
"""Local hour of the peak, its width in hours, its height over a flat day."""


def _day() -> tuple[float, ...]:
    def demand(hour: float) -> float:
        peaks = (
            height * math.exp(-(((hour - peak) / width) ** 2) / 2)
            for peak, width, height in _COMMUTES
        )
        night = 0.25 if hour < 5 else 1.0
        return night * (_BASE + sum(peaks))

    slots = [demand((slot + 0.5) * 24 / _SLOTS) for slot in range(_SLOTS)]
    mean = sum(slots) / _SLOTS
    return tuple(slot / mean for slot in slots)


DAY: Final = _day()
"""Demand in each quarter of an hour of the local day, with a mean of 1."""


class Arrivals(Protocol):
    """A source of swaps."""

    next_us: int
    """When the next one is due."""

    def take(self) -> int | None:
        """Move past the next arrival; tells its market, None for any."""


class ConstantArrivals:
    """`rate` arrivals a second, evenly spaced, for any market."""

    def __init__(self, rate: float, start_us: int) -> None:
        self._rate = rate
        self._start_us = start_us
        self._taken = 0
        self.next_us = start_us

    def take(self) -> None:
        """Move past the next arrival."""
        self._taken += 1
        self.next_us = self._start_us + int(self._taken * 1_000_000 / self._rate)


class RhythmArrivals:
    """Arrivals of several markets, each by its own local day, by thinning.

    `per_day[m]` is what market m has on a simulated day, `offsets_s[m]` its local time's lead on
    UTC. The simulated clock starts at `start_s` (seconds of the UTC day) when the caller's clock
    shows `start_us`, and runs `speed_up` times as fast.
    """

    def __init__(
        self,
        per_day: Sequence[float],
        offsets_s: Sequence[int],
        *,
        start_s: float,
        start_us: int,
        speed_up: float,
        random: Random,
    ) -> None:
        self._per_day = per_day
        self._offsets_s = offsets_s
        self._start_s = start_s
        self._start_us = start_us
        self._speed_up = speed_up
        self._random = random
        self._peak_per_us = sum(per_day) * max(DAY) * speed_up / (_DAY_S * 1_000_000)
        self._market = 0
        self._at_us = float(start_us)
        self.next_us = start_us
        self._find()

    def take(self) -> int:
        """Move past the next arrival; tells its market."""
        market = self._market
        self._find()
        return market

    def _find(self) -> None:
        random, peak = self._random, max(DAY)
        total = sum(self._per_day)
        while True:
            self._at_us += random.expovariate(self._peak_per_us)
            # One draw decides both the market and whether the arrival is kept.
            draw = random.random() * total
            market = 0
            while market < len(self._per_day) - 1 and draw >= self._per_day[market]:
                draw -= self._per_day[market]
                market += 1
            if draw < self._per_day[market] * self.demand(market) / peak:
                break
        self._market = market
        self.next_us = int(self._at_us)

    def demand(self, market: int) -> float:
        """The market's demand at the time of the last candidate, 1 on a flat day."""
        simulated_s = self._start_s + (self._at_us - self._start_us) / 1e6 * self._speed_up
        local_s = (simulated_s + self._offsets_s[market]) % _DAY_S
        return DAY[int(local_s // _SLOT_S) % _SLOTS]
