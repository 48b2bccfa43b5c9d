"""The processor: signals from the log through the engine, and everything that follows back into
the log, one transaction a shard."""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from bss_stream import _engine, topics
from bss_stream.clock import epoch_ms
from bss_stream.counters import (
    Distribution,
    RoleCounters,
    seconds,
    sizes,
    unbalanced,
)
from bss_stream.errors import CheckpointError, LogError
from bss_stream.log.protocol import (
    Chunk,
    Consumer,
    Fetched,
    Log,
    TopicPartition,
    TransactionalProducer,
)
from bss_stream.shard_state import Restored, ShardStates
from bss_stream.stopping import work_and_rejoin
from bss_stream.tracing import OFF, Tracing

__all__ = ["Processor", "ProcessorCounters", "ProcessorSettings"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

AT_ONCE_RECORDS_MAX = 500
"""A batch up to this size takes the engine less time than handing it to a thread and back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessorSettings:
    """How a processor works."""

    group: str
    transactional_id: Callable[[int], str]
    """The id of a shard's producer, by partition: whoever opens it next fences who had it."""
    threads: int = 1
    batch_records_max: int = 5_000
    tick_interval_s: float = 0.2
    """How often timers are looked at."""
    timer_slack_s: float = 0.0
    """How far the clock runs ahead of timers, for records that are on their way into the log."""
    checkpoint_directory: Path | None = None
    """Where the shards' states are kept beside the changelogs; nowhere if not given."""
    checkpoint_interval_s: float = 60.0
    """How often they are written; once more at a clean stop."""


class Ending(StrEnum):
    """How a signal ends: in one of these ways, whatever its reason."""

    APPLIED = "applied"
    REJECTED = "rejected"
    """Understood and refused, and told so."""
    DUPLICATE = "duplicate"
    DEAD_LETTERED = "dead_lettered"
    """Refused, because what came in is at fault."""
    IN_PROGRESS = "in_progress"
    """A repeat of what is still being decided: the one echo to come answers both."""


def _endings() -> dict[str, Ending]:
    named = {
        "ok": Ending.APPLIED,
        "duplicate": Ending.DUPLICATE,
        "in_progress": Ending.IN_PROGRESS,
    }
    refused = {True: Ending.DEAD_LETTERED, False: Ending.REJECTED}
    return {code: named.get(code, refused[dead]) for code, _, _, dead in _engine.reasons()}


ENDINGS: Final = _endings()
"""The ending of each reason."""


@dataclass(slots=True)
class ProcessorCounters(RoleCounters):
    """What a processor has done since it started."""

    records: int = 0
    """Signals that are consumed: their transaction is committed."""
    transactions: int = 0
    """Committed ones."""
    aborted: int = 0
    """Transactions that were not committed, as far as the log has said."""
    restored: int = 0
    from_checkpoints: int = 0
    checkpoints: int = 0
    rejoined: int = 0
    engine_s: float = 0.0
    commit_s: float = 0.0
    restore_s: float = 0.0
    """Time that restores of shards have taken."""
    timers_fired: int = 0
    dead_letters: Counter[str] = field(default_factory=Counter)
    """Dead letters that the log has, by reason; also of signals that were applied."""
    stock_signals: Counter[str] = field(default_factory=Counter)
    """What operators were told of stations' stocks."""
    batch_s: Distribution = field(default_factory=seconds)
    """From a batch's poll until the log has all that follows from it."""
    age_s: Distribution = field(default_factory=seconds)
    """From a signal's receipt until it is committed: the oldest of a chunk speaks for it."""
    transaction_s: Distribution = field(default_factory=seconds)
    batch_records: Distribution = field(default_factory=sizes)
    outcomes: Counter[str] = field(default_factory=Counter)
    """Those signals by the reason why they ended so."""

    @property
    def endings(self) -> Counter[Ending]:
        """Those signals by how they ended."""
        found: Counter[Ending] = Counter()
        for reason, count in self.outcomes.items():
            found[ENDINGS[reason]] += count
        return found

    def balance(self) -> list[str]:
        """Consumed is applied, rejected, duplicate, dead-lettered or in progress."""
        endings = self.endings
        return unbalanced("records", self.records, {end: endings[end] for end in Ending})


class _ShardLostError(Exception):
    """Work on a shard was overtaken: by a rebalance, a failure or a stop."""


class Processor:
    """A member of the processors' group. `run` until `stop`; a RebalanceListener to its consumer.

    The engine's shards run ahead of the log only within a transaction. Whatever goes wrong with
    one, all shards are dropped, and won again as the log has them.
    """

    def __init__(
        self,
        log: Log,
        setup: bytes,
        settings: ProcessorSettings,
        *,
        clock_ms: Callable[[], int] = epoch_ms,
        tracing: Tracing = OFF,
    ) -> None:
        self.counters = ProcessorCounters()
        self._log = log
        self._settings = settings
        self._clock_ms = clock_ms
        self._tracing = tracing
        self._consumer: Consumer | None = None
        self._engine = _engine.Engine(setup, partitions=log.partitions, threads=settings.threads)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="bss-engine")
        self._states = ShardStates(log, self._engine, settings.checkpoint_directory)
        self._producers: dict[int, TransactionalProducer] = {}
        self._restored: dict[int, Restored] = {}
        self._watermarks_ms: dict[TopicPartition, int] = {}
        # Held while shards are worked on, or won and lost: a log may tell of a rebalance at any
        # moment.
        self._shards_in_use = asyncio.Lock()
        # Rises when shards are lost, and when the engine is ahead of the log for good.
        self._generation = 0
        self._stopping = asyncio.Event()
        self._drain = False
        self._next_tick_s = 0.0

    @property
    def shards(self) -> frozenset[int]:
        """The shards that this processor works on now: owned, and restored."""
        return frozenset(self._restored)

    def missing(self) -> list[str]:
        """What it waits for before it can take signals of every shard that it has."""
        if self._consumer is None:
            return ["membership of its group"]
        return [f"states of shard {shard}" for shard in self._unrestored()]

    def restoring(self) -> dict[int, float]:
        """How much of their changelogs has been read, 0 to 1, by shard that is not restored."""
        return {shard: self._states.progress.get(shard, 0.0) for shard in self._unrestored()}

    async def census(self) -> dict[int, _engine.Census]:
        """What each shard holds, between two batches."""
        async with self._shards_in_use:
            return {shard: self._engine.census(shard) for shard in sorted(self._restored)}

    async def lag(self) -> dict[TopicPartition, int]:
        """Records of its shards' signals that it has not read yet. Raises LogError."""
        return {} if self._consumer is None else await self._consumer.lag()

    def stop(self, *, drain: bool = False) -> None:
        """Have `run` end after the transaction under way; with `drain`, after the backlog."""
        self._drain = drain
        self._stopping.set()

    async def reload(self, setup: bytes) -> None:
        """Take another set-up without a restart. Raises ValueError and changes nothing if the
        set-up lacks what running plans have signed."""
        async with self._shards_in_use:
            await self._in_engine(partial(self._engine.reload, setup))

    async def run(self) -> None:
        """Process until stopped; join the group anew, with growing pauses, after a LogError.

        Raises OffsetOutOfRangeError when the log has lost signals that were never processed.
        """
        try:
            await work_and_rejoin(
                "processor",
                self._work,
                self._stopping,
                progress=lambda: self.counters.transactions,
                on_rejoin=self._count_rejoin,
            )
        finally:
            self._executor.shutdown(wait=True)

    def _count_rejoin(self) -> None:
        self.counters.rejoined += 1

    async def _work(self) -> None:
        consumer = await self._log.consumer(self._settings.group, topics.SIGNALS, self)
        self._consumer = consumer
        saving = asyncio.create_task(self._save_now_and_then())
        try:
            while not await self._is_done(consumer):
                await self._turn(consumer)
                if saving.done():
                    saving.result()
            await _ended(saving)
            await self._save()
        finally:
            self._consumer = None
            await _ended(saving)
            # Leaves the group even if the log is in trouble; what is lost is told to on_revoked.
            try:
                await consumer.close()
            finally:
                await self._drop_shards(frozenset(self._producers))

    async def _is_done(self, consumer: Consumer) -> bool:
        if not self._stopping.is_set():
            return False
        if not self._drain:
            return True
        lag = await consumer.lag()
        owned = self._signals_owned()
        # Before anything is won, and in a rebalance, nobody knows what there is to do.
        return bool(owned) and not self._unrestored() and all(lag.get(part) == 0 for part in owned)

    def _unrestored(self) -> list[int]:
        return sorted(self._producers.keys() - self._restored.keys())

    def _signals_owned(self) -> list[TopicPartition]:
        return [part for shard in self._producers for part in _signals_of(shard)]

    async def _turn(self, consumer: Consumer) -> None:
        fetched = await consumer.poll(
            self._settings.batch_records_max, self._settings.tick_interval_s
        )
        # What was read before a rebalance is void after it: the new owner reads it again. Taken
        # only now, since partitions may well have been won within the poll.
        generation = self._generation
        # Not within the rebalance, which would wait for it as long as it takes; and another
        # rebalance may well come meanwhile.
        while (unrestored := self._unrestored()) and not self._is_told_to_end:
            await self._restore_shard(unrestored[0])
        if unrestored:
            return
        async with self._shards_in_use:
            if fetched and generation == self._generation:
                with self._whole_or_void():
                    await self._process(fetched)
        now_s = asyncio.get_running_loop().time()
        if now_s >= self._next_tick_s:
            self._next_tick_s = now_s + self._settings.tick_interval_s
            await self._tick(consumer)

    @property
    def _is_told_to_end(self) -> bool:
        return self._stopping.is_set() and not self._drain

    @contextlib.contextmanager
    def _whole_or_void(self) -> Iterator[None]:
        """After a failure the engine's states are not the log's: nobody may use them any more."""
        try:
            yield
        except BaseException:
            self._generation += 1
            raise

    async def _process(self, fetched: list[Fetched]) -> None:
        started_s = time.perf_counter()
        inputs = [(f.topic, f.partition, f.offsets, f.data) for f in fetched]
        records = sum(len(batch.offsets) for batch in fetched)
        # No timer fires before the records that came in ahead of it, so time 0.
        work = partial(self._engine.process, inputs, 0)
        output = await self._in_engine(work, at_once=records <= AT_ONCE_RECORDS_MAX)
        offsets: dict[int, dict[TopicPartition, int]] = {}
        for batch in fetched:
            part = TopicPartition(batch.topic, batch.partition)
            offsets.setdefault(batch.partition, {})[part] = batch.next_offset
            received_ms = _engine.last_received_ms(batch.data)
            if received_ms is not None:
                self._watermarks_ms[part] = received_ms
        with self._traced(fetched):
            await self._commit(output, offsets)
        counters, now_ms = self.counters, self._clock_ms()
        counters.records += records
        counters.batch_records.observe(records)
        counters.batch_s.observe(time.perf_counter() - started_s)
        for batch in fetched:
            oldest_ms = _engine.first_received_ms(batch.data)
            if oldest_ms is not None:
                counters.age_s.observe((now_ms - oldest_ms) / 1_000, len(batch.offsets))

    @contextlib.contextmanager
    def _traced(self, fetched: Sequence[Fetched]) -> Iterator[None]:
        """Spans of the signals that have a trace, while what follows from them is committed."""
        if not self._tracing.is_on:
            yield
            return
        spans = self._tracing.spans("bss.processor.decide")
        for batch in fetched:
            for at, event, correlation, trace in _engine.traced(batch.data):
                attributes = {
                    "bss.event": event,
                    "bss.correlation_id": correlation,
                    "bss.shard": batch.partition,
                    "messaging.destination.name": batch.topic,
                    "messaging.kafka.offset": batch.offsets[at],
                }
                spans.begin(trace, attributes)
        try:
            yield
        except BaseException as error:
            spans.end(error)
            raise
        spans.end()

    async def _tick(self, consumer: Consumer) -> None:
        """Fire timers: by the clock where the backlog is empty, else as far as it is read.

        An answer that waits in the backlog must not be timed out by the clock, and it may wait in
        another shard than the plan's: the shards owned here keep one time.
        """
        async with self._shards_in_use:
            # Before the look at the backlog: what comes in after this is not overtaken.
            clock_ms = self._clock_ms() - round(self._settings.timer_slack_s * 1_000)
            if not self._due(clock_ms):
                return
        lag = await consumer.lag()
        async with self._shards_in_use:
            if self._unrestored():
                return
            now_ms = min(
                (
                    # What was won after that look, or is not read yet, has an unknown backlog.
                    clock_ms if lag.get(part) == 0 else self._watermarks_ms.get(part, 0)
                    for part in self._signals_owned()
                ),
                default=0,
            )
            if due := self._due(now_ms):
                work = partial(self._engine.process, [], now_ms, tick=due)
                with self._whole_or_void():
                    await self._commit(await self._in_engine(work), {})

    def _due(self, now_ms: int) -> list[int]:
        """The shards with a timer to fire."""
        next_due_ms = {shard: self._engine.next_due_ms(shard) for shard in self._restored}
        return [s for s, due_ms in next_due_ms.items() if due_ms is not None and due_ms <= now_ms]

    async def _in_engine(self, call: Callable[[], T], *, at_once: bool = False) -> T:
        started_s = time.perf_counter()
        try:
            if at_once:
                return call()
            return await asyncio.get_running_loop().run_in_executor(self._executor, call)
        finally:
            self.counters.engine_s += time.perf_counter() - started_s

    async def _commit(
        self, output: _engine.Output, offsets: dict[int, dict[TopicPartition, int]]
    ) -> None:
        chunks: dict[int, list[Chunk]] = {shard: [] for shard in offsets}
        for c in output.chunks:
            chunks.setdefault(c.shard, []).append(Chunk(c.topic, c.partition, c.records, c.data))
        started_s = time.perf_counter()
        commits = [
            self._commit_shard(shard, of_shard, offsets.get(shard, {}))
            for shard, of_shard in chunks.items()
        ]
        # Every commit ends before an error goes up: none may be under way when shards are dropped.
        for result in await asyncio.gather(*commits, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result
        self.counters.commit_s += time.perf_counter() - started_s
        self.counters.outcomes.update(output.outcomes)
        self.counters.dead_letters.update(output.dead_letters)
        self.counters.stock_signals.update(output.stock_signals)
        self.counters.timers_fired += output.timers_fired

    async def _commit_shard(
        self, shard: int, chunks: Sequence[Chunk], offsets: dict[TopicPartition, int]
    ) -> None:
        started_s = time.perf_counter()
        try:
            async with self._producers[shard].transaction() as transaction:
                transaction.append(chunks)
                if offsets:
                    transaction.offsets(self._settings.group, offsets)
        except BaseException:
            self.counters.aborted += 1
            raise
        self.counters.transactions += 1
        self.counters.transaction_s.observe(time.perf_counter() - started_s)

    async def on_revoked(self, partitions: Sequence[TopicPartition]) -> None:
        """Drop the shards that go elsewhere; a transaction under way is finished first."""
        async with self._shards_in_use:
            self._generation += 1
            await self._drop_shards({part.partition for part in partitions})

    async def on_assigned(self, partitions: Sequence[TopicPartition]) -> None:
        """Open the shards that are won; they are restored before anything is read for them.

        Raises LogError if the topics' equal partitions are not won together.
        """
        async with self._shards_in_use:
            won = set(partitions)
            shards = sorted({part.partition for part in partitions})
            for shard in shards:
                missing = [part for part in _signals_of(shard) if part not in won]
                if missing:
                    raise LogError(
                        f"partition {shard} was won without {missing[0].topic}: "
                        "the group must use the range assignor for all signals topics"
                    )
            await self._drop_shards(set(shards))
            opening = [self._open_shard(shard) for shard in shards]
            for outcome in await asyncio.gather(*opening, return_exceptions=True):
                if isinstance(outcome, BaseException):
                    raise outcome

    async def _open_shard(self, shard: int) -> None:
        # Before reading: this ends what a former owner had under way.
        self._producers[shard] = await self._log.transactional_producer(
            self._settings.transactional_id(shard)
        )
        self._engine.open_shard(shard)

    async def _restore_shard(self, shard: int) -> None:
        generation = self._generation
        in_shard = self._in_shard(generation, lambda: self._is_told_to_end)
        with contextlib.suppress(_ShardLostError):
            restored = await self._states.restore(shard, in_shard)
            if generation == self._generation:
                self._restored[shard] = restored
                self.counters.restored += restored.records
                self.counters.from_checkpoints += restored.checkpoint_records
                self.counters.restore_s += restored.taken_s

    def _in_shard(
        self, generation: int, is_over: Callable[[], bool]
    ) -> Callable[[Callable[[], T]], Awaitable[T]]:
        """How to call the engine for a shard that may be lost meanwhile."""

        async def in_shard(call: Callable[[], T]) -> T:
            async with self._shards_in_use:
                if generation != self._generation or is_over():
                    raise _ShardLostError
                return await self._in_engine(call)

        return in_shard

    async def _save_now_and_then(self) -> None:
        while self._settings.checkpoint_directory is not None:
            await asyncio.sleep(self._settings.checkpoint_interval_s)
            await self._save()

    async def _save(self) -> None:
        """Write the checkpoints of the shards that have changed. They are no more than a short
        cut, so what keeps one from being written is told and stops nothing."""
        in_shard = self._in_shard(self._generation, lambda: False)
        with contextlib.suppress(_ShardLostError):
            for shard, restored in sorted(self._restored.items()):
                producer = self._producers.get(shard)
                if producer is None:
                    # Lost while another one's was written.
                    return
                try:
                    if await self._states.save(shard, restored, producer.ends, in_shard):
                        self.counters.checkpoints += 1
                except CheckpointError as error:
                    logger.warning(
                        "shard %d has no new checkpoint: %s", shard, error, extra={"shard": shard}
                    )

    async def _drop_shards(self, shards: frozenset[int] | set[int]) -> None:
        closing = []
        # All at once: a shard that is only about to be dropped looks like one to be restored.
        for shard in shards:
            self._engine.drop_shard(shard)
            self._restored.pop(shard, None)
            for part in _signals_of(shard):
                self._watermarks_ms.pop(part, None)
            if (producer := self._producers.pop(shard, None)) is not None:
                closing.append(producer)
        for producer in closing:
            await producer.close()


def _signals_of(shard: int) -> tuple[TopicPartition, ...]:
    return tuple(TopicPartition(topic, shard) for topic in topics.SIGNALS)


async def _ended(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait for its end."""
    task.cancel()
    await asyncio.wait([task])
