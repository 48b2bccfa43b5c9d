"""What the platform answers: the envelope of an echo, and its metadata for each request."""

from typing import Annotated, Any, Final, Generic, Literal, TypeVar

from msgspec import UNSET, Meta, Struct

from bss_stream import _engine
from bss_stream.contract.fields import (
    SUCCESS,
    Absent,
    Amount,
    Currency,
    EpochMs,
    Instant,
    Number,
    Readiness,
    Reason,
    StateName,
    Told,
    closed,
)

M = TypeVar("M")

_CYCLES, _FUNDAMENTAL = _engine.fundamental_signals()

EchoSignal = Annotated[
    str,
    Meta(
        description="Those of success that clients know, and one of failure for each reason.",
        extra_json_schema=closed(
            sorted(SUCCESS | {signal for _, signal in _engine.reason_signals()})
        ),
    ),
]


class Agent(Struct, frozen=True):
    """The platform."""

    type: Literal["agent"]
    id: Literal["bss-agent-v2"]


class PlanEchoData(Struct, Generic[M], frozen=True):
    """What became of the request."""

    plan_id: str | None
    success: bool
    signals: tuple[EchoSignal, ...]
    metadata: M


class PlanEcho(Struct, Generic[M], frozen=True):
    """The answer to what was asked of a plan; `plan_id` is null only for a query about none."""

    timestamp: Instant
    plan_id: str | None
    correlation_id: Told
    actor: Agent
    data: PlanEchoData[M]


class AssetEchoData(Struct, Generic[M], frozen=True):
    """What became of the request."""

    asset_id: str
    success: bool
    signals: tuple[EchoSignal, ...]
    metadata: M


class AssetEcho(Struct, Generic[M], frozen=True):
    """The answer to what was asked of a battery."""

    timestamp: Instant
    asset_id: str
    correlation_id: Told
    actor: Agent
    data: AssetEchoData[M]


class StationEchoData(Struct, Generic[M], frozen=True):
    """What became of the request."""

    location_id: str
    success: bool
    signals: tuple[EchoSignal, ...]
    metadata: M


class StationEcho(Struct, Generic[M], frozen=True):
    """The answer to what was asked of a station."""

    timestamp: Instant
    location_id: str
    correlation_id: Told
    actor: Agent
    data: StationEchoData[M]


class Refused(Struct, frozen=True):
    """Metadata of a request that was refused; nothing of it was applied."""

    reason: Reason
    message: str
    detail: Absent[Annotated[str, Meta(description="Which field, state or value.")]] = UNSET
    action_required: Absent[Annotated[str, Meta(description="What somebody can do.")]] = UNSET


class Repeated(Struct, frozen=True):
    """Metadata of the answer to a request that was seen before: its first outcome stands."""

    reason: Reason
    first_reason: Reason
    message: str
    action_required: Absent[str] = UNSET


class ServiceState(Struct, frozen=True):
    """One service of a plan, in the wire's units."""

    service_id: str
    used: Number
    quota: Annotated[Number, Meta(description="100000 and above means without a limit.")]
    current_asset: str | None = None


class PlanStates(Struct, frozen=True):
    """What the plan is after the request."""

    reason: Reason
    payment_state: StateName
    service_state: StateName
    status: str
    service_states: tuple[ServiceState, ...]


class FsmInput(Struct, frozen=True):
    """A fundamental signal that a request became."""

    cycle: Annotated[str, Meta(extra_json_schema=closed(_CYCLES))]
    input: Annotated[str, Meta(extra_json_schema=closed(_FUNDAMENTAL))]


Outputs = Annotated[
    tuple[str, ...], Meta(description="What the plan's machines emitted; names of its model.")
]


class Synced(PlanStates, frozen=True):
    """Metadata of an accepted odoo_sync."""

    fsm_inputs_generated: tuple[FsmInput, ...]
    fsm_outputs: Outputs
    period_end_ms: EpochMs


class HandedOver(PlanStates, frozen=True):
    """Metadata of an accepted payment_and_service."""

    fsm_outputs: Outputs


