"""What records of the log hold: ledger entries, entities' signals, states, frames' headers."""

from typing import Annotated, Any, Final, Literal

from msgspec import UNSET, Meta, Struct

from bss_stream import _engine
from bss_stream.contract.fields import (
    Absent,
    Currency,
    EpochMs,
    Equipment,
    Id,
    Instant,
    Number,
    Readiness,
    Reason,
    StateName,
    Told,
    closed,
)
from bss_stream.contract.sent import Counted
from bss_stream.dead_letters.letters import REPLAYED
from bss_stream.ledger_kinds import RULES

Units = Annotated[int, Meta(description="The service's smallest unit: 1 swap, 1 Wh.")]
Minor = Annotated[int, Meta(description="Money in the currency's smallest unit.")]
Hash = Annotated[str, Meta(pattern="^[0-9a-f]{64}$", description="SHA-256, hexadecimal.")]


def _kinds(ledger: str) -> dict[str, Any]:
    return closed([kind for kind, rule in RULES.items() if rule.ledger == ledger])


# Ledger entries: docs/ledgers.md.


class Account(Struct, frozen=True):
    """A service's account."""

    used: Units
    held: Units
    quota: int | Literal["infinite"]
    credit_minor: Minor


class Entry(Struct, frozen=True, kw_only=True):
    """What both ledgers' entries have."""

    v: Literal[1]
    entry_id: str
    plan_id: Id
    seq: Annotated[int, Meta(ge=1, description="1, 2, 3, … for each plan, over both ledgers.")]
    kind: str
    service_id: str | None
    signal_id: Told
    source: Annotated[str, Meta(description="topic/partition/offset of the cause, or timer.")]
    event_at: Instant
    recorded_at: Instant
    units: Units
    held_units: Absent[Units] = UNSET
    amount_minor: Minor
    currency: Currency
    payment_id: Absent[str] = UNSET
    asset_id: Absent[str] = UNSET
    returned_asset_id: Absent[str] = UNSET
    location_id: Absent[str] = UNSET
    detail: Absent[str] = UNSET
    template_id: Absent[str] = UNSET
    template_version: Absent[int] = UNSET
    before: Absent[Account] = UNSET
    after: Absent[Account] = UNSET
    prev: Hash
    hash: Hash


class PaymentEntry(Entry, frozen=True, kw_only=True):
    """An entry of the payment ledger: money."""

    kind: Annotated[str, Meta(extra_json_schema=_kinds("payment"))]


class ServiceEntry(Entry, frozen=True, kw_only=True):
    """An entry of the service ledger: quota and batteries."""

    kind: Annotated[str, Meta(extra_json_schema=_kinds("service"))]


LEDGERS: Final[dict[str, Any]] = {"payment": PaymentEntry, "service": ServiceEntry}
"""By ledger."""


# Signals between entities.


class Onward(Struct, frozen=True, kw_only=True):
    """What every signal of an entity to another one has."""

    at_ms: EpochMs
    correlation_id: Told


class Allocate(Onward, frozen=True, kw_only=True):
    """A plan asks a station for a battery."""

    plan_id: Id
    fleet_id: Absent[str] = UNSET
    returned_asset_id: Absent[str] = UNSET
    attempt: Annotated[int, Meta(ge=1)]


class OfPlan(Onward, frozen=True, kw_only=True):
    """A plan tells a station or a battery of itself."""

    plan_id: Id


class Returned(OfPlan, frozen=True, kw_only=True):
    """A plan tells a battery that it was given back, and where."""

    location_id: str


class StockMoved(Onward, frozen=True, kw_only=True):
    """A plan tells a staffed station what went over its counter."""

    fleet_id: str
    asset_id: Absent[str] = UNSET
    returned_asset_id: Absent[str] = UNSET


class AllocationIssued(Onward, frozen=True, kw_only=True):
    """A station tells a plan of the battery that ARM has issued."""

    asset_id: Id
    location_id: str
    fleet_id: Absent[str] = UNSET
    returned_asset_id: Absent[str] = UNSET
    energy_transferred: Absent[Number] = UNSET


class AllocationDenied(Onward, frozen=True, kw_only=True):
    """A station tells a plan that it gets no battery, and why."""

    reason: str


class OfAsset(Onward, frozen=True, kw_only=True):
    """A battery tells the plan that holds it what has become of it."""

    asset_id: Id
    location_id: Absent[str] = UNSET


BETWEEN: Final[dict[str, Any]] = {
    "allocate": Allocate,
    "allocation_release": OfPlan,
    "stock_moved": StockMoved,
    "allocation_issued": AllocationIssued,
    "allocation_denied": AllocationDenied,
    "asset_assigned": OfPlan,
    "asset_returned": Returned,
    "asset_reported_lost": OfPlan,
    "asset_settled": OfPlan,
    "asset_lost": OfAsset,
    "asset_found": OfAsset,
    "asset_damaged": OfAsset,
}
"""By event."""


# The header lines of frames, field by field: frames.py.


Trace = Annotated[
    str, Meta(description="W3C traceparent; one field more, and then the version is 2.")
]


