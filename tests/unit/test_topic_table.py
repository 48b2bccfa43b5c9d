"""The topic table: the packaged one as the contract has it, and faults that name their place."""

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bss_stream import topics
from bss_stream.errors import ConfigError
from bss_stream.frames import OutboxKind
from bss_stream.stories import Stage
from bss_stream.topic_table import CLEAN_ID, Row, TopicTable, load
from tests.scenarios import STORIES

PACKAGED = load()


def row(filter: str = "a/{plan_id}/b", **fields: Any) -> dict[str, Any]:
    fixed = {"filter": filter, "event": "e", "entity": "plan", "key": {"topic": "plan_id"}}
    return fixed | fields


def table(tmp_path: Path, *rows: object, **fields: Any) -> TopicTable:
    file = tmp_path / "topics.json"
    file.write_text(json.dumps({"version": 1, "rows": rows} | fields))
    return load(file)


def matched(table: TopicTable, topic: str, payload: bytes = b"") -> tuple[str, str, str | None]:
    routed = table.route(topic, payload)
    assert routed is not None
    assert routed.filter in table.filters
    return routed[:3]


@pytest.mark.parametrize(
    ("topic", "event", "log_topic", "key"),
    [
        ("emit/uxi/attendant/plan/p-1/identify_customer", "identify_customer", "plan", "p-1"),
        ("emit/uxi/attendant/plan/p-1/payment_and_service", "payment_and_service", "plan", "p-1"),
        ("emit/uxi/service/plan/p-1/customer_binding", "customer_binding", "plan", "p-1"),
        ("emit/uxi/service/plan/p-1/initialize_states", "initialize_states", "plan", "p-1"),
        ("emit/odo/subscription/plan/p-1/sync", "odoo_sync", "plan", "p-1"),
        ("emit/abs/bss/payment/p-1/service_payment", "service_payment", "plan", "p-1"),
        ("echo/ABS/EPS/s-1/allocate", "arm_allocate", "station", "s-1"),
        ("emit/arm/station/s-1/stock", "station_stock", "station", "s-1"),
        ("emit/abs/bss/payment/p-1/payment_reversal", "payment_reversal", "plan", "p-1"),
        ("emit/uxi/attendant/plan/p-1/validate", "validate", "plan", "p-1"),
        ("emit/uxi/attendant/plan/p-1/report_activity", "report_activity", "plan", "p-1"),
        ("emit/uxi/service/plan/p-1/report_lost", "report_lost", "plan", "p-1"),
        ("emit/uxi/service/plan/p-1/continue_service", "continue_service", "plan", "p-1"),
        ("emit/arm/station/s-1/tap", "station_tap", "plan", "p-9"),
        ("emit/arm/asset/b-1/status", "asset_status", "asset", "b-1"),
        ("emit/uxi/attendant/asset/b-1/scan", "asset_scan", "asset", "b-1"),
        ("emit/arm/station/s-1/equipment", "station_equipment", "station", "s-1"),
        ("emit/uxi/operator/station/s-1/readiness", "station_readiness", "station", "s-1"),
        ("emit/uxi/operator/station/s-1/asset_operation", "asset_operation", "station", "s-1"),
        ("emit/uxi/operator/station/s-1/shift", "operator_shift", "station", "s-1"),
        ("emit/uxi/operator/station/s-1/incident", "station_incident", "station", "s-1"),
    ],
)
def test_the_packaged_table(topic: str, event: str, log_topic: str, key: str) -> None:
    assert matched(PACKAGED, topic, b'{"plan_id":"p-9"}') == (
        event,
        f"bss.signals.{log_topic}",
        key,
    )
    assert PACKAGED.route(topic + "/more", b"") is None
    assert PACKAGED.route(topic.upper(), b"") is None
    assert len(PACKAGED.filters) == 21


def test_subscriptions_are_the_filters_plain_or_shared() -> None:
    plain = [s.filter for s in PACKAGED.subscriptions()]
    assert plain[0] == "emit/uxi/attendant/plan/+/identify_customer"
    assert [s.filter for s in PACKAGED.subscriptions("b")] == [f"$share/b/{f}" for f in plain]
    assert {s.qos for s in PACKAGED.subscriptions()} == {1}


segment = st.text("ab", max_size=2)


