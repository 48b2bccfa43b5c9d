"""A trace goes from a request to all that follows from it, over other entities and over time."""

from collections.abc import Callable
from typing import Any

import pytest

from bss_stream import topics
from bss_stream.frames import (
    Signal,
    decode_outbox,
    decode_signal,
    encode_outbox,
    encode_signal,
)
from bss_stream.stories import Stage
from bss_stream.testing import Playground, Produced
from tests.scenarios import STORIES

RIDER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OTHER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"

Choice = Callable[[Signal], str]


class Traced(Playground):
    """A playground whose signals come in with the traces that a function gives them."""

    trace: Choice

    def record(self, topic: str, key: bytes, value: bytes) -> None:
        try:
            signal = decode_signal(value)
        except ValueError:
            super().record(topic, key, value)
            return
        super().record(topic, key, encode_signal(signal._replace(trace=self.trace(signal))))


def told(name: str, trace: Choice) -> Stage:
    """A story, its signals with traces, its engine lost and restored after every step."""
    story = STORIES.load(name)
    stage = Stage(story, restarts=True)
    traced = Traced(stage.play.setup)
    traced.trace, traced.now_ms = trace, stage.play.now_ms
    stage.play = traced
    return stage.perform()


def echoes(play: Playground, suffix: str) -> list[str]:
    """The traces of the echoes on topics that end so."""
    return [m.trace for m in play.outbox if m.kind == "echo" and m.topic.endswith(suffix)]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("self_service/swap_w1_to_w5", "ok"),
        ("self_service/arm_denies", "allocation_denied"),
        ("self_service/arm_silent", "allocation_timed_out"),
        ("self_service/inventory_empty", "inventory_empty"),
        ("self_service/arm_without_correlation_id", "ok"),
    ],
)
@pytest.mark.parametrize("of_arm", ["", OTHER])
def test_the_echo_has_the_riders_trace_whatever_arm_says(
    name: str, reason: str, of_arm: str
) -> None:
    requests = "customer_binding"
    stage = told(name, lambda s: {requests: RIDER, "arm_allocate": of_arm}.get(s.event, ""))
    assert not stage.faults
    assert f'"reason":"{reason}"'.encode() in b"".join(m.payload for m in stage.play.outbox)
    found = echoes(stage.play, "/customer_binding")
    assert found and set(found) == {RIDER}
    commands = {m.trace for m in stage.play.outbox if m.topic.endswith("/allocate")}
    assert commands <= {RIDER}


def test_what_is_refused_unread_has_its_trace() -> None:
    play = Playground()
    play.signal(topics.SIGNALS_PLAN, "p-1", "identify_customer", b"no JSON", trace=RIDER)
    assert echoes(play, "/identify_customer") == [RIDER, RIDER]
    (letter,) = play.dead_letters
    assert decode_signal(letter.raw).trace == RIDER


def untraced(play: Playground, record: Produced) -> Any:
    """A record as it would be without its trace."""
    if record.topic in topics.SIGNALS:
        value = encode_signal(decode_signal(record.value)._replace(trace=""))
    elif record.topic == topics.OUTBOX:
        value = encode_outbox(decode_outbox(record.value)._replace(trace=""))
    elif record.topic in topics.STATES:
        value = play.engine.describe_state(record.topic, record.key, record.value)
    elif record.topic == topics.DEAD_LETTER:
        return None
    else:
        value = record.value
    return record._replace(value=value)


@pytest.mark.parametrize("folder", sorted({name.split("/")[0] for name in STORIES.names}))
def test_nothing_else_depends_on_traces(folder: str) -> None:
    for name in (name for name in STORIES.names if name.startswith(f"{folder}/")):
        plain = told(name, lambda s: "").play
        traced = told(name, lambda s: RIDER).play
        assert [untraced(plain, r) for r in plain.produced] == [
            untraced(traced, r) for r in traced.produced
        ], name
        spoken = (*topics.SIGNALS, topics.OUTBOX)
        assert not any(r.value.startswith(b"2") for r in plain.produced if r.topic in spoken)
