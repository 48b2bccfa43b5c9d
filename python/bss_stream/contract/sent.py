"""What the platform sends beside echoes, by the last segment of its topic."""

from typing import Annotated, Any, Final, Literal

from msgspec import UNSET, Meta, Struct

from bss_stream.contract.fields import (
    Absent,
    Amount,
    Currency,
    Equipment,
    Instant,
    Money,
    Number,
    Readiness,
    StateName,
    Told,
)

Count = Annotated[int, Meta(ge=0)]


class ServiceAccess(Struct, frozen=True, kw_only=True):
    """W2: a rider who may swap asks for a battery at a station."""

    plan_id: str
    fleet_id: Absent[str] = UNSET
    location_id: str
    correlation_id: Told


class AllocateCommand(Struct, frozen=True):
    """W4: ARM is to issue a battery of the fleet; `attempt` counts how often it was asked."""

    fleet_id: str
    plan_id: str
    location_id: str
    correlation_id: Told
    returned_asset_id: str | None
    attempt: Annotated[int, Meta(ge=1)]
    timestamp: Instant


class RecoverCommand(Struct, frozen=True):
    """The customer's battery must come back."""

    plan_id: str
    customer_id: str
    asset_id: str
    correlation_id: Told
    reason: Literal["cancelled", "grace_over"]


class AssetCommand(Struct, frozen=True):
    """What ARM is to do with a battery, as the topic says."""

    asset_id: str
    correlation_id: Told
    timestamp: Instant


class TopupApplied(Struct, frozen=True):
    """A payment has bought units."""

    timestamp: Instant
    plan_id: str
    correlation_id: Told
    service_id: str
    payment_reference: str
    currency: Currency
    amount: Amount
    units: Number
    quota_before: Number
    quota_after: Number


class PaymentState(Struct, frozen=True):
    """A period or its grace has ended."""

    timestamp: Instant
    plan_id: str
    payment_state: StateName
    status: str
    signals: Annotated[tuple[str, ...], Meta(description="Outputs of the plan's model.")]


class Notification(Struct, frozen=True):
    """Something has happened that nobody asked about."""

    timestamp: Instant
    plan_id: str
    correlation_id: Told
    customer_id: str
    signal: Literal[
        "BATTERY_LOST",
        "BATTERY_FOUND",
        "BATTERY_DAMAGED",
        "BATTERY_REPLACED",
        "BATTERY_ISSUED_LATE",
        "REPLACEMENT_OWED",
    ]
    asset_id: str
    location_id: Absent[str] = UNSET
    options: Absent[tuple[Literal["new_battery", "terminate"], ...]] = UNSET
    """What the customer may ask for with continue_service."""


class Inventory(Struct, frozen=True, kw_only=True):
    """A stock is empty, low, in high demand, or not what ARM counts."""

    timestamp: Instant
    location_id: str
    fleet_id: str
    signal: Literal[
        "INVENTORY_EMPTY", "INVENTORY_LOW", "RESTOCK_NEEDED", "HIGH_DEMAND", "STOCK_RECONCILED"
    ]
    current_stock: int
    expected_stock: Absent[int] = UNSET
    """Only of STOCK_RECONCILED: what was believed before."""
    total_assignments: Count
    total_returns: Count
    total_restocks: Count


class ReadinessTold(Struct, frozen=True):
    """What riders can expect of a station; the broker keeps the last one."""

    timestamp: Instant
    location_id: str
    readiness: Readiness
    because: str
    equipment: Equipment
    available: Annotated[dict[str, Count], Meta(description="Batteries, by fleet.")]
    intents: Annotated[int, Meta(ge=0, description="Riders who wait for ARM.")]


class Counted(Struct, frozen=True, kw_only=True):
    """What a station has done in a time; what it refused by reason."""

    assignments: Count
    returns: Count
    inventory_empty: Count
    station_not_ready: Count
    allocation_denied: Count
    allocation_timed_out: Count


class ShiftReport(Counted, frozen=True, kw_only=True):
    """What was done in a shift that has ended."""

    timestamp: Instant
    location_id: str
    correlation_id: Told
    operator: str
    started_at: Instant
    incidents: Count


class Incident(Struct, frozen=True):
    """An operator has reported an incident."""

    timestamp: Instant
    location_id: str
    correlation_id: Told
    incident: str
    operator: Absent[str] = UNSET
    description: Absent[str] = UNSET


class Renewal(Struct, frozen=True):
    """To Odoo: what is to be collected for a renewal, or what was taken for it."""

    timestamp: Instant
    plan_id: str
    correlation_id: Told
    template_id: str
    currency: Currency
    amount: Money
    credit: Money
    period_end: Instant


SENT: Final[dict[str, Any]] = {
    "service_access": ServiceAccess,
    "allocate": AllocateCommand,
    "recover": RecoverCommand,
    "track": AssetCommand,
    "mark_found": AssetCommand,
    "mark_damaged": AssetCommand,
    "write_off": AssetCommand,
    "topup_applied": TopupApplied,
    "payment_state": PaymentState,
    "notification": Notification,
    "inventory": Inventory,
    "readiness": ReadinessTold,
    "shift_report": ShiftReport,
    "incident": Incident,
    "renewal_required": Renewal,
    "renewed": Renewal,
}
"""By the last segment of the topic, as the topic table has it."""

RETAINED: Final = frozenset({"readiness"})
"""What the broker keeps for who comes later, so that it does not expire either."""
