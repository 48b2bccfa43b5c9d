"""The riders' queries on the wire: what is taken, what is refused and why, and where echoes go."""

import json
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bss_stream import _engine
from bss_stream.client.echo import read_echo
from bss_stream.echo import ECHO_PROPERTIES
from bss_stream.mqtt.messages import Received
from bss_stream.queries import wire
from bss_stream.queries.wire import (
    SEQ_MAX,
    Balance,
    Nearby,
    PaymentStatus,
    Query,
    Reading,
    Rejection,
    Route,
    SwapHistory,
)
from bss_stream.setup.documents import is_id

HISTORY = "emit/uxi/rider/plan/p-1/swap_history"
BALANCE = "emit/uxi/rider/plan/p-1/balance"
STATUS = "emit/uxi/rider/plan/p-1/payment_status"
NEARBY = "emit/uxi/rider/stations/nearby"
NOW_MS = 1_795_552_200_123
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def received(topic: str, payload: bytes, correlation: bytes | None = None) -> Received:
    return Received(topic, payload, 1, False, False, correlation, [], 1, 1)


def read(topic: str, payload: bytes, correlation: bytes | None = None) -> Reading:
    route = wire.route(topic)
    assert route is not None
    return wire.read(route, received(topic, payload, correlation))


def body(fields: dict[str, Any] | None = None, **changes: Any) -> bytes:
    """An envelope with these fields of `data`; a change to None leaves one of its own out."""
    whole = {
        "timestamp": "2026-11-24T06:00:00Z",
        "plan_id": "p-1",
        "correlation_id": "c-1",
        "actor": {"type": "customer", "id": "cust-1"},
        "data": {"action": "ASK", **(fields or {})},
        **changes,
    }
    return json.dumps({key: value for key, value in whole.items() if value is not None}).encode()


@pytest.mark.parametrize(
    ("topic", "data", "expected"),
    [
        (HISTORY, {}, SwapHistory("p-1", 20, SEQ_MAX)),
        (STATUS, {}, PaymentStatus("p-1", None)),
        (STATUS, {"payment_id": "odoo:7:invoice:9"}, PaymentStatus("p-1", "odoo:7:invoice:9")),
        (STATUS, {"payment_id": "a\nb"}, Rejection("bad_id", "data.payment_id")),
        (STATUS, {"payment_id": 7}, Rejection("wrong_type", "data.payment_id")),
        (HISTORY, {"limit": 100, "before": 17}, SwapHistory("p-1", 100, 17)),
        (HISTORY, {"limit": None, "before": SEQ_MAX}, SwapHistory("p-1", 20, SEQ_MAX)),
        (BALANCE, {}, Balance("p-1")),
        (NEARBY, {"lat": -1.28, "lon": 36}, Nearby(-1.28, 36.0, 5.0, None)),
        (
            NEARBY,
            {"lat": 90, "lon": -180, "radius_km": 100, "fleet_id": "f"},
            Nearby(90.0, -180.0, 100.0, "f"),
        ),
    ],
)
def test_good_queries(topic: str, data: dict[str, Any], expected: wire.Request) -> None:
    reading = read(topic, body(data))
    assert (reading.request, reading.correlation_id, reading.id) == (expected, "c-1", "p-1")


