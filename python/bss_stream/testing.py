"""Plays signals through the engine in one process, without servers: for tests and for trying out.

    with Playground() as play:
        play.mqtt("emit/odo/subscription/plan/p-1/sync", payload)
        play.echoes

Records that entities send each other are delivered at once, partition by partition; time stands
still unless `advance` moves it, and timers fire as it does.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from types import TracebackType
from typing import Any, NamedTuple, Self

import orjson

from bss_stream import _engine, frames, topics
from bss_stream.audit import AuditReport, audit
from bss_stream.coverage import Coverage
from bss_stream.frames import DeadLetter, OutboxKind, OutboxMessage, Signal
from bss_stream.setup import compile_setup, load_setup
from bss_stream.sink.entry import LEDGER_NAMES, EntryRow, decode_row
from bss_stream.topic_table import CLEAN_ID, TopicTable, load

START_MS = 1_795_500_000_000
"""2026-11-24T06:00:00Z: where a playground's clock starts."""


class Produced(NamedTuple):
    """One record that the engine has given for the log."""

    topic: str
    partition: int
    key: bytes
    value: bytes


class Consumed(NamedTuple):
    """One record of a signals topic that the engine has been given."""

    topic: str
    partition: int
    offset: int
    key: bytes
    value: bytes
    now_ms: int


