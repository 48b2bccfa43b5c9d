"""The publisher: the engine's outbox onto MQTT, each offset committed once the broker has it all.

At least once: after a crash the messages since the last commit go out again, with the same
correlation data, which makes a repeat harmless. Within a partition, so within a key, order is kept.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Final, NamedTuple

import msgspec

from bss_stream import topics
from bss_stream._engine import pack, partition_for, unpack
from bss_stream.clock import epoch_ms
from bss_stream.counters import (
    Distribution,
    RoleCounters,
    seconds,
    sizes,
    unbalanced,
)
from bss_stream.echo import ECHO_EXPIRY_S, echo_properties
from bss_stream.errors import FrameError
from bss_stream.frames import (
    DeadLetter,
    OutboxKind,
    OutboxMessage,
    decode_outbox,
    encode_dead_letter,
)
from bss_stream.log.protocol import Appender, Chunk, Consumer, Fetched, Log, TopicPartition
from bss_stream.mqtt.client import MqttClient
from bss_stream.mqtt.messages import Message, MqttSettings, Refusal
from bss_stream.stopping import done_unless_stopped, unless_stopped, work_and_rejoin
from bss_stream.tracing import OFF, Spans, Tracing, properties

__all__ = ["Publisher", "PublisherCounters", "PublisherSettings"]

logger = logging.getLogger(__name__)

POLL_S: Final = 0.2
STOP_PATIENCE_S: Final = 5.0
"""How long a publisher that was told to stop waits for a broker that does not answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublisherSettings:
    """How a publisher works."""

    group: str
    batch_records_max: int = 1_000
    connect_patience_s: float = 30.0


@dataclass(slots=True)
class PublisherCounters(RoleCounters):
    """What a publisher has done since it was made."""

    owed: int = 0
    """Records of the outbox that are settled; those that come again after a crash count again."""
    published: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    """Dead letters, by reason."""
    batches: int = 0
    commits: int = 0
    rejoined: int = 0
    publish_s: Distribution = field(default_factory=seconds)
    """From a batch's poll until the broker has acknowledged all of it."""
    echo_age_s: Distribution = field(default_factory=seconds)
    """From the receipt of what an echo answers until the broker has acknowledged the echo: the
    oldest of a chunk speaks for it."""
    batch_messages: Distribution = field(default_factory=sizes)

    def balance(self) -> list[str]:
        """Owed is published or refused."""
        parts = {"published": self.published, "refused": self.refused.total()}
        return unbalanced("owed", self.owed, parts)


class _Record(NamedTuple):
    """A record of the outbox and where it stands."""

    partition: int
    offset: int
    key: bytes
    value: bytes


def to_message(frame: OutboxMessage) -> Message:
    """The MQTT message of an outbox frame, with the properties of its kind."""
    echo = frame.kind is OutboxKind.ECHO
    return Message(
        topic=frame.topic,
        payload=frame.payload,
        qos=frame.qos,
        retain=frame.retain,
        correlation=frame.correlation.encode() or None,
        expiry_s=frame.expiry_s or (ECHO_EXPIRY_S if echo else None),
        user_properties=echo_properties(frame.trace) if echo else properties(frame.trace),
    )


class _Stamped(msgspec.Struct):
    """What an echo says of the time at which the log took in what it answers."""

    timestamp: datetime


_stamped: Final = msgspec.json.Decoder(_Stamped)


def _echo_ms(frame: OutboxMessage) -> int | None:
    """When the log took in what an echo answers, in epoch ms; None if it does not say."""
    try:
        return round(_stamped.decode(frame.payload).timestamp.timestamp() * 1_000)
    except (msgspec.DecodeError, OverflowError):
        return None


