"""The sink's loop: read records, write them with their offsets, never skip one."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeVar

from bss_stream import topics
from bss_stream.clock import epoch_ms
from bss_stream.counters import (
    Distribution,
    RoleCounters,
    seconds,
    sizes,
    unbalanced,
)
from bss_stream.errors import LogError, OffsetOutOfRangeError
from bss_stream.log.protocol import Consumer, Fetched, Log, Offsets, TopicPartition
from bss_stream.sink.entry import decode_fetched
from bss_stream.sink.store import LedgerStore, StoreUnavailableError, Written
from bss_stream.stopping import pause, work_and_rejoin

_log: Final = logging.getLogger(__name__)

T = TypeVar("T")


class SinkSettings(NamedTuple):
    """How the sink reads and waits."""

    group: str = "bss-sink"
    """The consumer group: it shares out the partitions; where to read on is the database's say."""
    records_max: int = 4096
    """The most records in one SQL transaction."""
    poll_timeout_s: float = 0.25
    drain_timeout_s: float = 5.0
    """How long a stopped sink goes on reading what the log still holds."""
    backoff_s_min: float = 0.1
    backoff_s_max: float = 10.0
    group_commit_interval_s: float = 5.0
    """How often the group follows the database; only lag monitors read the group's offsets."""


DEFAULT_SETTINGS: Final = SinkSettings()

COPIED: Final = (*topics.LEDGERS, topics.STATE_STATION)
"""What the sink reads."""


@dataclass
class SinkCounters(RoleCounters):
    """What the sink has done since it started."""

    records: int = 0
    """Records of the ledgers that are settled, and states of stations that were rejected."""
    entries: int = 0
    duplicates: int = 0
    """Entries that were in the database already, byte for byte."""
    rejects: Counter[str] = field(default_factory=Counter)
    """Records that went to sink_rejects, by reason."""
    stations: int = 0
    """States of stations, one a station and batch."""
    batches: int = 0
    unavailable: int = 0
    """Attempts that found the database gone."""
    group_commit_failures: int = 0
    rejoined: int = 0
    write_s: Distribution = field(default_factory=seconds)
    """What a batch takes, read and written, until the database has it."""
    age_s: Distribution = field(default_factory=seconds)
    """From the time at which the log took in an entry's cause until the database has the entry:
    the oldest of a batch speaks for it."""
    batch_records: Distribution = field(default_factory=sizes)

    def balance(self) -> list[str]:
        """What was read is an entry written, one that was there, or a reject."""
        parts = {
            "entries": self.entries,
            "duplicates": self.duplicates,
            "rejects": self.rejects.total(),
        }
        return unbalanced("records", self.records, parts)


