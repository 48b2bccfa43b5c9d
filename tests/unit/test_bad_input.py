"""Bad input at the engine: a dead letter with the raw bytes, an echo, and the partition goes on."""

import json
from typing import Any

import pytest

from bss_stream import _engine, frames, topics
from bss_stream.frames import Signal
from bss_stream.testing import Playground

PLAN_ID = "plan-1"
SYNC_TOPIC = f"emit/odo/subscription/plan/{PLAN_ID}/sync"
BIND_TOPIC = f"emit/uxi/service/plan/{PLAN_ID}/customer_binding"
BIND_ECHO = f"echo/abs/service/plan/{PLAN_ID}/customer_binding"
NOW = "2026-11-24T06:00:00Z"


def request(correlation_id: str, data: dict[str, Any], **envelope: Any) -> dict[str, Any]:
    return {
        "timestamp": NOW,
        "plan_id": PLAN_ID,
        "correlation_id": correlation_id,
        "actor": {"type": "system", "id": "test"},
        "data": data,
        **envelope,
    }


SYNC = request(
    "sync-1",
    {
        "odoo_subscription_id": 1,
        "odoo_payment_state": "paid",
        "odoo_subscription_state": "in_progress",
        "odoo_currency_id": "KES",
        "odoo_amount_total": 8000,
        "template_id": "template-nairobi-basic",
        "customer_id": "cust-1",
    },
)
BIND = request("c-1", {"location_id": "station-nbi-001"})
BIND_TEXT = json.dumps(BIND)


@pytest.fixture
def play() -> Playground:
    """A playground with a paid and initialised plan."""
    play = Playground(partitions=2)
    play.mqtt(SYNC_TOPIC, SYNC)
    play.mqtt(f"emit/uxi/service/plan/{PLAN_ID}/initialize_states", request("init-1", {}))
    assert play.plan(PLAN_ID)["initialized"]
    return play


def padded(length: int) -> bytes:
    """The request with white space to a length in bytes."""
    return BIND_TEXT.encode().ljust(length)


def nested(depth: int) -> bytes:
    """The request with an unknown field, so that arrays and objects nest `depth` deep."""
    arrays = depth - 1
    return (BIND_TEXT[:-1] + f', "x": {"[" * arrays}{"]" * arrays}}}').encode()


def changed(**data: Any) -> bytes:
    return json.dumps({**BIND, "data": {**BIND["data"], **data}}).encode()


