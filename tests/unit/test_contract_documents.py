"""The generated contract: as committed, sound, and held to what the engine takes and gives."""

import copy
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pytest
import yaml as pyyaml
from jsonschema import Draft202012Validator

from bss_stream import _engine, topics
from bss_stream.contract import asyncapi, schemas, yaml
from bss_stream.contract.catalogue import (
    ECHO_TOPICS,
    PAYLOADS,
    QUERY_TOPICS,
    carries,
    echo_event,
)
from bss_stream.contract.examples import examples, messages
from bss_stream.contract.fields import Reason
from bss_stream.contract.requests import REQUESTS
from bss_stream.frames import ENGINE, OutboxKind, decode_dead_letter, decode_outbox, decode_signal
from bss_stream.mqtt.messages import Received
from bss_stream.queries.answers import answers
from bss_stream.setup import compile_setup, load_setup
from bss_stream.stories import Stage
from bss_stream.testing import Playground
from bss_stream.topic_table import load
from tests.read_model import Copied
from tests.scenarios import STORIES

COMMITTED = Path(__file__).parents[2] / "docs" / "contract"
AGAIN = "write it again: docs/contract.md says how"

SHAPE = {"missing_field", "wrong_type"}
"""Reasons for which a schema could refuse a request, too."""

BEYOND = {("odoo_sync", "template_id"), ("odoo_sync", "customer_id")}
"""Events and fields that only the state of things demands: a plan's first sync makes the plan."""


@cache
def documents() -> dict[str, schemas.Schema]:
    return schemas.documents()


@cache
def validator(name: str) -> Draft202012Validator:
    """As published."""
    return Draft202012Validator(documents()[name])


@cache
def strict(name: str) -> Draft202012Validator:
    """Without any field that the schema does not name: nobody hears of what is not written down."""
    return Draft202012Validator(closed(documents()[name]))


def closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(value) for key, value in schema.items() if key != "examples"}
    is_type = "title" in inner and "properties" in inner
    return {**inner, "additionalProperties": False} if is_type else inner


# As committed, and sound.


def test_the_committed_document_is_what_the_program_writes() -> None:
    committed = (COMMITTED / "asyncapi.yaml").read_text(encoding="utf-8")
    assert committed == yaml.dump(asyncapi.document()), AGAIN


def test_the_committed_schemas_are_what_the_program_writes() -> None:
    directory = COMMITTED / "schemas"
    committed = {
        file.relative_to(directory).with_suffix("").as_posix(): file.read_text(encoding="utf-8")
        for file in directory.glob("**/*.json")
    }
    assert committed == {name: schemas.text(one) for name, one in documents().items()}, AGAIN


def test_yaml_and_json_say_the_same() -> None:
    document = asyncapi.document()
    assert pyyaml.safe_load(yaml.dump(document)) == json.loads(schemas.text(document))


@pytest.mark.parametrize(
    "text",
    ["no", "1", "a: b", "a #b", "", " a", "a ", "1.0", "-", "é", 'a"b', "a\nb", "null", "{a}"],
)
def test_yaml_keeps_every_text(text: str) -> None:
    value = {"plain text": [text, {text: [[text], [], {}]}], "n": None, "t": True, "i": [1, 2.5]}
    assert pyyaml.safe_load(yaml.dump(value)) == value


@pytest.mark.parametrize("name", [payload.name for payload in PAYLOADS])
def test_a_schema_is_sound_and_its_example_too(name: str) -> None:
    Draft202012Validator.check_schema(documents()[name])
    for example in documents()[name].get("examples", ()):
        strict(name).validate(example)


def test_every_request_and_query_has_an_example() -> None:
    wanted = {one.name for one in PAYLOADS if one.name.startswith(("request/", "query/"))}
    assert wanted <= examples().keys()


def test_every_event_from_outside_is_in_the_contract() -> None:
    assert REQUESTS.keys() == {row.event for row in load().rows}


def test_reasons_are_the_engine_s_with_what_they_mean() -> None:
    document = asyncapi.document()
    reason = document["components"]["schemas"]["Reason"]
    told = {code: message for code, message, *_ in _engine.reasons()}
    assert reason["x-enum-descriptions"] == told
    assert set(reason["enum"]) == told.keys() == {str(one) for one in Reason}


def test_every_topic_of_the_table_and_of_echoes_is_a_channel() -> None:
    table = load()
    wanted = {row.filter for row in table.rows} | {sent.topic for sent in table.sent}
    wanted |= {address for _, address in ECHO_TOPICS} | set(topics.ALL)
    channels = asyncapi.document()["channels"].values()
    assert wanted <= {channel["address"] for channel in channels}


# What the stories send and what comes of it.


@pytest.mark.parametrize("name", STORIES.names)
def test_the_engine_takes_and_gives_what_the_schemas_say(name: str) -> None:
    story = STORIES.load(name)
    stage = Stage(story)
    play = Recording(story.setup)
    play.now_ms, stage.play = stage.play.now_ms, play
    stage.perform()
    assert not stage.faults
    for sent in play.sent:
        _check_request(sent)
    for schema, body in produced(play):
        assert not faults_of(strict(schema), body), f"{schema}: {body}"


def _check_request(sent: "Sent") -> None:
    """A schema takes what the engine takes, and refuses what lacks a field or has a wrong type."""
    try:
        body = orjson.loads(sent.payload)
    except ValueError:
        return
    faults = faults_of(validator(f"request/{sent.event}"), body)
    if not sent.refused:
        assert not faults, sent
    for reason, detail in sent.refused:
        is_of_shape = reason in SHAPE and (sent.event, detail) not in BEYOND
        if is_of_shape and not detail.startswith("timestamp "):
            assert faults, sent


