"""The network as stations and riders see it, read from the compiled setup that the engine loads.

Only the fields that a client outside could know are read: where stations stand, what lies on
their shelves, which templates are on sale and what they promise.
"""

from collections import Counter
from fractions import Fraction
from typing import Final, Literal

from msgspec import DecodeError, Struct, ValidationError
from msgspec.json import Decoder

from bss_stream.errors import ConfigError

Consumes = Literal["none", "swap", "energy"]


class _Units(Struct, frozen=True):
    units: int


class _Service(Struct, frozen=True):
    service_id: str
    unit_digits: int
    unit_price: str
    fleet_id: str | None
    consumes: Consumes


class _Location(Struct, frozen=True):
    location_id: str
    stock: dict[str, int]
    capacity: dict[str, int]


class _Bundle(Struct, frozen=True):
    bundle_id: str
    services: tuple[str, ...]


class _TemplateService(Struct, frozen=True):
    service_id: str
    initial_quota: _Units | Literal["infinite"]
    max_quota: _Units | Literal["infinite"]
    rate_limit_per_day: int | None
    overage_allowed: bool
    hold_units: int


class _Tier(Struct, frozen=True):
    tier: str
    quota_multiplier: tuple[int, int]


class _Template(Struct, frozen=True):
    template_id: str
    bundle_id: str
    tier: str
    deposit_minor: int
    fee_minor: int
    allowed_locations: tuple[str, ...]
    services: tuple[_TemplateService, ...]


class _Zone(Struct, frozen=True):
    name: str
    offsets: tuple[tuple[int | None, int], ...]


class _Market(Struct, frozen=True):
    market_id: str
    currency: str
    currency_digits: int
    zone: _Zone
    services: tuple[_Service, ...]
    locations: tuple[_Location, ...]
    bundles: tuple[_Bundle, ...]
    tiers: tuple[_Tier, ...]
    templates: tuple[_Template, ...]


class _Setup(Struct, frozen=True):
    markets: tuple[_Market, ...]


_DECODER: Final = Decoder(_Setup)

_HOLD_WH: Final = 3_000
"""A battery's energy where no template meters it."""


class ServiceTerms(Struct, frozen=True):
    """What a template promises of one service that a swap consumes."""

    service_id: str
    consumes: Consumes
    initial_units: int | None
    """What initialize_states grants, in the smallest unit; None for no limit."""
    rate_limit_per_day: int | None
    overage_allowed: bool
    max_units: int | None
    """No payment brings the quota past this, in the smallest unit (swaps; Wh); None: no cap."""
    unit_digits: int
    """Decimals between the wire's unit and the smallest unit."""
    unit_price_minor: Fraction
    """Price of one wire unit in the currency's minor unit."""


class Terms(Struct, frozen=True):
    """A plan template on sale, as its rider knows it."""

    template_id: str
    market: int
    """Index of the market in `Network.markets`."""
    first_payment_minor: int
    fee_minor: int
    places: dict[str, tuple[str, ...]]
    """Fleets of the bundle, each with the allowed locations that keep it (at least one)."""
    default_fleet: str | None
    """What a staffed first issue comes from: its message has no field for a fleet."""
    forbidden: tuple[str, ...]
    """Locations of the same market that the plan does not cover."""
    services: tuple[ServiceTerms, ...]


