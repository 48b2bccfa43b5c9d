"""The set-up as reports see it: markets with their stations, fleets, services and templates."""

from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from typing import NamedTuple, Self
from zoneinfo import ZoneInfo

from bss_stream import topics
from bss_stream.errors import ConfigError
from bss_stream.setup import Setup
from bss_stream.setup.documents import (
    BundleFile,
    FleetFile,
    LocationFile,
    PlanFile,
    ServiceFile,
    Slots,
)

Describe = Callable[[str, bytes, bytes], bytes]
"""`_engine.Engine.describe_state`: state topic, key and value to JSON."""

EPOCH = date(1970, 1, 1)


class Place(NamedTuple):
    """A station."""

    location_id: str
    name: str
    slots: Mapping[str, Slots]
    """By fleet."""


class Market(NamedTuple):
    """One market."""

    market_id: str
    currency: str
    zone: ZoneInfo
    low_threshold: int
    answer_within_ms: int
    """How long a rider may wait until ARM has been given up."""
    stations: Mapping[str, Place]
    fleets: Mapping[str, str]
    """Each fleet's name."""
    fleet_of: Mapping[str, str | None]
    """Of each service, the fleet that it hands out, if it does."""
    energy: frozenset[str]
    """The services that are metered in energy, in Wh."""
    templates: Mapping[tuple[str, int], tuple[str, ...]]
    """Of each version of a plan template, the fleets of its bundle."""

    def day(self, ms: int) -> date:
        """The local calendar day of a time."""
        return datetime.fromtimestamp(ms / 1000, self.zone).date()

    def midnight_ms(self, day: date) -> int:
        """When a local day begins."""
        return round(datetime.combine(day, time(), self.zone).timestamp() * 1000)

    def window_ms(self, last: date, days: int) -> tuple[int, int]:
        """From the first of so many days, up to the end of the last one."""
        first = last - timedelta(days=days - 1)
        return self.midnight_ms(first), self.midnight_ms(last + timedelta(days=1))


class Network(NamedTuple):
    """All markets, and the engine's reading of states."""

    markets: tuple[Market, ...]
    describe: Describe

    @classmethod
    def of(cls, setup: Setup, describe: Describe) -> Self:
        """`describe` is that of an engine with the same set-up."""
        markets = []
        for market in setup.markets:
            settings = market.settings()
            assert settings is not None  # checked at load
            allocation = settings.allocation
            fleet_of = {one.service_id: one.fleet_id for one in market.documents(ServiceFile)}
            bundles = {one.bundle_id: one.services for one in market.documents(BundleFile)}
            markets.append(
                Market(
                    settings.market_id,
                    settings.currency,
                    ZoneInfo(settings.time_zone),
                    settings.low_stock_threshold,
                    allocation.answer_timeout_seconds * allocation.attempts_max * 1000,
                    {
                        one.location_id: Place(one.location_id, one.name, one.fleets)
                        for document in market.documents(LocationFile)
                        for one in document.stations
                    },
                    {
                        fleet.fleet_id: fleet.name
                        for document in market.documents(FleetFile)
                        for fleet in document.fleets
                    },
                    fleet_of,
                    frozenset(
                        one.service_id
                        for one in market.documents(ServiceFile)
                        if one.service_type == "energy"
                    ),
                    {
                        (one.template_id, int(one.version[1:])): tuple(
                            fleet
                            for service in bundles.get(one.bundle_id, ())
                            if (fleet := fleet_of.get(service)) is not None
                        )
                        for one in market.documents(PlanFile)
                    },
                )
            )
        return cls(tuple(markets), describe)

    def market_of_station(self, location_id: str) -> Market | None:
        """None for a station that the set-up lacks."""
        return next((m for m in self.markets if location_id in m.stations), None)

    def market_of_fleet(self, fleet_id: str) -> Market | None:
        """None for a fleet that the set-up lacks."""
        return next((m for m in self.markets if fleet_id in m.fleets), None)

    def described(self, location_id: str, state: bytes) -> bytes:
        """A station's state as JSON. Raises ConfigError where it names what the set-up lacks."""
        try:
            return self.describe(topics.STATE_STATION, location_id.encode(), state)
        except ValueError as error:
            raise ConfigError([f"state of station {location_id}: {error}"]) from error
