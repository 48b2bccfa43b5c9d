"""What clients, ARM and Odoo send: one type an event of the topic table.

Required is what the engine asks for. It passes over fields that it does not know, and reads `null`
as absent; `action` and `actor` say to people what the topic says to the engine.
"""

from typing import Annotated, Any, Final, Generic, Literal, TypeVar

from msgspec import UNSET, Meta, Struct, field
from msgspec.json import Encoder

from bss_stream.contract.fields import (
    Amount,
    CorrelationId,
    Currency,
    Equipment,
    Id,
    Instant,
    Kwh,
    Maybe,
    Number,
)

D = TypeVar("D")

BatteryId = Annotated[Id, Meta(description="A battery, as ARM calls it.")]
StationId = Annotated[str, Meta(description="A station of the set-up.")]
FleetId = Annotated[Id, Meta(description="A fleet: the type of battery.")]
Receipt = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=128,
        description="The receipt, by which a payment applies once in a plan's life.",
    ),
]


class Actor(Struct, frozen=True):
    """Who asks."""

    type: Maybe[Literal["attendant", "customer", "operator", "system"]] = UNSET
    id: Maybe[str] = UNSET


class PlanRequest(Struct, Generic[D], frozen=True, kw_only=True):
    """The envelope of what is asked of a plan; `plan_id` must be the topic's."""

    timestamp: Instant
    plan_id: Id
    correlation_id: CorrelationId
    actor: Maybe[Actor] = UNSET
    data: D


class BareRequest(Struct, Generic[D], frozen=True, kw_only=True):
    """The envelope of what needs no data to be asked."""

    timestamp: Instant
    plan_id: Id
    correlation_id: CorrelationId
    actor: Maybe[Actor] = UNSET
    data: Maybe[D] = UNSET


class IdentifyCustomer(Struct, frozen=True):
    """A1: an attendant scans a customer's code; the echo says what the plan has."""

    qr_code_data: str
    attendant_station: Maybe[StationId] = UNSET
    action: str = "IDENTIFY_CUSTOMER"


class ServiceData(Struct, frozen=True):
    """What went over the counter."""

    old_battery_id: Maybe[BatteryId] = UNSET
    """Absent on the first issue."""
    new_battery_id: Maybe[BatteryId] = UNSET
    energy_transferred: Maybe[Kwh] = UNSET
    service_duration: Maybe[Annotated[float, Meta(ge=0, description="Seconds.")]] = UNSET


class PaymentData(Struct, frozen=True):
    """A payment; a top-up names its service."""

    payment_amount: Amount
    payment_reference: Receipt
    payment_type: Literal["DEPOSIT", "TOP_UP", "RENEWAL", "SETTLEMENT"]
    service_id: Maybe[str] = UNSET
    payment_method: Maybe[
        Annotated[str, Meta(description="MPESA, …; ZERO_COST_ROUNDING forgives less than a coin.")]
    ] = UNSET


class PaymentAndService(Struct, frozen=True):
    """A3: payment, return, issue and use at a staffed station, all or nothing."""

    attendant_station: StationId
    service_data: Maybe[ServiceData] = UNSET
    payment_data: Maybe[PaymentData] = UNSET
    action: str = "REPORT_PAYMENT_AND_SERVICE_COMPLETION"


class CustomerBinding(Struct, frozen=True):
    """A rider asks for a battery at a station's door; the echo follows once ARM has answered."""

    location_id: StationId
    fleet_id: Maybe[FleetId] = UNSET
    returned_asset_id: Maybe[BatteryId] = UNSET
    action: str = "CUSTOMER_BINDING"


class StationTap(Struct, frozen=True):
    """A card was tapped at a station's door: asks for what customer_binding asks for."""

    location_id: StationId
    fleet_id: Maybe[FleetId] = UNSET
    returned_asset_id: Maybe[BatteryId] = UNSET
    action: str = "STATION_TAP"


class InitializeStates(Struct, frozen=True):
    """The plan's services get their first quotas; a second time changes nothing."""

    action: str = "INITIALIZE_SERVICE_STATES"


class OdooSync(Struct, frozen=True):
    """Odoo says what a subscription is and whether it is paid; the first one makes the plan."""

    odoo_subscription_id: str | int
    odoo_payment_state: Literal[
        "paid", "not_paid", "partial", "in_payment", "reversed", "blocked", "invoicing_legacy"
    ]
    odoo_subscription_state: Literal["draft", "in_progress", "to_renew", "closed", "cancel"]
    odoo_currency_id: Currency
    odoo_amount_total: Amount
    odoo_invoice_id: Maybe[str | int] = UNSET
    template_id: Maybe[Annotated[str, Meta(description="Needed by a plan's first sync.")]] = UNSET
    customer_id: Maybe[Annotated[str, Meta(description="Needed by a plan's first sync.")]] = UNSET
    action: str = "SYNC_ODOO_SUBSCRIPTION"


