"""Frames: the layout of record values, one tab-separated header line, then the body's bytes.

A header can be read with any console consumer, and the body is kept byte for byte, whatever it
is. The first field is the layout's version. No field may hold a control character.

========== ====================================================================
signal     ``1 event received_ms correlation source\\n payload``
outbox     ``1 kind qos retain expiry_s correlation topic\\n payload``
dead letter ``1 reason source_topic partition offset received_ms detail\\n raw``
========== ====================================================================

A signal or an outbox message that has a trace carries it as one more field, and is of version 2.
"""

from enum import StrEnum
from typing import Final, NamedTuple

from bss_stream.errors import FrameError, NewerVersionError

VERSION: Final = b"2"
"""The newest."""
UNTRACED: Final = b"1"
ENGINE: Final = "engine"
REPLAY: Final = "replay:"


class OutboxKind(StrEnum):
    """What a message from the engine is: its MQTT 5 properties follow from it."""

    ECHO = "echo"
    CMD = "cmd"
    EMIT = "emit"


class Signal(NamedTuple):
    """One external event on its way to an entity."""

    event: str
    received_ms: int
    correlation: str
    """The MQTT 5 correlation data as text, empty if there was none (or it was no clean text)."""
    source: str
    """The MQTT topic it came in on, with REPLAY before it when an operator has brought a dead
    letter once more; or ENGINE when another entity sent it."""
    payload: bytes
    trace: str = ""
    """The W3C traceparent that came with it, empty if there was none: only carried along."""


class OutboxMessage(NamedTuple):
    """One MQTT message that the engine wants published."""

    kind: OutboxKind
    qos: int
    retain: bool
    expiry_s: int
    """MQTT 5 message expiry in seconds, 0 for none."""
    correlation: str
    topic: str
    payload: bytes
    trace: str = ""
    """That of the signal that it follows from."""


class DeadLetter(NamedTuple):
    """A record that could not be processed."""

    reason: str
    source_topic: str
    """A topic of the log, or the MQTT topic when the bridge refused it (partition, offset -1); of
    the record of a replay, the dead-letter topic."""
    partition: int
    offset: int
    received_ms: int
    detail: str
    raw: bytes


def _clean(text: str) -> bytes:
    if text.isprintable():
        return text.encode("utf-8", "replace")
    return "".join(c if c.isprintable() else "\ufffd" for c in text).encode("utf-8", "replace")


def _header(*fields: str, trace: str = "") -> bytes:
    if trace:
        return b"\t".join((VERSION, *map(_clean, (*fields, trace)))) + b"\n"
    return b"\t".join((UNTRACED, *map(_clean, fields))) + b"\n"


def encode_signal(signal: Signal) -> bytes:
    """The record value of a signal."""
    head = _header(
        signal.event,
        str(signal.received_ms),
        signal.correlation,
        signal.source,
        trace=signal.trace,
    )
    return head + signal.payload


def mqtt_topic(signal: Signal) -> str:
    """The MQTT topic that a signal first came in on, empty if an entity sent it."""
    return "" if signal.source == ENGINE else signal.source.removeprefix(REPLAY)


def encode_outbox(message: OutboxMessage) -> bytes:
    """The record value of an outbox message."""
    head = _header(
        message.kind,
        str(message.qos),
        "1" if message.retain else "0",
        str(message.expiry_s),
        message.correlation,
        message.topic,
        trace=message.trace,
    )
    return head + message.payload


def encode_dead_letter(letter: DeadLetter) -> bytes:
    """The record value of a dead letter."""
    head = _header(
        letter.reason,
        letter.source_topic,
        str(letter.partition),
        str(letter.offset),
        str(letter.received_ms),
        letter.detail,
    )
    return head + letter.raw


def _split(
    value: bytes, fields: int, frame: str, newest: bytes = UNTRACED
) -> tuple[list[str], bytes]:
    """The fields behind the version, of which a traced frame has one more, and the body."""
    head, newline, body = value.partition(b"\n")
    parts = head.split(b"\t")
    version = parts[0]
    if version == UNTRACED:
        wanted = fields + 1
    elif version == newest:
        wanted = fields + 2
    elif version.isdigit() and int(version) > int(newest):
        raise NewerVersionError(f"{frame} frame", int(version), int(newest))
    else:
        wanted = 0
    if not newline or len(parts) != wanted:
        raise FrameError(
            f"{frame} frame starts {head[:80]!r}: expected version 1 and {fields} fields"
        )
    return [part.decode("utf-8", "replace") for part in parts[1:]], body


def decode_signal(value: bytes) -> Signal:
    """The signal in a record value. Raises FrameError, NewerVersionError."""
    parts, payload = _split(value, 4, "signal", VERSION)
    event, received_ms, correlation, source, *trace = parts
    return Signal(event, _int(received_ms), correlation, source, payload, *trace)


def decode_outbox(value: bytes) -> OutboxMessage:
    """The outbox message in a record value. Raises FrameError, NewerVersionError."""
    parts, payload = _split(value, 6, "outbox", VERSION)
    kind, qos, retain, expiry_s, correlation, topic, *trace = parts
    try:
        known = OutboxKind(kind)
    except ValueError as error:
        raise FrameError(f"outbox frame has kind {kind!r}: expected echo, cmd or emit") from error
    return OutboxMessage(
        known, _int(qos), retain == "1", _int(expiry_s), correlation, topic, payload, *trace
    )


def decode_dead_letter(value: bytes) -> DeadLetter:
    """The dead letter in a record value. Raises FrameError, NewerVersionError."""
    (reason, topic, partition, offset, received_ms, detail), raw = _split(value, 6, "dead letter")
    return DeadLetter(reason, topic, _int(partition), _int(offset), _int(received_ms), detail, raw)


def _int(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise FrameError(f"frame has {text!r} where a whole number belongs") from error