BAD = {
    "nothing": (b"", "malformed_json"),
    "white space": (b" \n", "malformed_json"),
    "words": (b"swap please", "malformed_json"),
    "two documents": (BIND_TEXT.encode() * 2, "malformed_json"),
    "python's literals": (b"{'plan_id': None}", "malformed_json"),
    "not a number": (BIND_TEXT[:-1].encode() + b', "x": NaN}', "malformed_json"),
    "a comment": (BIND_TEXT[:-1].encode() + b" /* x */}", "malformed_json"),
    "a trailing comma": (BIND_TEXT[:-1].encode() + b",}", "malformed_json"),
    "a byte-order mark": (b"\xef\xbb\xbf" + BIND_TEXT.encode(), "malformed_json"),
    "a control character in a text": (b'{"plan_id":"plan\n-1"}', "malformed_json"),
    "half a surrogate pair": (b'{"plan_id":"\\ud800"}', "malformed_json"),
    "a field twice": (
        BIND_TEXT[:-1].encode() + b', "correlation_id": "c-2"}',
        "malformed_json",
    ),
    "an object twice": (BIND_TEXT[:-1].encode() + b', "data": {}}', "malformed_json"),
    "a byte that is no UTF-8": (b'{"plan_id":"\xff"}', "invalid_utf8"),
    "an overlong slash": (b'{"plan_id":"\xc0\xaf"}', "invalid_utf8"),
    "UTF-16": (BIND_TEXT.encode("utf-16-le"), "malformed_json"),
    "too many bytes": (padded(65_537), "payload_too_large"),
    "nested too deep": (nested(33), "nesting_too_deep"),
    "nested without end": (b'{"x":' + b"[" * 60_000, "nesting_too_deep"),
    "a list": (b"[]", "wrong_type"),
    "a number": (b"17", "wrong_type"),
    "null": (b"null", "wrong_type"),
    "data that is a text": (json.dumps({**BIND, "data": "swap"}).encode(), "wrong_type"),
    "a correlation id that is a number": (
        json.dumps({**BIND, "correlation_id": 1}).encode(),
        "wrong_type",
    ),
    "a time without a zone": (
        json.dumps({**BIND, "timestamp": "2026-11-24T06:00:00"}).encode(),
        "wrong_type",
    ),
    "a time that is a number": (json.dumps({**BIND, "timestamp": 1}).encode(), "wrong_type"),
    "a station that is a number": (changed(location_id=1), "wrong_type"),
    "no station": (changed(location_id=None), "missing_field"),
    "a time far ahead": (
        json.dumps({**BIND, "timestamp": "2026-11-24T06:05:00.001Z"}).encode(),
        "timestamp_skew",
    ),
    "a time far behind": (
        json.dumps({**BIND, "timestamp": "2026-11-23T05:59:59.999Z"}).encode(),
        "timestamp_skew",
    ),
    "the year 9999": (
        json.dumps({**BIND, "timestamp": "9999-12-31T23:59:59Z"}).encode(),
        "timestamp_skew",
    ),
    "another plan": (json.dumps({**BIND, "plan_id": "plan-2"}).encode(), "id_mismatch"),
    "a long correlation id": (
        json.dumps({**BIND, "correlation_id": "c" * 129}).encode(),
        "bad_id",
    ),
    "a correlation id with a line break": (
        json.dumps({**BIND, "correlation_id": "c\n1"}).encode(),
        "bad_id",
    ),
    "a battery with a wildcard": (changed(returned_asset_id="bat/+"), "bad_id"),
    "an unknown station": (changed(location_id="station-x"), "unknown_location"),
}


@pytest.mark.parametrize(("payload", "reason"), BAD.values(), ids=BAD.keys())
def test_bad_payloads_become_one_dead_letter_and_one_echo(
    play: Playground, payload: bytes, reason: str
) -> None:
    echoes, state = len(play.echoes), play.plan(PLAN_ID)
    play.mqtt(BIND_TOPIC, payload, correlation="mqtt-5")

    [letter] = play.dead_letters
    assert letter.reason == reason
    assert (letter.source_topic, letter.received_ms) == (topics.SIGNALS_PLAN, play.now_ms)
    kept = frames.decode_signal(letter.raw)
    assert (kept.payload, kept.event) == (payload, "customer_binding")

    [echo] = play.echoes[echoes:]
    assert play.outbox[-1].topic == BIND_ECHO
    assert echo["correlation_id"] in ("mqtt-5", "c-1")
    assert echo["data"]["success"] is False
    assert echo["data"]["metadata"]["reason"] == reason
    assert echo["data"]["metadata"]["message"]

    assert play.plan(PLAN_ID)["services"] == state["services"]
    goes_on(play)


def goes_on(play: Playground) -> None:
    """A right request on the same plan is taken, and nothing is wrong with the ledgers."""
    echoes = len(play.echoes)
    play.mqtt(BIND_TOPIC, request("good-1", {"location_id": "station-nbi-001"}))
    assert play.plan(PLAN_ID)["session"]["correlation_id"] == "good-1"
    assert len(play.echoes) == echoes
    report = play.audit()
    assert report.ok, report.differences


@pytest.mark.parametrize("payload", [padded(65_536), nested(32)], ids=["64 KiB", "32 levels"])
def test_payloads_at_the_limits_are_taken(play: Playground, payload: bytes) -> None:
    play.mqtt(BIND_TOPIC, payload)
    assert not play.dead_letters
    assert play.plan(PLAN_ID)["session"]["correlation_id"] == "c-1"


