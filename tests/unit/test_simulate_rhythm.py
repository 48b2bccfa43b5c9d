"""Arrivals: even spacing at a constant rate, and a day with two commutes by local time."""

from collections import Counter
from random import Random

import pytest

from bss_stream.simulate.rhythm import DAY, ConstantArrivals, RhythmArrivals

HOUR_US = 3_600_000_000


def test_constant_arrivals_keep_their_rate_without_drift() -> None:
    arrivals = ConstantArrivals(3, start_us=10)
    times = []
    for _ in range(3_001):
        times.append(arrivals.next_us)
        arrivals.take()
    assert times[0] == 10
    assert times[3] == 1_000_010
    assert times[3_000] == 1_000_000_010


def test_the_day_has_its_peaks_at_the_two_commutes() -> None:
    assert sum(DAY) / len(DAY) == pytest.approx(1)
    by_hour = [sum(DAY[hour * 4 : hour * 4 + 4]) for hour in range(24)]
    busiest = sorted(range(24), key=lambda hour: -by_hour[hour])[:4]
    assert sorted(busiest) == [6, 7, 17, 18] or {7, 17} <= set(busiest)
    assert min(by_hour) == min(by_hour[0:5])
    assert by_hour[12] < by_hour[7] / 2


def simulated_day(speed_up: float, seed: int = 1) -> list[tuple[int, int]]:
    """(hour in UTC, market) of every arrival of one simulated day from midnight UTC on."""
    arrivals = RhythmArrivals(
        [2_000, 1_000],
        [3 * 3600, 0],
        start_s=0,
        start_us=0,
        speed_up=speed_up,
        random=Random(seed),
    )
    found = []
    while arrivals.next_us < 24 * HOUR_US / speed_up:
        hour = int(arrivals.next_us * speed_up / HOUR_US)
        found.append((hour, arrivals.take()))
    return found


@pytest.mark.parametrize("speed_up", [1, 1440])
def test_a_day_brings_what_each_market_expects_whatever_its_speed(speed_up: float) -> None:
    per_market = Counter(market for _, market in simulated_day(speed_up))
    # Three standard deviations of a Poisson number.
    assert abs(per_market[0] - 2_000) < 135
    assert abs(per_market[1] - 1_000) < 95


def test_each_market_commutes_by_its_own_clock() -> None:
    hours = Counter(simulated_day(1440))
    nairobi = max(range(12), key=lambda hour: hours[hour, 0])
    lome = max(range(12), key=lambda hour: hours[hour, 1])
    assert nairobi in (3, 4, 5)
    assert lome in (6, 7, 8)


def test_one_seed_gives_one_day() -> None:
    assert simulated_day(1440, seed=4) == simulated_day(1440, seed=4)
    assert simulated_day(1440, seed=4) != simulated_day(1440, seed=5)
