"""ARM's decisions: the best battery, exact net energy, one answer for one command."""

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bss_stream.simulate.arm import AllocateCommand, ArmDecisions
from bss_stream.simulate.config import ArmConfig
from bss_stream.simulate.network import Shelf

HOUR_MS = 3_600_000
SHELVES = (
    Shelf("station-1", "fleet-a", stock=3, capacity=4, hold_wh=3_000),
    Shelf("station-1", "fleet-b", stock=2, capacity=2, hold_wh=6_000),
    Shelf("station-2", "fleet-a", stock=2, capacity=2, hold_wh=3_000),
)


def arm(dry: frozenset[str] = frozenset(), **config: Any) -> ArmDecisions:
    values = {"rest_ms": 0, "restock_share": 0.0, **config}
    return ArmDecisions(SHELVES, ArmConfig(**values), Random(1), run="t", dry=dry)


def command(number: int, **fields: Any) -> AllocateCommand:
    values = {
        "fleet_id": "fleet-a",
        "plan_id": f"plan-{number}",
        "location_id": "station-1",
        "correlation_id": f"c-{number}",
    }
    return AllocateCommand(**{**values, **fields})


def test_the_first_issue_delivers_the_whole_charge() -> None:
    answer = arm().allocate(command(1), HOUR_MS).answer
    assert answer.reason is None
    assert answer.energy_steps == 300
    assert answer.returned_asset_id is None


def test_a_repeated_command_gets_the_same_answer_and_no_second_battery() -> None:
    decisions = arm(lost_share=0.5)
    first = decisions.allocate(command(1), HOUR_MS)
    left = decisions.available("station-1", "fleet-a")
    again = decisions.allocate(command(1, attempt=2), 2 * HOUR_MS)
    assert again.answer == first.answer
    assert (first.repeated, again.repeated) == (False, True)
    assert again.delay_ms == 0
    assert decisions.available("station-1", "fleet-a") == left


def test_a_swap_shelves_the_returned_battery_and_delivers_the_difference() -> None:
    decisions = arm()
    first = decisions.allocate(command(1), HOUR_MS).answer
    assert first.asset_id is not None
    second = decisions.allocate(
        command(1, correlation_id="c-2", returned_asset_id=first.asset_id), HOUR_MS
    ).answer
    assert second.asset_id not in (None, first.asset_id)
    # 3.00 kWh go out; a rider leaves between a twentieth and six tenths in the old one.
    assert 120 <= second.energy_steps <= 285
    assert decisions.available("station-1", "fleet-a") == 2
    assert decisions.issued(first.asset_id) is None
    issued = decisions.issued(second.asset_id or "")
    assert issued == ("plan-1", second.energy_steps)


def test_the_battery_with_the_most_charge_goes_out_first() -> None:
    decisions = arm()
    first = decisions.allocate(command(1), 0).answer.asset_id
    second = decisions.allocate(command(2), 0).answer.asset_id
    assert first and second
    decisions.take_back("station-1", "fleet-a", first, HOUR_MS)
    decisions.take_back("station-1", "fleet-a", second, 3 * HOUR_MS)
    full = [decisions.allocate(command(n), 3 * HOUR_MS).answer for n in (3, 4)]
    assert [answer.energy_steps for answer in full] == [300, 300]
    # It has come back just now.
    last = decisions.allocate(command(5), 3 * HOUR_MS).answer
    assert last.asset_id == second
    assert last.energy_steps < 300


def test_among_full_batteries_the_healthiest_goes_out_first() -> None:
    decisions = arm()
    order = [decisions.allocate(command(n), HOUR_MS).answer.asset_id for n in range(3)]
    health = {asset: decisions.health(asset) for asset in order if asset is not None}
    assert list(health.values()) == sorted(health.values(), reverse=True)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"fleet_id": "fleet-z"}, "unknown_fleet"),
        ({"location_id": "station-9"}, "unknown_location"),
        ({"location_id": "station-2", "fleet_id": "fleet-b"}, "inventory_empty"),
    ],
)
def test_what_is_not_there_is_denied(fields: dict[str, str], reason: str) -> None:
    assert arm().allocate(command(1, **fields), 0).answer.reason == reason