def frame(**fields: Any) -> bytes:
    values: dict[str, Any] = {
        "event": "customer_binding",
        "received_ms": 1_795_500_000_000,
        "correlation": "",
        "source": BIND_TOPIC,
        "payload": BIND_TEXT.encode(),
        **fields,
    }
    return frames.encode_signal(Signal(**values))


BAD_RECORDS = {
    "no frame": (PLAN_ID.encode(), b"hello", "unknown_event"),
    "no value": (PLAN_ID.encode(), b"", "unknown_event"),
    "an unknown event": (PLAN_ID.encode(), frame(event="rain"), "unknown_event"),
    "a station's event": (PLAN_ID.encode(), frame(event="arm_allocate"), "unknown_event"),
    "no key": (b"", frame(), "bad_id"),
    "a key that is no id": (b"plan/1", frame(), "bad_id"),
    "a key that is no text": (b"\xff", frame(), "bad_id"),
    "a long key": (b"p" * 65, frame(), "bad_id"),
    "an unknown plan": (
        b"plan-9",
        frame(payload=BIND_TEXT.replace(PLAN_ID, "plan-9").encode()),
        "unknown_plan",
    ),
}


@pytest.mark.parametrize(("key", "value", "reason"), BAD_RECORDS.values(), ids=BAD_RECORDS.keys())
def test_bad_records_become_one_dead_letter(
    play: Playground, key: bytes, value: bytes, reason: str
) -> None:
    play.record(topics.SIGNALS_PLAN, key, value)
    [letter] = play.dead_letters
    assert (letter.reason, letter.raw) == (reason, value)
    assert letter.partition == _engine.partition_for(key, play.partitions)
    goes_on(play)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"issued", "malformed_json"),
        (b'{"status":"issued","asset_id":7}', "wrong_type"),
        (b'{"status":"issued"}', "missing_field"),
        (b'{"asset_id":"bat-1"}', "missing_field"),
        (b'{"status":"issued","asset_id":"bat 1"}', "bad_id"),
        (b'{"status":"denied","correlation_id":"x"}', "unknown_allocation"),
        (b'{"status":"issued","asset_id":"bat-1","correlation_id":"x"}', "unknown_allocation"),
        (b'{"status":"denied","timestamp":"1999-01-01T00:00:00Z"}', "timestamp_skew"),
    ],
)
def test_what_arm_gets_wrong_is_kept_and_told_nobody(
    play: Playground, payload: bytes, reason: str
) -> None:
    echoes = len(play.echoes)
    play.mqtt("echo/ABS/EPS/station-nbi-001/allocate", payload)
    [letter] = play.dead_letters
    assert letter.reason == reason
    assert frames.decode_signal(letter.raw).payload == payload
    assert len(play.echoes) == echoes
    goes_on(play)


def test_a_batch_with_bad_records_in_it_applies_the_good_ones(play: Playground) -> None:
    partition = _engine.partition_for(PLAN_ID.encode(), play.partitions)
    good = frame(payload=json.dumps(request("good-1", {"location_id": "station-nbi-001"})).encode())
    bad = [value for key, value, _ in BAD_RECORDS.values() if key == PLAN_ID.encode()]
    records = [(PLAN_ID.encode(), value) for value in (*bad, good, *bad)]
    output = play.engine.process(
        [
            (
                topics.SIGNALS_PLAN,
                partition,
                range(100, 100 + len(records)),
                _engine.pack(records),
            )
        ],
        play.now_ms,
    )
    assert output.outcomes == {"unknown_event": 2 * len(bad), "in_progress": 1}
    letters = [chunk for chunk in output.chunks if chunk.topic == topics.DEAD_LETTER]
    assert sum(chunk.records for chunk in letters) == 2 * len(bad)


def test_every_reason_that_is_the_input_s_fault_makes_a_dead_letter() -> None:
    kept = {code for code, _, _, is_dead_letter in _engine.reasons() if is_dead_letter}
    assert {reason for _, reason in BAD.values()} <= kept
    assert not kept & {"ok", "duplicate", "quota_exhausted", "rate_limited", "inventory_empty"}
