"""The packaged markets load and compile; each fault an operator can make is refused by name."""

import datetime
import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bss_stream._engine import Engine
from bss_stream.errors import ConfigError
from bss_stream.setup import (
    Limits,
    compile_setup,
    exact,
    load_setup,
    packaged_markets,
    packaged_models,
    zones,
)

NAIROBI = "Kenya_Nairobi/bss-nairobi-{}-v2.json"
LOME = "Togo_Lome/bss-lome-{}.json"
MARKET = NAIROBI.format("market-settings")
FLEETS = NAIROBI.format("fleet-batteries")
STATIONS = NAIROBI.format("location-stations")
ELECTRICITY = NAIROBI.format("service-electricity")
BATTERIES = NAIROBI.format("service-battery-fleet-nairobi-standard")
BUNDLE = NAIROBI.format("bundle-basic")
TERMS = NAIROBI.format("terms-30day-standard")
PLAN = NAIROBI.format("plan-basic")
PREMIUM = NAIROBI.format("plan-premium")

Data = dict[str, Any]


@pytest.fixture
def markets(tmp_path: Path) -> Path:
    """A copy of the packaged markets to spoil."""
    copy = tmp_path / "markets"
    shutil.copytree(str(packaged_markets()), copy)
    return copy


def faults(markets: Path, models: Path | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_setup([markets], models)
    assert str(caught.value) == "\n".join(caught.value.faults)
    return caught.value.faults


def edit(markets: Path, file: str, change: Callable[[Data], object]) -> None:
    path = markets / file
    data = json.loads(path.read_bytes())
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")


def put(*path: str | int, value: object) -> Callable[[Data], object]:
    """A change that writes one value."""

    def change(data: Any) -> None:
        for step in path[:-1]:
            data = data[step]
        data[path[-1]] = value

    return change


def drop(*path: str | int) -> Callable[[Data], object]:
    """A change that takes one value out."""

    def change(data: Any) -> None:
        for step in path[:-1]:
            data = data[step]
        del data[path[-1]]

    return change


class Case(NamedTuple):
    """One edit of one file, the fault it must draw, and how many follow from it elsewhere."""

    file: str
    change: Callable[[Data], object]
    path: str
    message: str
    follow: int = 0


CASES = {
    # What one field can show.
    "missing field": Case(PLAN, drop("fee"), "$.fee", "missing field"),
    "unknown field": Case(PLAN, put("fees", value="1.00"), "$.fees", "unknown field, expected"),
    "wrong type": Case(PLAN, put("name", value=7), "$.name", "7: expected a name"),
    "money as a number": Case(PLAN, put("fee", value=4500.0), "$.fee", "as text, such as"),
    "unclean id": Case(PLAN, put("template_id", value="a b"), "$.template_id", "expected an id"),
    "long id": Case(PLAN, put("template_id", value="a" * 65), "$.template_id", "1 to 64"),
    "id with a newline": Case(PLAN, put("template_id", value="a\n"), "$.template_id", "an id"),
    "unclean id in a list": Case(
        STATIONS, put("stations", 3, "location_id", value=""), "$.stations[3].location_id", "an id"
    ),
    "entity type": Case(
        PLAN, put("entity_type", value="offer"), "$.entity_type", '"offer": expected one of market'
    ),
    "empty list": Case(BUNDLE, put("services", value=[]), "$.services", "at least 1"),
    "latitude": Case(
        STATIONS, put("stations", 0, "latitude", value=95.0), "$.stations[0].latitude", "-90 to 90"
    ),
    "days": Case(
        TERMS, put("service_duration_days", value=0), "$.service_duration_days", "1 to 3660"
    ),
    "billing cycle": Case(
        TERMS, put("billing_cycle", value="yearly"), "$.billing_cycle", 'expected one of "daily"'
    ),
    # References.
    "unknown service": Case(
        BUNDLE, put("services", 0, value="service-x"), "$.services[0]", "unknown service", follow=1
    ),
    "unknown bundle": Case(
        PLAN, put("bundle_id", value="bundle-x"), "$.bundle_id", "unknown bundle, expected one of"
    ),
    "unknown terms": Case(PLAN, put("terms_id", value="t"), "$.terms_id", "unknown terms"),
    "unknown model": Case(
        PLAN, put("model", value="bss-fsm-v9"), "$.model", "unknown model, expected one of bss-fsm"
    ),
    "unknown tier": Case(
        PLAN, put("tier", value="GOLD"), "$.tier", "unknown tier, expected one of BASIC, PREMIUM"
    ),
    "unknown location": Case(
        PLAN,
        put("allowed_locations", 4, value="station-nbi-999"),
        "$.allowed_locations[4]",
        "unknown location",
    ),
    "another market's location": Case(
        PLAN,
        put("allowed_locations", 4, value="station-lome-001"),
        "$.allowed_locations[4]",
        "unknown location",
    ),
    "unknown fleet of a service": Case(
        BATTERIES, put("fleet_id", value="fleet-x"), "$.fleet_id", "unknown fleet, expected one of"
    ),
    "unknown fleet at a station": Case(
        STATIONS,
        put("stations", 1, "fleets", "fleet-x", value={"stock": 1, "capacity": 2}),
        '$.stations[1].fleets["fleet-x"]',
        "unknown fleet",
    ),
    # Duplicates.
    "service twice in a bundle": Case(
        BUNDLE,
        lambda data: data["services"].append(data["services"][0]),
        "$.services[4]",
        "stands twice",
    ),
    "location twice": Case(
        STATIONS,
        put("stations", 7, "location_id", value="station-nbi-001"),
        "$.stations[7].location_id",
        "exists already at",
        follow=3,
    ),
    "location twice in a plan": Case(
        PLAN,
        put("allowed_locations", 1, value="station-nbi-001"),
        "$.allowed_locations[1]",
        "stands twice",
    ),
    "template of another market": Case(
        PLAN,
        put("template_id", value="template-togo-lome-7day-basic"),
        "$.template_id",
        "exists already at",
    ),
    # Money.
    "fee of zero": Case(PLAN, put("fee", value="0.00"), "$.fee", "expected more than 0"),
    "negative deposit": Case(PLAN, put("deposit", value="-1.00"), "$.deposit", "expected 0 or"),
    "price of zero": Case(
        ELECTRICITY, put("unit_price", value="0.00"), "$.unit_price", "expected more than 0"
    ),
    "negative price": Case(
        ELECTRICITY, put("unit_price", value="-25.00"), "$.unit_price", "expected more than 0"
    ),
    "price beyond the engine": Case(
        ELECTRICITY,
        put("unit_price", value="1000000.01"),
        "$.unit_price",
        "expected at most 1000000",
    ),
    "price in words": Case(
        ELECTRICITY, put("unit_price", value="1e3"), "$.unit_price", "expected a plain decimal"
    ),
    "third decimal of KES": Case(
        PLAN, put("fee", value="4500.005"), "$.fee", "has 3 decimals, expected at most 2 (KES)"
    ),
    "first decimal of XOF": Case(
        LOME.format("plan-7day-basic"),
        put("fee", value="3500.0"),
        "$.fee",
        "has 1 decimals, expected at most 0 (XOF)",
    ),
    "fee that the tier breaks": Case(
        LOME.format("plan-7day-premium"), put("fee", value="4001"), "$.fee", "no whole number"
    ),
    "currency of the terms": Case(
        TERMS, put("billing_currency", value="XOF"), "$.billing_currency", 'expected "KES"'
    ),
    # Quotas.
    "quota above max": Case(
        PLAN,
        put("services", 3, "initial_quota", value=61),
        "$.services[3].initial_quota",
        "above max_quota",
    ),
    "quota infinite to clients by the tier": Case(
        PREMIUM,
        put("services", 4, "max_quota", value=50000),
        "$.services[4].max_quota",
        "50000 units times the tier's 2: expected less than 100000 swaps, or",
    ),
    "infinite above max": Case(
        PLAN,
        put("services", 3, "initial_quota", value="infinite"),
        "$.services[3].max_quota",
        'expected "infinite"',
    ),
    "infinite misspelt": Case(
        PLAN,
        put("services", 3, "max_quota", value="Infinity"),
        "$.services[3].max_quota",
        '"Infinity": expected a plain decimal',
    ),
    "infinite as a number": Case(
        PLAN,
        put("services", 3, "max_quota", value=100000000),
        "$.services[3].max_quota",
        'expected less than 100000 swaps, or "infinite"',
    ),
    "half a swap": Case(
        PLAN,
        put("services", 3, "initial_quota", value="30.5"),
        "$.services[3].initial_quota",
        "has 1 decimals, expected at most 0",
    ),
    "a tenth of a watt-hour": Case(
        PLAN,
        put("services", 2, "initial_quota", value="90.0001"),
        "$.services[2].initial_quota",
        "expected at most 3",
    ),
    "quota as a float": Case(
        PLAN,
        put("services", 2, "initial_quota", value=90.5),
        "$.services[2].initial_quota",
        '90.5: expected a quantity: 30, "344.5"',
    ),
    "negative quota": Case(
        PLAN,
        put("services", 2, "initial_quota", value=-1),
        "$.services[2].initial_quota",
        "expected 0 or more",
    ),
    "quota below one swap": Case(
        PLAN,
        lambda data: data["services"][2].update(initial_quota=0, max_quota="2.999"),
        "$.services[2].max_quota",
        "no swap is ever possible",
    ),
    "quota beyond 64 bits": Case(
        PLAN,
        put("services", 2, "max_quota", value=10**30),
        "$.services[2].max_quota",
        "expected",
    ),
    "money beyond 64 bits": Case(
        PLAN, put("fee", value="1" * 40), "$.fee", "expected at most 12 digits before the point"
    ),
    "access with a quota": Case(
        PLAN,
        put("services", 0, "initial_quota", value=5),
        "$.services[0].initial_quota",
        "is not metered",
    ),
    "rate limit of energy": Case(
        PLAN,
        put("services", 2, "rate_limit_per_day", value=2),
        "$.services[2].rate_limit_per_day",
        "counts swaps",
    ),
    "rate limit of zero": Case(
        PLAN,
        put("services", 3, "rate_limit_per_day", value=0),
        "$.services[3].rate_limit_per_day",
        "1 to 1000",
    ),
    "overage without a rate": Case(
        PLAN,
        put("services", 3, "overage_allowed", value=True),
        "$.services[3].overage_rate",
        "expected the price",
    ),
    "rate without overage": Case(
        PLAN,
        put("services", 3, "overage_rate", value="10.00"),
        "$.services[3].overage_rate",
        "expected null",
    ),
    "overage of access": Case(
        PLAN,
        put("services", 0, "overage_allowed", value=True),
        "$.services[0].overage_allowed",
        "expected false",
    ),
    "overage rate of zero": Case(
        PLAN,
        lambda data: data["services"][3].update(overage_allowed=True, overage_rate="0.00"),
        "$.services[3].overage_rate",
        "expected more than 0",
    ),
    "renewal of a part": Case(
        PLAN,
        put("services", 2, "auto_renewal", value=False),
        "$.services[2].auto_renewal",
        "a plan renews as a whole",
    ),
    # Bundles and services.
    "service missing in the template": Case(
        PLAN, drop("services", 3), "$.services", "expected an entry for the bundle's"
    ),
    "service twice in the template": Case(
        PLAN,
        lambda data: data["services"].append(data["services"][3]),
        "$.services[4].service_id",
        "stands twice",
    ),
    "service of another bundle": Case(
        PLAN,
        lambda data: data["services"].append(
            data["services"][1] | {"service_id": "service-battery-fleet-nairobi-premium-8ah"}
        ),
        "$.services[4].service_id",
        "not in the bundle",
    ),
    "asset service without a fleet": Case(
        BATTERIES, drop("fleet_id"), "$.fleet_id", "expected a fleet"
    ),
    "energy service with a fleet": Case(
        ELECTRICITY,
        put("fleet_id", value="fleet-nairobi-standard-4ah"),
        "$.fleet_id",
        "expected null",
    ),
    "unit of energy": Case(ELECTRICITY, put("usage_unit", value="Wh"), "$.usage_unit", '"kWh"'),
    # Places.
    "stock above capacity": Case(
        STATIONS,
        put("stations", 2, "fleets", "fleet-nairobi-standard-4ah", "stock", value=99),
        '$.stations[2].fleets["fleet-nairobi-standard-4ah"].stock',
        "99: expected at most the capacity 16",
    ),
    "no capacity": Case(
        STATIONS,
        put(
            "stations",
            1,
            "fleets",
            "fleet-nairobi-standard-4ah",
            value={"stock": 0, "capacity": 0},
        ),
        '$.stations[1].fleets["fleet-nairobi-standard-4ah"].capacity',
        "0: expected at least 1",
    ),
    "everywhere and somewhere": Case(
        PLAN,
        put("allowed_locations", value=["*", "station-nbi-001"]),
        "$.allowed_locations",
        "expected it alone",
    ),
    "no location has the fleet": Case(
        PLAN,
        put("allowed_locations", value=["station-mbs-001"]),
        "$.allowed_locations",
        'no allowed location has the bundle\'s "fleet-nairobi-standard-4ah"',
    ),
    "energy of a swap": Case(
        FLEETS,
        put("fleets", 0, "swap_energy_kwh_max", value="0"),
        "$.fleets[0].swap_energy_kwh_max",
        "expected more than 0",
    ),
    # The market.
    "market id": Case(
        MARKET, put("market_id", value="Kenya"), "$.market_id", "expected the folder's name \"Kenya"
    ),
    "time zone": Case(
        MARKET, put("time_zone", value="Africa/Nowhere"), "$.time_zone", "unknown time zone"
    ),
    "time zone that is a path": Case(
        MARKET, put("time_zone", value="../etc/passwd"), "$.time_zone", "unknown time zone"
    ),
    "infinite below clients' sense": Case(
        MARKET,
        put("infinite_on_the_wire", value=99999),
        "$.infinite_on_the_wire",
        "99999: expected a whole number from 100000",
    ),
    "allocation beyond clients' patience": Case(
        MARKET, put("allocation", "attempts_max", value=3), "$.allocation", "less than 30 s"
    ),
    "multiplier": Case(
        MARKET,
        put("tiers", "BASIC", "quota_multiplier", value="0"),
        "$.tiers.BASIC.quota_multiplier",
        "expected more than 0",
    ),
    "cycle longer than the plan": Case(
        TERMS, put("service_duration_days", value=29), "$.billing_cycle", "a cycle of 30 days"
    ),
    # File names.
    "name of another entity": Case(
        BUNDLE,
        put("entity_name", value="basics"),
        "$.entity_name",
        "expected bss-nairobi-bundle-basics-v2.json",
    ),
    "version not in the name": Case(
        PLAN, put("version", value="v3"), "$.entity_name", "expected bss-nairobi-plan-basic-v3.json"
    ),
    "version badly written": Case(PLAN, put("version", value="2"), "$.version", 'such as "v2"'),
}

LATER_MARKET = {"template of another market"}
"""Markets are read in the order of their folders, so Lomé's file is where the id comes again."""


@pytest.mark.parametrize("name", CASES)
def test_a_fault_is_refused_with_file_and_path(markets: Path, name: str) -> None:
    case = CASES[name]
    edit(markets, case.file, case.change)
    file = LOME.format("plan-7day-basic") if name in LATER_MARKET else case.file
    found = faults(markets)
    place = f"{markets / file}: {case.path}: "
    here = [line for line in found if line.startswith(place)]
    assert len(here) == 1, found
    assert case.message in here[0]
    assert len(found) == 1 + case.follow, found


def test_every_fault_of_every_file_is_reported(markets: Path) -> None:
    edit(markets, PLAN, put("tier", value="GOLD"))
    edit(markets, PLAN, put("fee", value="1.001"))
    edit(markets, PLAN, put("bundle_id", value="bundle-x"))
    edit(markets, ELECTRICITY, put("unit_price", value="0"))
    edit(markets, LOME.format("plan-7day-basic"), drop("deposit"))
    edit(markets, LOME.format("plan-7day-basic"), put("name", value=""))
    found = faults(markets)
    places = {line.split(": ")[0].rpartition("/")[2] + line.split(": ")[1] for line in found}
    assert places == {
        "bss-nairobi-plan-basic-v2.json$.tier",
        "bss-nairobi-plan-basic-v2.json$.fee",
        "bss-nairobi-plan-basic-v2.json$.bundle_id",
        "bss-nairobi-service-electricity-v2.json$.unit_price",
        "bss-lome-plan-7day-basic.json$.deposit",
        "bss-lome-plan-7day-basic.json$.name",
    }


@pytest.mark.parametrize("file", [ELECTRICITY, FLEETS, STATIONS, BUNDLE, TERMS, MARKET])
def test_a_broken_file_draws_no_faults_about_references_to_it(markets: Path, file: str) -> None:
    edit(markets, file, put("colour", value="red"))
    found = faults(markets)
    assert len(found) == 1, found
    assert "$.colour: unknown field" in found[0]


@pytest.mark.parametrize(("service_type", "unit"), [("energy", "kWh"), ("swap", "swaps")])
def test_a_second_service_that_counts_the_same_is_refused(
    markets: Path, service_type: str, unit: str
) -> None:
    network = NAIROBI.format("service-swap-station-network")
    edit(markets, network, lambda data: data.update(service_type=service_type, usage_unit=unit))
    fault = f"expected at most one that counts {service_type}"
    here = [line for line in faults(markets) if line.startswith(f"{markets / BUNDLE}: $.services:")]
    assert len(here) == 1
    assert here[0].endswith(fault)


def test_a_template_without_swaps_is_refused(markets: Path) -> None:
    edit(markets, BUNDLE, lambda data: data["services"].pop())
    edit(markets, PLAN, lambda data: data["services"].pop())
    found = faults(markets)
    assert found == [
        f"{markets / BUNDLE}: $.services: no service counts swaps, expected one of type swap"
    ]


def test_a_bundle_without_batteries_is_refused(markets: Path) -> None:
    edit(markets, BUNDLE, lambda data: data["services"].pop(1))
    edit(markets, PLAN, lambda data: data["services"].pop(1))
    found = faults(markets)
    assert len(found) == 1
    assert "$.services: no service has a fleet" in found[0]


def test_two_services_of_a_bundle_with_one_fleet_are_refused(markets: Path) -> None:
    premium = NAIROBI.format("service-battery-fleet-nairobi-premium")
    edit(markets, premium, put("fleet_id", value="fleet-nairobi-standard-4ah"))
    found = faults(markets)
    assert len(found) == 2  # the premium and the roaming bundle
    assert all("$.services[2]: " in line and "has the same fleet as" in line for line in found)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"{", "is no JSON"),
        (b"", "is no JSON"),
        (b"\xff\xfe", "is no JSON"),
        (b'{"fee": NaN}', "is no JSON"),
        (b'"\\ud800"', "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b"[]", "$: []: expected an object"),
        (b" " * (4 * 1024 * 1024 + 1), "is larger than"),
    ],
    ids=["cut", "empty", "utf-8", "nan", "surrogate", "deep", "list", "large"],
)
def test_a_file_that_is_no_json_object_is_refused(markets: Path, raw: bytes, message: str) -> None:
    (markets / PREMIUM).write_bytes(raw)
    found = faults(markets)
    assert len(found) == 1
    assert found[0].startswith(f"{markets / PREMIUM}: {message}")