class Market(Struct, frozen=True):
    """A market's clock and money."""

    market_id: str
    currency: str
    currency_digits: int
    offsets: tuple[tuple[int | None, int], ...]
    """UTC offsets in seconds, each from an epoch ms on, ascending."""

    def offset_s(self, wall_ms: int) -> int:
        """Seconds that the market's local time is ahead of UTC."""
        found = 0
        for start_ms, offset_s in self.offsets:
            if start_ms is not None and start_ms > wall_ms:
                break
            found = offset_s
        return found

    def day(self, wall_ms: int) -> int:
        """The market's calendar day, counted from 1970-01-01."""
        return (wall_ms // 1000 + self.offset_s(wall_ms)) // 86_400


class Shelf(Struct, frozen=True):
    """Batteries of one fleet at one location."""

    location_id: str
    fleet_id: str
    stock: int
    capacity: int
    hold_wh: int
    """The most net energy that one swap of this fleet may deliver."""


class Network(Struct, frozen=True):
    """Markets, shelves and the templates on sale."""

    markets: tuple[Market, ...]
    shelves: tuple[Shelf, ...]
    terms: tuple[Terms, ...]

    def busiest(self) -> frozenset[str]:
        """The location of each market that the most riders could come to."""
        found: set[str] = set()
        for index in range(len(self.markets)):
            visits = Counter(
                place
                for terms in self.terms
                if terms.market == index
                for places in terms.places.values()
                for place in places
            )
            found.update(place for place, _ in visits.most_common(1))
        return frozenset(found)


def read_network(setup: bytes) -> Network:
    """The network in compiled setup bytes. Raises ConfigError."""
    try:
        decoded = _DECODER.decode(setup)
    except (DecodeError, ValidationError) as error:
        raise ConfigError([f"compiled setup: {error}"]) from error
    terms = [
        _terms(index, market, template)
        for index, market in enumerate(decoded.markets)
        for template in market.templates
    ]
    sold = tuple(t for t in terms if t.places)
    if not sold:
        raise ConfigError(
            ["compiled setup: no template has a fleet in stock at a location that it allows"]
        )
    return Network(
        markets=tuple(
            Market(m.market_id, m.currency, m.currency_digits, m.zone.offsets)
            for m in decoded.markets
        ),
        shelves=tuple(shelf for m in decoded.markets for shelf in _shelves(m)),
        terms=sold,
    )


def _shelves(market: _Market) -> list[Shelf]:
    holds = _holds_wh(market)
    return [
        Shelf(
            place.location_id,
            fleet_id,
            stock,
            place.capacity.get(fleet_id, stock),
            holds.get(fleet_id, _HOLD_WH),
        )
        for place in market.locations
        for fleet_id, stock in place.stock.items()
    ]


def _holds_wh(market: _Market) -> dict[str, int]:
    """By fleet, the least that a template with it reserves: no swap may deliver more."""
    energy = {s.service_id for s in market.services if s.consumes == "energy"}
    holds: dict[str, int] = {}
    for template in market.templates:
        for service in template.services:
            if service.service_id in energy and service.hold_units > 0:
                for fleet in _fleets(market, template):
                    hold = holds.get(fleet, service.hold_units)
                    holds[fleet] = min(hold, service.hold_units)
    return holds


def _fleets(market: _Market, template: _Template) -> list[str]:
    services = {service.service_id: service.fleet_id for service in market.services}
    bundle = next((b for b in market.bundles if b.bundle_id == template.bundle_id), None)
    fleets = [services.get(s) for s in bundle.services] if bundle is not None else []
    return [fleet for fleet in fleets if fleet is not None]


def _terms(index: int, market: _Market, template: _Template) -> Terms:
    services = {service.service_id: service for service in market.services}
    fleet_of = {service.service_id: service.fleet_id for service in market.services}
    covered = [
        place
        for place in market.locations
        if "*" in template.allowed_locations or place.location_id in template.allowed_locations
    ]
    places = {
        fleet: tuple(place.location_id for place in covered if fleet in place.stock)
        for fleet in _fleets(market, template)
    }
    return Terms(
        template_id=template.template_id,
        market=index,
        first_payment_minor=template.deposit_minor + template.fee_minor,
        fee_minor=template.fee_minor,
        default_fleet=next((f for s in template.services if (f := fleet_of[s.service_id])), None),
        places={fleet: at for fleet, at in places.items() if at},
        forbidden=tuple(p.location_id for p in market.locations if p not in covered),
        services=tuple(
            _service_terms(services[s.service_id], s, market, template.tier)
            for s in template.services
            if s.service_id in services and services[s.service_id].consumes != "none"
        ),
    )


def _service_terms(
    service: _Service, terms: _TemplateService, market: _Market, tier: str
) -> ServiceTerms:
    factor = next((Fraction(*t.quota_multiplier) for t in market.tiers if t.tier == tier), 1)

    def scaled(quota: _Units | str) -> int | None:
        return int(quota.units * factor) if isinstance(quota, _Units) else None

    return ServiceTerms(
        service_id=service.service_id,
        consumes=service.consumes,
        initial_units=scaled(terms.initial_quota),
        rate_limit_per_day=terms.rate_limit_per_day,
        overage_allowed=terms.overage_allowed,
        max_units=scaled(terms.max_quota),
        unit_digits=service.unit_digits,
        unit_price_minor=Fraction(service.unit_price) * 10**market.currency_digits,
    )