@pytest.mark.parametrize(
    ("topic", "payload", "expected"),
    [
        (BALANCE, b"", ("malformed_json", "truncated")),
        (BALANCE, b'{"plan_id":"p-1"', ("malformed_json", "truncated")),
        (BALANCE, body() + b"x", ("malformed_json", "trailing")),
        (BALANCE, b"[]", ("wrong_type", "payload")),
        (BALANCE, b"null", ("wrong_type", "payload")),
        (BALANCE, b'{"plan_id":"\xff"}', ("invalid_utf8", "byte 12")),
        (BALANCE, b'{"other":"\xff"}', ("invalid_utf8", "byte 10")),
        (BALANCE, b'{"x":' + b"[" * 60_000, ("nesting_too_deep", "")),
        (BALANCE, b'{"x":' + b'{"x":' * 10_000, ("nesting_too_deep", "")),
        (BALANCE, b" " * 65_537, ("payload_too_large", "65537 bytes: at most 65536 are taken")),
        (BALANCE, body(plan_id=7), ("wrong_type", "plan_id")),
        (BALANCE, body(correlation_id=["c"]), ("wrong_type", "correlation_id")),
        (BALANCE, body(data=[]), ("wrong_type", "data")),
        (BALANCE, b'{"plan_id":"p-1"}', ("missing_field", "correlation_id")),
        (BALANCE, b'{"correlation_id":"c-1"}', ("missing_field", "plan_id")),
        (BALANCE, body(plan_id="p-2"), ("id_mismatch", "topic p-1, payload p-2")),
        (BALANCE, body(plan_id="p" * 500), ("id_mismatch", f"payload {'p' * 80}")),
        (BALANCE, body(correlation_id=""), ("bad_id", "correlation_id")),
        (BALANCE, body(correlation_id="a\u0000b"), ("bad_id", "correlation_id")),
        (BALANCE, body(correlation_id="c" * 129), ("bad_id", "correlation_id")),
        (HISTORY, body({"limit": 0}), ("number_out_of_range", "data.limit")),
        (HISTORY, body({"limit": 101}), ("number_out_of_range", "data.limit")),
        (HISTORY, body({"limit": -(10**30)}), ("number_out_of_range", "data.limit")),
        (HISTORY, body({"limit": 2.5}), ("wrong_type", "data.limit")),
        (HISTORY, body({"limit": "20"}), ("wrong_type", "data.limit")),
        (HISTORY, body({"limit": True}), ("wrong_type", "data.limit")),
        (HISTORY, body({"before": 0}), ("number_out_of_range", "data.before")),
        (HISTORY, body({"before": 2**63}), ("number_out_of_range", "data.before")),
        (
            HISTORY,
            b'{"data":{"before":' + b"9" * 5_000 + b"}}",
            ("number_out_of_range", "data.before"),
        ),
        (NEARBY, body({"lat": 1}), ("missing_field", "data.lon")),
        (NEARBY, body({"lon": 1}), ("missing_field", "data.lat")),
        (NEARBY, body(data=None), ("missing_field", "data.lat")),
        (NEARBY, body({"lat": 90.1, "lon": 0}), ("number_out_of_range", "data.lat")),
        (NEARBY, body({"lat": 0, "lon": -180.1}), ("number_out_of_range", "data.lon")),
        (NEARBY, b'{"data":{"lat":1e999}}', ("number_out_of_range", "data.lat")),
        (NEARBY, b'{"data":{"lat":NaN}}', ("malformed_json", "")),
        (NEARBY, body({"lat": 0, "lon": 0, "radius_km": 0}), ("number_out_of_range", "radius")),
        (NEARBY, body({"lat": 0, "lon": 0, "radius_km": 101}), ("number_out_of_range", "radius")),
        (NEARBY, body({"lat": 0, "lon": 0, "fleet_id": "a/b"}), ("bad_id", "data.fleet_id")),
        (NEARBY, body({"lat": 0, "lon": 0}, plan_id="#"), ("bad_id", "plan_id")),
        (NEARBY, body({"lat": 0, "lon": 0}, correlation_id="a/b"), ("bad_id", "correlation_id")),
        (NEARBY, body({"lat": 0, "lon": 0}, correlation_id="+"), ("bad_id", "correlation_id")),
    ],
)
def test_bad_queries_are_refused_with_reason_and_place(
    topic: str, payload: bytes, expected: tuple[str, str]
) -> None:
    rejection = read(topic, payload).request
    assert isinstance(rejection, Rejection)
    assert rejection.reason == expected[0]
    assert expected[1] in rejection.detail
    assert rejection.reason in {code for code, *_ in _engine.reasons()}


@given(st.sampled_from([HISTORY, BALANCE, NEARBY]), st.binary(max_size=80), st.binary(max_size=9))
def test_any_bytes_end_in_an_echo(topic: str, payload: bytes, correlation: bytes) -> None:
    reading = read(topic, payload, correlation)
    assert isinstance(reading.request, Rejection)
    echo = wire.refused(reading, reading.request, {}, NOW_MS)
    answer = json.loads(echo.payload)
    assert answer["data"]["success"] is False
    assert answer["data"]["metadata"]["reason"] == reading.request.reason


@pytest.mark.parametrize(
    "topic",
    [
        "emit/uxi/rider/plan//balance",
        "emit/uxi/rider/plan/p 1/balance",
        f"emit/uxi/rider/plan/{'p' * 65}/balance",
        "emit/uxi/rider/plan/p-1/nearby",
        "emit/uxi/rider/plan/p-1/balance/x",
        "emit/uxi/rider/stations/balance",
        "emit/uxi/rider/stations/nearby/",
        "emit/UXI/rider/stations/nearby",
        "",
    ],
)
def test_other_topics_are_no_queries(topic: str) -> None:
    assert wire.route(topic) is None


