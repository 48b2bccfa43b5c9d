"""Ledgers and plans' states to Odoo: a batch is settled there, then the group's offsets follow.

A batch that was interrupted is written again whole. That changes nothing: an entry's record is
always the same, and found again by its external id; a plan's state is written as it is last.
"""

import asyncio
import logging
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import msgspec

from bss_stream import topics
from bss_stream._engine import unpack
from bss_stream.errors import BssStreamError, LogError, OdooUnavailableError
from bss_stream.log.protocol import Appender, Consumer, Fetched, Log, Offsets, TopicPartition
from bss_stream.odoo import refusals
from bss_stream.odoo.billing import Kind, Measures, Record, UnmappableError, of_entry, of_state
from bss_stream.odoo.counters import OdooCounters
from bss_stream.odoo.refusals import Refusal
from bss_stream.odoo.upsert import Refused, Upserts
from bss_stream.stopping import pause, unless_stopped, work_and_rejoin

logger = logging.getLogger(__name__)

READ: Final = (*topics.LEDGERS, topics.STATE_PLAN)
"""What goes to Odoo."""

POLL_S: Final = 0.25
BACKOFF_MIN_S: Final = 0.2
BACKOFF_MAX_S: Final = 60.0
KNOWN_MAX: Final = 100_000
"""Plans of which it is remembered what Odoo has: most changes of a state are none to Odoo."""

UNMAPPED: Final = "entry"
"""Under this name a refusal keeps an entry that could not be mapped at all."""

_LATER: Final = re.compile("state version [0-9]+ is unknown")
"""The engine's words for a state that nothing may pass over."""

Describe = Callable[[str, bytes, bytes], bytes]
"""`_engine.Engine.describe_state`: state topic, key and value to JSON."""


class OutboundSettings(NamedTuple):
    """How records are read and how long to go on."""

    group: str
    records_max: int = 200
    drain_timeout_s: float = 5.0
    """How long a role that was told to stop goes on with what the log still holds."""
    backoff_min_s: float = BACKOFF_MIN_S
    backoff_max_s: float = BACKOFF_MAX_S


@dataclass(slots=True)
class _Batch:
    """What was read at once, sorted out."""

    offsets: Offsets
    records: list[Record] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    """What has no place in Odoo, before anybody asked there."""
    total: int = 0
    no_billing: int = 0


