"""Dead letters where they stand in the log, with what can be told of the signals in them."""

import re
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from bss_stream import topics
from bss_stream._engine import unpack
from bss_stream.errors import FrameError, LogError
from bss_stream.frames import DeadLetter, Signal, decode_dead_letter, decode_signal, mqtt_topic
from bss_stream.log.protocol import ReadableLog

REPLAYED: Final = "replayed"
"""The reason of the record that a replay leaves behind its letter, in the letter's partition."""

CORRELATION_SHOWN_MAX: Final = 128

Place = tuple[int, int]
"""Partition and offset in the dead-letter topic."""


class _Payload(msgspec.Struct):
    correlation_id: str = ""


_payload: Final = msgspec.json.Decoder(_Payload)


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """One dead letter."""

    partition: int
    offset: int
    key: bytes
    body: DeadLetter
    signal: Signal | None
    """What the engine was given; of a letter of the bridge, what can be made of the message.
    None if the record is no signal."""
    correlation_id: str
    """By what its sender knows it: the payload's correlation id, else MQTT's; empty without."""
    raw_bytes: int
    replays: int = 0

    @property
    def id(self) -> str:
        """What commands call it: partition and offset in the dead-letter topic."""
        return f"{self.partition}-{self.offset}"

    @property
    def place(self) -> Place:
        """Where it stands."""
        return self.partition, self.offset

    @property
    def is_from_bridge(self) -> bool:
        """Whether the bridge refused an MQTT message: then no record of the log holds it."""
        return self.body.partition < 0

    @property
    def mqtt_topic(self) -> str:
        """The MQTT topic that it came in on, empty if there was none."""
        if self.is_from_bridge:
            return self.body.source_topic
        return mqtt_topic(self.signal) if self.signal is not None else ""

    @property
    def entity(self) -> str:
        """The entity's id, or the MQTT topic of a letter of the bridge."""
        return self.key.decode("utf-8", "replace")

    def without_raw(self) -> "Letter":
        """All but the record's bytes, which may be a megabyte."""
        signal = self.signal and self.signal._replace(payload=b"")
        return replace(self, body=self.body._replace(raw=b""), signal=signal)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which letters are meant; what is not said takes all."""

    places: frozenset[Place] = frozenset()
    reasons: frozenset[str] = frozenset()
    since_ms: int | None = None
    until_ms: int | None = None
    entity: str | None = None
    topic: str | None = None
    """How the topic begins: that of the log, or the MQTT topic."""

    @property
    def says_nothing(self) -> bool:
        """Whether every letter is meant."""
        return self == Filter()

    def takes(self, letter: Letter) -> bool:
        """Whether a letter is meant. Records of replays are only by their id or reason."""
        body = letter.body
        named = body.reason in self.reasons or letter.place in self.places
        return (
            (not self.places or letter.place in self.places)
            and (not self.reasons or body.reason in self.reasons)
            and (body.reason != REPLAYED or named)
            and (self.since_ms is None or body.received_ms >= self.since_ms)
            and (self.until_ms is None or body.received_ms < self.until_ms)
            and (self.entity is None or self._is_of(letter, self.entity))
            and (self.topic is None or self._came_by(letter, self.topic))
        )

    @staticmethod
    def _is_of(letter: Letter, entity: str) -> bool:
        if letter.is_from_bridge:
            return entity in letter.body.source_topic.split("/")
        return letter.entity == entity

    @staticmethod
    def _came_by(letter: Letter, topic: str) -> bool:
        return letter.body.source_topic.startswith(topic) or letter.mqtt_topic.startswith(topic)


async def letters(log: ReadableLog, partition: int, wanted: Filter) -> AsyncIterator[Letter]:
    """The letters of one partition that a filter takes, oldest first. Raises LogError."""
    async for fetched in log.replay(topics.DEAD_LETTER, partition):
        for offset, (key, value) in zip(fetched.offsets, unpack(fetched.data), strict=True):
            letter = _letter(partition, offset, key, value or b"")
            if wanted.takes(letter):
                yield letter


async def replays(log: ReadableLog, partition: int) -> Counter[int]:
    """How often each letter of a partition has been replayed, by offset."""
    trail = Filter(reasons=frozenset((REPLAYED,)))
    return Counter([letter.body.offset async for letter in letters(log, partition, trail)])


def with_replays(letter: Letter, replayed: Counter[int]) -> Letter:
    """A letter that knows how often it has been replayed."""
    count = replayed.get(letter.offset, 0)
    return replace(letter, replays=count) if count else letter


def printable(raw: bytes) -> str | None:
    """A record's bytes as text if that is harmless to show, else None."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return None
    return text if all(part.isprintable() for part in re.split(r"[\n\t]", text)) else None


def _letter(partition: int, offset: int, key: bytes, value: bytes) -> Letter:
    try:
        body = decode_dead_letter(value)
    except FrameError as error:
        place = f"{topics.DEAD_LETTER}/{partition} offset {offset}"
        raise LogError(f"{place} is no dead letter: {error}") from error
    signal = _signal(body)
    return Letter(
        partition=partition,
        offset=offset,
        key=key,
        body=body,
        signal=signal,
        correlation_id="" if signal is None else correlation_id(signal),
        raw_bytes=len(body.raw),
    )


def correlation_id(signal: Signal) -> str:
    """By what the sender of a signal knows it."""
    try:
        found = _payload.decode(signal.payload).correlation_id
    except (ValueError, RecursionError):
        found = ""  # What is no JSON has at most the id that MQTT carried beside it.
    return (found or signal.correlation)[:CORRELATION_SHOWN_MAX]


def _signal(body: DeadLetter) -> Signal | None:
    if body.partition < 0:
        return Signal("", body.received_ms, "", body.source_topic, body.raw)
    if body.source_topic not in topics.SIGNALS:
        return None
    try:
        return decode_signal(body.raw)
    except FrameError:
        return None  # Shown as it is: the engine could not read it either.
