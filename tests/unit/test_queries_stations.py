"""Stations nearby: which, in what order, and with the stock that the platform believes in."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bss_stream import _engine, topics
from bss_stream.queries.catalogue import Catalogue
from bss_stream.queries.stations import STATIONS_MAX, nearby
from bss_stream.queries.wire import Nearby, Rejection
from bss_stream.reports.network import Network
from bss_stream.setup import compile_setup
from bss_stream.setup.documents import LocationFile, Station
from bss_stream.sink.read_model import ReadView
from bss_stream.testing import Playground
from tests.read_model import SETUP, Copied

STANDARD, PREMIUM = "fleet-nairobi-standard-4ah", "fleet-nairobi-premium-8ah"
CENTRE = Nearby(-1.2841, 36.8233, 5.0, None)
"""Where station-nbi-001 stands."""

STATIONS = [
    station
    for market in SETUP.markets
    for document in market.documents(LocationFile)
    for station in document.stations
]


def nothing_known(sql: str, parameters: object) -> list[tuple[Any, ...]]:
    return []


def asked(query: Nearby, stations: list[Station] | None = None) -> dict[str, Any]:
    """What is answered while nothing was heard of any station."""
    fleets = {fleet for station in STATIONS for fleet in station.fleets}
    catalogue = Catalogue(
        {},
        {},
        dict.fromkeys(fleets, "name"),
        STATIONS if stations is None else stations,
        Network((), describe),
    )
    found = nearby(ReadView(nothing_known), catalogue, query)
    assert isinstance(found, dict)
    return found


def describe(topic: str, key: bytes, value: bytes) -> bytes:
    raise AssertionError("there is no state to describe")


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[Copied]:
    with Playground() as play, Copied(play, f"sqlite:{tmp_path / 'ledger.db'}") as copied:
        yield copied


def around(copy: Copied, query: Nearby = CENTRE) -> dict[str, dict[str, Any]]:
    """The stations of an answer, by id."""
    copy.take()
    with copy.model.view() as view:
        found: Any = nearby(view, copy.catalogue, query)
    return {station["location_id"]: station for station in found["stations"]}


def stock(copy: Copied, station: str, fleet: str, available: int) -> None:
    body = {"fleet_id": fleet, "available": available, "correlation_id": f"stock-{available}"}
    copy.play.mqtt(f"emit/arm/station/{station}/stock", orjson.dumps(body))


def test_the_nearest_come_first() -> None:
    found = asked(CENTRE)
    distances = [station["distance_km"] for station in found["stations"]]
    assert distances == sorted(distances)
    assert found["stations"][0]["location_id"] == "station-nbi-001"
    assert distances[0] == 0
    assert 0 < distances[-1] <= 5
    assert found["stations_found"] == len(distances)


def test_a_degree_of_latitude_is_111_kilometres() -> None:
    place = Station("s-1", "Station", 1.0, 20.0, {})
    (station,) = asked(Nearby(0.5, 20.0, 60.0, None), [place])["stations"]
    assert station["distance_km"] == 55.598
    assert asked(Nearby(0.5, 20.0, 55.5, None), [place])["stations"] == []


@given(
    st.floats(-90, 90),
    st.floats(-180, 180),
    st.floats(0.001, 100),
    st.floats(-1, 1),
    st.floats(-1, 1),
)
def test_the_band_of_latitudes_hides_no_station(
    lat: float, lon: float, radius_km: float, north: float, east: float
) -> None:
    """All stations looked at one by one, over poles and the date line, give the same answer."""
    place = Station(
        "s-1", "S", max(-90.0, min(90.0, lat + north)), (lon + east + 540) % 360 - 180, {}
    )
    far = asked(Nearby(lat, lon, 20_016.0, None), [place])["stations"]
    distance_km = far[0]["distance_km"]
    found = asked(Nearby(lat, lon, radius_km, None), [place])["stations"]
    if abs(distance_km - radius_km) > 0.01:
        assert bool(found) == (distance_km < radius_km)


def test_no_more_than_a_rider_can_read() -> None:
    found = asked(Nearby(-1.28, 36.82, 100.0, None), STATIONS * 2)
    assert len(found["stations"]) == STATIONS_MAX
    assert found["stations_found"] > STATIONS_MAX


def test_a_fleet_leaves_the_stations_that_have_it_and_its_own_stock() -> None:
    found = asked(CENTRE._replace(fleet_id=PREMIUM))["stations"]
    every = asked(CENTRE)["stations"]
    assert 0 < len(found) < len(every)
    assert all([f["fleet_id"] for f in station["fleets"]] == [PREMIUM] for station in found)
    fleets = {f["fleet_id"] for station in every for f in station["fleets"]}
    assert fleets == {STANDARD, PREMIUM}


def test_an_unknown_fleet_is_refused(copy: Copied) -> None:
    with copy.model.view() as view:
        rejection = nearby(view, copy.catalogue, CENTRE._replace(fleet_id="fleet-x"))
    assert rejection == Rejection("unknown_value", "data.fleet_id fleet-x")


def test_stock_is_the_set_up_s_until_the_station_is_heard_of(copy: Copied) -> None:
    def first() -> list[tuple[str, int, int]]:
        station = around(copy)["station-nbi-001"]
        return [(f["fleet_id"], f["available"], f["capacity"]) for f in station["fleets"]]

    by_id = {station.location_id: station for station in STATIONS}
    slots = by_id["station-nbi-001"].fleets
    assert first() == [(fleet, one.stock, one.capacity) for fleet, one in slots.items()]
    stock(copy, "station-nbi-001", STANDARD, 3)
    assert first()[0] == (STANDARD, 3, slots[STANDARD].capacity)
    assert first()[1] == (PREMIUM, slots[PREMIUM].stock, slots[PREMIUM].capacity)
    stock(copy, "station-nbi-001", STANDARD, 0)
    assert first()[0][1] == 0


def test_a_battery_promised_to_one_rider_is_not_there_for_another(copy: Copied) -> None:
    stock(copy, "station-nbi-001", STANDARD, 2)
    body = {"at_ms": 1, "correlation_id": "c-1", "plan_id": "p-1", "fleet_id": STANDARD}
    copy.play.signal(
        topics.SIGNALS_STATION, "station-nbi-001", "allocate", orjson.dumps(body), source="engine"
    )
    fleets = {f["fleet_id"]: f for f in around(copy)["station-nbi-001"]["fleets"]}
    assert fleets[STANDARD]["available"] == 1


def test_stock_that_the_set_up_does_not_explain_is_not_made_up(copy: Copied) -> None:
    stock(copy, "station-nbi-001", STANDARD, 3)
    elsewhere = SETUP.__class__(SETUP.models, SETUP.markets[1:])
    engine = _engine.Engine(compile_setup(elsewhere), partitions=1)
    copy.catalogue = Catalogue.of(SETUP, engine.describe_state)
    found = around(copy)
    assert {f["available"] for f in found["station-nbi-001"]["fleets"]} == {None}
    assert all(f["available"] > 0 for f in found["station-nbi-002"]["fleets"])