class Outbound:
    """A member of the adapter's group. `run` until `stop`; a RebalanceListener to its consumer."""

    def __init__(
        self,
        log: Log,
        upserts: Upserts,
        measures: Measures,
        describe: Describe,
        settings: OutboundSettings,
        counters: OdooCounters,
        *,
        clock_ms: Callable[[], int],
    ) -> None:
        self._log = log
        self._upserts = upserts
        self._measures = measures
        self._describe = describe
        self._settings = settings
        self._counters = counters
        self._clock_ms = clock_ms
        self._stopping = asyncio.Event()
        self._drain_until_s: float | None = None
        self._consumer: Consumer | None = None
        self._is_odoo_away = False
        # Held during an attempt, so that partitions are not given away in the midst of one.
        self._attempt = asyncio.Lock()
        self._rebalances = 0
        self._known: OrderedDict[str, int] = OrderedDict()

    def stop(self) -> None:
        """Have `run` end once Odoo has what the log holds, or after the drain time."""
        self._stopping.set()

    def reload(self, measures: Measures, describe: Describe) -> None:
        """Map by another set-up from the next batch on."""
        self._measures, self._describe = measures, describe

    def missing(self) -> list[str]:
        """What it waits for before it can write."""
        found = []
        if self._is_odoo_away:
            found.append("Odoo")
        if self._consumer is None:
            found.append("membership of its group")
        return found

    async def lag(self) -> dict[TopicPartition, int]:
        """Records that are not read yet. Raises LogError."""
        return {} if self._consumer is None else await self._consumer.lag()

    @property
    def is_first(self) -> bool:
        """Whether this member has partition 0: the one that does what one alone should do."""
        consumer = self._consumer
        first = TopicPartition(topics.LEDGER_PAYMENT, 0)
        return consumer is not None and first in consumer.assignment()

    async def run(self) -> None:
        """Write until stopped; join the group anew, with growing pauses, after a LogError.

        Raises OdooAccessError when Odoo does not let this user in or lacks what it needs,
        OffsetOutOfRangeError, LogAccessError, and NewerVersionError or BssStreamError for what a
        later program has written.
        """
        appender = await self._log.appender()
        try:
            if await self._checked():
                await work_and_rejoin(
                    "odoo adapter",
                    lambda: self._work(appender),
                    self._stopping,
                    progress=lambda: self._counters.batches,
                    on_rejoin=self._count_rejoin,
                )
        finally:
            await appender.close()

    async def _checked(self) -> bool:
        """Whether Odoo has what is needed; False when stopped before it could be asked."""
        pause_s = self._settings.backoff_min_s
        while not self._stopping.is_set():
            try:
                await self._upserts.check()
            except OdooUnavailableError as error:
                pause_s = await self._wait(error, pause_s)
            else:
                return True
        return False

    def _count_rejoin(self) -> None:
        self._counters.rejoined += 1

    async def _work(self, appender: Appender) -> None:
        self._known.clear()
        consumer = await self._log.consumer(self._settings.group, READ, self)
        self._consumer = consumer
        try:
            while not self._past_drain_time():
                fetched = await consumer.poll(self._settings.records_max, POLL_S)
                if not fetched:
                    if await self._drained(consumer):
                        return
                elif not await self._settle(consumer, appender, fetched):
                    # What comes behind must not be committed over it.
                    logger.warning("stopped with records that Odoo has not taken")
                    return
        finally:
            self._consumer = None
            await consumer.close()

    async def _drained(self, consumer: Consumer) -> bool:
        if not self._stopping.is_set() or not consumer.assignment():
            return False
        lag = await consumer.lag()
        return lag.keys() == consumer.assignment() and not any(lag.values())

    def _past_drain_time(self) -> bool:
        """Whether a role that was stopped has used up its drain time."""
        if not self._stopping.is_set():
            return False
        now_s = asyncio.get_running_loop().time()
        if self._drain_until_s is None:
            self._drain_until_s = now_s + self._settings.drain_timeout_s
        return now_s >= self._drain_until_s

    async def _settle(
        self, consumer: Consumer, appender: Appender, fetched: Sequence[Fetched]
    ) -> bool:
        """Have Odoo take a batch, or keep what it refuses, and commit.

        False when stopped before that worked. True also when the group has shared out anew: reading
        goes on from what is committed then.
        """
        read_at = self._rebalances
        pause_s = self._settings.backoff_min_s
        while not self._past_drain_time():
            async with self._attempt:
                if self._rebalances != read_at:
                    return True
                batch = self._sorted_out(fetched)
                try:
                    refused = await unless_stopped(
                        self._upserts.write(batch.records),
                        self._stopping,
                        patience_s=self._settings.drain_timeout_s,
                    )
                except OdooUnavailableError as error:
                    self._is_odoo_away, failure = True, error
                else:
                    self._is_odoo_away = False
                    if refused is None:
                        return False
                    await self._commit(consumer, appender, batch, refused)
                    return True
            pause_s = await self._wait(failure, pause_s)
        return False

    async def _wait(self, error: OdooUnavailableError, pause_s: float) -> float:
        """Pause after an attempt in vain; how long to pause after the next one."""
        self._counters.unavailable += 1
        logger.warning("%s: trying again in %.1f s", error, pause_s)
        if self._stopping.is_set():
            await asyncio.sleep(min(pause_s, self._settings.backoff_min_s))
        else:
            await pause(pause_s, self._stopping)
        return min(pause_s * 2, self._settings.backoff_max_s)

    async def _commit(
        self, consumer: Consumer, appender: Appender, batch: _Batch, refused: Sequence[Refused]
    ) -> None:
        everything = [*batch.refused, *refused]
        if everything:
            now_ms = self._clock_ms()
            kept = [Refusal.of(one.record, one.error, now_ms) for one in everything]
            await appender.append(refusals.chunks(kept, self._log.partitions))
            first = everything[0]
            logger.error(
                "Odoo refuses %d of %d records, such as %s %s: %s",
                *(len(everything), len(batch.records) + len(batch.refused)),
                *(first.record.kind, first.record.key, first.error),
            )
        owned = consumer.assignment()
        await consumer.commit({part: at for part, at in batch.offsets.items() if part in owned})
        self._remember(batch.records)
        self._count(batch, everything, len(refused))

    def _count(self, batch: _Batch, refused: Sequence[Refused], by_odoo: int) -> None:
        counters = self._counters
        kinds = Counter(str(record.kind) for record in batch.records)
        late = refused[len(refused) - by_odoo :]
        kinds.subtract(Counter(str(one.record.kind) for one in late))
        counters.records += batch.total
        counters.written.update(+kinds)
        counters.refused.update(str(one.record.kind) for one in refused)
        counters.no_billing += batch.no_billing
        settled = len(batch.records) + len(batch.refused) + batch.no_billing
        counters.unchanged += batch.total - settled
        counters.batches += 1

    def _remember(self, records: Sequence[Record]) -> None:
        for record in records:
            if record.kind is Kind.SUBSCRIPTION:
                self._known[record.key] = _digest(record.values)
                self._known.move_to_end(record.key)
        while len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)

    def _sorted_out(self, fetched: Sequence[Fetched]) -> _Batch:
        batch = _Batch(
            {TopicPartition(one.topic, one.partition): one.next_offset for one in fetched}
        )
        states: dict[str, tuple[bytes, str]] = {}
        for topic, source, key, value in _records(fetched):
            batch.total += 1
            plan_id = key.decode("utf-8", "replace")
            if value is None:
                batch.no_billing += 1
            elif topic == topics.STATE_PLAN:
                states[plan_id] = value, source
            else:
                self._add_entry(batch, plan_id, value, source)
        for plan_id, (value, source) in states.items():
            self._add_state(batch, plan_id, value, source)
        return batch

    def _add_entry(self, batch: _Batch, plan_id: str, value: bytes, source: str) -> None:
        try:
            record = of_entry(value, source, self._measures)
        except UnmappableError as error:
            kind = Kind.PAYMENT if source.startswith(topics.LEDGER_PAYMENT) else Kind.USAGE
            entry = {UNMAPPED: value.decode("utf-8", "replace")}
            batch.refused.append(Refused(Record(kind, source, plan_id, entry, source), str(error)))
        else:
            if record is None:
                batch.no_billing += 1
            else:
                batch.records.append(record)

    def _add_state(self, batch: _Batch, plan_id: str, value: bytes, source: str) -> None:
        try:
            record = state_record(self._describe, plan_id, value, source)
        except UnmappableError as error:
            empty = Record(Kind.SUBSCRIPTION, plan_id, plan_id, {}, source)
            batch.refused.append(Refused(empty, str(error)))
        else:
            if self._known.get(plan_id) != _digest(record.values):
                batch.records.append(record)

    async def on_revoked(self, partitions: Sequence[TopicPartition]) -> None:
        """Wait for the attempt under way; what is not committed is the next owner's."""
        async with self._attempt:
            self._rebalances += 1
            # Others may write these plans' states now.
            self._known.clear()

    async def on_assigned(self, partitions: Sequence[TopicPartition]) -> None:
        """Nothing to prepare: reading starts where the group has committed."""


def state_record(describe: Describe, plan_id: str, value: bytes, source: str) -> Record:
    """The record of a changelog's value. Raises UnmappableError where the set-up cannot read it,
    BssStreamError for one that a later program has written."""
    try:
        described = describe(topics.STATE_PLAN, plan_id.encode(), value)
    except ValueError as error:
        if _LATER.search(str(error)):
            raise BssStreamError(f"the state of plan {plan_id}: {error}") from error
        raise UnmappableError(f"the state of plan {plan_id}: {error}") from error
    return of_state(plan_id, msgspec.json.decode(described, type=dict[str, Any]), source)


def _digest(values: Mapping[str, str]) -> int:
    return hash(tuple(sorted(values.items())))


def _records(fetched: Sequence[Fetched]) -> Iterator[tuple[str, str, bytes, bytes | None]]:
    """Topic, source, key and value of each record. Raises LogError for a damaged chunk."""
    for part in fetched:
        place = f"{part.topic}/{part.partition}"
        try:
            records = unpack(part.data)
        except ValueError as error:
            raise LogError(f"{place} before {part.next_offset} is damaged: {error}") from error
        for offset, (key, value) in zip(part.offsets, records, strict=True):
            yield part.topic, f"{place}/{offset}", key, value
