"""Text that means something elsewhere: in a topic, a path, SQL, a log line, a frame's header.

Whatever stands in a client's message, no topic that goes out has another shape than the broker's
access list grants, and nothing that came in ends a line of its own making.
"""

import copy
import json
import logging
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bss_stream import config_example, topics
from bss_stream._engine import unpack
from bss_stream.bridge import Bridge, BridgeSettings
from bss_stream.config import Config
from bss_stream.errors import ConfigError, FrameError, NewerVersionError
from bss_stream.frames import decode_dead_letter, decode_outbox, decode_signal
from bss_stream.log.embedded import EmbeddedLog
from bss_stream.logs import OneLine
from bss_stream.mqtt.messages import MqttSettings, Received
from bss_stream.queries import wire
from bss_stream.testing import Playground
from bss_stream.topic_table import CLEAN_ID, load, packaged_table
from tests.unit.histories import setup

ROOT: Final = Path(__file__).parents[2]
ACL: Final = ROOT / "deploy" / "mosquitto" / "acl"
SEEDS: Final = ROOT / "rust" / "engine" / "corpus" / "request"

NASTY: Final = (
    "+",
    "#",
    "plan-nbi-1/+",
    "../../../etc/passwd",
    "plan-nbi-1\0",
    "x" * 65,
    "",
    " plan-nbi-1",
    "plan-nbi-1\n2026-11-24 ERROR forged",
    "\x1b[2J",
    "'; DROP TABLE ledger_entries; --",
    "%s%n{0}",
    "$share/g/x",
    "\u202eplan",
    "\ud800",
)
CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
texts = st.sampled_from(NASTY) | st.text(max_size=80)


def granted(user: str) -> list[re.Pattern[str]]:
    """What the broker's access list lets a role write to."""
    section = ACL.read_text().split(f"user {user}\n")[1].split("\n\n")[0]
    filters = re.findall(r"^topic write (.+)$", section, re.MULTILINE)
    return [re.compile(f.replace("+", r"[A-Za-z0-9._:@-]{1,64}")) for f in filters]


PUBLISHER: Final = granted("bss-publisher")
QUERIES: Final = granted("bss-queries")


def check_topic(topic: str, patterns: list[re.Pattern[str]]) -> None:
    assert any(pattern.fullmatch(topic) for pattern in patterns), topic


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    else:
        yield path


def planted(body: dict[str, Any], path: tuple[str, ...], text: str) -> dict[str, Any]:
    body = copy.deepcopy(body)
    inner = body
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = text
    return body


def seeds() -> dict[str, dict[str, Any]]:
    """A sound body of every event, as the stories have them."""
    files = SEEDS.glob("seed-*")
    return {file.name.removeprefix("seed-"): orjson.loads(file.read_bytes()) for file in files}


BODIES: Final = seeds()
ROWS: Final = orjson.loads(packaged_table().read_bytes())["rows"]
EVENTS: Final = {
    kind: sorted(row["event"] for row in ROWS if row["entity"] == kind)
    for kind in ("plan", "station", "asset")
}
KEYS: Final = {"plan": "plan-nbi-1", "station": "station-nbi-003", "asset": "bat-007"}


def test_there_is_a_seed_of_every_event_from_outside() -> None:
    assert {event for events in EVENTS.values() for event in events} <= BODIES.keys()


def encoded(body: dict[str, Any]) -> bytes:
    """JSON that keeps a lone surrogate, as an escape."""
    return json.dumps(body).encode()


@given(data=st.data())
def test_no_text_in_a_message_gets_into_a_topic(data: st.DataObject) -> None:
    with Playground(setup()) as play:
        for event in ("odoo_sync", "initialize_states"):
            play.signal(topics.SIGNALS_PLAN, KEYS["plan"], event, orjson.dumps(BODIES[event]))
        for _ in range(data.draw(st.integers(1, 4))):
            kind = data.draw(st.sampled_from(sorted(EVENTS)))
            event = data.draw(st.sampled_from(EVENTS[kind]))
            body = BODIES[event]
            for path in data.draw(st.lists(st.sampled_from(list(leaves(body))), max_size=4)):
                body = planted(body, path, data.draw(texts))
            key = data.draw(st.just(KEYS[kind]) | texts).encode("utf-8", "replace")
            source, correlation = data.draw(texts), data.draw(texts)
            topic = topics.SIGNALS[list(EVENTS).index(kind)]
            header = "\t".join(("1", event, "1795500000000", correlation, source))
            value = header.encode("utf-8", "replace") + b"\n" + encoded(body)
            play.record(topic, key, value)
        play.advance(40 * 86_400_000)
        assert play.outbox
        for message in play.outbox:
            check_topic(message.topic, PUBLISHER)
            assert not CONTROL.search(message.correlation)
        for entry in play.ledger_bytes:
            assert b"\n" not in entry
        for record in play.produced:
            if record.topic in topics.STATES:
                assert CLEAN_ID.fullmatch(record.key.decode())


