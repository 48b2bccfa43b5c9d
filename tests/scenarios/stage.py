"""Plays a story on a playground and names everything that came out otherwise than it says."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from bss_stream import topics
from bss_stream.frames import OutboxKind, decode_signal
from bss_stream.testing import Playground
from tests.scenarios.story import DeadLetter, Echo, Message, Step, Story, duration_ms, keyed

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MISSING = object()


class Stage:
    """One performance of a story."""

    def __init__(self, story: Story, *, restarts: bool = False) -> None:
        self.story = story
        self.restarts = restarts
        """Whether the engine is lost and restored after every step."""
        self.play = Playground(story.setup)
        if story.start is not None:
            self.play.now_ms = _epoch_ms(story.start)
        self.faults: list[str] = []
        self._sent: dict[str, tuple[Step, bytes]] = {}

    def perform(self) -> "Stage":
        """Play every step and note the faults, up to the end of the first step that has one."""
        for step in self.story.before:
            self._step(step)
        for number, step in enumerate(self.story.steps, 1):
            found = self._step(step)
            if found:
                self.faults += [f"{self.story.name}, step {number}: {step.say}", *found]
                break
        return self

    # What a step does.

    def _step(self, step: Step) -> list[str]:
        play = self.play
        before = (len(play.outbox), len(play.dead_letters), _entry_count(play))
        if step.wait is not None:
            play.advance(duration_ms(step.wait))
        if step.wait_unseen is not None:
            play.now_ms += duration_ms(step.wait_unseen)
        if step.until is not None:
            play.advance(_epoch_ms(step.until) - play.now_ms)
        if step.restart:
            play.restart()
        record = None
        correlation_id = None
        if step.send is not None or step.again is not None:
            record, correlation_id = self._send(step)
        faults = self._faults(step, before, record, correlation_id)
        if self.restarts:
            play.restart()
        return faults

    def _send(self, step: Step) -> tuple[bytes, str | None]:
        """Sends the step's message; returns its payload and its correlation id."""
        if step.again is not None and step.id is None:
            step, payload = self._sent[step.again]
        else:
            if step.again is not None:
                first, _ = self._sent[step.again]
                step = _under_a_new_id(first, step)
            payload = self._payload(step)
        name = step.name or step.id
        if name is not None:
            self._sent[name] = (step, payload)
        assert step.send is not None
        self.play.mqtt(step.send, payload, correlation=step.correlation_data)
        return payload, step.id or step.correlation_data

    def _payload(self, step: Step) -> bytes:
        if step.raw is not None:
            return step.raw.encode()
        if step.raw_hex is not None:
            return bytes.fromhex(step.raw_hex)
        sent_ms = self.play.now_ms + duration_ms(step.clock_off_by or "0ms")
        envelope: dict[str, Any] = {"timestamp": _rfc3339(sent_ms)}
        if step.id is not None:
            envelope["correlation_id"] = step.id
        if step.data is not None:
            envelope["plan_id"] = self._key(step)
            envelope["actor"] = {"type": step.actor, "id": f"{step.actor}-1"}
            envelope["data"] = step.data
        envelope |= step.body
        return orjson.dumps({k: v for k, v in envelope.items() if k not in step.without})

    def _key(self, step: Step) -> str:
        assert step.send is not None
        routed = self.play.topic_table.route(step.send, b"")
        assert routed is not None, f"{step.send}: no row of the topic table matches"
        return routed.key or ""

    # What must have come of it.

    def _faults(
        self,
        step: Step,
        before: tuple[int, int, int],
        payload: bytes | None,
        correlation_id: str | None,
    ) -> list[str]:
        play = self.play
        outbox = play.outbox[before[0] :]
        of_kind = {
            kind: [message for message in outbox if message.kind is kind] for kind in OutboxKind
        }
        letters = play.dead_letters[before[1] :]
        entries = [orjson.loads(value) for value in play.ledger_bytes[before[2] :]]
        entries.sort(key=lambda entry: (entry["plan_id"], entry["seq"]))
        differences = Differences()
        differences.list(
            "echo",
            [_echo(echo, correlation_id) for echo in step.echo],
            [_message(message) for message in of_kind[OutboxKind.ECHO]],
        )
        for name, expected, kind in (
            ("command", step.command, OutboxKind.CMD),
            ("emit", step.emit, OutboxKind.EMIT),
        ):
            found = [_message(message) for message in of_kind[kind]]
            differences.list(name, [_expected(message) for message in expected], found)
        differences.list("ledger", step.ledger, entries)
        differences.list(
            "dead_letter",
            [_letter(letter) for letter in step.dead_letter],
            [{"reason": letter.reason, "detail": letter.detail} for letter in letters],
        )
        for letter in letters:
            if payload is not None and not _keeps(letter.raw, payload):
                differences.add("dead_letter.raw", payload, letter.raw)
        self._states(step, differences)
        if not differences.lines:
            return []
        return [*differences.lines, "    all that came of the step:", *_shown(outbox, entries)]

    def _states(self, step: Step, differences: "Differences") -> None:
        for topic, name, wanted in (
            (topics.STATE_PLAN, "plan", step.plan),
            (topics.STATE_STATION, "station", step.station),
            (topics.STATE_ASSET, "asset", step.asset),
        ):
            for key, fields in wanted.items():
                if (topic, key.encode()) not in self.play.states:
                    differences.add(f"{name}.{key}", fields, "nothing")
                else:
                    differences.compare(f"{name}.{key}", fields, self.play.state(topic, key))


