"""Queries and their answers: docs/rider-queries.md, and the reports of operators and managers."""

from typing import Annotated, Any, Final, Generic, Literal, TypeVar

from msgspec import UNSET, Meta, Struct

from bss_stream.contract.echoes import Agent, EchoSignal, PlanEcho, Refused, StationEcho
from bss_stream.contract.fields import (
    Absent,
    CorrelationId,
    Currency,
    Equipment,
    Id,
    Instant,
    Maybe,
    Money,
    Number,
    Readiness,
    Reason,
    Told,
)
from bss_stream.contract.requests import Actor
from bss_stream.contract.sent import Counted
from bss_stream.queries.stations import STATIONS_MAX
from bss_stream.queries.wire import (
    RADIUS_KM_DEFAULT,
    RADIUS_KM_MAX,
    SEQ_MAX,
    SWAPS_DEFAULT,
    SWAPS_MAX,
    Query,
)

M = TypeVar("M")

Degrees = float
Page = Annotated[
    int,
    Meta(ge=1, le=SWAPS_MAX, description=f"Swaps in one answer; {SWAPS_DEFAULT} if not given."),
]
Before = Annotated[int, Meta(ge=1, le=SEQ_MAX, description="`next_before` of the last page.")]
Radius = Annotated[
    float, Meta(gt=0, le=RADIUS_KM_MAX, description=f"{RADIUS_KM_DEFAULT:g} if not given.")
]
AsOf = Annotated[
    str | None,
    Meta(description="How fresh the answer is: the newest time that was recorded by then."),
]


class SwapHistory(Struct, frozen=True):
    """A plan's last swaps, the newest first."""

    limit: Maybe[Page] = UNSET
    before: Maybe[Before] = UNSET


class Balance(Struct, frozen=True):
    """A plan's accounts."""


class Nearby(Struct, frozen=True):
    """Stations around a place."""

    lat: Annotated[Degrees, Meta(ge=-90, le=90)]
    lon: Annotated[Degrees, Meta(ge=-180, le=180)]
    radius_km: Maybe[Radius] = UNSET
    fleet_id: Maybe[Id] = UNSET


class PlanQuery(Struct, frozen=True, kw_only=True):
    """What all queries about a plan have; nothing depends on when they were sent."""

    timestamp: Maybe[Instant] = UNSET
    plan_id: Id
    correlation_id: CorrelationId
    actor: Maybe[Actor] = UNSET


class SwapHistoryQuery(PlanQuery, frozen=True, kw_only=True):
    """swap_history."""

    data: Maybe[SwapHistory] = UNSET


class BalanceQuery(PlanQuery, frozen=True, kw_only=True):
    """balance."""

    data: Maybe[Balance] = UNSET


class PaymentStatus(Struct, frozen=True):
    """What Odoo knows of a plan's payments, or of one."""

    payment_id: Maybe[Annotated[str, Meta(min_length=1, max_length=128)]] = UNSET


class PaymentStatusQuery(PlanQuery, frozen=True, kw_only=True):
    """payment_status; answered only where an Odoo is connected."""

    data: Maybe[PaymentStatus] = UNSET


class NearbyQuery(Struct, frozen=True, kw_only=True):
    """nearby: about no plan, so its correlation id is part of the echo's topic."""

    timestamp: Maybe[Instant] = UNSET
    plan_id: Maybe[Id] = UNSET
    correlation_id: Id
    actor: Maybe[Actor] = UNSET
    data: Nearby


class StationReportQuery(Struct, frozen=True, kw_only=True):
    """How a station stands (OP1 to OP6)."""

    timestamp: Maybe[Instant] = UNSET
    location_id: Id
    correlation_id: CorrelationId
    actor: Maybe[Actor] = UNSET
    data: Maybe[Balance] = UNSET


class FleetReportQuery(Struct, frozen=True, kw_only=True):
    """How a fleet stands (AM1, AM3, AM4)."""

    timestamp: Maybe[Instant] = UNSET
    fleet_id: Id
    correlation_id: CorrelationId
    actor: Maybe[Actor] = UNSET
    data: Maybe[Balance] = UNSET


class Swap(Struct, frozen=True, kw_only=True):
    """One swap."""

    time: Instant
    correlation_id: str | None
    location_id: str | None
    location_name: str | None
    battery_issued: str | None
    battery_returned: str | None
    energy_kwh: Number
    energy_beyond_quota_kwh: Absent[Number] = UNSET
    mode: Literal["staffed", "self_service"]
    late: Absent[bool] = UNSET
    overage: Money
    paid: Money
    currency: Currency


class SwapsTold(Struct, frozen=True):
    """Metadata of an answered swap_history."""

    reason: Reason
    as_of: AsOf
    swaps: tuple[Swap, ...]
    next_before: int | None


class BalanceState(Struct, frozen=True):
    """One service's account."""

    service_id: str
    name: str
    usage_unit: str
    used: Number
    held: Number
    quota: Number
    left: Number
    credit: Money


class LastPayment(Struct, frozen=True):
    """What the customer has paid last."""

    kind: str
    amount: Money
    currency: Currency
    time: Instant
    payment_reference: str | None
    service_id: str | None


class BalanceTold(Struct, frozen=True):
    """Metadata of an answered balance."""

    reason: Reason
    as_of: AsOf
    currency: Currency | None
    service_states: tuple[BalanceState, ...]
    last_payment: LastPayment | None