class Publisher:
    """A member of the publishers' group. `run` until `stop`; a RebalanceListener to its consumer.

    What the broker refuses for good becomes a dead letter, so that it does not hold up the rest.
    """

    def __init__(
        self,
        log: Log,
        mqtt: MqttSettings,
        settings: PublisherSettings,
        *,
        clock_ms: Callable[[], int] = epoch_ms,
        tracing: Tracing = OFF,
    ) -> None:
        self.counters = PublisherCounters()
        self.client = MqttClient(mqtt)
        self._log = log
        self._settings = settings
        self._clock_ms = clock_ms
        self._tracing = tracing
        # Held while a batch is published: a log may tell of a rebalance at any moment.
        self._publishing = asyncio.Lock()
        self._stopping = asyncio.Event()
        self._drain = False
        self._consumer: Consumer | None = None
        self._offsets: dict[TopicPartition, int] = {}
        self._committer: asyncio.Task[None] | None = None

    def missing(self) -> list[str]:
        """What it waits for before it can publish."""
        found = []
        if not self.client.connected:
            found.append("a connection to the broker")
        if self._consumer is None:
            found.append("membership of its group")
        return found

    async def lag(self) -> dict[TopicPartition, int]:
        """Records of the outbox that it has not read yet. Raises LogError."""
        return {} if self._consumer is None else await self._consumer.lag()

    def stop(self, *, drain: bool = False) -> None:
        """Have `run` end after the batch under way; with `drain`, after the backlog."""
        self._drain = drain
        self._stopping.set()

    async def run(self) -> None:
        """Publish until stopped; join the group anew, with growing pauses, after a LogError.

        Raises MqttError when the client fails for good, OffsetOutOfRangeError when the log has
        lost messages that were never published, NewerVersionError for what it cannot read yet.
        """
        appender = await self._log.appender()
        try:
            connecting = self.client.connect(patience_s=self._settings.connect_patience_s)
            if await done_unless_stopped(connecting, self._stopping):
                await work_and_rejoin(
                    "publisher",
                    partial(self._work, appender),
                    self._stopping,
                    progress=lambda: self.counters.batches,
                    on_rejoin=self._count_rejoin,
                )
        finally:
            try:
                await self.client.close()
            finally:
                await appender.close()

    def _count_rejoin(self) -> None:
        self.counters.rejoined += 1

    async def _work(self, appender: Appender) -> None:
        consumer = await self._log.consumer(self._settings.group, [topics.OUTBOX], self)
        self._consumer = consumer
        self._offsets.clear()
        try:
            while not await self._is_done(consumer):
                fetched = await consumer.poll(self._settings.batch_records_max, POLL_S)
                async with self._publishing:
                    owned = consumer.assignment()
                    mine = [one for one in fetched if _part(one) in owned]
                    if mine and not await self._publish(appender, mine):
                        return
                    self._commit_later(consumer)
        finally:
            try:
                await self._committed(consumer)
            finally:
                self._consumer = None
                await consumer.close()

    async def _is_done(self, consumer: Consumer) -> bool:
        if not self._stopping.is_set():
            return False
        if not self._drain:
            return True
        lag = await consumer.lag()
        # Nothing is known before the group has handed out the partitions.
        return bool(lag) and not any(lag.values())

    async def _publish(self, appender: Appender, fetched: Sequence[Fetched]) -> bool:
        """Publish a batch and note its offsets; False when stopped before the broker took it."""
        started_s = time.perf_counter()
        refused: list[tuple[_Record, str, str]] = []
        records: list[_Record] = []
        messages: list[Message] = []
        oldest: dict[int, OutboxMessage] = {}
        spans = self._tracing.spans("bss.publisher.publish")
        for record in _records(fetched):
            try:
                frame = decode_outbox(record.value)
            except FrameError as error:
                refused.append((record, "bad_frame", str(error)))
                continue
            if record.partition not in oldest and frame.kind is OutboxKind.ECHO:
                oldest[record.partition] = frame
            if frame.trace:
                frame = frame._replace(trace=self._trace(spans, record, frame))
            messages.append(to_message(frame))
            records.append(record)
        refusals = await self._sent(messages, spans)
        if refusals is None:
            logger.warning("stopped with messages that the broker has not taken")
            return False
        self._measure(fetched, oldest, started_s)
        refused += [(records[r.position], "publish_refused", r.reason) for r in refusals]
        if refused:
            await appender.append([self._dead_letter(*one) for one in refused])
        self.counters.owed += sum(len(one.offsets) for one in fetched)
        self.counters.refused.update(reason for _, reason, _ in refused)
        self.counters.published += len(messages) - len(refusals)
        self.counters.batches += 1
        self._offsets.update({_part(one): one.next_offset for one in fetched})
        return True

    def _trace(self, spans: Spans, record: _Record, frame: OutboxMessage) -> str:
        attributes = {
            "bss.correlation_id": frame.correlation,
            "messaging.destination.name": frame.topic,
            "messaging.kafka.offset": record.offset,
        }
        return spans.begin(frame.trace, attributes)

    async def _sent(self, messages: Sequence[Message], spans: Spans) -> list[Refusal] | None:
        try:
            refusals = await unless_stopped(
                self.client.publish(messages), self._stopping, patience_s=STOP_PATIENCE_S
            )
        except BaseException as error:
            spans.end(error)
            raise
        spans.end()
        return refusals

    def _measure(
        self, fetched: Sequence[Fetched], oldest: Mapping[int, OutboxMessage], started_s: float
    ) -> None:
        counters, now_ms = self.counters, self._clock_ms()
        counters.publish_s.observe(time.perf_counter() - started_s)
        counters.batch_messages.observe(sum(len(one.offsets) for one in fetched))
        for one in fetched:
            first = oldest.get(one.partition)
            taken_in_ms = None if first is None else _echo_ms(first)
            if taken_in_ms is not None:
                counters.echo_age_s.observe((now_ms - taken_in_ms) / 1_000, len(one.offsets))

    def _dead_letter(self, record: _Record, reason: str, detail: str) -> Chunk:
        letter = DeadLetter(
            reason,
            topics.OUTBOX,
            record.partition,
            record.offset,
            self._clock_ms(),
            detail,
            record.value,
        )
        partition = partition_for(record.key, self._log.partitions)
        data = pack([(record.key, encode_dead_letter(letter))])
        return Chunk(topics.DEAD_LETTER, partition, 1, data)

    def _commit_later(self, consumer: Consumer) -> None:
        """Commit what is noted, beside the next batch: a commit may wait for a disk."""
        if self._committer is not None and self._committer.done():
            committer, self._committer = self._committer, None
            committer.result()
        if self._committer is None and self._offsets:
            self._committer = asyncio.create_task(self._commit(consumer), name="outbox-offsets")

    async def _commit(self, consumer: Consumer) -> None:
        while self._offsets:
            offsets, self._offsets = self._offsets, {}
            await consumer.commit(offsets)
            self.counters.commits += 1

    async def _committed(self, consumer: Consumer) -> None:
        """Commit everything noted."""
        committer, self._committer = self._committer, None
        if committer is not None:
            await committer
        await self._commit(consumer)

    async def on_revoked(self, partitions: Sequence[TopicPartition]) -> None:
        """Finish and commit the batch under way, so that the next owner does not repeat it."""
        async with self._publishing:
            if self._consumer is not None:
                await self._committed(self._consumer)

    async def on_assigned(self, partitions: Sequence[TopicPartition]) -> None:
        """Nothing to prepare: reading starts where the group has committed."""


def _part(fetched: Fetched) -> TopicPartition:
    return TopicPartition(fetched.topic, fetched.partition)


def _records(fetched: Sequence[Fetched]) -> list[_Record]:
    return [
        _Record(one.partition, offset, key, value or b"")
        for one in fetched
        for offset, (key, value) in zip(one.offsets, unpack(one.data), strict=True)
    ]