@pytest.mark.parametrize(
    ("payload", "data", "told"),
    [
        (body(), b"other", "c-1"),
        (body(plan_id="p-2"), b"other", "c-1"),
        (body(data=[]), b"other", "c-1"),
        (b"[", b"by-property", "by-property"),
        (body(correlation_id=None), b"by-property", "by-property"),
        (body(correlation_id="\n"), b"by-property", "by-property"),
        (b"[", b"\xff", ""),
        (b"[", b"a\tb", ""),
        (b"[", b"x" * 129, ""),
        (b"[", None, ""),
    ],
)
def test_whoever_can_be_told_is_told(payload: bytes, data: bytes | None, told: str) -> None:
    reading = read(BALANCE, payload, data)
    assert reading.correlation_id == told
    rejection = Rejection("wrong_type", "data")
    echo = wire.refused(reading, rejection, {}, NOW_MS)
    assert echo.correlation == (told.encode() or None)
    assert json.loads(echo.payload)["correlation_id"] == told


def test_an_answer_is_a_success_to_clients() -> None:
    echo = wire.answered(read(BALANCE, body()), {"as_of": None, "currency": "KES"}, NOW_MS)
    assert read_echo(echo.payload).succeeded()
    assert read_echo(echo.payload).reason() == "ok"
    assert json.loads(echo.payload) == {
        "timestamp": "2026-11-24T20:30:00.123Z",
        "plan_id": "p-1",
        "correlation_id": "c-1",
        "actor": {"type": "agent", "id": "bss-agent-v2"},
        "data": {
            "plan_id": "p-1",
            "success": True,
            "signals": [],
            "metadata": {"reason": "ok", "as_of": None, "currency": "KES"},
        },
    }


@pytest.mark.parametrize(
    ("reason", "signal"),
    [("id_mismatch", "SECURITY_ALERT"), ("unknown_plan", "VALIDATION_FAILED")],
)
def test_a_refusal_says_why_and_what_can_be_done(reason: str, signal: str) -> None:
    texts = {code: (message, action) for code, message, action, _ in _engine.reasons()}
    echo = wire.refused(read(BALANCE, body()), Rejection(reason, "which"), {}, NOW_MS)
    data = json.loads(echo.payload)["data"]
    assert data["signals"] == [signal]
    message, action = texts[reason]
    told = {"reason": reason, "message": message, "detail": "which"}
    assert data["metadata"] == told | ({} if action is None else {"action_required": action})
    assert read_echo(echo.payload).reason() == reason


def test_echoes_go_to_the_plan_s_topic() -> None:
    plans = ((HISTORY, "swap_history"), (BALANCE, "balance"), (STATUS, "payment_status"))
    for topic, query in plans:
        echo = wire.answered(read(topic, body()), {}, NOW_MS)
        assert echo.topic == f"echo/abs/rider/plan/p-1/{query}"


@given(st.text(string.printable + "/+#\u0000é", max_size=70))
def test_no_correlation_id_can_leave_the_topic_of_nearby_echoes(told: str) -> None:
    topic = wire.echo_topic(Route(Query.NEARBY, None), told)
    base = "echo/abs/rider/stations/nearby"
    assert topic == (f"{base}/{told}" if is_id(told) else base)
    assert not set("+#\0") & set(topic)
    assert topic.count("/") <= base.count("/") + 1


def test_shared_or_not_the_same_topics_are_subscribed_to() -> None:
    plain = [one.filter for one in wire.subscriptions(None)]
    assert plain == [
        *(one.replace("p-1", "+") for one in (HISTORY, BALANCE)),
        NEARBY,
        "emit/uxi/operator/station/+/report",
        "emit/uxi/manager/fleet/+/report",
    ]
    status = wire.subscriptions("bss-odoo", wire.PAYMENT_FILTERS)
    assert [one.filter for one in status] == [f"$share/bss-odoo/{STATUS.replace('p-1', '+')}"]
    shared = [one.filter for one in wire.subscriptions("bss-queries")]
    assert shared == [f"$share/bss-queries/{name}" for name in plain]


@pytest.mark.parametrize(
    ("sent", "told"), [(TRACE, [("traceparent", TRACE)]), ("no trace\n", []), ("", [])]
)
@pytest.mark.parametrize("payload", [body(), b"no JSON"])
def test_an_echo_has_the_trace_of_its_request(
    sent: str, told: list[tuple[str, str]], payload: bytes
) -> None:
    route = wire.route(BALANCE)
    assert route is not None
    message = Received(BALANCE, payload, 1, False, False, None, [("traceparent", sent)], 1, 1)
    echo = wire.refused(wire.read(route, message), Rejection("missing_field", ""), {}, NOW_MS)
    assert [*echo.user_properties] == [*ECHO_PROPERTIES, *told]
