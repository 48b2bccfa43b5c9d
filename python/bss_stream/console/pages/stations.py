"""Stations: where they stand, whether they can serve, and what they have in stock."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from enum import StrEnum
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bss_stream.console import forms
from bss_stream.console.context import Context
from bss_stream.console.map import Plane, Spot, middle, plane, regions
from bss_stream.reports.network import EPOCH
from bss_stream.setup.documents import Station


class Readiness(StrEnum):
    """Whether a rider who comes now gets a battery, by the station's state; the worst first."""

    NOT_READY = "not_ready"
    LIMITED = "limited"
    READY = "ready"
    UNHEARD = "unheard"
    """Nothing was heard of it: what the set-up says."""
    UNKNOWN = "unknown"
    """Its state names what this console's set-up lacks."""


_ORDER: Final = {readiness: number for number, readiness in enumerate(Readiness)}
_BY_NAME: Final = {readiness.name: readiness for readiness in Readiness}


class _Stock(msgspec.Struct, frozen=True):
    fleet_id: str
    current_stock: int
    promised: int
    is_low: bool
    is_in_high_demand: bool
    total_restocks: int
    set_aside: dict[str, int]
    today: dict[str, int]


class _Shift(msgspec.Struct, frozen=True):
    operator: str
    started_ms: int


class _State(msgspec.Struct, frozen=True):
    day: int
    """That is counted, in days since 1970-01-01 of the market's zone."""
    readiness: str | None
    because: str | None
    stock: list[_Stock]
    intents: int
    incidents_today: int
    shift: _Shift | None


_decoder: Final = msgspec.json.Decoder(_State)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shelf:
    """One fleet at one station."""

    fleet_id: str
    name: str
    available: int
    """In stock and not promised to anybody."""
    promised: int = 0
    capacity: int
    is_low: bool = False
    is_in_high_demand: bool = False
    restocks: int = 0
    set_aside: Mapping[str, int] = field(default_factory=dict)
    """Batteries that are here and not in stock, by account; those alone that have some."""
    today: Mapping[str, int] = field(default_factory=dict)
    """Counts of the station's day; those alone that are not 0."""

    @property
    def width(self) -> float:
        """Of its bar, out of 100."""
        return 100 * min(max(self.available, 0) / max(self.capacity, 1), 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One station."""

    station: Station
    readiness: Readiness
    because: str = ""
    intents: int = 0
    incidents: int = 0
    """Of today."""
    shift: _Shift | None = None
    shelves: Sequence[Shelf]

    @property
    def available(self) -> int:
        return sum(shelf.available for shelf in self.shelves)

    @property
    def assignments(self) -> int:
        """Batteries that went out today."""
        return sum(shelf.today.get("assignments", 0) for shelf in self.shelves)

    @property
    def refusals(self) -> int:
        """Requests of today that got none."""
        counted = (shelf.today for shelf in self.shelves)
        return sum(
            count
            for today in counted
            for name, count in today.items()
            if name not in ("assignments", "returns")
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """Stations near each other, where they stand."""

    name: str
    plane: Plane
    spots: Sequence[tuple[Row, Spot]]
    """The worst last, to be drawn over the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """One market's stations, those first that need somebody."""

    rows: Sequence[Row]
    regions: Sequence[Region]

    def count(self, readiness: Readiness) -> int:
        return sum(row.readiness is readiness for row in self.rows)

    @property
    def available(self) -> int:
        return sum(row.available for row in self.rows)

    @property
    def intents(self) -> int:
        return sum(row.intents for row in self.rows)

    @property
    def assignments(self) -> int:
        return sum(row.assignments for row in self.rows)

    @property
    def refusals(self) -> int:
        return sum(row.refusals for row in self.rows)


class Stations:
    """The page."""

    def __init__(self, context: Context) -> None:
        self._context = context

    @property
    def routes(self) -> list[Route]:
        return [Route("/stations", self.page)]

    async def page(self, request: Request) -> Response:
        markets = self._context.markets
        chosen, market = markets.chosen(forms.asked(request, "market"))
        stations = markets.stations[chosen]
        ids = [station.location_id for station in stations]
        states = await self._context.database.ask(lambda view: view.station_states(ids))
        return self._context.renderer.page(
            "stations.html",
            request.scope,
            markets=list(markets.stations),
            market=chosen,
            board=self._board(stations, states, market.day(self._context.clock_ms())),
            Readiness=Readiness,
        )

    def _board(
        self, stations: Sequence[Station], states: Mapping[str, bytes], today: date
    ) -> Board:
        rows = [self._row(station, states.get(station.location_id), today) for station in stations]
        places = [(station.latitude, station.longitude) for station in stations]
        found = [
            _region([rows[number] for number in region], [places[number] for number in region])
            for region in regions(places)
        ]
        rows.sort(key=lambda row: (_ORDER[row.readiness], row.available, row.station.location_id))
        return Board(rows=rows, regions=found)

    def _row(self, station: Station, state: bytes | None, today: date) -> Row:
        if state is None:
            shelves = [self._shelf(station, fleet_id, None) for fleet_id in station.fleets]
            return Row(station=station, readiness=Readiness.UNHEARD, shelves=shelves)
        catalogue = self._context.markets.catalogue
        try:
            told = _decoder.decode(catalogue.describe(station.location_id, state))
        except ValueError:
            return Row(station=station, readiness=Readiness.UNKNOWN, shelves=())
        # A station turns its day when something happens there.
        is_today = told.day == (today - EPOCH).days
        stock = {
            one.fleet_id: one if is_today else msgspec.structs.replace(one, today={})
            for one in told.stock
        }
        return Row(
            station=station,
            readiness=_BY_NAME.get(told.readiness or "", Readiness.UNKNOWN),
            because=told.because or "",
            intents=told.intents,
            incidents=told.incidents_today if is_today else 0,
            shift=told.shift,
            shelves=[
                self._shelf(station, fleet_id, stock[fleet_id])
                for fleet_id in station.fleets
                if fleet_id in stock
            ],
        )

    def _shelf(self, station: Station, fleet_id: str, stock: _Stock | None) -> Shelf:
        slots = station.fleets[fleet_id]
        name = self._context.markets.catalogue.fleets.get(fleet_id, fleet_id)
        if stock is None:
            return Shelf(
                fleet_id=fleet_id, name=name, available=slots.stock, capacity=slots.capacity
            )
        return Shelf(
            fleet_id=fleet_id,
            name=name,
            available=stock.current_stock - stock.promised,
            promised=stock.promised,
            capacity=slots.capacity,
            is_low=stock.is_low,
            is_in_high_demand=stock.is_in_high_demand,
            restocks=stock.total_restocks,
            set_aside={name: count for name, count in stock.set_aside.items() if count},
            today={name: count for name, count in stock.today.items() if count},
        )


def _region(rows: Sequence[Row], places: Sequence[tuple[float, float]]) -> Region:
    drawn = plane(places)
    spots = sorted(zip(rows, drawn.spots, strict=True), key=lambda pair: -_ORDER[pair[0].readiness])
    name = rows[middle(places)].station.name
    return Region(name=f"around {name}", plane=drawn, spots=spots)