class ServicePayment(PaymentData, frozen=True):
    """A payment from outside a station."""

    action: str = "SERVICE_PAYMENT"


class PaymentReversal(Struct, frozen=True):
    """A payment is paid back (REFUND) or has bounced (REVERSAL); without an amount, all of it."""

    payment_reference: Receipt
    payment_type: Literal["REFUND", "REVERSAL"]
    payment_amount: Maybe[Amount] = UNSET
    action: str = "PAYMENT_REVERSAL"


class BatteryAtCounter(Struct, frozen=True):
    """The battery that a customer has brought, and what a swap would deliver."""

    old_battery_id: Maybe[str] = UNSET
    energy_transferred: Maybe[Kwh] = UNSET


class Validate(Struct, frozen=True):
    """A2: whether a swap would be accepted here and now; changes nothing."""

    attendant_station: StationId
    service_data: Maybe[BatteryAtCounter] = UNSET
    action: str = "VALIDATE"


class ReportActivity(Struct, frozen=True):
    """A4: what an attendant did, kept in the service ledger."""

    attendant_station: StationId
    activity: Annotated[str, Meta(min_length=1, max_length=256)]
    action: str = "REPORT_ACTIVITY"


class ReportLost(Struct, frozen=True):
    """The battery on record is gone."""

    asset_id: Maybe[BatteryId] = UNSET
    action: str = "REPORT_LOST"


class ContinueService(Struct, frozen=True):
    """What the customer chose after a lost battery was found."""

    choice: Literal["new_battery", "terminate"]
    action: str = "CONTINUE_SERVICE"


class ArmAnswer(Struct, frozen=True, kw_only=True):
    """ARM's answer to an allocate command: `issued` with the battery, else a denial."""

    status: Annotated[str, Meta(description="issued, or anything else for a denial.")]
    asset_id: Maybe[BatteryId] = UNSET
    correlation_id: Maybe[CorrelationId] = UNSET
    plan_id: Maybe[str] = UNSET
    fleet_id: Maybe[str] = UNSET
    location_id: Maybe[StationId] = UNSET
    returned_asset_id: Maybe[BatteryId] = UNSET
    energy_transferred: Maybe[Number] = UNSET
    reason: Maybe[Annotated[str, Meta(description="Of a denial: `inventory_empty`, …")]] = UNSET
    timestamp: Maybe[Instant] = UNSET


class StationStock(Struct, frozen=True, kw_only=True):
    """ARM counts the batteries of a fleet at a station."""

    fleet_id: FleetId
    available: Annotated[int, Meta(ge=0, le=1_000_000)]
    reason: Maybe[
        Annotated[str, Meta(description="`count`: a count only, no batteries were brought.")]
    ] = UNSET
    location_id: Maybe[StationId] = UNSET
    correlation_id: Maybe[CorrelationId] = UNSET
    timestamp: Maybe[Instant] = UNSET
    actor: Maybe[Actor] = UNSET


class StationEquipment(Struct, frozen=True, kw_only=True):
    """A station says how its equipment works."""

    status: Equipment
    location_id: Maybe[StationId] = UNSET
    correlation_id: Maybe[CorrelationId] = UNSET
    timestamp: Maybe[Instant] = UNSET


class StationRequest(Struct, Generic[D], frozen=True, kw_only=True):
    """The envelope of what an operator asks of a station."""

    timestamp: Maybe[Instant] = UNSET
    location_id: Maybe[StationId] = UNSET
    correlation_id: CorrelationId
    actor: Maybe[Actor] = UNSET
    data: D


class OpenOrClose(Struct, frozen=True, kw_only=True):
    """OP1: the operator opens or closes the station, says how its equipment works, or both."""

    action: Maybe[Literal["OPEN", "CLOSE"]] = UNSET
    condition: Maybe[Equipment] = UNSET


BatteryAccount = Literal["charging", "inspection", "quarantine", "stock", "outside"]


class AssetOperation(Struct, frozen=True, kw_only=True):
    """OP4: batteries go from one account of a station to another."""

    fleet_id: FleetId
    quantity: Annotated[int, Meta(ge=1, le=1_000_000)]
    from_: BatteryAccount = field(name="from")
    to: BatteryAccount