def test_a_key_that_stands_twice_is_refused(markets: Path) -> None:
    raw = (markets / PLAN).read_text(encoding="utf-8")
    (markets / PLAN).write_text(raw.replace('"fee"', '"fee": "1.00", "fee"'), encoding="utf-8")
    assert faults(markets) == [f'{markets / PLAN}: "fee" stands twice in one object']


def add_version(markets: Path, file: str, version: str, **changes: object) -> str:
    """Put a further version of a file beside it."""
    later = file.replace("-v2.json", f"-{version}.json")
    shutil.copy(markets / file, markets / later)
    edit(markets, later, lambda data: data.update(changes, version=version))
    return later


def test_versions_of_a_template_stand_side_by_side(markets: Path) -> None:
    """A running plan keeps the version that it signed, so the engine gets all of them."""
    add_version(markets, PLAN, "v3", fee="4800.00")
    add_version(markets, PLAN, "v10", fee="4900.00")
    nairobi = market(json.loads(compile_setup(load_setup([markets]))), "Kenya_Nairobi")
    basic = [one for one in nairobi["templates"] if one["template_id"] == "template-nairobi-basic"]
    assert {one["version"]: one["fee_minor"] for one in basic} == {
        2: 450000,
        3: 480000,
        10: 490000,
    }


