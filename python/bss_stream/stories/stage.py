"""Plays a story on a playground and names everything that came out otherwise than it says."""

import json
from typing import Any, Self

import orjson

from bss_stream import topics
from bss_stream.errors import ConfigError
from bss_stream.frames import OutboxKind, decode_signal
from bss_stream.stories.differences import Differences
from bss_stream.stories.document import DeadLetter, Echo, Message, Step
from bss_stream.stories.library import Story
from bss_stream.stories.repeat import each_time
from bss_stream.stories.times import duration_ms, epoch_ms, rfc3339
from bss_stream.testing import Playground
from bss_stream.topic_table import TopicTable


class Stage:
    """One performance of a story."""

    def __init__(
        self, story: Story, *, restarts: bool = False, topic_table: TopicTable | None = None
    ) -> None:
        """Raises ConfigError if the engine refuses the story's set-up."""
        self.story = story
        self.restarts = restarts
        """Whether the engine is lost and restored after every step."""
        try:
            self.play = Playground(story.setup, topic_table=topic_table)
        except ValueError as error:
            raise ConfigError(
                [f"{story.name}: {line}" for line in str(error).split("\n")]
            ) from None
        if story.start is not None:
            self.play.now_ms = epoch_ms(story.start)
        self.faults: list[str] = []
        self._sent: dict[str, tuple[Step, bytes]] = {}

    def perform(self) -> Self:
        """Play every step and note the faults, up to the end of the first step that has one.

        Raises ConfigError for a step that cannot be played: a topic in no row of the topic table,
        a time that is none.
        """
        for number, step in enumerate(self.story.before, 1):
            self._play(step, f"step {number} of what goes before")
        for number, step in enumerate(self.story.steps, 1):
            found = self._play(step, f"step {number}")
            if found:
                self.faults += [f"{self.story.name}, step {number}: {step.say}", *found]
                break
        return self

    def _play(self, step: Step, where: str) -> list[str]:
        for number, once in enumerate(each_time(step), 1):
            try:
                found = self._step(once)
            except ValueError as error:
                raise ConfigError([f"{self.story.name}, {where}: {error}"]) from error
            if found and step.repeat > 1:
                return [f"    time {number} of {step.repeat}:", *found]
            if found:
                return found
        return []

    # What a step does.

    def _step(self, step: Step) -> list[str]:
        play = self.play
        before = (len(play.outbox), len(play.dead_letters), len(play.ledger_bytes))
        if step.wait is not None:
            play.advance(duration_ms(step.wait))
        if step.wait_unseen is not None:
            play.now_ms += duration_ms(step.wait_unseen)
        if step.until is not None:
            play.advance(epoch_ms(step.until) - play.now_ms)
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
        self.play.mqtt(step.send or "", payload, correlation=step.correlation_data)
        return payload, step.id or step.correlation_data

    def _payload(self, step: Step) -> bytes:
        if step.raw is not None:
            return step.raw.encode()
        if step.raw_hex is not None:
            return bytes.fromhex(step.raw_hex)
        sent_ms = self.play.now_ms + duration_ms(step.clock_off_by or "0ms")
        envelope: dict[str, Any] = {"timestamp": rfc3339(sent_ms)}
        if step.id is not None:
            envelope["correlation_id"] = step.id
        if step.data is not None:
            envelope["plan_id"] = self._key(step.send or "")
            envelope["actor"] = {"type": step.actor, "id": f"{step.actor}-1"}
            envelope["data"] = step.data
        envelope |= step.body
        return orjson.dumps({k: v for k, v in envelope.items() if k not in step.without})

    def _key(self, topic: str) -> str:
        routed = self.play.topic_table.route(topic, b"")
        if routed is None:
            raise ValueError(f"topic {topic!r}: no row of the topic table matches")
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

    def _states(self, step: Step, differences: Differences) -> None:
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


def _shown(outbox: list[Any], entries: list[dict[str, Any]]) -> list[str]:
    lines = [f"    {m.kind:4} {m.topic} {m.payload.decode()}" for m in outbox]
    hidden = ("v", "plan_id", "recorded_at", "prev", "hash")
    for entry in entries:
        shown = {name: value for name, value in entry.items() if name not in hidden}
        lines.append(f"    entry {json.dumps(shown)}")
    return lines