class LedgerSink:
    """Copies the ledger topics of `log` to `store`, each entry once, and the stations' states.

    The database holds the next offset of every partition in the transaction of the entries, and
    reading starts there on every assignment, so neither a crash nor a wrong group offset loses
    or repeats an entry.
    """

    def __init__(
        self,
        log: Log,
        store: LedgerStore,
        settings: SinkSettings = DEFAULT_SETTINGS,
        *,
        clock_ms: Callable[[], int] = epoch_ms,
    ) -> None:
        self.counters = SinkCounters()
        self._log = log
        self._store = store
        self._settings = settings
        self._clock_ms = clock_ms
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger-sink")
        self._is_database_away = True
        self._consumer: Consumer | None = None
        # Sent to the database's offset since they were assigned. What is read of others is thrown
        # away: it may lie past a gap.
        self._placed: set[TopicPartition] = set()
        self._joined: asyncio.Future[Consumer] | None = None
        self._uncommitted: dict[TopicPartition, int] = {}
        self._stop = asyncio.Event()
        self._drain_until_s: float | None = None

    async def on_revoked(self, partitions: Sequence[TopicPartition]) -> None:
        """Forget partitions. A batch in hand is still written: the database sorts it out."""
        self._placed.difference_update(partitions)

    async def on_assigned(self, partitions: Sequence[TopicPartition]) -> None:
        """Send partitions to the database's offsets, or leave that to the loop.

        A database that is away must not hold up the rebalance. They are sought all the same,
        because the consumer would send what is not sought here to the group's offset, and may
        do so after the loop has sent it to the right one.
        """
        self._placed.difference_update(partitions)
        assert self._joined is not None  # set before the log could know this listener
        consumer = await self._joined
        try:
            stored = await self._in_thread(self._store.offsets)
        except StoreUnavailableError as error:
            self.counters.unavailable += 1
            _log.warning("%s: new partitions wait for it", error)
            await consumer.seek(dict.fromkeys(partitions, 0))
            return
        await self._send(consumer, partitions, stored)

    def missing(self) -> list[str]:
        """What it waits for before it can write."""
        found = []
        if self._is_database_away:
            found.append("the database")
        if self._consumer is None:
            found.append("membership of its group")
        return found

    async def lag(self) -> dict[TopicPartition, int]:
        """Records that it has not read yet. Raises LogError."""
        return {} if self._consumer is None else await self._consumer.lag()

    def stop(self) -> None:
        """Ask `run` to write what the log still holds and return."""
        self._stop.set()

    async def run(self) -> None:
        """Copy until `stop`; join the group anew, with growing pauses, after a LogError.

        Raises OffsetOutOfRangeError when the log has lost what was never copied,
        NewerVersionError for an entry that a later program has written, SinkError for
        faults of the database, and StoreUnavailableError when it was away to the end of the drain
        time; the log keeps what was not written.
        """
        try:
            await self._persist(self._store.open)
            await work_and_rejoin(
                "sink",
                self._work,
                self._stop,
                progress=lambda: self.counters.batches,
                on_rejoin=self._count_rejoin,
            )
        finally:
            await self._in_thread(self._store.close)
            self._thread.shutdown(wait=False)

    def _count_rejoin(self) -> None:
        self.counters.rejoined += 1

    async def _work(self) -> None:
        self._uncommitted.clear()
        self._joined = asyncio.get_running_loop().create_future()
        consumer = await self._log.consumer(self._settings.group, COPIED, self)
        self._joined.set_result(consumer)
        self._consumer = consumer
        try:
            await self._copy(consumer)
            await self._commit_group(consumer)
        finally:
            self._consumer = None
            await consumer.close()

    async def _copy(self, consumer: Consumer) -> None:
        loop = asyncio.get_running_loop()
        commit_at_s = loop.time() + self._settings.group_commit_interval_s
        while True:
            await self._place(consumer)
            fetched = await self._poll(consumer)
            if fetched:
                await self._write(fetched)
            if self._past_drain_time() or (not fetched and await self._drained(consumer)):
                return
            if loop.time() >= commit_at_s:
                await self._commit_group(consumer)
                commit_at_s = loop.time() + self._settings.group_commit_interval_s

    async def _place(self, consumer: Consumer) -> None:
        if consumer.assignment() <= self._placed:
            return
        stored = await self._persist(self._store.offsets)
        await self._send(consumer, consumer.assignment() - self._placed, stored)

    async def _send(
        self, consumer: Consumer, partitions: Iterable[TopicPartition], stored: Offsets
    ) -> None:
        due = consumer.assignment().intersection(partitions)
        # Placed before the seek returns: a partition lost meanwhile is struck off again.
        self._placed |= due
        await consumer.seek({partition: stored.get(partition, 0) for partition in due})

    async def _poll(self, consumer: Consumer) -> list[Fetched]:
        try:
            fetched = await consumer.poll(self._settings.records_max, self._settings.poll_timeout_s)
        except OffsetOutOfRangeError:
            # Nothing is lost while the database's offset is still to be sought.
            if consumer.assignment() <= self._placed:
                raise
            return []
        return [
            part for part in fetched if TopicPartition(part.topic, part.partition) in self._placed
        ]

    async def _write(self, fetched: list[Fetched]) -> None:
        offsets = {TopicPartition(part.topic, part.partition): part.next_offset for part in fetched}

        def write() -> tuple[Written, int, int, int | None]:
            batch = decode_fetched(fetched)
            records = len(batch.entries) + len(batch.rejects)
            oldest_ms = min((row.recorded_at_ms for row in batch.entries), default=None)
            return self._store.write(batch, offsets), records, len(batch.stations), oldest_ms

        started_s = time.perf_counter()
        written, records, stations, oldest_ms = await self._persist(write)
        self.counters.write_s.observe(time.perf_counter() - started_s)
        self.counters.batch_records.observe(sum(len(one.offsets) for one in fetched))
        if oldest_ms is not None:
            age_s = (self._clock_ms() - oldest_ms) / 1_000
            self.counters.age_s.observe(age_s, written.inserted)
        self.counters.records += records
        self.counters.stations += stations
        self.counters.batches += 1
        self.counters.entries += written.inserted
        self.counters.duplicates += written.duplicates
        self.counters.rejects.update(written.rejects)
        self._uncommitted.update(offsets)
        if written.rejects:
            _log.error("records rejected: %s", _listed(written.rejects.items()))

    async def _drained(self, consumer: Consumer) -> bool:
        owned = consumer.assignment()
        # With nothing owned it may have work that the group has yet to hand out.
        if not self._stop.is_set() or not owned or not owned <= self._placed:
            return False
        lag = await consumer.lag()
        return lag.keys() == consumer.assignment() and not any(lag.values())

    def _past_drain_time(self) -> bool:
        """Whether a stopped sink has used up its drain time; the first question starts it."""
        if not self._stop.is_set():
            return False
        now_s = asyncio.get_running_loop().time()
        if self._drain_until_s is None:
            self._drain_until_s = now_s + self._settings.drain_timeout_s
        return now_s >= self._drain_until_s

    async def _persist(self, call: Callable[[], T]) -> T:
        """Make a call of the store in its thread, again and again while the database is away."""
        backoff_s = self._settings.backoff_s_min
        while True:
            try:
                result = await self._in_thread(call)
                self._is_database_away = False
                return result
            except StoreUnavailableError as error:
                self._is_database_away = True
                self.counters.unavailable += 1
                if self._past_drain_time():
                    raise
                _log.warning("%s: trying again in %.1f s", error, backoff_s)
            await self._pause(backoff_s)
            backoff_s = min(backoff_s * 2, self._settings.backoff_s_max)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    async def _pause(self, pause_s: float) -> None:
        if self._stop.is_set():
            await asyncio.sleep(min(pause_s, self._settings.backoff_s_min))
            return
        await pause(pause_s, self._stop)

    async def _commit_group(self, consumer: Consumer) -> None:
        owned = consumer.assignment()
        offsets: Offsets = {p: o for p, o in self._uncommitted.items() if p in owned}
        self._uncommitted.clear()
        if not offsets:
            return
        try:
            await consumer.commit(offsets)
        except LogError as error:
            # Nothing depends on the group's offsets, and the next commit carries later ones.
            self.counters.group_commit_failures += 1
            _log.warning("group %s did not take its offsets: %s", self._settings.group, error)


def _listed(counts: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts)