class Issued(PlanStates, frozen=True, kw_only=True):
    """Metadata of an accepted self-service swap: ARM has issued a battery."""

    asset_id: str
    location_id: str
    fleet_id: Absent[str] = UNSET
    issued_at: Instant


class Verdict(Struct, frozen=True, kw_only=True):
    """What one check of `validate` found."""

    validator: Literal["location", "session", "states", "payment", "quota", "rate_limit", "battery"]
    passed: bool
    reason: Absent[Reason] = UNSET
    message: Absent[str] = UNSET
    detail: Absent[str] = UNSET


class Validated(PlanStates, frozen=True):
    """Metadata of a validate, whether a swap would be accepted or not."""

    validators: tuple[Verdict, ...]


class Applied(Struct, frozen=True):
    """Metadata that says no more than that it was done."""

    reason: Reason


class Scanned(Struct, frozen=True):
    """Metadata of an accepted asset_scan."""

    reason: Reason
    asset_status: Annotated[str, Meta(description="The state of the battery's life.")]
    holder: Absent[Annotated[str, Meta(description="The plan that has it.")]] = UNSET


class StationTold(Struct, frozen=True):
    """Metadata of what an operator has done at a station."""

    reason: Reason
    readiness: Readiness


class AccountsTold(StationTold, frozen=True):
    """Metadata of an accepted asset_operation: where the fleet's batteries are now."""

    fleet_id: str
    stock: int
    charging: int
    inspection: int
    quarantine: int


class ServicePlan(Struct, frozen=True, rename="camel"):
    """A plan as identify_customer tells of it."""

    service_plan_id: str
    customer_id: str
    status: str
    service_state: StateName
    payment_state: StateName
    template_id: str
    currency: Currency
    service_states: tuple[ServiceState, ...]
    quota_used: Absent[Annotated[int, Meta(description="Swaps.")]] = UNSET
    quota_limit: Absent[Annotated[int, Meta(description="Swaps.")]] = UNSET


class BundleService(Struct, frozen=True, rename="camel"):
    """A service of the bundle."""

    service_id: str
    name: str
    usage_unit: str
    usage_unit_price: Amount


class ServiceBundle(Struct, frozen=True, rename="camel"):
    """The bundle that was signed."""

    bundle_id: str
    name: str
    services: tuple[BundleService, ...]


class CommonTerms(Struct, frozen=True, rename="camel"):
    """The terms that were signed."""

    service_duration_days: int
    billing_cycle: str
    billing_currency: Currency


class Identified(Struct, frozen=True):
    """Metadata of an accepted identify_customer."""

    reason: Reason
    customer_id: str
    identification_method: str
    service_plan_data: ServicePlan
    service_bundle: ServiceBundle
    common_terms: CommonTerms


ACCEPTED: Final[dict[str, Any]] = {
    "identify_customer": Identified,
    "payment_and_service": HandedOver,
    "customer_binding": Issued,
    "initialize_states": PlanStates,
    "odoo_sync": Synced,
    "service_payment": PlanStates,
    "payment_reversal": PlanStates,
    "station_tap": Issued,
    "validate": Validated,
    "report_activity": Applied,
    "report_lost": PlanStates,
    "continue_service": PlanStates,
    "asset_scan": Scanned,
    "station_readiness": StationTold,
    "asset_operation": AccountsTold,
    "operator_shift": StationTold,
    "station_incident": StationTold,
}
"""The metadata of an echo that grants what was asked, by event."""


_ADDRESSES: Final = dict(_engine.echo_topics())
_ENVELOPES: Final[dict[str, Any]] = {
    "{asset_id}": AssetEcho,
    "{location_id}": StationEcho,
    "{plan_id}": PlanEcho,
}


def envelope_of(address: str) -> Any:
    """The envelope of echoes on a topic, by what its variable segment names."""
    return next(kind for variable, kind in _ENVELOPES.items() if variable in address)


def echo_types(event: str) -> tuple[Any, ...]:
    """What an event's echo may be: the request was accepted, seen before, or refused."""
    envelope = envelope_of(_ADDRESSES[event])
    outcomes = (ACCEPTED[event], Repeated, Refused)
    return tuple(envelope[metadata] for metadata in outcomes)
