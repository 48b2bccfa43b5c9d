"""Queries on the wire: topics, envelope, echoes, and what makes a query a bad one."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Final, NamedTuple

import msgspec

from bss_stream import _engine
from bss_stream.echo import ECHO_EXPIRY_S, echo_properties, rfc3339
from bss_stream.mqtt.messages import Message, Received, Subscription
from bss_stream.setup import Limits
from bss_stream.setup.documents import is_id
from bss_stream.tracing import traceparent

PAYLOAD_BYTES_MAX: Final = Limits().payload_bytes_max
CORRELATION_BYTES_MAX: Final = 128
SWAPS_DEFAULT: Final = 20
SWAPS_MAX: Final = 100
SEQ_MAX: Final = 2**63 - 1
RADIUS_KM_DEFAULT: Final = 5.0
RADIUS_KM_MAX: Final = 100.0

_REASONS: Final = {code: (message, action) for code, message, action, _ in _engine.reasons()}
_NEARBY_ECHO: Final = "echo/abs/rider/stations/nearby"


class Query(StrEnum):
    """What is asked for."""

    SWAP_HISTORY = "swap_history"
    BALANCE = "balance"
    NEARBY = "nearby"
    PAYMENT_STATUS = "payment_status"
    """Answered by the Odoo adapter; the others out of the ledger database."""
    STATION_REPORT = "station_report"
    FLEET_REPORT = "fleet_report"


_ID_FIELDS: Final = {Query.STATION_REPORT: "location_id", Query.FLEET_REPORT: "fleet_id"}
"""The field that names what a query is about, where that is no plan."""

FILTERS: Final = (
    "emit/uxi/rider/plan/+/swap_history",
    "emit/uxi/rider/plan/+/balance",
    "emit/uxi/rider/stations/nearby",
    "emit/uxi/operator/station/+/report",
    "emit/uxi/manager/fleet/+/report",
)

_OF_PLANS: Final = (Query.SWAP_HISTORY, Query.BALANCE, Query.PAYMENT_STATUS)

PAYMENT_FILTERS: Final = ("emit/uxi/rider/plan/+/payment_status",)


def subscriptions(group: str | None, filters: Sequence[str] = FILTERS) -> list[Subscription]:
    """What queries come in on, shared with the members of `group` if there is one."""
    plain = [Subscription(name) for name in filters]
    return plain if group is None else [one.shared(group) for one in plain]


class Route(NamedTuple):
    """What a topic says."""

    query: Query
    id: str | None
    """Of the plan, station or fleet that the query is about; None where it is about none."""

    @property
    def id_field(self) -> str:
        """What the envelope calls it."""
        return _ID_FIELDS.get(self.query, "plan_id")


def route(topic: str) -> Route | None:
    """None for a topic that is no query's, or has an id that can stand in no echo's topic."""
    match topic.split("/"):
        case ["emit", "uxi", "rider", "plan", plan_id, name] if name in _OF_PLANS:
            return Route(Query(name), plan_id) if is_id(plan_id) else None
        case ["emit", "uxi", "rider", "stations", "nearby"]:
            return Route(Query.NEARBY, None)
        case ["emit", "uxi", "operator", "station", location_id, "report"]:
            return Route(Query.STATION_REPORT, location_id) if is_id(location_id) else None
        case ["emit", "uxi", "manager", "fleet", fleet_id, "report"]:
            return Route(Query.FLEET_REPORT, fleet_id) if is_id(fleet_id) else None
    return None


class SwapHistory(NamedTuple):
    """The last swaps of a plan, the newest first."""

    plan_id: str
    limit: int
    before: int
    """Swaps are listed from below this ledger seq."""


class Balance(NamedTuple):
    """A plan's accounts."""

    plan_id: str


class Nearby(NamedTuple):
    """Stations around a place, in degrees."""

    lat: float
    lon: float
    radius_km: float
    fleet_id: str | None


class PaymentStatus(NamedTuple):
    """What Odoo knows of a plan's payments, the newest first."""

    plan_id: str
    payment_id: str | None
    """This one alone."""


class StationReport(NamedTuple):
    """How a station stands."""

    location_id: str


class FleetReport(NamedTuple):
    """How a fleet stands."""

    fleet_id: str


class Rejection(NamedTuple):
    """A query that is understood and refused: data, not an error."""

    reason: str
    """A code of the engine's closed list."""
    detail: str = ""


Request = SwapHistory | Balance | Nearby | PaymentStatus | StationReport | FleetReport


class Reading(NamedTuple):
    """What a message came to."""

    route: Route
    correlation_id: str
    """Empty if nothing in the message can be one."""
    id: str | None
    """As in the route, or the plan that a query about none names all the same."""
    request: Request | Rejection
    trace: str = ""
    """The trace of the message, which its echo has, too."""