@pytest.mark.parametrize("file", [BUNDLE, TERMS, ELECTRICITY])
def test_a_second_version_of_anything_else_is_refused(markets: Path, file: str) -> None:
    later = add_version(markets, file, "v3")
    found = faults(markets)
    assert len(found) == 1
    assert found[0].startswith(f"{markets / later}: $.")
    assert found[0].endswith(f"_id: {show_id(markets / file)}: $.{id_field(file)}")


def id_field(file: str) -> str:
    return f"{file.split('-')[2]}_id"


def show_id(file: Path) -> str:
    data = json.loads(file.read_bytes())
    field = f"{data['entity_type']}_id"
    return f'"{data[field]}": a {data["entity_type"]} of this id exists already at {file}'


def test_one_version_of_a_template_in_two_files_is_refused(markets: Path) -> None:
    first = markets / LOME.format("plan-7day-basic")
    shutil.copy(first, first.with_name("bss-lome-plan-7day-basic-v1.json"))
    found = faults(markets)
    assert len(found) == 1
    assert "a template of this id exists already at" in found[0]


def test_a_version_of_a_template_under_another_name_is_refused(markets: Path) -> None:
    later = NAIROBI.format("plan-basics").replace("v2", "v3")
    shutil.copy(markets / PLAN, markets / later)
    edit(markets, later, lambda data: data.update(version="v3", entity_name="basics"))
    found = faults(markets)
    assert len(found) == 1
    assert found[0].startswith(f"{markets / later}: $.template_id: ")


