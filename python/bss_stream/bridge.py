"""The bridge: MQTT messages into the log, each acknowledged only once the log has it.

It routes and nothing else: whether a payload makes sense is the engine's business. What cannot be
routed becomes a dead letter, and is acknowledged like everything that the log has.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from bss_stream import topics
from bss_stream._engine import pack, partition_for
from bss_stream.clock import epoch_ms
from bss_stream.counters import (
    Distribution,
    RoleCounters,
    seconds,
    sizes,
    unbalanced,
)
from bss_stream.errors import LogAccessError, LogError
from bss_stream.frames import DeadLetter, encode_dead_letter
from bss_stream.log.protocol import Appender, Chunk, Log
from bss_stream.mqtt.client import MqttClient
from bss_stream.mqtt.messages import MqttSettings, Received
from bss_stream.stopping import done_unless_stopped, pause
from bss_stream.topic_table import TopicTable
from bss_stream.tracing import OFF, Spans, Tracing, traceparent

__all__ = ["Bridge", "BridgeCounters", "BridgeSettings"]

logger = logging.getLogger(__name__)

PAYLOAD_BYTES_MAX: Final = 1024 * 1024 - 16 * 1024
"""What a record of the log carries, with room for its header."""

RAW_BYTES_MAX: Final = 64 * 1024
"""How much of a payload that is too large goes into its dead letter."""

TOPIC_SHOWN_MAX: Final = 1_024
"""Characters of a topic that is not ours, in a dead letter: MQTT allows 65,535 bytes."""

BACKOFF_MIN_S: Final = 0.1
BACKOFF_MAX_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeSettings:
    """How a bridge works."""

    linger_s: float = 0.005
    """How long a batch waits for more messages."""
    batch_records_max: int = 1_000
    batch_bytes_max: int = 1024 * 1024
    shared_group: str | None = None
    """Bridges of one group share the messages. Not with the embedded broker, which it crashes."""
    connect_patience_s: float = 30.0


@dataclass(slots=True)
class BridgeCounters(RoleCounters):
    """What a bridge has done since it was made."""

    received: int = 0
    in_hand: int = 0
    """Received, and not in the log yet: a bridge that stops with some gets them again."""
    appended: int = 0
    """Signals that the log has."""
    refused: Counter[str] = field(default_factory=Counter)
    """Dead letters that the log has, by reason."""
    acknowledged: int = 0
    batches: int = 0
    append_failures: int = 0
    append_s: Distribution = field(default_factory=seconds)
    """From a message's receipt until the log has it: the oldest of a batch speaks for it."""
    batch_messages: Distribution = field(default_factory=sizes)

    def balance(self) -> list[str]:
        """Received is appended, refused or in hand."""
        parts = {
            "appended": self.appended,
            "refused": self.refused.total(),
            "in_hand": self.in_hand,
        }
        return unbalanced("received", self.received, parts)