class _Envelope(msgspec.Struct, frozen=True):
    plan_id: str | None = None
    location_id: str | None = None
    fleet_id: str | None = None
    correlation_id: str | None = None


class _SwapHistoryData(msgspec.Struct, frozen=True):
    limit: int | None = None
    before: int | None = None


class _SwapHistoryEnvelope(_Envelope, frozen=True):
    data: _SwapHistoryData | None = None


class _NoData(msgspec.Struct, frozen=True):
    pass


class _BalanceEnvelope(_Envelope, frozen=True):
    data: _NoData | None = None


class _ReportEnvelope(_Envelope, frozen=True):
    data: _NoData | None = None


class _PaymentStatusData(msgspec.Struct, frozen=True):
    payment_id: str | None = None


class _PaymentStatusEnvelope(_Envelope, frozen=True):
    data: _PaymentStatusData | None = None


class _NearbyData(msgspec.Struct, frozen=True):
    lat: float | None = None
    lon: float | None = None
    radius_km: float | None = None
    fleet_id: str | None = None


class _NearbyEnvelope(_Envelope, frozen=True):
    data: _NearbyData | None = None


class _Named(msgspec.Struct, frozen=True):
    correlation_id: str


_DECODERS: Final[dict[Query, msgspec.json.Decoder[Any]]] = {
    Query.SWAP_HISTORY: msgspec.json.Decoder(_SwapHistoryEnvelope),
    Query.BALANCE: msgspec.json.Decoder(_BalanceEnvelope),
    Query.NEARBY: msgspec.json.Decoder(_NearbyEnvelope),
    Query.PAYMENT_STATUS: msgspec.json.Decoder(_PaymentStatusEnvelope),
    Query.STATION_REPORT: msgspec.json.Decoder(_ReportEnvelope),
    Query.FLEET_REPORT: msgspec.json.Decoder(_ReportEnvelope),
}
_NAMED: Final = msgspec.json.Decoder(_Named)


def read(route: Route, message: Received) -> Reading:
    """The query in a message, or why there is none.

    Time stamps are not looked at: a query changes nothing, and a rider whose phone has the wrong
    time may look at the balance all the same.
    """
    envelope = _decode(route.query, message.payload)
    trace = _engine.clean_trace(traceparent(message.user_properties) or "")
    if isinstance(envelope, Rejection):
        told = _named(message.payload) or _correlation(message.correlation)
        return Reading(route, told, route.id, envelope, trace)
    told = envelope.correlation_id or ""
    if not _is_clean(told):
        told = _correlation(message.correlation)
    fault = _fault(route, envelope)
    about = route.id or (envelope.plan_id if is_id(envelope.plan_id) else None)
    return Reading(route, told, about, fault or _request(route, envelope), trace)


def _decode(query: Query, payload: bytes) -> Any:
    """The query's envelope, or a Rejection."""
    if len(payload) > PAYLOAD_BYTES_MAX:
        return Rejection(
            "payload_too_large", f"{len(payload)} bytes: at most {PAYLOAD_BYTES_MAX} are taken"
        )
    try:
        # What the decoder passes over it does not look at.
        payload.decode("utf-8")
    except UnicodeDecodeError as error:
        return Rejection("invalid_utf8", f"byte {error.start}")
    try:
        return _DECODERS[query].decode(payload)
    except msgspec.ValidationError as error:
        message, _, path = str(error).rstrip("`").partition(" - at `$.")
        reason = "number_out_of_range" if message.endswith("out of range") else "wrong_type"
        return Rejection(reason, path or "payload")
    except msgspec.DecodeError as error:
        return Rejection("malformed_json", str(error))
    except RecursionError:
        return Rejection("nesting_too_deep")


def _fault(route: Route, envelope: _Envelope) -> Rejection | None:
    """What is wrong with the part that all queries have."""
    field = route.id_field
    named: str | None = getattr(envelope, field)
    if route.id is None:
        if named is not None and not is_id(named):
            return Rejection("bad_id", field)
    elif named is None:
        return Rejection("missing_field", field)
    elif named != route.id:
        return Rejection("id_mismatch", f"topic {route.id}, payload {named[:80]}")
    if envelope.correlation_id is None:
        return Rejection("missing_field", "correlation_id")
    # That of a nearby query stands in the topic of its echo.
    usable = is_id if route.query is Query.NEARBY else _is_clean
    return None if usable(envelope.correlation_id) else Rejection("bad_id", "correlation_id")