def test_files_that_do_not_belong_are_refused(markets: Path) -> None:
    (markets / "notes.txt").touch()
    (markets / "Togo_Lome" / "bss-lome-plan-7day-basic.json~").touch()
    (markets / "Togo_Lome" / "old").mkdir()
    (markets / "Togo_Lome" / ".hidden").touch()
    (markets / "README.md").touch()
    assert [line.removeprefix(str(markets)).split(":")[0] for line in faults(markets)] == [
        "/Togo_Lome/bss-lome-plan-7day-basic.json~",
        "/Togo_Lome/old",
        "/notes.txt",
    ]


@pytest.mark.parametrize(
    "entity_type", ["market", "service", "fleet", "location", "bundle", "terms", "plan"]
)
def test_a_market_without_one_kind_of_file_is_refused(markets: Path, entity_type: str) -> None:
    for file in (markets / "Togo_Lome").glob(f"bss-lome-{entity_type}-*"):
        file.unlink()
    wanted = f"{markets / 'Togo_Lome'}: has no {entity_type} file, expected at least one"
    assert wanted in faults(markets)


def test_a_second_market_file_is_refused(markets: Path) -> None:
    second = LOME.format("market-more")
    shutil.copy(markets / LOME.format("market-settings"), markets / second)
    edit(markets, second, put("entity_name", value="more"))
    assert any("a market has one market file" in line for line in faults(markets))


