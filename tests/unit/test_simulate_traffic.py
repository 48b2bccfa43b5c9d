"""Whole lives of riders against the real engine, on a clock of their own: nothing unexpected.

And the other half of the simulator's value: a platform that answers wrongly does not pass.
"""

import json
from random import Random
from typing import Any

import pytest

from bss_stream.simulate.config import NO_FAULTS, ArmConfig, FaultShares, SimulationConfig
from bss_stream.simulate.network import read_network
from tests import simulated_day
from tests.engine_platform import Sent
from tests.simulated_day import NOON_MS, SETUP, SimulatedDay

ALL_FAULTS = FaultShares(
    wrong_station=0.05,
    exhausted_quota=0.05,
    empty_stock=0.05,
    over_rate_limit=0.05,
    duplicate=0.05,
    garbage=0.1,
)
DAY_MS = 86_400_000


def config(**fields: Any) -> SimulationConfig:
    values: dict[str, Any] = {
        "plans": 80,
        "rate": 40.0,
        "joining_rate": 1_000.0,
        "identify_share": 0.5,
        "faults": NO_FAULTS,
    }
    return SimulationConfig(**{**values, **fields})


def finished(day: SimulatedDay, seconds: float = 15) -> SimulatedDay:
    day.run(seconds)
    day.drain()
    return day


def complaints(day: SimulatedDay) -> list[str]:
    return [f"{u.kind}: {u.expected}, got {u.got}" for u in day.traffic.tally.unexpected_lines()]


def test_all_riders_join_and_every_answer_is_foreseen() -> None:
    day = finished(SimulatedDay(config(faults=ALL_FAULTS)))
    tally = day.traffic.tally
    assert complaints(day) == []
    assert tally.requests["odoo_sync"] == tally.requests["initialize_states"] == 80
    assert day.traffic.plans().joining == 0
    assert tally.swaps > 100
    # Each fault was played, and each one was answered as it should be.
    faults = tally.faults()
    assert {"wrong_station", "exhausted_quota", "empty_stock", "duplicate"} < set(faults)
    assert {"over_rate_limit", "truncated", "deep_nesting"} < set(faults)
    assert all(count.sent == count.answered for count in faults.values())


def test_swaps_split_between_staffed_and_self_service_as_asked() -> None:
    day = finished(SimulatedDay(config(templates={"template-nairobi-swap-freedom": 1})), 25)
    latencies = day.traffic.tally.latencies
    staffed = latencies["swap_staffed"].count
    assert 0.5 < staffed / (staffed + latencies["swap_self_service"].count) < 0.7


def test_the_same_seed_gives_the_same_messages() -> None:
    one, same = (finished(SimulatedDay(config(seed=3, faults=ALL_FAULTS)), 8) for _ in range(2))
    other = finished(SimulatedDay(config(seed=4, faults=ALL_FAULTS)), 8)
    assert one.sent > 500
    assert one.digest == same.digest
    assert one.digest != other.digest


def test_riders_who_run_out_top_up_renew_and_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = json.loads(SETUP)
    for template in (t for market in setup["markets"] for t in market["templates"]):
        for service in template["services"]:
            service["rate_limit_per_day"] = None
            if service["initial_quota"] != "infinite":
                units = service["initial_quota"]["units"]
                service["initial_quota"] = {"units": 6 if units < 1_000 else 15_000}
                service["max_quota"] = {"units": 600 if units < 1_000 else 9_000_000}
    compiled = json.dumps(setup).encode()
    monkeypatch.setattr(simulated_day, "SETUP", compiled)
    monkeypatch.setattr(simulated_day, "NETWORK", read_network(compiled))
    day = finished(SimulatedDay(config(plans=30, arm=ArmConfig(recharge_ms=1_000))), 30)
    requests = day.traffic.tally.requests
    assert complaints(day) == []
    assert min(requests[kind] for kind in ("service_payment", "paid_swap", "renewal")) > 5
    assert day.traffic.tally.outcomes["quota_exhausted"] > 20
    assert day.traffic.plans().stuck == 0


def test_riders_cancel_return_their_battery_and_are_replaced() -> None:
    day = SimulatedDay(config(plans=20, swaps_per_plan=2))
    day.run(30, until=lambda: day.traffic.done >= 25)
    day.drain()
    assert complaints(day) == []
    assert day.traffic.done >= 25
    assert day.traffic.tally.requests["odoo_sync"] >= 40
    states = [day.platform.play.plan(f"plan-s1-{n:07d}") for n in range(1, 21)]
    complete = [s for s in states if s["service_state"] == s["payment_state"] == "COMPLETE"]
    assert len(complete) >= 15


def test_slow_and_lost_answers_of_arm_are_waited_out() -> None:
    arm = ArmConfig(slow_share=0.2, slow_ms_min=1_000, slow_ms_max=30_000, lost_share=0.2)
    day = finished(SimulatedDay(config(staffed_share=0.0, rate=10.0, arm=arm)), 40)
    assert complaints(day) == []
    assert day.traffic.tally.swap_latency.max_us > 5_000_000
    assert day.traffic.plans().stuck == 0


