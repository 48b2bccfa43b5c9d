"""What must hold once the faults have stopped and the platform has come to rest."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from bss_stream import _engine, topics
from bss_stream.audit import audit
from bss_stream.frames import decode_dead_letter, decode_outbox, decode_signal
from bss_stream.log.protocol import TopicPartition
from bss_stream.testing import Produced
from tests.effects import check_effects
from tests.simulation.clients import Clients, wall_ms
from tests.simulation.log import Committed, Partition
from tests.undisturbed import Contents, LogRecord, check_contents

if TYPE_CHECKING:
    from tests.simulation.world import World


class Outcome(NamedTuple):
    """What a seed came to."""

    faults: list[str]
    """Invariants that do not hold: none for a seed that passes."""
    digest: str
    """Of all that could be seen from outside: equal for two runs of a seed."""
    injected: Counter[str]
    requests: int
    transactions: int
    steps: int
    simulated_s: float


class Rest:
    """Looks at a world that should have nothing left to do."""

    def __init__(self, world: World, clients: Clients) -> None:
        self._world = world
        self._clients = clients
        self._server = world.server

    def outcome(self, faults: list[str]) -> Outcome:
        """The run's result with these faults, and what keeps it from rest if anything does."""
        world = self._world
        faults += [
            f"unhandled: {c['message']}: {c.get('exception')!r}" for c in world.loop.unhandled
        ]
        if faults:
            unrest = self.unrest()
            faults += [unrest] if unrest else []
        return Outcome(
            faults,
            world.chance.digest,
            world.chance.faults,
            len(self._clients.accepted),
            len(self._server.journal),
            world.loop.steps,
            world.loop.time(),
        )

    # At rest.

    def unrest(self) -> str:
        """What is still under way; empty when nothing is."""
        world, clients = self._world, self._clients
        if clients.traffic.under_way:
            return f"{clients.traffic.under_way} requests without an echo"
        if clients.on_their_way:
            return f"{clients.on_their_way} messages on their way to the broker"
        if world.broker.pending:
            return f"{len(world.broker.pending)} messages that no role has acknowledged"
        for group, read in (("processors", topics.SIGNALS), ("publishers", (topics.OUTBOX,))):
            for place, part in self._parts(read):
                at = self._server.committed.get((group, place), 0)
                # A marker at the end need not have been passed.
                if part.offsets and at <= part.offsets[-1]:
                    return f"{group} are at {at} of {place}, which ends at {part.end}"
        missing = sum(len(part.offsets) for _, part in self._parts(topics.LEDGERS))
        if (rows := len(self._rows())) < missing:
            return f"the database has {rows} of {missing} entries"
        return self._under_way()

    def _under_way(self) -> str:
        engine = self._restored()
        now_ms = wall_ms()
        for partition in range(self._server.partitions):
            due_ms = engine.next_due_ms(partition)
            if due_ms is not None and due_ms <= now_ms:
                return f"shard {partition} has timers due {now_ms - due_ms} ms ago"
        for plan_id, state in self._states(engine, topics.STATE_PLAN):
            if state["session"] is not None:
                return f"plan {plan_id} has a session: {state['session']}"
            if any(service["held"] for service in state["services"]):
                return f"plan {plan_id} holds quota: {state['services']}"
        for location_id, state in self._states(engine, topics.STATE_STATION):
            if state["intents"] or any(stock["promised"] for stock in state["stock"]):
                return f"station {location_id} has promised a battery: {state}"
        return ""

    def _restored(self) -> _engine.Engine:
        engine = self._new_engine()
        for place, part in self._parts(topics.STATES):
            if part.records:
                engine.restore(place.partition, place.topic, _engine.pack(part.records))
        return engine

    def _new_engine(self) -> _engine.Engine:
        engine = _engine.Engine(self._world.setup, partitions=self._server.partitions)
        for partition in range(self._server.partitions):
            engine.open_shard(partition)
        return engine

    def _states(self, engine: _engine.Engine, topic: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for place, part in self._parts((topic,)):
            for key, value in dict(part.records).items():
                state = engine.describe_state(place.topic, key, value or b"")
                yield key.decode(), orjson.loads(state)

    def _parts(self, names: tuple[str, ...]) -> list[tuple[TopicPartition, Partition]]:
        return [(place, part) for place, part in self._server.parts.items() if place.topic in names]

    def _records(self, *names: str) -> list[LogRecord]:
        return [
            LogRecord(place.partition, offset, key, value or b"")
            for place, part in self._parts(names)
            for offset, (key, value) in zip(part.offsets, part.records, strict=True)
        ]

    def _contents(self) -> Contents:
        return {topic: self._records(topic) for topic in topics.ALL}

    def _rows(self) -> dict[str, str]:
        with self._world.ledgers.snapshot() as snapshot:
            return {row.entry_id: row.entry for row in snapshot.entries()}

    # What must hold.

    def faults(self) -> list[str]:
        """Every invariant that does not hold."""
        checks = (
            self._accepted_is_in_the_log,
            self._effects_exactly_once,
            self._answers_and_effects,
            self._published,
            self._copied,
            self._audited,
            self._nobody_gave_up,
        )
        found = []
        for check in checks:
            try:
                check()
            except AssertionError as error:
                found.append(f"{check.__name__.strip('_')}: {str(error)[:2000]}")
        return found

    def _accepted_is_in_the_log(self) -> None:
        """Whatever the broker has taken from a client is a signal or a dead letter.

        Or still with the broker: a message that a publisher repeats may be answered at any time.
        """
        has = {(message.topic, message.payload) for message in self._world.broker.pending}
        signals = (decode_signal(record.value) for record in self._records(*topics.SIGNALS))
        has |= {(signal.source, signal.payload) for signal in signals}
        letters = [decode_dead_letter(r.value) for r in self._records(topics.DEAD_LETTER)]
        has |= {(letter.source_topic, letter.raw) for letter in letters if letter.partition < 0}
        lost = [m for m in self._clients.accepted if (m.topic, m.payload) not in has]
        assert not lost, f"{len(lost)} messages are not in the log: {lost[:3]}"

    def _effects_exactly_once(self) -> None:
        """The transactions take each input once and in order, and give what one engine gives.

        That engine lives through the same transactions without a crash. When the clock fired timers
        is the transactions' word, for that is no record: it fires those that they have fired.
        """
        engine = self._new_engine()
        expected: list[Produced] = []
        position: dict[TopicPartition, int] = defaultdict(int)
        for entry in self._server.journal:
            if entry.offsets:
                expected += _produced(self._take(engine, entry, position))
            else:
                expected += self._fire(engine, entry)
        for place, part in self._parts(topics.SIGNALS):
            assert position[place] > (part.offsets[-1] if part.offsets else -1), (
                f"{place} is unread"
            )
        check_contents(self._contents(), expected)

    def _take(
        self, engine: _engine.Engine, entry: Committed, position: dict[TopicPartition, int]
    ) -> _engine.Output:
        inputs = []
        for place, end in sorted(entry.offsets.items()):
            offsets, records, _ = self._server.parts[place].read(position[place], 1 << 30)
            count = sum(offset < end for offset in offsets)
            assert end >= position[place], f"{place} goes back from {position[place]} to {end}"
            position[place] = end
            if count:
                inputs.append((*place, offsets[:count], _engine.pack(records[:count])))
        return engine.process(inputs, 0)

    def _fire(self, engine: _engine.Engine, entry: Committed) -> list[Produced]:
        shard = int(entry.transactional_id.rpartition("-")[2])
        wanted = Counter(_lasting(_unpacked(entry)))
        fired: list[Produced] = []
        while Counter(_lasting(fired)) != wanted:
            due_ms = engine.next_due_ms(shard)
            assert due_ms is not None, f"shard {shard} has fired timers that there were not"
            fired += _produced(engine.process([], due_ms, tick=[shard]))
            assert len(fired) <= 10_000, f"shard {shard} has not fired what was due"
        return fired

    def _answers_and_effects(self) -> None:
        """Each request answered, all its answers alike, each effect once, nothing under way."""
        partitions = self._server.partitions
        check_effects(self._contents(), self._world.setup, partitions=partitions)

    def _published(self) -> None:
        """Every message of the outbox was published, and nothing else was."""
        outbox = [decode_outbox(record.value) for record in self._records(topics.OUTBOX)]
        should = {(message.topic, message.payload) for message in outbox}
        has = self._world.broker.published.keys()
        assert should == has, (
            f"not published {list(should - has)[:3]}, made up {list(has - should)[:3]}"
        )

    def _copied(self) -> None:
        """The database has the ledger topics' entries, byte for byte."""
        entries = [record.value.decode() for record in self._records(*topics.LEDGERS)]
        should = {orjson.loads(entry)["entry_id"]: entry for entry in entries}
        has = self._rows()
        assert should == has, f"{len(should)} entries in the log, {len(has)} in the database"

    def _audited(self) -> None:
        """The accounts recomputed from the database are the states of the changelog."""
        engine = self._new_engine()
        report = audit(self._world.ledgers, self._states(engine, topics.STATE_PLAN), drained=True)
        assert report.ok, f"{report.rejects} {report.differences[:3]}"

    def _nobody_gave_up(self) -> None:
        """Nothing that has gone wrong was a reason for a role to end."""
        ends = self._world.ends
        assert not ends, f"{len(ends)} roles have ended by themselves: {ends[:3]}"


def _unpacked(entry: Committed) -> list[Produced]:
    return [
        Produced(chunk.topic, chunk.partition, key, value or b"")
        for chunk in entry.chunks
        for key, value in _engine.unpack(chunk.data)
    ]


def _produced(output: _engine.Output) -> list[Produced]:
    return [
        Produced(chunk.topic, chunk.partition, key, value or b"")
        for chunk in output.chunks
        for key, value in _engine.unpack(chunk.data)
    ]


def _lasting(records: list[Produced]) -> list[Produced]:
    """Without the states that a later one replaces."""
    states = {(r.topic, r.key): r for r in records if r.topic in topics.STATES}
    return [r for r in records if r.topic not in topics.STATES] + list(states.values())