class Bridge:
    """One MQTT client and one appender. `run` until `stop`.

    Order is kept: a batch is appended before the next one is looked at, and what failed is tried
    again before anything else. Meanwhile the client's inbox fills, and then nothing is read.
    """

    def __init__(
        self,
        log: Log,
        mqtt: MqttSettings,
        table: TopicTable,
        settings: BridgeSettings,
        *,
        clock_ms: Callable[[], int] = epoch_ms,
        tracing: Tracing = OFF,
    ) -> None:
        """For nothing to be lost, `mqtt` names a client id that stays, and a session expiry."""
        self.counters = BridgeCounters()
        self.client = MqttClient(mqtt)
        self.ready = asyncio.Event()
        """Set once the broker has the subscriptions."""
        self._log = log
        self._table = table
        self._settings = settings
        self._clock_ms = clock_ms
        self._tracing = tracing
        self._is_log_away = False
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Read nothing more, and have `run` end once what has been read is appended.

        While the log fails, `run` ends without it: unacknowledged, it comes again.
        """
        self._stopping.set()
        self.client.stop_intake()

    def missing(self) -> list[str]:
        """What it waits for before it can take messages."""
        found = []
        if not self.client.connected:
            found.append("a connection to the broker")
        elif not self.ready.is_set():
            found.append("subscriptions")
        if self._is_log_away:
            found.append("a log that takes signals")
        return found

    async def run(self) -> None:
        """Append what comes until stopped. Raises MqttError when the client fails for good."""
        appender = await self._log.appender()
        try:
            connecting = self.client.connect(patience_s=self._settings.connect_patience_s)
            if await done_unless_stopped(connecting, self._stopping):
                await self._work(appender)
        finally:
            try:
                await self.client.close()
            finally:
                await appender.close()

    async def _work(self, appender: Appender) -> None:
        # Side by side: in a session that was kept, rumqttd answers a SUBSCRIBE only once some of
        # the messages that it has sent are acknowledged.
        subscribing = asyncio.create_task(self._subscribe())
        intake = asyncio.create_task(self._intake(appender))
        try:
            await asyncio.wait((subscribing, intake), return_when=asyncio.FIRST_COMPLETED)
            if subscribing.done():
                await subscribing
            await intake
        finally:
            subscribing.cancel()
            intake.cancel()
            await asyncio.wait((subscribing, intake))

    async def _subscribe(self) -> None:
        group = self._settings.shared_group
        await self.client.subscribe(*self._table.subscriptions(group))
        self.ready.set()

    async def _intake(self, appender: Appender) -> None:
        settings, loop = self._settings, asyncio.get_running_loop()
        async for batch in self.client.batches(
            settings.batch_records_max,
            bytes_max=settings.batch_bytes_max,
            linger_s=settings.linger_s,
        ):
            self.counters.received += len(batch)
            self.counters.in_hand = len(batch)
            refused = await self._append(appender, batch)
            if refused is None:
                return
            self.counters.batches += 1
            self.counters.batch_messages.observe(len(batch))
            self.counters.append_s.observe(loop.time() - batch[0].received_s, len(batch))
            self.counters.in_hand = 0
            self.counters.appended += len(batch) - refused.total()
            self.counters.refused.update(refused)
            self.counters.acknowledged += self.client.ack(batch)

    async def _append(self, appender: Appender, batch: Sequence[Received]) -> Counter[str] | None:
        """Append, as often as it takes; what was refused, None when stopped before it worked.

        Each attempt has a time of receipt of its own: timers that came due while the log hung have
        fired, and a record must not claim to have come in before them.
        """
        pause_s = BACKOFF_MIN_S
        spans = self._tracing.spans("bss.bridge.append")
        traces = [
            self._trace(spans, message) if message.user_properties else None for message in batch
        ]
        while True:
            refused: Counter[str] = Counter()
            try:
                await appender.append(self._chunks(batch, traces, refused))
                self._is_log_away = False
                spans.end()
                return refused
            except LogAccessError as error:
                spans.end(error)
                raise
            except LogError as error:
                self._is_log_away = True
                self.counters.append_failures += 1
                logger.warning(
                    "the log took no signals, trying again in %.1f s: %s", pause_s, error
                )
            if self._stopping.is_set():
                logger.warning("stopped with messages that the log has not taken")
                spans.end(LogError("stopped"))
                return None
            await pause(pause_s, self._stopping)
            pause_s = min(pause_s * 2, BACKOFF_MAX_S)

    def _trace(self, spans: Spans, message: Received) -> str | None:
        trace = traceparent(message.user_properties)
        if trace is None or not self._tracing.is_on:
            return trace
        return spans.begin(trace, {"messaging.destination.name": message.topic[:TOPIC_SHOWN_MAX]})

    def _chunks(
        self, batch: Sequence[Received], traces: Sequence[str | None], refused: Counter[str]
    ) -> list[Chunk]:
        """The batch's records, one chunk for each partition concerned, in the order of arrival."""
        now_ms = self._clock_ms()
        partitions = self._log.partitions
        chunks, unroutable = self._table.pack(
            [
                (message.topic, message.payload, message.correlation, trace)
                for message, trace in zip(batch, traces, strict=True)
            ],
            partitions=partitions,
            received_ms=now_ms,
            payload_bytes_max=PAYLOAD_BYTES_MAX,
        )
        letters: dict[int, list[tuple[bytes, bytes | None]]] = {}
        for position, reason, key in unroutable:
            message = batch[position]
            refused[reason] += 1
            record = _dead_letter(message, now_ms, reason, _detail(message, reason, key))
            letters.setdefault(partition_for(record[0], partitions), []).append(record)
        return chunks + [
            Chunk(topics.DEAD_LETTER, partition, len(records), pack(records))
            for partition, records in letters.items()
        ]


def _detail(message: Received, reason: str, key: str | None) -> str:
    match reason:
        case "unknown_topic":
            return "no row of the topic table matches"
        case "payload_too_large":
            return f"payload has {len(message.payload)} bytes: at most {PAYLOAD_BYTES_MAX}"
        case _:
            what = "key is missing" if key is None else f"key is {key[:80]!r}"
            return f"{what}: expected 1 to 64 of A-Z a-z 0-9 . _ : @ -"


def _dead_letter(
    message: Received, now_ms: int, reason: str, detail: str
) -> tuple[bytes, bytes | None]:
    source, raw = message.topic[:TOPIC_SHOWN_MAX], message.payload
    if len(raw) > PAYLOAD_BYTES_MAX:
        raw = raw[:RAW_BYTES_MAX]
    letter = DeadLetter(reason, source, -1, -1, now_ms, detail, raw)
    return source.encode(), encode_dead_letter(letter)
