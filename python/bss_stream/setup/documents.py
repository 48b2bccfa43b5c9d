"""The files of a market folder as types: what an operator may write, and nothing else.

Money and quantities are decimal text in currency units or in the service's usage unit; `exact`
turns them into whole units. Every file carries the header from which its own name follows.
"""

import re
from typing import Annotated, Any, ClassVar, Final, Literal, TypeGuard

import msgspec
from msgspec import Meta

INFINITE: Final = "infinite"
EVERYWHERE: Final = "*"

_ID = r"^[A-Za-z0-9._:@-]{1,64}\Z"

Id = Annotated[
    str,
    Meta(
        pattern=_ID,
        description="an id of 1 to 64 characters out of A-Z a-z 0-9 . _ : @ -",
    ),
]
Slug = Annotated[
    str,
    Meta(
        pattern=r"^[a-z0-9]+(-[a-z0-9]+)*\Z",
        description='lower-case words joined by hyphens, such as "swap-freedom"',
    ),
]
Word = Annotated[
    str, Meta(pattern=r"^[a-z0-9]+\Z", description='one lower-case word, such as "nairobi"')
]
Version = Annotated[str, Meta(pattern=r"^v[1-9][0-9]{0,5}\Z", description='a version such as "v2"')]
Name = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=120,
        pattern=r"^[^\x00-\x1f\x7f]*\Z",
        description="a name of 1 to 120 characters, without control characters",
    ),
]
LocationRef = Annotated[
    str,
    Meta(
        pattern=r"^(\*|[A-Za-z0-9._:@-]{1,64})\Z",
        description='a location id, or "*" alone for every location of the market',
    ),
]
Amount = Annotated[str, Meta(description='an amount in currency units as text, such as "1500.00"')]
Quantity = Annotated[
    int | str, Meta(description='a quantity: 30, "344.5", or "infinite" for no limit')
]
Multiplier = Annotated[str, Meta(description='a factor as text, such as "1.5"')]
Days = Annotated[int, Meta(ge=1, le=3660, description="whole days, 1 to 3660")]
Count = Annotated[int, Meta(ge=0, le=100_000, description="a whole number, 0 to 100000")]


def is_id(value: object) -> TypeGuard[str]:
    """Whether a value is an id that every part of the system takes."""
    return isinstance(value, str) and re.match(_ID, value) is not None


class Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The header: a file is named `bss-{market}-{entity_type}-{entity_name}[-{version}].json`."""

    ID: ClassVar[str]
    """The field that holds an entity's id."""
    ROWS: ClassVar[str | None] = None
    """The field that lists the entities, None for a file of one entity."""

    entity_type: str
    market: Word
    entity_name: Slug
    version: Version = "v1"
    notes: str = ""
    """For people; the program does not read it."""

    @property
    def version_number(self) -> int:
        return int(self.version[1:])


class Allocation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long ARM may take to answer an allocation, and how often it is asked."""

    answer_timeout_seconds: Annotated[int, Meta(ge=1, le=300, description="seconds, 1 to 300")]
    attempts_max: Annotated[int, Meta(ge=1, le=10, description="a whole number, 1 to 10")]


class Tier(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a tier makes of a template's initial quota and fee."""

    quota_multiplier: Multiplier
    fee_multiplier: Multiplier


class MarketFile(Document, frozen=True, kw_only=True):
    """A market: currency, zone, and what holds for all its plans."""

    ID: ClassVar[str] = "market_id"

    market_id: Id
    name: Name
    currency: Annotated[
        str, Meta(pattern=r"^[A-Z]{3}\Z", description='an ISO 4217 code such as "KES"')
    ]
    currency_digits: Annotated[int, Meta(ge=0, le=3, description="the currency's decimals, 0 to 3")]
    time_zone: Name
    infinite_on_the_wire: Annotated[
        int,
        Meta(
            ge=100_000,
            le=1_000_000_000_000,
            description="a whole number from 100000, which is where clients read infinity",
        ),
    ]
    allocation: Allocation
    low_stock_threshold: Count = 3
    """At this stock of a fleet or below, the operator is asked to restock the station."""
    tiers: Annotated[dict[Id, Tier], Meta(min_length=1)]