class FleetStock(Struct, frozen=True):
    """A fleet at a station."""

    fleet_id: str
    name: str | None
    available: int | None
    capacity: int


class NearStation(Struct, frozen=True):
    """A station within the radius."""

    location_id: str
    name: str
    lat: Degrees
    lon: Degrees
    distance_km: float
    fleets: tuple[FleetStock, ...]


class NearbyTold(Struct, frozen=True):
    """Metadata of an answered nearby."""

    reason: Reason
    as_of: AsOf
    radius_km: float
    stations_found: int
    stations: Annotated[tuple[NearStation, ...], Meta(max_length=STATIONS_MAX)]


class PaymentTold(Struct, frozen=True):
    """A payment; without an invoice it is known of the ledgers alone."""

    payment_id: str
    invoice_id: str | int | None
    applied: Annotated[bool, Meta(description="Whether the plan's ledger has it.")]
    payment_state: Absent[str] = UNSET
    amount: Absent[Money] = UNSET
    currency: Absent[Currency] = UNSET


class PaymentsTold(Struct, frozen=True):
    """Metadata of an answered payment_status."""

    reason: Reason
    as_of: AsOf
    payments: tuple[PaymentTold, ...]


class Waiting(Struct, frozen=True):
    """A rider who waits for ARM."""

    plan_id: str
    correlation_id: str
    fleet_id: str
    position: int
    since: Instant
    answer_by: Instant


class FleetAccounts(Struct, frozen=True):
    """A fleet's batteries at a station."""

    fleet_id: str
    available: int
    promised: int
    charging: int
    inspection: int
    quarantine: int
    on_site: int
    capacity: int
    low_threshold: int


class ShiftTold(Counted, frozen=True, kw_only=True):
    """A shift under way."""

    operator: str
    started_at: Instant
    incidents: int


Day = Annotated[str, Meta(extra_json_schema={"format": "date"})]


class DayTold(Counted, frozen=True, kw_only=True):
    """A day of a station."""

    day: Day


class StationReportTold(Struct, frozen=True):
    """Metadata of an answered station_report."""

    reason: Reason
    as_of: AsOf
    location_id: str
    name: str
    readiness: Readiness
    because: str
    equipment: Equipment
    intents: tuple[Waiting, ...]
    stock: tuple[FleetAccounts, ...]
    shift: ShiftTold | None
    today: DayTold | None
    day_before: DayTold | None


class Deployment(Struct, frozen=True):
    """What a station has and needs."""

    location_id: str
    available: int
    needed: int


class Move(Struct, frozen=True):
    """Batteries to be taken from one station to another."""

    from_location_id: str
    to_location_id: str
    batteries: int


class FleetReportTold(Counted, frozen=True, kw_only=True):
    """Metadata of an answered fleet_report."""

    reason: Reason
    as_of: AsOf
    fleet_id: str
    name: str
    day: Day
    stations: int
    not_ready: int
    batteries: Annotated[dict[str, int], Meta(description="By where they are.")]
    capacity: int
    served_permille: int | None
    deployment: tuple[Deployment, ...]
    lacking: int
    moves: tuple[Move, ...]


class FleetEchoData(Struct, Generic[M], frozen=True):
    """What became of the query."""

    fleet_id: str
    success: bool
    signals: tuple[EchoSignal, ...]
    metadata: M


class FleetEcho(Struct, Generic[M], frozen=True):
    """The answer to what was asked of a fleet."""

    timestamp: Instant
    fleet_id: str
    correlation_id: Told
    actor: Agent
    data: FleetEchoData[M]


class QueryRefused(Struct, frozen=True, kw_only=True):
    """Metadata of a query that was refused."""

    reason: Reason
    message: str
    detail: Absent[str] = UNSET
    action_required: Absent[str] = UNSET
    as_of: AsOf


QUERIES: Final[dict[str, Any]] = {
    Query.SWAP_HISTORY: SwapHistoryQuery,
    Query.BALANCE: BalanceQuery,
    Query.NEARBY: NearbyQuery,
    Query.PAYMENT_STATUS: PaymentStatusQuery,
    Query.STATION_REPORT: StationReportQuery,
    Query.FLEET_REPORT: FleetReportQuery,
}
"""By query."""

ANSWERED: Final[dict[str, Any]] = {
    Query.SWAP_HISTORY: SwapsTold,
    Query.BALANCE: BalanceTold,
    Query.NEARBY: NearbyTold,
    Query.PAYMENT_STATUS: PaymentsTold,
    Query.STATION_REPORT: StationReportTold,
    Query.FLEET_REPORT: FleetReportTold,
}
"""The metadata of an answer, by query."""


_ENVELOPES: Final[dict[str, Any]] = {
    Query.STATION_REPORT: StationEcho,
    Query.FLEET_REPORT: FleetEcho,
}


def envelope_of(query: str) -> Any:
    """The envelope of a query's echo."""
    return _ENVELOPES.get(query, PlanEcho)


def answer_types(query: str) -> tuple[Any, ...]:
    """What the echo of a query may be."""
    envelope = envelope_of(query)
    # Odoo's adapter does not say how fresh a refusal is.
    refused = Refused if query == Query.PAYMENT_STATUS else QueryRefused
    return envelope[ANSWERED[query]], envelope[refused]
