"""What answers need of the set-up: services' units, markets' money, where stations stand."""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import NamedTuple

from bss_stream import topics
from bss_stream.errors import ConfigError
from bss_stream.reports.network import Describe, Network
from bss_stream.setup import Setup
from bss_stream.setup.documents import (
    CONSUMES,
    UNIT_DIGITS,
    FleetFile,
    LocationFile,
    ServiceFile,
    Station,
)


class Service(NamedTuple):
    """One service and what its numbers mean on the wire."""

    name: str
    usage_unit: str
    unit_digits: int
    """Decimals between the wire's unit and the smallest unit."""
    is_energy: bool
    infinite_wire: int
    """What the market writes for a quota without a limit."""


class Catalogue:
    """The set-up, looked up by what ledger entries and riders name."""

    def __init__(
        self,
        services: Mapping[str, Service],
        currency_digits: Mapping[str, int],
        fleets: Mapping[str, str],
        stations: Sequence[Station],
        network: Network,
    ) -> None:
        """`fleets` gives each fleet's name."""
        self.network = network
        self.fleets = fleets
        self._services = services
        self._currency_digits = currency_digits
        self._by_latitude = sorted(stations, key=attrgetter("latitude"))
        self._names = {station.location_id: station.name for station in stations}

    @classmethod
    def of(cls, setup: Setup, describe: Describe) -> "Catalogue":
        """`describe` is that of an engine with the same set-up."""
        services: dict[str, Service] = {}
        digits: dict[str, int] = {}
        fleets: dict[str, str] = {}
        stations: list[Station] = []
        for market in setup.markets:
            settings = market.settings()
            assert settings is not None  # checked at load
            digits[settings.currency] = settings.currency_digits
            for service in market.documents(ServiceFile):
                kind = service.service_type
                services[service.service_id] = Service(
                    service.name,
                    service.usage_unit,
                    UNIT_DIGITS[kind],
                    CONSUMES[kind] == "energy",
                    settings.infinite_on_the_wire,
                )
            for document in market.documents(FleetFile):
                fleets.update((fleet.fleet_id, fleet.name) for fleet in document.fleets)
            for places in market.documents(LocationFile):
                stations.extend(places.stations)
        return cls(services, digits, fleets, stations, Network.of(setup, describe))

    def service(self, service_id: str) -> Service:
        """Raises ConfigError for one that the set-up lacks: its numbers have no unit then."""
        service = self._services.get(service_id)
        if service is None:
            raise ConfigError([f"service {service_id!r} of the ledger is not in the set-up"])
        return service

    def service_names(self) -> dict[str, str]:
        """Every service's name, by id."""
        return {service_id: service.name for service_id, service in self._services.items()}

    def digits(self, currency: str) -> int:
        """A currency's decimals. Raises ConfigError for one that no market has."""
        digits = self._currency_digits.get(currency)
        if digits is None:
            raise ConfigError([f"currency {currency!r} of the ledger is not in the set-up"])
        return digits

    def station_name(self, location_id: str | None) -> str | None:
        """None for a station that the set-up lacks."""
        return self._names.get(location_id or "")

    def stations_between(self, south: float, north: float) -> Sequence[Station]:
        """The stations in a band of latitudes."""
        first = bisect_left(self._by_latitude, south, key=attrgetter("latitude"))
        last = bisect_right(self._by_latitude, north, key=attrgetter("latitude"))
        return self._by_latitude[first:last]

    def describe(self, location_id: str, state: bytes) -> bytes:
        """A station's state as JSON. Raises ValueError where it names what the set-up lacks."""
        return self.network.describe(topics.STATE_STATION, location_id.encode(), state)
