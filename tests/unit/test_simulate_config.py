"""A configuration or a setup that makes no run is refused with every fault named."""

import json
from typing import Any

import msgspec
import pytest

from bss_stream.errors import ConfigError
from bss_stream.simulate.config import ArmConfig, FaultShares, SimulationConfig, check_config
from bss_stream.simulate.network import read_network
from tests.simulated_day import NETWORK, SETUP


def test_the_defaults_are_in_order() -> None:
    check_config(SimulationConfig())


def test_every_fault_is_named() -> None:
    config = SimulationConfig(
        plans=0,
        rate=-1,
        run_id="no spaces",
        templates={"template-nairobi-basic": 0},
        arm=ArmConfig(slow_ms_min=9, slow_ms_max=3),
        faults=FaultShares(garbage=0.9, duplicate=0.9),
    )
    with pytest.raises(ConfigError) as caught:
        check_config(config)
    text = "\n".join(caught.value.faults)
    for path in ("$.plans", "$.rate", "$.run_id", "templates", "$.arm.slow_ms_min", "$.faults"):
        assert path in text


def test_a_configuration_survives_its_way_to_another_process() -> None:
    config = SimulationConfig(rate=3.5, templates={"t": 1.0}, arm=ArmConfig(shelf_batteries=9))
    assert msgspec.json.decode(msgspec.json.encode(config), type=SimulationConfig) == config


def test_the_network_has_every_shelf_and_template_of_both_markets() -> None:
    assert [m.market_id for m in NETWORK.markets] == ["Kenya_Nairobi", "Togo_Lome"]
    assert len(NETWORK.terms) == 7
    basic = next(t for t in NETWORK.terms if t.template_id == "template-nairobi-basic")
    assert basic.default_fleet == "fleet-nairobi-standard-4ah"
    assert "station-nbi-001" in basic.places["fleet-nairobi-standard-4ah"]
    assert "station-mbs-001" in basic.forbidden
    assert [s.consumes for s in basic.services] == ["energy", "swap"]


@pytest.mark.parametrize(("tier", "factor"), [("BASIC", 1), ("PREMIUM", 2)])
def test_a_tier_multiplies_quotas(tier: str, factor: int) -> None:
    document = json.loads(SETUP)
    document["markets"] = document["markets"][:1]
    template = document["markets"][0]["templates"][0]
    template["tier"] = tier
    for service in template["services"]:
        service["initial_quota"], service["max_quota"] = {"units": 30}, {"units": 50}
    services = read_network(json.dumps(document).encode()).terms[0].services
    limits = {(s.initial_units, s.max_units) for s in services}
    assert limits == {(30 * factor, 50 * factor)}


def test_a_market_keeps_its_own_calendar() -> None:
    nairobi, lome = NETWORK.markets
    ten_at_night_utc_ms = 1_795_557_600_000
    assert nairobi.day(ten_at_night_utc_ms) == lome.day(ten_at_night_utc_ms) + 1


def _setup(change: Any) -> bytes:
    document = json.loads(SETUP)
    change(document)
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("setup", "named"),
    [
        (b"{}", "markets"),
        (_setup(lambda d: d["markets"][0]["services"][0].update(consumes="air")), "consumes"),
        (_setup(lambda d: [m.update(locations=[]) for m in d["markets"]]), "no template"),
    ],
)
def test_a_setup_without_use_is_refused(setup: bytes, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        read_network(setup)
