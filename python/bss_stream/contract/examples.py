"""Examples of every message: recorded requests of clients, played, and what came of them."""

import importlib.resources
from importlib.resources.abc import Traversable
from typing import Any, Final

import orjson

from bss_stream import topics
from bss_stream.contract.catalogue import echo_event
from bss_stream.frames import ENGINE, decode_signal
from bss_stream.queries.wire import route
from bss_stream.sink.entry import LEDGER_NAMES
from bss_stream.testing import Playground

Examples = dict[str, dict[str, Any]]
"""The first example of each payload by its name in the catalogue."""

_PERIOD_MS: Final = 7 * 86_400_000


def recorded_files() -> list[Traversable]:
    """One recorded request of a client in the field each, with the echoes that it must get."""
    directory = importlib.resources.files("bss_stream") / "contract" / "examples" / "recorded"
    return sorted(directory.iterdir(), key=lambda file: file.name)


def messages() -> list[tuple[str, dict[str, Any]]]:
    """Topic and body of each request, in the order in which they can be played."""
    recorded = [orjson.loads(file.read_bytes())["request"] for file in recorded_files()]
    further = importlib.resources.files("bss_stream") / "contract" / "examples" / "further.jsonl"
    lines = further.read_text("utf-8").splitlines()
    return [(one["topic"], one["body"]) for one in (*recorded, *map(orjson.loads, lines))]


def examples() -> Examples:
    """What is sent and what comes of it."""
    found: Examples = {}
    with Playground() as play:
        for topic, body in messages():
            query = route(topic)
            if query is not None:
                found.setdefault(f"query/{query.query}", body)
                continue
            routed = play.topic_table.route(topic, orjson.dumps(body))
            event = routed.event if routed is not None else ""
            found.setdefault(f"request/{event}", body)
            before = len(play.outbox)
            play.mqtt(topic, body)
            _add_outbox(play, before, found)
        before = len(play.outbox)
        # The paid week ends, and its grace.
        play.advance(_PERIOD_MS)
        play.advance(_PERIOD_MS)
        _add_outbox(play, before, found)
        _add_records(play, found)
    return found


def _add_outbox(play: Playground, before: int, found: Examples) -> None:
    for message in play.outbox[before:]:
        event = echo_event(message.topic)
        name = f"sent/{message.topic.rpartition('/')[2]}" if event is None else f"echo/{event}"
        found.setdefault(name, orjson.loads(message.payload))


def _add_records(play: Playground, found: Examples) -> None:
    for topic, entries in play.ledgers.items():
        found[f"ledger/{LEDGER_NAMES[topic]}"] = entries[0]
    for record in play.consumed:
        signal = decode_signal(record.value)
        if signal.source == ENGINE:
            found.setdefault(f"record/{signal.event}", orjson.loads(signal.payload))
    for kind, topic in zip(("plan", "station", "asset"), topics.STATES, strict=True):
        key = next(key for where, key in play.states if where == topic)
        found.setdefault(f"state/{kind}", play.state(topic, key.decode()))