def _request(route: Route, envelope: Any) -> Request | Rejection:
    """The query's own part."""
    if route.query is Query.NEARBY:
        return _nearby(envelope.data or _NearbyData())
    about = route.id or ""
    if route.query is Query.BALANCE:
        return Balance(about)
    if route.query is Query.PAYMENT_STATUS:
        return _payment_status(about, envelope.data or _PaymentStatusData())
    if route.query is Query.STATION_REPORT:
        return StationReport(about)
    if route.query is Query.FLEET_REPORT:
        return FleetReport(about)
    data: _SwapHistoryData = envelope.data or _SwapHistoryData()
    limit = SWAPS_DEFAULT if data.limit is None else data.limit
    before = SEQ_MAX if data.before is None else data.before
    if not 1 <= limit <= SWAPS_MAX:
        return _out_of_range("data.limit", 1, SWAPS_MAX)
    if not 1 <= before <= SEQ_MAX:
        return _out_of_range("data.before", 1, SEQ_MAX)
    return SwapHistory(about, limit, before)


def _payment_status(plan_id: str, data: _PaymentStatusData) -> PaymentStatus | Rejection:
    if data.payment_id is not None and not _is_clean(data.payment_id):
        return Rejection("bad_id", "data.payment_id")
    return PaymentStatus(plan_id, data.payment_id)


def _nearby(data: _NearbyData) -> Request | Rejection:
    radius_km = RADIUS_KM_DEFAULT if data.radius_km is None else data.radius_km
    if data.lat is None:
        return Rejection("missing_field", "data.lat")
    if data.lon is None:
        return Rejection("missing_field", "data.lon")
    if not -90 <= data.lat <= 90:
        return _out_of_range("data.lat", -90, 90)
    if not -180 <= data.lon <= 180:
        return _out_of_range("data.lon", -180, 180)
    if not 0 < radius_km <= RADIUS_KM_MAX:
        return _out_of_range("data.radius_km", 0, RADIUS_KM_MAX)
    if data.fleet_id is not None and not is_id(data.fleet_id):
        return Rejection("bad_id", "data.fleet_id")
    return Nearby(data.lat, data.lon, radius_km, data.fleet_id)


def _out_of_range(field: str, lowest: float, highest: float) -> Rejection:
    return Rejection("number_out_of_range", f"{field}: expected {lowest:g} to {highest:g}")


def _named(payload: bytes) -> str:
    """The correlation id of a payload that is no query, so that its sender can be told."""
    try:
        told = _NAMED.decode(payload).correlation_id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    return told if _is_clean(told) else ""


def _correlation(data: bytes | None) -> str:
    """MQTT 5 correlation data as text, empty unless it is short and clean."""
    try:
        told = (data or b"").decode()
    except UnicodeDecodeError:
        return ""
    return told if _is_clean(told) else ""


def _is_clean(text: str) -> bool:
    return bool(text) and text.isprintable() and len(text.encode()) <= CORRELATION_BYTES_MAX


def answered(reading: Reading, metadata: Mapping[str, object], now_ms: int) -> Message:
    """The echo of a query that is answered.

    It has no signals: a client takes success without any for what it is, and success with none
    that it knows for a failure.
    """
    return _echo(reading, True, [], {"reason": "ok", **metadata}, now_ms)


def refused(
    reading: Reading, rejection: Rejection, metadata: Mapping[str, object], now_ms: int
) -> Message:
    """The echo of a query that is refused."""
    message, action = _REASONS[rejection.reason]
    told: dict[str, object] = {"reason": rejection.reason, "message": message}
    if rejection.detail:
        told["detail"] = rejection.detail
    if action is not None:
        told["action_required"] = action
    is_alert = rejection.reason == "id_mismatch"
    signal = "SECURITY_ALERT" if is_alert else "VALIDATION_FAILED"
    return _echo(reading, False, [signal], {**told, **metadata}, now_ms)


def _echo(
    reading: Reading,
    success: bool,
    signals: list[str],
    metadata: Mapping[str, object],
    now_ms: int,
) -> Message:
    body = {
        "timestamp": rfc3339(now_ms),
        reading.route.id_field: reading.id,
        "correlation_id": reading.correlation_id,
        "actor": {"type": "agent", "id": "bss-agent-v2"},
        "data": {
            reading.route.id_field: reading.id,
            "success": success,
            "signals": signals,
            "metadata": metadata,
        },
    }
    return Message(
        topic=echo_topic(reading.route, reading.correlation_id),
        payload=msgspec.json.encode(body),
        correlation=reading.correlation_id.encode() or None,
        expiry_s=ECHO_EXPIRY_S,
        user_properties=echo_properties(reading.trace),
    )


def echo_topic(route: Route, correlation_id: str) -> str:
    """Where the echo goes.

    Nearby queries name no plan, and what one rider asks is nobody else's business: their echoes
    go to a topic of their own each, and to the one above it if there is no id to name it by.
    """
    match route.query:
        case Query.NEARBY:
            return f"{_NEARBY_ECHO}/{correlation_id}" if is_id(correlation_id) else _NEARBY_ECHO
        case Query.STATION_REPORT:
            return f"echo/abs/operator/station/{route.id}/report"
        case Query.FLEET_REPORT:
            return f"echo/abs/manager/fleet/{route.id}/report"
        case _:
            return f"echo/abs/rider/plan/{route.id}/{route.query}"
