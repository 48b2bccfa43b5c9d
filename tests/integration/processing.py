"""Processors in tests: seeded traffic, a clock set by hand, and a playground that plays along."""

import asyncio
import functools
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson

from bench.traffic import Arrival, City
from bss_stream import _engine, topic_table, topics
from bss_stream.frames import Signal, encode_signal
from bss_stream.log.protocol import Appender, Chunk, Log
from bss_stream.processor import Processor, ProcessorSettings
from bss_stream.setup import compile_setup, load_setup
from bss_stream.testing import START_MS, Playground
from tests.eventually import eventually
from tests.logs import IN_VAIN_S, PARTITIONS, chunk
from tests.undisturbed import Contents

SETUP = compile_setup(load_setup())
TABLE = topic_table.load()
GROUP = "processors"
TICK_S = 0.02


@functools.cache
def traffic(plans: int, requests: int, seed: int) -> tuple[Arrival, ...]:
    """What comes in from outside, in order: good, bad, repeated, and ARM's late answers."""
    city = City(SETUP, plans, partitions=PARTITIONS, seed=seed)
    everything = [*city.settle(), *city.requests(requests)]
    return tuple(arrival for arrival in everything if arrival.external)


def shard_id(partition: int) -> str:
    """The id of a shard's producer."""
    return f"shard-{partition}"


@dataclass
class Clock:
    """A clock that stands still until it is set."""

    now_ms: int = START_MS
    looked_at: int = 0

    def __call__(self) -> int:
        self.looked_at += 1
        return self.now_ms


@dataclass
class Running:
    """A processor at work, and those that were at work before it."""

    processor: Processor
    task: asyncio.Task[None]

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait for something that the processor brings about; its failure is the test's."""

        def holds_or_raises() -> bool:
            if holds():
                return True
            if self.task.done():
                self.task.result()
                raise AssertionError("the processor has ended")
            return False

        await eventually(holds_or_raises, IN_VAIN_S)

    async def ticked(self, clock: Clock) -> None:
        """Wait for a whole look at the timers that has begun after this call."""
        # The one that looks at the clock next may have begun before.
        looked_at = clock.looked_at
        await self.until(lambda: clock.looked_at >= looked_at + 3)


@asynccontextmanager
async def running(
    log: Log,
    clock: Callable[[], int],
    *,
    setup: bytes = SETUP,
    drain: bool = False,
    done: Counter[str] | None = None,
    **settings: Any,
) -> AsyncIterator[Running]:
    """A processor at work; at the end it stops, and adds its outcomes to `done`."""
    given = {"group": GROUP, "threads": 2, "tick_interval_s": TICK_S, **settings}
    chosen = ProcessorSettings(transactional_id=shard_id, **given)
    processor = Processor(log, setup, chosen, clock_ms=clock)
    task = asyncio.create_task(processor.run())
    try:
        yield Running(processor, task)
    finally:
        processor.stop(drain=drain)
        async with asyncio.timeout(IN_VAIN_S):
            await task
        assert processor.counters.balance() == []
        if done is not None:
            done.update(processor.counters.outcomes)


def arrival(topic: str, payload: dict[str, Any], received_ms: int) -> Arrival:
    """One MQTT message as the bridge would bring it."""
    body = orjson.dumps(payload)
    routed = TABLE.route(topic, body)
    assert routed is not None
    event, log_topic, key, _ = routed
    assert key is not None
    value = encode_signal(Signal(event, received_ms, "", topic, body))
    partition = _engine.partition_for(key.encode(), PARTITIONS)
    return Arrival(log_topic, partition, -1, key.encode(), value, received_ms, True)


async def append(log: Log, arrivals: Iterable[Arrival], *, at_once: int = 25) -> None:
    """Bring records as a bridge does, some at a time."""
    appender = await log.appender()
    waiting = list(arrivals)
    for first in range(0, len(waiting), at_once):
        await appender.append(_chunks(waiting[first : first + at_once]))
    await appender.close()