class ServiceFile(Document, frozen=True, kw_only=True):
    """One thing a plan can contain, and its price by the unit."""

    ID: ClassVar[str] = "service_id"

    service_id: Id
    name: Name
    service_type: Literal["access", "asset", "energy", "swap"]
    """access: entry to the stations; asset: batteries of a fleet; energy and swap: metered."""
    usage_unit: Name
    unit_price: Amount
    fleet_id: Id | None = None


class Fleet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Interchangeable batteries."""

    fleet_id: Id
    name: Name
    swap_energy_kwh_max: Annotated[str, Meta(description='kWh as text, such as "3.240"')]
    """The most net energy of one swap: a full battery out, an empty one back."""


class FleetFile(Document, frozen=True, kw_only=True):
    """Fleets of a market."""

    ID: ClassVar[str] = "fleet_id"
    ROWS: ClassVar[str | None] = "fleets"

    fleets: Annotated[tuple[Fleet, ...], Meta(min_length=1)]


class Slots(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Batteries of one fleet at one station."""

    stock: Count
    capacity: Count


class Station(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A swap station."""

    location_id: Id
    name: Name
    latitude: Annotated[float, Meta(ge=-90, le=90, description="degrees, -90 to 90")]
    longitude: Annotated[float, Meta(ge=-180, le=180, description="degrees, -180 to 180")]
    fleets: Annotated[dict[Id, Slots], Meta(min_length=1)]


class LocationFile(Document, frozen=True, kw_only=True):
    """Swap stations of a market."""

    ID: ClassVar[str] = "location_id"
    ROWS: ClassVar[str | None] = "stations"

    stations: Annotated[tuple[Station, ...], Meta(min_length=1)]


class BundleFile(Document, frozen=True, kw_only=True):
    """Services that are sold together; all of them must allow a swap."""

    ID: ClassVar[str] = "bundle_id"

    bundle_id: Id
    name: Name
    services: Annotated[tuple[Id, ...], Meta(min_length=1)]


class TermsFile(Document, frozen=True, kw_only=True):
    """Duration, billing and grace, shared by plan templates."""

    ID: ClassVar[str] = "terms_id"

    terms_id: Id
    name: Name
    billing_currency: str
    service_duration_days: Days
    billing_cycle: Literal["daily", "weekly", "monthly"]
    grace_hours: Annotated[int, Meta(ge=0, le=2400, description="whole hours, 0 to 2400")]

    @property
    def billing_cycle_days(self) -> int:
        return BILLING_CYCLE_DAYS[self.billing_cycle]


class ServiceTerms(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a plan template grants of one service of its bundle."""

    service_id: Id
    initial_quota: Quantity
    max_quota: Quantity
    rate_limit_per_day: (
        Annotated[int, Meta(ge=1, le=1000, description="swaps a day, 1 to 1000, or null")] | None
    ) = None
    auto_renewal: bool
    overage_allowed: bool = False
    overage_rate: Amount | None = None
    """What one usage unit beyond the quota costs."""


class PlanFile(Document, frozen=True, kw_only=True):
    """A plan template: what a customer signs."""

    ID: ClassVar[str] = "template_id"

    template_id: Id
    name: Name
    model: Id = "bss-fsm-v1"
    bundle_id: Id
    terms_id: Id
    tier: Id
    deposit: Amount
    fee: Amount
    """Of one billing cycle, before the tier's multiplier."""
    allowed_locations: Annotated[tuple[LocationRef, ...], Meta(min_length=1)]
    services: Annotated[tuple[ServiceTerms, ...], Meta(min_length=1)]


ENTITY_TYPES: Final[dict[str, Any]] = {
    "market": MarketFile,
    "service": ServiceFile,
    "fleet": FleetFile,
    "location": LocationFile,
    "bundle": BundleFile,
    "terms": TermsFile,
    "plan": PlanFile,
}

BILLING_CYCLE_DAYS: Final = {"daily": 1, "weekly": 7, "monthly": 30}

CONSUMES: Final = {"access": "none", "asset": "none", "energy": "energy", "swap": "swap"}

UNIT_PRICE_MAX: Final = 1_000_000
"""In currency units. The engine keeps a price to 10**-9 of a minor unit in 64 bits."""

UNIT_DIGITS: Final = {"access": 0, "asset": 0, "energy": 3, "swap": 0}
"""Decimals between the usage unit and the unit the engine counts in: kWh to Wh."""