@given(texts, texts, st.sampled_from(("swap_history", "balance", "nearby")))
def test_no_query_is_answered_on_another_topic(plan: str, correlation: str, name: str) -> None:
    asked = (
        f"emit/uxi/rider/plan/{plan}/{name}"
        if name != "nearby"
        else "emit/uxi/rider/stations/nearby"
    )
    route = wire.route(asked)
    if route is not None:
        check_topic(wire.echo_topic(route, correlation), QUERIES)
    else:
        assert not CLEAN_ID.fullmatch(plan)


FILTERS: Final = load().filters


@given(
    st.lists(
        st.tuples(
            st.sampled_from(FILTERS) | st.text(max_size=60),
            texts,
            st.binary(max_size=60) | st.sampled_from([orjson.dumps(b) for b in BODIES.values()]),
            st.none() | st.binary(max_size=140),
        ),
        min_size=1,
        max_size=8,
    )
)
@settings(max_examples=200)
def test_whatever_the_bridge_takes_in_is_a_record_with_a_clean_key_or_a_dead_letter(
    messages: list[tuple[str, str, bytes, bytes | None]],
) -> None:
    log = EmbeddedLog(Path("never-opened"), partitions=4)
    mqtt = MqttSettings(host="127.0.0.1", client_id="bridge")
    bridge = Bridge(log, mqtt, load(), BridgeSettings(), clock_ms=lambda: 1_795_500_000_000)
    batch = [
        Received(
            filter.replace("+", text.encode("utf-8", "replace").decode()),
            payload,
            1,
            False,
            False,
            correlation,
            [],
            1,
            1,
        )
        for filter, text, payload, correlation in messages
    ]
    refused: Counter[str] = Counter()
    records = 0
    traces = [filter for filter, *_ in messages]
    for chunk in bridge._chunks(batch, traces, refused):
        for key, value in unpack(chunk.data):
            records += 1
            if chunk.topic == topics.DEAD_LETTER:
                decode_dead_letter(value or b"")
            else:
                assert CLEAN_ID.fullmatch(key.decode())
                signal = decode_signal(value or b"")
                assert signal.correlation.isprintable()
                assert signal.trace == ""
    assert records == len(batch)


@given(st.binary(max_size=200) | texts.map(lambda text: text.encode("utf-8", "replace")))
def test_a_record_that_is_no_frame_is_a_frame_error(value: bytes) -> None:
    for prefix in (b"", b"1\t", b"1\techo\t1\t0\t"):
        for decode in (decode_signal, decode_outbox, decode_dead_letter):
            try:
                decode(prefix + value)
            except (FrameError, NewerVersionError) as error:
                assert str(error).isprintable()


EXAMPLE: Final = config_example.render()
SECRET: Final = "hunter2-in-the-clear"


@given(data=st.data())
@settings(max_examples=60)
def test_a_configuration_of_garbage_is_a_config_error_that_shows_no_secret(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    lines = EXAMPLE.replace("# dsn = ...", f'dsn = "{SECRET}"').splitlines()
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(lines) - 1))
        name = lines[at].partition("=")[0]
        kinds = (
            "true",
            "-1",
            "1e400",
            "nan",
            "[]",
            "{}",
            '""',
            "2026-11-24",
            "[[[",
            '"\\u0000"',
            "'''",
        )
        lines[at] = data.draw(
            st.sampled_from([f"{name}= {kind}" for kind in kinds] + ["", "[x", "\0", name])
            | st.text(max_size=40)
        )
    file = tmp_path_factory.mktemp("config") / "bss.toml"
    file.write_bytes("\n".join(lines).encode("utf-8", "replace"))
    try:
        config = Config.load(file, {"BSS_SINK__BACKEND": "sqlite"})
    except ConfigError as error:
        assert SECRET not in str(error) + repr(error)
    else:
        assert SECRET not in repr(config)


@given(texts)
def test_a_log_line_is_one_line(text: str) -> None:
    record = logging.LogRecord("bss", logging.WARNING, "", 0, "no query on %s", (text,), None)
    line = OneLine("%(levelname)s %(message)s").format(record)
    assert line.isprintable()
    assert line.startswith("WARNING no query on ")