class OperatorShift(Struct, frozen=True, kw_only=True):
    """OP5: a shift begins, which ends the one before, or ends; `actor.id` begins it."""

    action: Literal["START", "END"]


class StationIncident(Struct, frozen=True, kw_only=True):
    """OP5: something has gone wrong at the station."""

    incident: Literal["EQUIPMENT", "SAFETY", "CUSTOMER", "STOCK", "OTHER"]
    description: Maybe[str] = UNSET


class AssetStatus(Struct, frozen=True, kw_only=True):
    """ARM says what has become of a battery."""

    status: Literal[
        "registered",
        "assigned",
        "available",
        "returned",
        "damaged",
        "repaired",
        "gps_silent",
        "lost",
        "found",
        "written_off",
    ]
    asset_id: Maybe[BatteryId] = UNSET
    fleet_id: Maybe[FleetId] = UNSET
    location_id: Maybe[Id] = UNSET
    correlation_id: Maybe[CorrelationId] = UNSET
    timestamp: Maybe[Instant] = UNSET


class Scan(Struct, frozen=True):
    """S2: how an attendant found a battery."""

    attendant_station: StationId
    condition: Literal["OK", "DAMAGED", "NEEDS_REPLACEMENT"]


class AssetScan(Struct, frozen=True, kw_only=True):
    """An attendant scans a battery."""

    data: Scan
    asset_id: Maybe[BatteryId] = UNSET
    correlation_id: Maybe[CorrelationId] = UNSET
    timestamp: Maybe[Instant] = UNSET
    actor: Maybe[Actor] = UNSET


_ENCODER: Final = Encoder(decimal_format="number")


def encode(request: Struct) -> bytes:
    """A request as it goes over MQTT, its decimals exact."""
    return _ENCODER.encode(request)


REQUESTS: Final[dict[str, Any]] = {
    "identify_customer": PlanRequest[IdentifyCustomer],
    "payment_and_service": PlanRequest[PaymentAndService],
    "customer_binding": PlanRequest[CustomerBinding],
    "initialize_states": BareRequest[InitializeStates],
    "odoo_sync": PlanRequest[OdooSync],
    "service_payment": PlanRequest[ServicePayment],
    "payment_reversal": PlanRequest[PaymentReversal],
    "station_tap": PlanRequest[StationTap],
    "validate": PlanRequest[Validate],
    "report_activity": PlanRequest[ReportActivity],
    "report_lost": BareRequest[ReportLost],
    "continue_service": PlanRequest[ContinueService],
    "arm_allocate": ArmAnswer,
    "station_stock": StationStock,
    "station_equipment": StationEquipment,
    "station_readiness": StationRequest[OpenOrClose],
    "asset_operation": StationRequest[AssetOperation],
    "operator_shift": StationRequest[OperatorShift],
    "station_incident": StationRequest[StationIncident],
    "asset_status": AssetStatus,
    "asset_scan": AssetScan,
}
"""By event, as the topic table names them."""


def _given(*fields: str, where: str | None = None, kind: str = "string") -> dict[str, Any]:
    """Fields that must be there and not null, of an object or of one of its fields."""
    inner: dict[str, Any] = {
        "required": list(fields),
        "properties": {field: {"type": kind} for field in fields},
    }
    if where is None:
        return inner
    return {"required": [where], "properties": {where: {"type": "object", **inner}}}


def _if(field: str, value: str, then: dict[str, Any]) -> dict[str, Any]:
    return {"if": {"properties": {field: {"const": value}}}, "then": then}


CONDITIONS: Final[dict[str, dict[str, Any]]] = {
    "StationRequest_OperatorShift": {
        "if": {"properties": {"data": {"properties": {"action": {"const": "START"}}}}},
        "then": _given("id", where="actor"),
    },
    "OpenOrClose": {"anyOf": [_given("action"), _given("condition")]},
    "ArmAnswer": _if("status", "issued", _given("asset_id")),
    "PaymentData": _if("payment_type", "TOP_UP", _given("service_id")),
    "ServicePayment": _if("payment_type", "TOP_UP", _given("service_id")),
    "PaymentAndService": {
        "anyOf": [
            _given("payment_data", kind="object"),
            _given("old_battery_id", where="service_data"),
            _given("new_battery_id", where="service_data"),
        ]
    },
}
"""Fields that are needed because of others, as JSON Schema, by the name of the type."""