class Differences:
    """Lines that say where what was found is not what was expected."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, path: str, expected: object, found: object) -> None:
        self.lines.append(f"    {path}: expected {_text(expected)}, found {_text(found)}")

    def list(self, path: str, expected: list[Any], found: list[Any]) -> None:
        """Lists have to be as long as expected, and alike place by place."""
        if len(expected) != len(found):
            self.add(path, f"{len(expected)} in all", f"{len(found)}")
        for at, (one, other) in enumerate(zip(expected, found, strict=False)):
            self.compare(f"{path}[{at}]", one, other)

    def compare(self, path: str, expected: Any, found: Any) -> None:
        """Of objects, the fields that are named; of a list of objects, those with the ids named."""
        if isinstance(expected, dict) and isinstance(found, list):
            found = keyed(found)
        if isinstance(expected, dict) and isinstance(found, dict):
            for name, value in expected.items():
                inner = found.get(name, _MISSING)
                if inner is _MISSING:
                    if value != "absent":
                        self.add(f"{path}.{name}", value, "nothing")
                elif value == "null":
                    if inner is not None:
                        self.add(f"{path}.{name}", None, inner)
                else:
                    self.compare(f"{path}.{name}", value, inner)
        elif isinstance(expected, list) and isinstance(found, list):
            self.list(path, expected, found)
        elif expected != found or isinstance(expected, bool) != isinstance(found, bool):
            self.add(path, expected, found)


def _under_a_new_id(first: Step, step: Step) -> Step:
    fields = {name: getattr(first, name) for name in first.__struct_fields__}
    fields |= {"id": step.id, "name": step.name, "clock_off_by": step.clock_off_by}
    fields |= {"body": first.body | step.body, "without": step.without}
    return Step(**fields)


def _echo(echo: Echo, correlation_id: str | None) -> dict[str, Any]:
    body: dict[str, Any] = {
        "actor": {"type": "agent", "id": "bss-agent-v2"},
        "data": {
            "success": echo.success,
            "signals": echo.signals,
            "metadata": {"reason": echo.reason, **echo.metadata},
        },
    }
    wanted = correlation_id if echo.correlation_id is None else echo.correlation_id
    if wanted is not None:
        body["correlation_id"] = wanted
    return {"topic": echo.topic, "body": body}


def _expected(message: Message) -> dict[str, Any]:
    return {"topic": message.topic, "body": message.body}


def _message(message: Any) -> dict[str, Any]:
    return {"topic": message.topic, "body": orjson.loads(message.payload)}


def _letter(letter: DeadLetter) -> dict[str, Any]:
    named = {"reason": letter.reason}
    return named if letter.detail is None else {**named, "detail": letter.detail}


def _keeps(raw: bytes, payload: bytes) -> bool:
    """Whether a dead letter holds the record as it came, or one that an entity sent."""
    signal = decode_signal(raw)
    return signal.payload == payload or signal.source == "engine"


def _entry_count(play: Playground) -> int:
    return len(play.ledger_bytes)


def _shown(outbox: list[Any], entries: list[dict[str, Any]]) -> list[str]:
    lines = [f"    {m.kind:4} {m.topic} {m.payload.decode()}" for m in outbox]
    hidden = ("v", "plan_id", "recorded_at", "prev", "hash")
    for entry in entries:
        shown = {name: value for name, value in entry.items() if name not in hidden}
        lines.append(f"    entry {json.dumps(shown)}")
    return lines


def _text(value: object) -> str:
    return repr(value) if isinstance(value, bytes) else json.dumps(value, ensure_ascii=False)


def _epoch_ms(text: str) -> int:
    return (datetime.fromisoformat(text) - _EPOCH) // timedelta(milliseconds=1)


def _rfc3339(ms: int) -> str:
    moment = _EPOCH + timedelta(milliseconds=ms)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