@given(st.lists(segment, min_size=1, max_size=6).map("/".join))
def test_a_match_is_what_mqtt_says(topic: str) -> None:
    filters = ["a/{plan_id}/b", "a/{x}/{plan_id}/a", "b/{plan_id}", "{plan_id}/a"]
    rows = [row(filter, event=f"e{at}") for at, filter in enumerate(filters)]
    compiled = TopicTable([msgspec.convert(one, Row) for one in rows])
    parts = topic.split("/")
    wanted = [
        f"e{at}"
        for at, filter in enumerate(compiled.filters)
        if len(filter.split("/")) == len(parts)
        and all(f in ("+", p) for f, p in zip(filter.split("/"), parts, strict=True))
    ]
    found = compiled.route(topic, b"")
    assert (found is not None) == bool(wanted)
    assert found is None or found.event in wanted


def test_a_key_from_the_payload(tmp_path: Path) -> None:
    one = table(tmp_path, row("dt/{device}", entity="asset", key={"payload": "asset_id"}))
    body = b'{"before": [1, {"asset_id": "inner"}], "asset_id": "bat-7", "after": null}'
    assert matched(one, "dt/x", body) == ("e", topics.SIGNALS_ASSET, "bat-7")
    for bad in (b"", b"{}", b"[]", b'{"asset_id": 7}', b'{"asset_id": "x"', b"\xff", b"[" * 9999):
        assert matched(one, "dt/x", bad)[2] is None


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        ([row(event="Bad Event")], '$.rows[0].event: "Bad Event": expected a name of a-z'),
        ([row(entity="rider")], '$.rows[0].entity: "rider"'),
        ([row(extra=1)], "$.rows[0].extra: unknown field"),
        ([row("a/+/{plan_id}")], '$.rows[0].filter: segment "+": expected a fixed segment'),
        ([row("a//{plan_id}")], '$.rows[0].filter: segment "": expected a fixed segment'),
        ([row("a/{plan_id}/#")], '$.rows[0].filter: segment "#"'),
        ([row("a/x{plan_id}", key={"payload": "k"})], '$.rows[0].filter: segment "x{plan_id}"'),
        ([row("{plan_id}/{x}")], '$.rows[0].filter: "{plan_id}/{x}": expected a fixed segment'),
        ([row("$SYS/{plan_id}")], "none of the broker's own topics"),
        ([row(key={"topic": "station"})], '$.rows[0].key.topic: "station": expected a segment of'),
        ([row(key={})], "$.rows[0].key: expected either `topic` or `payload`"),
        ([row(key={"topic": "plan_id", "payload": "x"})], "$.rows[0].key: expected either"),
        ([row(), row("a/{other}/b", key={"topic": "other"})], "$.rows[1].filter: "),
        ([row("a/{plan_id}/b"), row("a/b/{plan_id}")], "that $.rows[0] matches, too"),
        ([], "$.rows: has 0 entries, expected at least 1"),
    ],
)
def test_faults_name_file_and_path(tmp_path: Path, rows: list[object], fault: str) -> None:
    with pytest.raises(ConfigError) as refused:
        table(tmp_path, *rows)
    [line] = refused.value.faults
    assert line.startswith(str(tmp_path / "topics.json") + ": ")
    assert fault in line


def test_every_fault_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        table(tmp_path, row(event="E"), row("b/{plan_id}", entity="x"), version=2)
    assert len(refused.value.faults) == 3


@pytest.mark.parametrize("text", ["", "{", "\ud800"])
def test_a_file_that_is_no_json(tmp_path: Path, text: str) -> None:
    file = tmp_path / "topics.json"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigError, match="is no JSON"):
        load(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "absent.json")


def test_clean_ids() -> None:
    for good in ("p", "plan-nairobi-001", "A.b_c:d@e", "x" * 64):
        assert CLEAN_ID.fullmatch(good)
    for bad in ("", "x" * 65, "a b", "a\n", "é", "a/b", "a\0"):
        assert not CLEAN_ID.fullmatch(bad)


def test_what_is_sent_is_written_down() -> None:
    """Every topic that a story's platform sends on has one row, and every row is sent on."""
    patterns = {
        one.topic: re.compile(re.sub(r"\{\w+\}", "[^/]+", one.topic)) for one in PACKAGED.sent
    }
    used: set[str] = set()
    for name in STORIES.names:
        for message in Stage(STORIES.load(name)).perform().play.outbox:
            if message.kind is not OutboxKind.ECHO:
                [row] = [t for t, pattern in patterns.items() if pattern.fullmatch(message.topic)]
                used.add(row)
    assert used == patterns.keys()