def test_two_folders_of_one_market_are_refused(markets: Path) -> None:
    shutil.copytree(markets / "Togo_Lome", markets / "Togo_Two")
    found = faults(markets)
    assert any(f'$.market: "lome": is taken by {markets / "Togo_Lome"}' in f for f in found)
    assert any("template of this id exists already" in line for line in found)


def test_a_file_of_another_market_is_refused(markets: Path) -> None:
    stray = markets / "Kenya_Nairobi" / "bss-lome-terms-stray.json"
    shutil.copy(markets / LOME.format("terms-7day-standard"), stray)
    edit(markets, str(stray), lambda data: data.update(entity_name="stray", terms_id="terms-x"))
    assert f'{stray}: $.market: "lome": expected "nairobi" in this folder' in faults(markets)


def test_directories_without_markets_are_refused(tmp_path: Path) -> None:
    assert faults(tmp_path) == [f"{tmp_path}: holds no market folder, expected at least one"]
    assert faults(tmp_path / "gone") == [
        f"{tmp_path / 'gone'}: is no directory, expected one of market folders"
    ]


def test_markets_come_from_several_directories(markets: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    shutil.move(markets / "Togo_Lome", other / "Togo_Lome")
    setup = load_setup([markets, other])
    assert [market.folder for market in setup.markets] == ["Kenya_Nairobi", "Togo_Lome"]


def test_faulty_models_are_refused(markets: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    for name in ("v1", "copy"):
        (models / f"bss-fsm-{name}.json").write_text('{"model": "bss-fsm-v1"}')
    (models / "bss-fsm-nameless.json").write_text('{"states": []}')
    (models / "bss-fsm-cut.json").write_text('{"model"')
    (models / "topics-v1.json").write_text("{}")
    found = faults(markets, models)
    assert len(found) == 5, found
    assert found[0].startswith(f"{models / 'bss-fsm-cut.json'}: is no JSON")
    assert found[1].startswith(f"{models / 'bss-fsm-nameless.json'}: $.model: null: expected")
    assert found[2].startswith(f'{models / "bss-fsm-v1.json"}: $.model: "bss-fsm-v1": a model')
    for fault, kind in zip(found[3:], ("asset", "session"), strict=True):
        assert fault.endswith(f"0 models of kind {kind}: expected exactly one")


# What the engine gets.


@pytest.fixture(scope="module")
def compiled() -> Data:
    data: Data = json.loads(compile_setup(load_setup()))
    return data


def market(compiled: Data, market_id: str) -> Data:
    return next(one for one in compiled["markets"] if one["market_id"] == market_id)


def templates(compiled: Data) -> Iterator[tuple[Data, Data]]:
    for one in compiled["markets"]:
        for template in one["templates"]:
            yield one, template


def test_the_same_files_give_the_same_bytes() -> None:
    assert compile_setup(load_setup()) == compile_setup(load_setup())


def test_the_engine_takes_what_was_compiled(markets: Path) -> None:
    Engine(compile_setup(load_setup()), partitions=2)
    edit(markets, ELECTRICITY, put("unit_price", value="1000000"))
    edit(markets, PLAN, put("model", value="bss-fsm-asset-flow"))
    edit(markets, PREMIUM, put("services", 3, "max_quota", value="49999.999"))
    add_version(markets, PREMIUM, "v3", deposit="0.00")
    Engine(compile_setup(load_setup([markets])), partitions=2)


def test_models_are_passed_on_byte_for_byte() -> None:
    whole = compile_setup(load_setup())
    files = [file for file in packaged_models().iterdir() if file.name.startswith("bss-fsm-")]
    assert {file.name for file in files} >= {"bss-fsm-v1.json", "bss-fsm-asset-flow.json"}
    assert all(file.read_bytes() in whole for file in files)


def test_limits_are_the_engine_s_and_can_be_set() -> None:
    limits = json.loads(compile_setup(load_setup(), Limits(nesting_max=8)))["limits"]
    assert limits == {
        "payload_bytes_max": 65536,
        "nesting_max": 8,
        "id_bytes_max": 64,
        "dedupe_window_ms": 600000,
        "dedupe_entries_max": 32,
        "skew_future_ms": 300000,
        "skew_past_ms": 86400000,
    }


def test_the_markets_are_what_the_platform_has(compiled: Data) -> None:
    assert compiled["version"] == 1
    wanted = ("market_id", "version", "currency", "currency_digits", "infinite_wire", "zone")
    assert [{key: one[key] for key in wanted} for one in compiled["markets"]] == [
        {
            "market_id": "Kenya_Nairobi",
            "version": "v2",
            "currency": "KES",
            "currency_digits": 2,
            "infinite_wire": 100000000,
            "zone": {"name": "Africa/Nairobi", "offsets": [[None, 10800]]},
        },
        {
            "market_id": "Togo_Lome",
            "version": "v1",
            "currency": "XOF",
            "currency_digits": 0,
            "infinite_wire": 10000000,
            "zone": {"name": "Africa/Lome", "offsets": [[None, 0]]},
        },
    ]
    for one in compiled["markets"]:
        assert one["allocation"] == {"answer_timeout_ms": 10000, "attempts_max": 2}
        assert one["tiers"] == [
            {"tier": "BASIC", "quota_multiplier": [1, 1], "fee_multiplier": [1, 1]},
            {"tier": "PREMIUM", "quota_multiplier": [2, 1], "fee_multiplier": [3, 2]},
        ]
        assert len(one["locations"]) >= 40


def test_the_templates(compiled: Data) -> None:
    assert [template["template_id"] for _, template in templates(compiled)] == [
        "template-nairobi-basic",
        "template-nairobi-premium",
        "template-nairobi-roaming",
        "template-nairobi-swap-freedom",
        "template-togo-lome-30day-roaming",
        "template-togo-lome-7day-basic",
        "template-togo-lome-7day-premium",
    ]


def test_basic_nairobi_is_the_asset_flow_document_s(compiled: Data) -> None:
    basic = market(compiled, "Kenya_Nairobi")["templates"][0]
    assert {key: basic[key] for key in basic if key not in ("allowed_locations", "services")} == {
        "template_id": "template-nairobi-basic",
        "version": 2,
        "name": "Basic Nairobi",
        "model": "bss-fsm-v1",
        "bundle_id": "bundle-nairobi-basic",
        "tier": "BASIC",
        "deposit_minor": 350000,
        "fee_minor": 450000,
        "service_duration_days": 30,
        "billing_cycle": "monthly",
        "billing_cycle_days": 30,
        "grace_ms": 259200000,
    }
    assert basic["services"][3] == {
        "service_id": "service-swap-count-nairobi",
        "initial_quota": {"units": 30},
        "max_quota": {"units": 60},
        "rate_limit_per_day": 2,
        "auto_renewal": True,
        "overage_allowed": False,
        "overage_rate_minor": None,
        "hold_units": 1,
    }
    assert basic["services"][0]["initial_quota"] == "infinite"
    assert basic["services"][2]["initial_quota"] == {"units": 90000}


def test_basic_lome_has_the_quotas_of_the_contract_s_example(compiled: Data) -> None:
    lome = market(compiled, "Togo_Lome")
    basic = next(t for t in lome["templates"] if t["template_id"].endswith("7day-basic"))
    quotas = {one["service_id"]: one["initial_quota"] for one in basic["services"]}
    assert quotas == {
        "service-swap-station-network-togo-lome": "infinite",
        "service-battery-fleet-togo-lome": "infinite",
        "service-electricity-togo-1": {"units": 300000},
        "service-swap-count-togo-2": "infinite",
    }
    assert (basic["service_duration_days"], basic["billing_cycle"]) == (7, "weekly")
    electricity = next(s for s in lome["services"] if s["usage_unit"] == "kWh")
    assert (electricity["unit_price"], electricity["unit_digits"]) == ("0.1", 3)


def test_a_hold_is_what_one_swap_can_take(compiled: Data) -> None:
    """One swap; the fullest battery of the bundle's fleets; nothing of what is not metered."""
    energies = {"basic": 3000, "premium": 6000, "roaming": 6000, "swap-freedom": 3000}
    energies |= {"7day-basic": 3240, "7day-premium": 4320, "30day-roaming": 4320}
    for one, template in templates(compiled):
        kinds = {service["service_id"]: service["consumes"] for service in one["services"]}
        name = template["template_id"].removeprefix("template-").removeprefix("nairobi-")
        energy = energies[name.removeprefix("togo-lome-")]
        for service in template["services"]:
            wanted = {"swap": 1, "energy": energy, "none": 0}[kinds[service["service_id"]]]
            assert service["hold_units"] == wanted


def test_the_freedom_template_can_carry_a_benchmark(compiled: Data) -> None:
    nairobi = market(compiled, "Kenya_Nairobi")
    freedom = next(t for t in nairobi["templates"] if t["template_id"].endswith("swap-freedom"))
    assert all(one["rate_limit_per_day"] is None for one in freedom["services"])
    stocks = {one["location_id"]: one["stock"] for one in nairobi["locations"]}
    assert all(stocks[key]["fleet-nairobi-standard-4ah"] for key in freedom["allowed_locations"])


def test_prices_are_exact_text(compiled: Data) -> None:
    for one in compiled["markets"]:
        for service in one["services"]:
            assert isinstance(service["unit_price"], str)
            assert Decimal(service["unit_price"]) > 0


def test_the_model_is_the_default_one_unless_named(markets: Path) -> None:
    edit(markets, PLAN, drop("model"))
    edit(markets, PREMIUM, put("model", value="bss-fsm-asset-flow"))
    nairobi = market(json.loads(compile_setup(load_setup([markets]))), "Kenya_Nairobi")
    assert [one["model"] for one in nairobi["templates"]][:2] == [
        "bss-fsm-v1",
        "bss-fsm-asset-flow",
    ]


def test_an_overage_rate_is_in_minor_units(markets: Path) -> None:
    terms = {"overage_allowed": True, "overage_rate": "149.50"}
    edit(markets, PLAN, lambda data: data["services"][3].update(terms))
    nairobi = market(json.loads(compile_setup(load_setup([markets]))), "Kenya_Nairobi")
    service = nairobi["templates"][0]["services"][3]
    assert (service["overage_allowed"], service["overage_rate_minor"]) == (True, 14950)


# Exact numbers.


@given(st.integers(0, 10**15), st.integers(0, 6))
def test_units_and_text_are_inverse(number: int, digits: int) -> None:
    number %= 10 ** (exact.INTEGER_DIGITS_MAX + digits)
    assert exact.units(exact.text(number, digits), digits) == number
    assert exact.units("-" + exact.text(number, digits), digits) == -number


@given(st.decimals(-(10**11), 10**11, places=3), st.integers(3, 6))
def test_units_are_the_decimal_shifted(value: Decimal, digits: int) -> None:
    assert exact.units(f"{value:f}", digits) == value.scaleb(digits)
    assert exact.fraction(f"{value:f}") == value


@given(st.text(st.sampled_from("0123456789.-+eE_ ٣\n"), max_size=22))
def test_whatever_is_taken_is_a_plain_decimal_in_range(text: str) -> None:
    try:
        value = exact.fraction(text)
    except ValueError as error:
        assert "expected" in str(error)
    else:
        assert set(text) <= set("0123456789.-")
        assert value == Decimal(text)
        assert abs(value) < 10**exact.INTEGER_DIGITS_MAX


@pytest.mark.parametrize("text", ["", ".5", "5.", "01", "1,5", "+1", "1e3", "--1", "1.5.0", "½"])
def test_other_spellings_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a plain decimal"):
        exact.fraction(text)


# Time zones.

ZONES = ["Africa/Nairobi", "Africa/Casablanca", "America/New_York", "Australia/Lord_Howe"]


@pytest.mark.parametrize("name", ZONES)
def test_a_zone_s_table_ascends_and_changes_at_every_entry(name: str) -> None:
    table = zones.offsets(name)
    assert table[0][0] is None
    starts = [start for start, _ in table[1:]]
    assert all(start is not None for start in starts)
    assert starts == sorted(set(starts), key=lambda start: start or 0)
    for (_, before), (start, after) in itertools.pairwise(table):
        assert before != after
        assert start is not None
        assert (offset_s(name, start // 1000 - 1), offset_s(name, start // 1000)) == (before, after)


@given(st.sampled_from(ZONES), st.integers(zones.SCAN_FROM_S, zones.SCAN_TO_S - 1))
def test_a_zone_s_table_is_the_tz_database_s(name: str, epoch_s: int) -> None:
    found = [offset for start, offset in TABLES[name] if start is None or start <= epoch_s * 1000]
    assert found[-1] == offset_s(name, epoch_s)


TABLES = {name: zones.offsets(name) for name in ZONES}


def offset_s(name: str, epoch_s: int) -> int:
    offset = datetime.datetime.fromtimestamp(epoch_s, ZoneInfo(name)).utcoffset()
    assert offset is not None
    return int(offset.total_seconds())