def test_an_empty_shelf_denies_and_a_dry_station_is_never_refilled() -> None:
    decisions = arm(dry=frozenset({"station-1"}))
    assert decisions.allocate(command(1), 0).answer.reason == "inventory_empty"
    assert decisions.take_reports() == []


def test_a_battery_that_lies_on_a_shelf_cannot_be_returned_again() -> None:
    decisions = arm()
    first = decisions.allocate(command(1), 0).answer.asset_id
    decisions.allocate(command(1, correlation_id="c-2", returned_asset_id=first), 0)
    denied = decisions.allocate(command(3, returned_asset_id=first), 0).answer
    assert denied.reason == "asset_not_out"


def test_a_battery_from_before_the_run_is_taken_in() -> None:
    decisions = arm()
    answer = decisions.allocate(command(1, returned_asset_id="B0723025100049"), 0).answer
    assert answer.reason is None
    assert decisions.available("station-1", "fleet-a") == 3


def test_a_shelf_that_runs_low_is_refilled_and_reported() -> None:
    decisions = arm(restock_share=0.4)
    for number in range(2):
        decisions.allocate(command(number), 0)
    assert decisions.take_reports() == [("station-1", "fleet-a", 4)]
    assert decisions.take_reports() == []


def test_a_refused_staffed_swap_leaves_everything_as_it_was() -> None:
    decisions = arm()
    before = decisions.stock()
    hand_over = decisions.hand_over("station-1", "fleet-a", "plan-1", None, 0)
    assert hand_over is not None
    # To the platform the battery is in stock until it hears of the swap.
    assert decisions.stock() == before
    decisions.settle(hand_over, "fleet-a", accepted=False, now_ms=0)
    assert decisions.stock() == before
    assert decisions.issued(hand_over.asset_id) is None


def test_an_accepted_staffed_swap_exchanges_the_batteries() -> None:
    decisions = arm()
    first = decisions.hand_over("station-1", "fleet-a", "plan-1", None, 0)
    assert first is not None
    decisions.settle(first, "fleet-a", accepted=True, now_ms=0)
    second = decisions.hand_over("station-1", "fleet-a", "plan-1", first.asset_id, HOUR_MS)
    assert second is not None
    decisions.settle(second, "fleet-a", accepted=True, now_ms=HOUR_MS)
    assert decisions.issued(first.asset_id) is None
    assert decisions.issued(second.asset_id) == ("plan-1", second.energy_steps)
    assert decisions.available("station-1", "fleet-a") == 2


def test_slow_and_lost_answers_come_in_their_shares() -> None:
    decisions = arm(slow_share=0.3, slow_ms_min=5, slow_ms_max=9, lost_share=0.2)
    delays = [decisions.allocate(command(n), 0).delay_ms for n in range(1_000)]
    lost = delays.count(None)
    slow = [delay for delay in delays if delay]
    assert 150 < lost < 250
    assert 250 < len(slow) < 350
    assert all(5 <= delay <= 9 for delay in slow)


@given(st.integers(0, 2**32), st.integers(1, 60))
def test_energy_is_never_negative_and_no_battery_is_in_two_hands(seed: int, swaps: int) -> None:
    random = Random(seed)
    decisions = ArmDecisions(SHELVES, ArmConfig(rest_ms=1_000), Random(seed), run="t")
    held: dict[str, str | None] = {f"plan-{n}": None for n in range(4)}
    for number in range(swaps):
        plan = random.choice(list(held))
        answer = decisions.allocate(
            command(number, plan_id=plan, returned_asset_id=held[plan]),
            number * random.randrange(1, 600_000),
        ).answer
        assert 0 <= answer.energy_steps <= 300
        held[plan] = answer.asset_id or held[plan]
    out = [asset for asset in held.values() if asset is not None]
    assert len(set(out)) == len(out)
