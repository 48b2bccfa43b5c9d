"""What a rider expects follows from the terms, the count and what identify_customer told."""

from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from bss_stream.client.echo import ServicePlan
from bss_stream.contract.echoes import ServiceState
from bss_stream.simulate.network import ServiceTerms, Terms
from bss_stream.simulate.riders import OK, Phase, Rider

SWAPS = ServiceTerms("swaps", "swap", 3, 2, False, 6, 0, Fraction(5_000))
ENERGY = ServiceTerms("energy", "energy", 4_000, None, False, 8_000, 3, Fraction(2_500))


def rider(*services: ServiceTerms) -> Rider:
    terms = Terms("t-1", 0, 0, 0, {"fleet-a": ("s-1",)}, "fleet-a", (), services)
    made = Rider(1, "t", 0, terms, "fleet-a")
    assert made.learn(told(*[(s.service_id, 0, _wire(s)) for s in services])) == []
    made.phase = Phase.RIDING
    return made


def _wire(service: ServiceTerms) -> float:
    units = service.initial_units
    return 100_000_000 if units is None else float(units / 10**service.unit_digits)


def told(*services: tuple[str, float, float], battery: str | None = None) -> ServicePlan:
    states = tuple(
        ServiceState(name, Decimal(str(used)), Decimal(str(quota)), battery)
        for name, used, quota in services
    )
    return ServicePlan(payment_state="CURRENT", service_states=states)


@pytest.mark.parametrize(
    ("swaps", "energy_steps", "expected"),
    [
        (0, 100, OK),
        (2, 100, {"rate_limited"}),
        (0, 401, {"quota_exhausted"}),
        (2, 401, {"quota_exhausted", "rate_limited"}),
        (0, None, OK),
    ],
)
def test_a_rider_foresees_quota_and_rate(
    swaps: int, energy_steps: int | None, expected: set[str]
) -> None:
    one = rider(SWAPS, ENERGY)
    one.see_day(1)
    for _ in range(swaps):
        one.count_swap(0)
    assert one.expect_swap(energy_steps) == expected


def test_the_rate_limit_starts_anew_with_the_day_and_the_quota_does_not() -> None:
    one = rider(SWAPS)
    for day in (1, 2):
        one.see_day(day)
        one.count_swap(100)
    assert one.expect_swap(100) == OK
    one.count_swap(100)
    one.see_day(3)
    assert one.expect_swap(100) == {"quota_exhausted"}


def test_self_service_needs_any_energy_and_uses_no_more_than_is_left() -> None:
    one = rider(ENERGY)
    one.count_swap(399)
    assert one.expect_swap(None) == OK
    one.count_swap(300)
    assert one.accounts[0].used == 4_000
    assert one.expect_swap(None) == {"quota_exhausted"}


def test_infinite_and_overage_never_run_out() -> None:
    infinite = ServiceTerms("swaps", "swap", None, None, False, None, 0, Fraction(0))
    overage = ServiceTerms("energy", "energy", 10, None, True, None, 3, Fraction(0))
    one = rider(infinite, overage)
    for _ in range(100):
        one.count_swap(500)
    assert one.expect_swap(500) == OK


def test_what_identify_tells_is_compared_with_the_riders_own_count() -> None:
    one = rider(SWAPS, ENERGY)
    one.battery = "b-1"
    one.count_swap(150)
    assert one.learn(told(("swaps", 1, 3), ("energy", 1.5, 4), battery="b-1")) == []
    differences = one.learn(told(("swaps", 2, 3), battery="b-2"))
    assert [line.partition(" ")[0] for line in differences] == ["current_asset", "swaps", "no"]
    # What the platform says stands from now on.
    assert one.accounts[0].used == 2


def test_a_first_grant_must_be_the_terms() -> None:
    terms = Terms("t-1", 0, 0, 0, {"fleet-a": ("s-1",)}, "fleet-a", (), (SWAPS,))
    one = Rider(1, "t", 0, terms, "fleet-a")
    assert one.learn(told(("swaps", 0, 5))) == ["swaps 0 of 5, the terms' 0 of 3"]


def test_a_lost_answer_is_doubted_until_identify_has_told() -> None:
    one = rider(SWAPS)
    one.see_day(1)
    one.count_swap(0)
    one.doubt()
    one.doubtful_today += 1
    assert one.expect_swap(0) == {"ok", "rate_limited"}
    assert one.learn(told(("swaps", 2, 3), battery="b-9")) == []
    assert one.battery == "b-9"


def _account(**changes: Any) -> Any:
    one = rider(SWAPS).accounts[0]
    for name, value in changes.items():
        setattr(one, name, value)
    return one


@pytest.mark.parametrize(("quota", "units", "fits"), [(3, 3, True), (3, 4, False), (None, 9, True)])
def test_a_payment_past_the_cap_is_not_granted_whole(
    quota: int | None, units: int, fits: bool
) -> None:
    assert _account(quota=quota).has_room(units) is fits
