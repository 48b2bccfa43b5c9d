"""The stations around a place, with what they have in stock as the platform believes it."""

import math
from collections.abc import Mapping
from typing import Final

import msgspec

from bss_stream.queries.catalogue import Catalogue
from bss_stream.queries.wire import Nearby, Rejection
from bss_stream.setup.documents import Station
from bss_stream.sink.read_model import ReadView

STATIONS_MAX: Final = 50
"""Stations in one echo, the nearest ones."""

_EARTH_KM: Final = 6371.0088
_KM_PER_DEGREE: Final = math.pi * _EARTH_KM / 180


class _Stock(msgspec.Struct, frozen=True):
    fleet_id: str
    current_stock: int
    promised: int


class _State(msgspec.Struct, frozen=True):
    stock: list[_Stock]


_decoder: Final = msgspec.json.Decoder(_State)


def nearby(view: ReadView, catalogue: Catalogue, asked: Nearby) -> dict[str, object] | Rejection:
    """The stations within the radius, nearest first, those alone that have the fleet asked for."""
    if asked.fleet_id is not None and asked.fleet_id not in catalogue.fleets:
        return Rejection("unknown_value", f"data.fleet_id {asked.fleet_id}")
    reach = asked.radius_km / _KM_PER_DEGREE
    found = sorted(
        (distance_km, station.location_id, station)
        for station in catalogue.stations_between(asked.lat - reach, asked.lat + reach)
        if asked.fleet_id is None or asked.fleet_id in station.fleets
        if (distance_km := _distance_km(asked, station)) <= asked.radius_km
    )
    shown = found[:STATIONS_MAX]
    states = view.station_states([location_id for _, location_id, _ in shown])
    return {
        "radius_km": asked.radius_km,
        "stations_found": len(found),
        "stations": [
            {
                "location_id": location_id,
                "name": station.name,
                "lat": station.latitude,
                "lon": station.longitude,
                "distance_km": round(distance_km, 3),
                "fleets": _fleets(catalogue, station, asked.fleet_id, states.get(location_id)),
            }
            for distance_km, location_id, station in shown
        ],
    }


def _fleets(
    catalogue: Catalogue, station: Station, only: str | None, state: bytes | None
) -> list[dict[str, object]]:
    available = _available(catalogue, station, state)
    return [
        {
            "fleet_id": fleet_id,
            "name": catalogue.fleets.get(fleet_id),
            "available": None if available is None else available.get(fleet_id, 0),
            "capacity": slots.capacity,
        }
        for fleet_id, slots in station.fleets.items()
        if only is None or fleet_id == only
    ]


def _available(
    catalogue: Catalogue, station: Station, state: bytes | None
) -> Mapping[str, int] | None:
    """Batteries that a rider could have, by fleet; None if the state cannot be told.

    Of a station that nothing was heard of the platform believes what the set-up says.
    """
    if state is None:
        return {fleet_id: slots.stock for fleet_id, slots in station.fleets.items()}
    try:
        described = _decoder.decode(catalogue.describe(station.location_id, state))
    except ValueError:
        # It names a fleet that this process's set-up lacks: SIGHUP brings it.
        return None
    return {
        stock.fleet_id: max(stock.current_stock - stock.promised, 0) for stock in described.stock
    }


def _distance_km(asked: Nearby, station: Station) -> float:
    """Along the great circle."""
    lat, other = math.radians(asked.lat), math.radians(station.latitude)
    turn = math.radians(station.longitude - asked.lon)
    half = (
        math.sin((other - lat) / 2) ** 2 + math.cos(lat) * math.cos(other) * math.sin(turn / 2) ** 2
    )
    return 2 * _EARTH_KM * math.asin(min(1.0, math.sqrt(half)))
