"""The fields that payloads have in common, and the closed lists out of the engine."""

from collections.abc import Mapping
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, TypeAlias, TypeVar

from msgspec import Meta, UnsetType

from bss_stream import _engine

T = TypeVar("T")

Maybe: TypeAlias = T | UnsetType | None
"""A field that may be absent; null says the same."""

Absent: TypeAlias = T | UnsetType
"""A field that is absent where it would say nothing, and never null."""

Id = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9._:@-]{1,64}$",
        description="An id: 1 to 64 characters out of A-Z a-z 0-9 . _ : @ -",
    ),
]
CorrelationId = Annotated[
    str,
    Meta(
        pattern=r"^[^\u0000-\u001f\u007f-\u009f]{1,128}$",
        description="The sender's id of the request, at most 128 bytes without control characters. "
        "Its echo has the same; a repeat under the same id is answered once more, not applied.",
    ),
]
Told = Annotated[
    str,
    Meta(description="The correlation id of what led to this; empty where nothing had one."),
]
Instant = Annotated[
    str, Meta(description="RFC 3339, with a zone.", extra_json_schema={"format": "date-time"})
]
EpochMs = Annotated[int, Meta(description="Milliseconds since 1970, UTC.")]
Number = Annotated[Decimal, Meta(description="A decimal in the service's usage unit.")]
Kwh = Annotated[Decimal, Meta(description="Net energy in kWh.", extra_json_schema={"minimum": 0})]
Amount = Annotated[
    Decimal,
    Meta(
        description="Money in currency units, with no more decimals than the currency has.",
        extra_json_schema={"minimum": 0},
    ),
]
Money = Annotated[Decimal, Meta(description="Money in currency units.")]
Currency = Annotated[str, Meta(pattern="^[A-Z]{3}$", description="ISO 4217.")]
Readiness = Literal["READY", "LIMITED", "NOT_READY"]
"""What riders can expect of a station."""
Equipment = Literal["OK", "DEGRADED", "FAULT"]
"""How a station's equipment works."""
StateName = Annotated[str, Meta(description="A state of the plan's model.")]


class Reason(StrEnum):
    """How a request ended: the engine's closed list, each member named by its code in capitals."""

    _ignore_ = "_code _rest"
    for _code, *_rest in _engine.reasons():
        vars()[_code.upper()] = _code

    @property
    def message(self) -> str:
        """What it means."""
        return _REASONS[self][0]

    @property
    def action_required(self) -> str | None:
        """What somebody can do about it."""
        return _REASONS[self][1]

    @property
    def signal(self) -> str:
        """The signal in the echo of a request that ended so."""
        return _SIGNALS[self]


_REASONS: Final = {code: (message, action) for code, message, action, _ in _engine.reasons()}
_SIGNALS: Final = dict(_engine.reason_signals())

SUCCESS: Final = frozenset(
    {
        "SERVICE_COMPLETED",
        "ASSET_RETURNED",
        "ASSET_ALLOCATED",
        "IDEMPOTENT_OPERATION_DETECTED",
        "CUSTOMER_IDENTIFIED_SUCCESS",
        "SERVICE_QUOTA_UPDATED",
        "SERVICE_STATES_INITIALIZED",
        "ODOO_SYNC_SUCCESS",
    }
)
"""Signals that clients take as success."""


def closed(codes: Mapping[str, str] | list[str]) -> dict[str, Any]:
    """The JSON Schema of a closed list, described where it says what its members mean."""
    schema: dict[str, Any] = {"enum": list(codes)}
    if isinstance(codes, Mapping):
        schema["x-enum-descriptions"] = dict(codes)
    return schema
