"""What the signals in a log came to: each request answered, all its answers alike, each effect
once, and nothing under way.

These checks know nothing of the engine's insides: they read records as a client and an auditor do.
"""

import itertools
from collections import Counter
from collections.abc import Iterable

import orjson

from bss_stream import _engine, topics
from bss_stream.frames import OutboxKind, decode_outbox, decode_signal
from tests.undisturbed import Contents, is_internal

Request = tuple[str, str]
"""Plan id and correlation id."""

QUERIES = frozenset({"identify_customer", "validate"})
"""What is asked again is looked up again: the answers differ when the plan has moved on."""


def requests(contents: Contents) -> set[Request]:
    """What clients have asked of plans."""
    records = contents[topics.SIGNALS_PLAN]
    external = [record for record in records if not is_internal(record.value)]
    return {(r.key.decode(), decode_signal(r.value).correlation) for r in external}


def check_answered(contents: Contents) -> None:
    """Every request has an echo in the outbox."""
    unanswered = sorted(requests(contents) - {request for request, _, _ in _echoes(contents)})
    assert not unanswered, f"{len(unanswered)} requests without an echo: {unanswered[:10]}"


def check_alike(echoes: Iterable[tuple[Request, str, bytes]]) -> None:
    """All echoes of one request tell of the same outcome. Takes request, MQTT topic and payload.

    A repeated request that had been accepted is told that it is one.
    """
    outcomes: dict[Request, set[tuple[bool, str]]] = {}
    for request, topic, payload in echoes:
        outcome = _outcome(payload)
        if outcome is not None and topic.rsplit("/", 1)[-1] not in QUERIES:
            outcomes.setdefault(request, set()).add(outcome)
    unlike = {request: told for request, told in outcomes.items() if len(told) > 1}
    assert not unlike, f"{len(unlike)} requests were told different things: {_first(unlike)}"


def _outcome(payload: bytes) -> tuple[bool, str] | None:
    """How the request ended, None for a copy that came too late to be looked at."""
    data = orjson.loads(payload)["data"]
    reason = data["metadata"]["reason"]
    first = data["metadata"].get("first_reason", reason)
    return None if first == "timestamp_skew" else (data["success"], first)


def twice(contents: Contents) -> list[tuple[object, ...]]:
    """The effects in the ledgers that one request had more than once.

    What a request does to one account in one way stems from one record.
    """
    sources: dict[tuple[object, ...], set[str]] = {}
    ids: Counter[str] = Counter()
    for topic in topics.LEDGERS:
        for record in contents[topic]:
            entry = orjson.loads(record.value)
            ids[entry["entry_id"]] += 1
            if entry["signal_id"] is not None:
                named = ("plan_id", "signal_id", "kind", "service_id", "detail")
                effect = tuple(entry.get(name) for name in named)
                sources.setdefault(effect, set()).add(entry["source"])
    doubled = [effect for effect, of_effect in sources.items() if len(of_effect) > 1]
    return doubled + [(entry_id,) for entry_id, count in ids.items() if count > 1]


def check_at_rest(contents: Contents, setup: bytes, *, partitions: int) -> None:
    """No plan has a quota held or a swap under way."""
    engine = _engine.Engine(setup, partitions=partitions)
    states = {record.key: record.value for record in contents[topics.STATE_PLAN] if record.value}
    busy = []
    for key, value in states.items():
        plan = orjson.loads(engine.describe_state(topics.STATE_PLAN, key, value))
        if plan["session"] is not None or any(service["held"] for service in plan["services"]):
            busy.append(key.decode())
    assert not busy, f"{len(busy)} plans have something under way: {busy[:10]}"


def check_effects(contents: Contents, setup: bytes, *, partitions: int) -> None:
    """All of these, for a log whose signals have come to their end."""
    check_answered(contents)
    check_alike(_echoes(contents))
    doubled = twice(contents)
    assert not doubled, f"{len(doubled)} effects came twice: {doubled[:10]}"
    check_at_rest(contents, setup, partitions=partitions)


def _echoes(contents: Contents) -> list[tuple[Request, str, bytes]]:
    messages = [(r.key.decode(), decode_outbox(r.value)) for r in contents[topics.OUTBOX]]
    return [
        ((key, m.correlation), m.topic, m.payload)
        for key, m in messages
        if m.kind is OutboxKind.ECHO
    ]


def _first(found: dict[Request, set[tuple[bool, str]]]) -> object:
    return dict(itertools.islice(found.items(), 5))