def faults_of(schema: Draft202012Validator, body: Any) -> list[str]:
    return [f"{fault.json_path}: {fault.message}" for fault in schema.iter_errors(body)]


def produced(play: Playground) -> Iterator[tuple[str, Any]]:
    """Name of the schema and body of everything that came of a story."""
    for message in play.outbox:
        event = echo_event(message.topic)
        assert (event is None) == (message.kind is not OutboxKind.ECHO)
        name = f"sent/{message.topic.rpartition('/')[2]}" if event is None else f"echo/{event}"
        yield name, orjson.loads(message.payload)
    for topic, ledger in zip(topics.LEDGERS, ("payment", "service"), strict=True):
        yield from ((f"ledger/{ledger}", entry) for entry in play.ledgers[topic])
    for record in play.consumed:
        signal = decode_signal(record.value)
        if signal.source == ENGINE:
            yield f"record/{signal.event}", orjson.loads(signal.payload)
    for topic, entity in zip(topics.STATES, ("plan", "station", "asset"), strict=True):
        keys = [key.decode() for where, key in play.states if where == topic]
        yield from ((f"state/{entity}", play.state(topic, key)) for key in keys)
    decoders: list[tuple[str, str, Any]] = [
        (topics.OUTBOX, "frame/outbox", decode_outbox),
        (topics.DEAD_LETTER, "frame/dead_letter", decode_dead_letter),
    ]
    for topic, name, decode in decoders:
        for one in (record for record in play.produced if record.topic == topic):
            header = decode(one.value)._asdict()
            yield (
                name,
                {key: value for key, value in header.items() if key not in ("payload", "raw")},
            )


class Sent(NamedTuple):
    """A request, and the reason and detail of each refusal."""

    event: str
    payload: bytes
    refused: list[tuple[str, str]]


class Recording(Playground):
    """Notes what is sent, and whether it was refused."""

    def __init__(self, setup: bytes) -> None:
        super().__init__(setup)
        self.sent: list[Sent] = []

    def signal(
        self,
        topic: str,
        key: str,
        event: str,
        payload: bytes,
        *,
        source: str = "test",
        correlation: str = "",
        trace: str = "",
    ) -> None:
        letters, echoes = len(self.dead_letters), len(self.echoes)
        super().signal(
            topic, key, event, payload, source=source, correlation=correlation, trace=trace
        )
        kept = [(letter.reason, letter.detail) for letter in self.dead_letters[letters:]]
        told = [echo["data"]["metadata"] for echo in self.echoes[echoes:]]
        kept += [(one["reason"], "") for one in told if one["reason"] not in ("ok", *SHAPE)]
        self.sent.append(Sent(event, payload, kept))


def test_answers_to_queries_are_as_the_schemas_say(tmp_path: Path) -> None:
    play = Playground()
    for one in REQUESTED:
        play.mqtt(*one)
    asked = [
        (topic, body)
        for topic, body in messages()
        # What Odoo knows only Odoo's adapter tells.
        if (topic, body) not in REQUESTED and not topic.endswith("/payment_status")
    ]
    with Copied(play, f"sqlite:{tmp_path}/ledger.db") as copy_of:
        copy_of.take()
        for topic, body in (*asked, *((topic, {}) for topic, _ in asked)):
            message = Received(topic, orjson.dumps(body), 1, False, False, None, [], 0, 0)
            [answer] = answers(copy_of.model, copy_of.catalogue, [message], play.now_ms)
            assert answer.outcome == ("ok" if body else "missing_field")
            assert answer.echo is not None
            query = next(query for query, address in QUERY_TOPICS if carries(address, topic))
            strict(f"answer/{query}").validate(orjson.loads(answer.echo.payload))
            assert validator(f"query/{query}").is_valid(body) == bool(body)


# Required is required.


SETUP = compile_setup(load_setup())
REQUESTED = [one for one in messages() if load().route(one[0], b"{}") is not None]


@pytest.mark.parametrize("number", range(len(REQUESTED)))
def test_the_engine_refuses_what_a_schema_misses_a_field_in(number: int) -> None:
    topic, body = REQUESTED[number]
    routed = load().route(topic, orjson.dumps(body))
    assert routed is not None
    for path in paths(body):
        lacking = without(body, path)
        if validator(f"request/{routed.event}").is_valid(lacking):
            continue
        play = Playground(SETUP)
        for one in REQUESTED[:number]:
            play.mqtt(*one)
        before = len(play.dead_letters)
        try:
            play.mqtt(topic, lacking)
        except ValueError as refused:
            assert "the key is None" in str(refused)  # The bridge has no key to send it by.
            continue
        found = [letter.reason for letter in play.dead_letters[before:]]
        assert found == ["missing_field"], f"{topic} without {'.'.join(path)}"


def paths(value: dict[str, Any], before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, inner in value.items():
        yield (*before, key)
        if isinstance(inner, dict):
            yield from paths(inner, (*before, key))


def without(body: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    changed = copy.deepcopy(body)
    inner = changed
    for part in path[:-1]:
        inner = inner[part]
    del inner[path[-1]]
    return changed


def test_addresses_carry_their_topics_only() -> None:
    assert carries("echo/abs/{plan_id}/sync", "echo/abs/p-1/sync")
    assert not carries("echo/abs/{plan_id}/sync", "echo/abs/p-1/other")
    assert not carries("echo/abs/{plan_id}/sync", "echo/abs/p-1")