class SignalHeader(Struct, frozen=True):
    """`1 event received_ms correlation source`, tab-separated; the payload follows the line."""

    event: Annotated[str, Meta(extra_json_schema=closed([name for _, name in _engine.events()]))]
    received_ms: EpochMs
    correlation: Annotated[str, Meta(description="MQTT 5 correlation data; empty if none.")]
    source: Annotated[
        str, Meta(description="The MQTT topic, `replay:` before it if replayed; or `engine`.")
    ]
    trace: Trace = ""


class OutboxHeader(Struct, frozen=True):
    """`1 kind qos retain expiry_s correlation topic`, tab-separated; the payload follows."""

    kind: Literal["echo", "cmd", "emit"]
    qos: Literal[0, 1]
    retain: bool
    expiry_s: Annotated[int, Meta(ge=0, description="MQTT 5 message expiry; 0 for none.")]
    correlation: Told
    topic: str
    trace: Trace = ""


_NO_REFUSALS: Final = frozenset((Reason("ok"), Reason("duplicate"), Reason("in_progress")))

DEAD_LETTER_REASONS: Final[dict[str, str]] = {
    # What has happened at a door stands, and what speaks against it is kept, whatever it is.
    **{reason: reason.message for reason in Reason if reason not in _NO_REFUSALS},
    "unknown_topic": "no row of the topic table matches the MQTT topic",
    "bad_key": "the id in the MQTT topic or payload can be no record's key",
    "bad_frame": "the outbox record is no MQTT message",
    "publish_refused": "the broker refused the message",
    REPLAYED: "an operator has replayed the dead letter at `partition` and `offset`",
}
"""Why a record is a dead letter: the engine's reasons, the bridge's, the publisher's, and the trace
of a replay."""


class DeadLetterHeader(Struct, frozen=True):
    """`1 reason source_topic partition offset received_ms detail`, tab-separated; the record that
    could not be processed follows, byte for byte."""

    reason: Annotated[str, Meta(extra_json_schema=closed(DEAD_LETTER_REASONS))]
    source_topic: Annotated[str, Meta(description="Of the log, or the MQTT topic.")]
    partition: Annotated[int, Meta(ge=-1, description="-1: the bridge refused an MQTT message.")]
    offset: Annotated[int, Meta(ge=-1)]
    received_ms: EpochMs
    detail: str


FRAMES: Final[dict[str, Any]] = {
    "signal": SignalHeader,
    "outbox": OutboxHeader,
    "dead_letter": DeadLetterHeader,
}
"""By frame."""


# States, as `Engine.describe_state` shows them; the changelogs' and checkpoints' bytes are private.


class PlanService(Struct, frozen=True):
    """A service's account and battery."""

    service_id: str
    used: Units
    held: Units
    quota: int | Literal["infinite"]
    credit_minor: Minor
    bought: Units
    current_asset: str | None


class Session(Struct, frozen=True):
    """A self-service swap under way."""

    correlation_id: str
    location_id: str
    state: str
    is_replacement: bool
    attempt: int
    due_ms: EpochMs


class Plan(Struct, frozen=True):
    """A plan."""

    plan_id: Id
    customer_id: str
    template_id: str
    template_version: int
    market_id: str
    payment_state: StateName
    service_state: StateName
    status: str
    initialized: bool
    cancel_requested: bool
    replacement_owed: bool
    period_end_ms: EpochMs
    grace_end_ms: EpochMs
    grace_enforced: bool
    credit_minor: Minor
    session: Session | None
    ledger_seq: int
    ledger_hash: Hash
    services: tuple[PlanService, ...]


class Stock(Struct, frozen=True):
    """A fleet's batteries at a station, as the platform believes it."""

    fleet_id: str
    current_stock: int
    promised: int
    is_low: bool
    is_in_high_demand: bool
    total_assignments: int
    total_returns: int
    total_restocks: int
    set_aside: Annotated[dict[str, int], Meta(description="By account.")]
    today: Counted
    day_before: Counted


class Intent(Struct, frozen=True):
    """An allocation that ARM has not answered."""

    correlation_id: str
    plan_id: str
    fleet_id: str
    since_ms: EpochMs


class Shift(Struct, frozen=True):
    """A shift under way."""

    operator: str
    started_ms: EpochMs
    tally: Counted
    incidents: int


class Station(Struct, frozen=True):
    """A station; its readiness is null where the set-up no longer has it."""

    location_id: Id
    readiness: Readiness | None
    because: str | None
    is_closed: bool
    equipment: Equipment
    stock: tuple[Stock, ...]
    intents: Annotated[int, Meta(ge=0, description="Allocations that ARM has not answered.")]
    under_way: tuple[Intent, ...]
    day: Annotated[int, Meta(description="Counted as today: days since 1970, market's zone.")]
    incidents_today: int
    shift: Shift | None


class Asset(Struct, frozen=True):
    """A battery."""

    asset_id: Id
    life: str
    fleet_id: str | None
    holder: str | None
    awaited_from: str | None
    location_id: str | None


STATES: Final[dict[str, Any]] = {"plan": Plan, "station": Station, "asset": Asset}
"""By kind of entity."""