class Playground:
    """All shards of one engine with a log in memory and a clock that is set by hand."""

    def __init__(
        self,
        setup: bytes | None = None,
        *,
        partitions: int = 4,
        topic_table: TopicTable | None = None,
    ) -> None:
        self.setup = compile_setup(load_setup()) if setup is None else setup
        self.topic_table = load() if topic_table is None else topic_table
        self.partitions = partitions
        self.now_ms = START_MS
        self.engine = self._opened_engine()
        self.consumed: list[Consumed] = []
        """Every record of the signals topics, in the order in which the engine was given them."""
        self.produced: list[Produced] = []
        """Every record, in order: what the lists below hold is read from these bytes."""
        self.outbox: list[OutboxMessage] = []
        self.dead_letters: list[DeadLetter] = []
        self.ledgers: dict[str, list[dict[str, Any]]] = {topic: [] for topic in topics.LEDGERS}
        self.ledger_bytes: list[bytes] = []
        self.states: dict[tuple[str, bytes], bytes] = {}
        self.outcomes: Counter[str] = Counter()
        self._offsets: Counter[tuple[str, int]] = Counter()
        self._counted = Coverage()
        """What engines that were lost had counted, and which topics were used."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for partition in range(self.partitions):
            self.engine.drop_shard(partition)

    def mqtt(
        self, topic: str, payload: bytes | Mapping[str, Any], *, correlation: str = ""
    ) -> None:
        """Bring one MQTT message by the topic table, as the bridge would, and all that follows.

        `correlation` is its MQTT 5 correlation data. Raises ValueError for a topic that the
        bridge would not pass on: it is in no row of the table, or its key is no clean id.
        """
        body = payload if isinstance(payload, bytes) else orjson.dumps(payload)
        routed = self.topic_table.route(topic, body)
        if routed is None:
            raise ValueError(f"topic {topic!r}: no row of the topic table matches")
        event, log_topic, key, filter = routed
        if key is None or not CLEAN_ID.fullmatch(key):
            raise ValueError(f"topic {topic!r}: the key is {key!r}, expected a clean id")
        self._counted.topics[filter] += 1
        self.signal(log_topic, key, event, body, source=topic, correlation=correlation)

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
        """Bring one signal, and all that follows from it, to the entities concerned."""
        value = frames.encode_signal(
            Signal(event, self.now_ms, correlation, source, payload, trace)
        )
        self.record(topic, key.encode(), value)

    def record(self, topic: str, key: bytes, value: bytes) -> None:
        """Bring one record of a signals topic as the log would, and all that follows from it."""
        partition = _engine.partition_for(key, self.partitions)
        self._deliver([(topic, partition, [(key, value)])])

    def advance(self, ms: int) -> None:
        """Let time pass; every timer due fires."""
        self.now_ms += ms
        self._take(self.engine.process([], self.now_ms, tick=range(self.partitions)))

    def restart(self) -> None:
        """Lose the engine and restore every shard from the changelog."""
        self._counted = self.coverage
        self.engine = self._opened_engine()
        for (topic, key), value in self.states.items():
            partition = _engine.partition_for(key, self.partitions)
            self.engine.restore(partition, topic, _engine.pack([(key, value)]))

    def state(self, topic: str, key: str) -> dict[str, Any]:
        """An entity's state. Raises KeyError if there is none."""
        value = self.states[topic, key.encode()]
        described: dict[str, Any] = orjson.loads(
            self.engine.describe_state(topic, key.encode(), value)
        )
        return described

    def plan(self, plan_id: str) -> dict[str, Any]:
        """A plan's state. Raises KeyError if there is none."""
        return self.state(topics.STATE_PLAN, plan_id)

    def station(self, location_id: str) -> dict[str, Any]:
        """A station's state. Raises KeyError if nothing was heard of it yet."""
        return self.state(topics.STATE_STATION, location_id)

    def asset(self, asset_id: str) -> dict[str, Any]:
        """A battery's state. Raises KeyError if nothing was heard of it yet."""
        return self.state(topics.STATE_ASSET, asset_id)

    @property
    def coverage(self) -> Coverage:
        """What has been come through so far, before a restart too."""
        counted = Coverage()
        counted.add(self._counted)
        for partition in range(self.partitions):
            counted.add_shard(self.engine.coverage(partition))
        return counted

    @property
    def plan_ids(self) -> list[str]:
        """Every plan that there is."""
        return [key.decode() for topic, key in self.states if topic == topics.STATE_PLAN]

    @property
    def echoes(self) -> list[dict[str, Any]]:
        """The bodies of every echo, in order."""
        return [orjson.loads(m.payload) for m in self.outbox if m.kind is OutboxKind.ECHO]

    def entries(self) -> Iterator[dict[str, Any]]:
        """The entries of both ledgers, by plan and sequence."""
        both = [entry for ledger in self.ledgers.values() for entry in ledger]
        return iter(sorted(both, key=lambda entry: (entry["plan_id"], entry["seq"])))

    def audit(self) -> AuditReport:
        """Recompute every account from the ledgers and compare it with the live states."""
        states = [(plan_id, self.plan(plan_id)) for plan_id in self.plan_ids]
        return audit(_Ledgers(self.produced), states, drained=True)

    def _opened_engine(self) -> _engine.Engine:
        engine = _engine.Engine(self.setup, partitions=self.partitions)
        for partition in range(self.partitions):
            engine.open_shard(partition)
        return engine

    def _deliver(self, batches: list[tuple[str, int, list[tuple[bytes, bytes]]]]) -> None:
        inputs = []
        for topic, partition, records in batches:
            first = self._offsets[topic, partition]
            self._offsets[topic, partition] += len(records)
            offsets = range(first, first + len(records))
            self.consumed += (
                Consumed(topic, partition, offset, *record, self.now_ms)
                for offset, record in zip(offsets, records, strict=True)
            )
            inputs.append((topic, partition, offsets, _engine.pack(records)))
        self._take(self.engine.process(inputs, self.now_ms))

    def _take(self, output: _engine.Output) -> None:
        onward = []
        self.outcomes.update(output.outcomes)
        for chunk in output.chunks:
            records = [(key, value or b"") for key, value in _engine.unpack(chunk.data)]
            self.produced += (Produced(chunk.topic, chunk.partition, *one) for one in records)
            if chunk.topic in topics.SIGNALS:
                onward.append((chunk.topic, chunk.partition, records))
            else:
                self._keep(chunk.topic, records)
        if onward:
            self._deliver(onward)

    def _keep(self, topic: str, records: list[tuple[bytes, bytes]]) -> None:
        for key, value in records:
            if topic in topics.STATES:
                self.states[topic, key] = value
            elif topic in topics.LEDGERS:
                self.ledgers[topic].append(orjson.loads(value))
                self.ledger_bytes.append(value)
            elif topic == topics.OUTBOX:
                self.outbox.append(frames.decode_outbox(value))
            else:
                self.dead_letters.append(frames.decode_dead_letter(value))


class _Ledgers:
    """A playground's ledgers as the audit reads a database's."""

    def __init__(self, produced: list[Produced]) -> None:
        rows = [
            decode_row(LEDGER_NAMES[record.topic], record.value)
            for record in produced
            if record.topic in topics.LEDGERS
        ]
        self._rows = sorted(rows, key=lambda row: (row.plan_id.encode(), row.seq))

    def snapshot(self) -> nullcontext[Self]:
        return nullcontext(self)

    def entries(self) -> Iterator[EntryRow]:
        return iter(self._rows)

    def rejects(self) -> dict[str, int]:
        return {}
