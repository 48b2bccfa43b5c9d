"""The checks of what signals came to: each must see the fault that it is there for."""

from collections.abc import Callable

import orjson
import pytest

from bss_stream import topics
from bss_stream.frames import OutboxKind
from bss_stream.testing import Playground, Produced
from tests.effects import check_alike, check_effects, requests, twice
from tests.integration.processing import SETUP, traffic
from tests.logs import PARTITIONS
from tests.undisturbed import LogRecord

Contents = dict[str, list[LogRecord]]
HOUR_MS = 3_600_000


@pytest.fixture
def contents() -> Contents:
    """What a log would hold after a playground's days."""
    play = Playground(SETUP, partitions=PARTITIONS)
    for arrival in traffic(plans=12, requests=80, seed=4):
        play.now_ms = arrival.received_ms
        play.record(arrival.topic, arrival.key, arrival.value)
    play.advance(HOUR_MS)
    found: Contents = {topic: [] for topic in topics.ALL}
    consumed = [Produced(c.topic, c.partition, c.key, c.value) for c in play.consumed]
    made = [record for record in play.produced if record.topic not in topics.SIGNALS]
    for offset, (topic, partition, key, value) in enumerate([*consumed, *made]):
        found[topic].append(LogRecord(partition, offset, key, value))
    return found


def check(contents: Contents) -> None:
    check_effects(contents, SETUP, partitions=PARTITIONS)


def test_a_log_without_a_fault_passes(contents: Contents) -> None:
    check(contents)
    assert len(requests(contents)) > 80


def is_echo(record: LogRecord) -> bool:
    return record.value.split(b"\t")[1] == OutboxKind.ECHO.encode()


def without_an_echo(contents: Contents) -> None:
    echo = next(record for record in contents[topics.OUTBOX] if is_echo(record))
    correlation = echo.value.split(b"\t")[5]
    contents[topics.OUTBOX] = [
        record
        for record in contents[topics.OUTBOX]
        if record.key != echo.key or record.value.split(b"\t")[5] != correlation
    ]


def with_another_answer(contents: Contents) -> None:
    records = contents[topics.OUTBOX]
    given = next(r for r in records if is_echo(r) and b"/payment_and_service" in r.value)
    head, _, payload = given.value.partition(b"\n")
    body = orjson.loads(payload)
    body["data"] |= {"success": not body["data"]["success"]}
    records.append(given._replace(value=head + b"\n" + orjson.dumps(body)))


def with_an_effect_from_another_record(contents: Contents) -> None:
    record = contents[topics.LEDGER_SERVICE][-1]
    entry = orjson.loads(record.value)
    entry |= {"source": "bss.signals.plan/0/123456", "entry_id": "plan-0-123456-0"}
    contents[topics.LEDGER_SERVICE].append(record._replace(value=orjson.dumps(entry)))


def with_an_entry_again(contents: Contents) -> None:
    contents[topics.LEDGER_PAYMENT].append(contents[topics.LEDGER_PAYMENT][0])


def with_a_quota_held(contents: Contents) -> None:
    play = Playground(SETUP, partitions=PARTITIONS)
    for arrival in traffic(plans=12, requests=80, seed=4):
        play.record(arrival.topic, arrival.key, arrival.value)
        for (topic, key), value in play.states.items():
            if topic == topics.STATE_PLAN and play.plan(key.decode())["session"] is not None:
                contents[topic].append(LogRecord(0, 0, key, value))
                return
    raise AssertionError("no swap was under way")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (without_an_echo, "1 requests without an echo"),
        (with_another_answer, "told different things"),
        (with_an_effect_from_another_record, "effects came twice"),
        (with_an_entry_again, "effects came twice"),
        (with_a_quota_held, "plans have something under way"),
    ],
)
def test_a_fault_is_seen(contents: Contents, spoil: Callable[[Contents], None], said: str) -> None:
    spoil(contents)
    with pytest.raises(AssertionError, match=said):
        check(contents)


def test_an_undisturbed_day_has_no_effect_twice(contents: Contents) -> None:
    assert twice(contents) == []


def echo(reason: str, *, success: bool, first: str | None = None) -> bytes:
    metadata = {"reason": reason} | ({} if first is None else {"first_reason": first})
    return orjson.dumps({"data": {"success": success, "metadata": metadata}})


def test_a_repeat_is_like_what_it_repeats() -> None:
    request, topic = ("plan-1", "c-1"), "echo/abs/service/plan/plan-1/customer_binding"
    ok = (request, topic, echo("ok", success=True))
    again = (request, topic, echo("duplicate", success=True, first="ok"))
    check_alike([ok, again, ok])
    other = (request, topic, echo("duplicate", success=False, first="rate_limited"))
    with pytest.raises(AssertionError, match="told different things"):
        check_alike([ok, other])