def test_lost_echoes_are_asked_for_again_until_the_platforms_record_is_known() -> None:
    random, lost_in_a_row = Random(1), 0

    def lose_some(sent: Sent) -> list[Sent]:
        nonlocal lost_in_a_row
        lost_in_a_row = lost_in_a_row + 1 if random.random() < 0.1 and lost_in_a_row < 1 else 0
        return [] if sent.topic.startswith("echo/") and lost_in_a_row else [sent]

    day = SimulatedDay(config(answer_timeout_ms=2_000), sabotage=lose_some)
    finished(day, 40)
    assert complaints(day) == []
    assert day.traffic.tally.timeouts > 30
    assert day.traffic.plans().stuck == 0


def test_at_midnight_of_the_market_the_rate_limit_starts_anew() -> None:
    before_midnight_ms = NOON_MS + 9 * 3_600_000 - 20_000
    day = SimulatedDay(
        config(templates={"template-nairobi-basic": 1}, plans=20), starts_ms=before_midnight_ms
    )
    day.run(15)
    assert day.traffic.plans().resting == 20
    swaps = day.traffic.tally.swaps
    day.run(15)
    day.drain()
    assert complaints(day) == []
    assert day.traffic.tally.swaps == swaps + 40
    assert day.traffic.tally.unserved > 0


def test_the_latency_counts_from_when_a_swap_was_due() -> None:
    # One rider cannot serve more than one swap at a time: the others wait for the rider.
    slow = ArmConfig(slow_share=1.0, slow_ms_min=1_000, slow_ms_max=1_000)
    day = SimulatedDay(
        config(
            plans=1,
            rate=2.0,
            staffed_share=0.0,
            templates={"template-nairobi-swap-freedom": 1},
            arm=slow,
        )
    )
    day.run(22)
    latency = day.traffic.tally.swap_latency
    # Two a second come, one a second is served: the tenth waits as long as nine took.
    assert latency.max_us > 9_000_000
    assert day.traffic.late_us(22_000_000) > 9_000_000


def test_a_day_at_full_speed_has_its_rhythm() -> None:
    day = SimulatedDay(
        config(rate=None, speed_up=7_200.0, swaps_per_plan_day=1.5, plans=200, day_starts_at_hour=0)
    )
    day.run(1)
    served = []
    for _ in range(12):
        before = day.traffic.tally.requests["swap"]
        day.run(1)
        served.append(day.traffic.tally.requests["swap"] - before)
    day.drain()
    assert complaints(day) == []
    # Two simulated hours a second: the commutes stand out from the night.
    assert max(served) > 4 * min(served)
    assert 200 < sum(served) < 420


def _echo(change: Any) -> Any:
    """Sabotage that rewrites every 20th echo of a swap."""
    seen = 0

    def sabotage(sent: Sent) -> list[Sent]:
        nonlocal seen
        if not sent.topic.endswith(("/payment_and_service", "/customer_binding")):
            return [sent]
        seen += 1
        if seen % 20:
            return [sent]
        body = json.loads(sent.payload)
        change(body)
        return [sent._replace(payload=json.dumps(body).encode())]

    return sabotage


def _deny(body: Any) -> None:
    body["data"].update(success=False, signals=["SERVICE_REJECTED"])
    body["data"]["metadata"]["reason"] = "rate_limited"


def _wrong_battery(body: Any) -> None:
    if "asset_id" in body["data"]["metadata"]:
        body["data"]["metadata"]["asset_id"] = "bat-of-somebody-else"


def _no_signal(body: Any) -> None:
    body["data"]["signals"] = ["SERVICE_REJECTED"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (_deny, "swap: ok, got rate_limited"),
        (_wrong_battery, "swap: the rider's own count, got another"),
        (_no_signal, "swap: ok, got contradiction"),
    ],
)
def test_a_wrong_answer_is_noticed(change: Any, complaint: str) -> None:
    day = SimulatedDay(
        config(staffed_share=0.3, templates={"template-nairobi-swap-freedom": 1}),
        sabotage=_echo(change),
    )
    finished(day, 10)
    assert complaint in complaints(day)
    assert day.traffic.tally.samples


def test_a_platform_that_forgets_a_swap_is_noticed() -> None:
    def forget(sent: Sent) -> list[Sent]:
        if not sent.topic.endswith("/identify_customer"):
            return [sent]
        body = json.loads(sent.payload)
        for state in body["data"]["metadata"]["service_plan_data"]["serviceStates"]:
            state["used"] = max(0, state["used"] - 1)
        return [sent._replace(payload=json.dumps(body).encode())]

    day = finished(SimulatedDay(config(identify_share=1.0), sabotage=forget), 8)
    assert "identify_customer: the rider's own count, got another" in complaints(day)


def test_nobody_there_is_told_after_three_attempts() -> None:
    day = SimulatedDay(config(plans=3, answer_timeout_ms=1_000), sabotage=lambda sent: [])
    day.run(5)
    assert complaints(day) == ["odoo_sync: ok, got silence"]
    assert day.traffic.plans().stuck == 3
    assert day.traffic.tally.requests["odoo_sync"] == 9