def _chunks(arrivals: Sequence[Arrival]) -> list[Chunk]:
    placed: dict[tuple[str, int], list[tuple[bytes, bytes | None]]] = {}
    for arrival in arrivals:
        at = (arrival.topic, arrival.partition)
        placed.setdefault(at, []).append((arrival.key, arrival.value))
    return [chunk(topic, partition, *records) for (topic, partition), records in placed.items()]


@dataclass
class Lockstep:
    """Brings each record to a playground, then to the log, and waits until as much has come of it.

    So processors see records one by one in the playground's order, and must write the same bytes.
    """

    appender: Appender
    clock: Clock
    play: Playground = field(default_factory=lambda: Playground(SETUP, partitions=PARTITIONS))
    done: Counter[str] = field(default_factory=Counter)
    """What processors that have stopped have done."""
    played: list[Arrival | int | bytes] = field(default_factory=list)
    """Records, the times to which the clock was set because timers were due, and set-ups."""

    async def bring(self, arrivals: Iterable[Arrival], at_work: Running) -> None:
        """Records with the timers that are due before each."""
        for arrival in arrivals:
            await self.advance(arrival.received_ms, at_work)
            self.played.append(arrival)
            self.play.record(arrival.topic, arrival.key, arrival.value)
            await self.appender.append(_chunks([arrival]))
            await self.caught_up(at_work)

    async def mqtt(self, topic: str, payload: dict[str, Any], at_work: Running) -> None:
        """One MQTT message, as the bridge would bring it."""
        await self.bring([arrival(topic, payload, self.play.now_ms)], at_work)

    async def reload(self, setup: bytes, at_work: Running) -> None:
        """Another set-up on both sides."""
        self.play.engine.reload(setup)
        await at_work.processor.reload(setup)
        self.played.append(setup)

    async def advance(self, now_ms: int, at_work: Running) -> None:
        """Let time pass; the timers that are due fire on both sides."""
        due = [self.play.engine.next_due_ms(shard) for shard in range(PARTITIONS)]
        is_due = any(due_ms is not None and due_ms <= now_ms for due_ms in due)
        if not is_due:
            self.play.now_ms = self.clock.now_ms = now_ms
            return
        self.played.append(now_ms)
        self.play.advance(now_ms - self.play.now_ms)
        self.clock.now_ms = now_ms
        await at_work.ticked(self.clock)
        await self.caught_up(at_work)

    def pass_time(self, now_ms: int) -> None:
        """Let time pass while no processor is at work."""
        self.played.append(now_ms)
        self.play.advance(now_ms - self.play.now_ms)
        self.clock.now_ms = now_ms

    async def caught_up(self, at_work: Running) -> None:
        """Wait until all has come of it that has come of it in the playground."""
        counters = at_work.processor.counters
        expected = self.play.outcomes.total() - self.done.total()
        await at_work.until(lambda: counters.outcomes.total() >= expected)

    def replayed(self, contents: Contents) -> Playground:
        """A playground with the same records at the log's own offsets."""
        play = Playground(SETUP, partitions=PARTITIONS)
        play._offsets = _LogOffsets(contents)
        for step in self.played:
            if isinstance(step, int):
                play.advance(step - play.now_ms)
            elif isinstance(step, bytes):
                play.engine.reload(step)
            else:
                play.now_ms = step.received_ms
                play.record(step.topic, step.key, step.value)
        return play


class _LogOffsets(Counter[tuple[str, int]]):
    """The next record's offset by partition, with the gaps that markers leave in a log."""

    def __init__(self, contents: Contents) -> None:
        super().__init__()
        self._real: dict[tuple[str, int], list[int]] = {}
        for topic in topics.SIGNALS:
            for record in contents[topic]:
                self._real.setdefault((topic, record.partition), []).append(record.offset)

    def __getitem__(self, place: tuple[str, int]) -> int:
        return self._real[place][self._delivered(place)]

    def __setitem__(self, place: tuple[str, int], offset: int) -> None:
        records = offset - self[place]
        super().__setitem__(place, self._delivered(place) + records)

    def _delivered(self, place: tuple[str, int]) -> int:
        return self.get(place, 0)
