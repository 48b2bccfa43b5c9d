"""The Kafka log's reader: a member of a consumer group.

aiokafka tells a listener of a new assignment while it already reads it, from offsets that the
former owner may still be committing. So nothing is handed out before the listener has returned
and every partition has been set to its committed offset, looked up after that.
"""

import asyncio
import copy
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, errors  # type: ignore[import-untyped]
from aiokafka.abc import ConsumerRebalanceListener  # type: ignore[import-untyped]
from aiokafka.consumer.fetcher import (  # type: ignore[import-untyped]
    READ_UNCOMMITTED,
    OffsetResetStrategy,
)
from aiokafka.coordinator.assignors.range import (  # type: ignore[import-untyped]
    RangePartitionAssignor,
)
from aiokafka.structs import TopicPartition as KafkaPartition  # type: ignore[import-untyped]

from bss_stream._engine import pack
from bss_stream.errors import RECORDS_GONE, LogError, OffsetOutOfRangeError
from bss_stream.log.kafka_client import (
    RECORD_BYTES_MAX,
    STOP_TIMEOUT_S,
    KafkaOptions,
    connecting,
    hangs_up_at_once,
    quietly,
    translated,
    within,
)
from bss_stream.log.protocol import Fetched, Offsets, RebalanceListener, TopicPartition

HEARTBEAT_MS_MAX: Final = 1_000
"""A heartbeat's answer is also how a member learns that the others wait for it."""

IDLE_MS_MAX: Final = 24 * 3600 * 1000
"""A member that restores its shards polls nothing meanwhile, and must not leave for that. One whose
loop hangs sends no heartbeats."""

REBALANCE_TIMEOUT_MS: Final = 60_000
"""How long the others wait for a listener's `on_revoked` before they go on without it."""

FETCH_WAIT_MS: Final = 20
"""A partition that has just been sought, or read to its end, is asked for again only once the fetch
under way for the others has ended: a swap that goes through five partitions waits five times."""

COMMIT_TIMEOUT_S: Final = 30.0
LOOKUP_TIMEOUT_S: Final = 30.0
WAIT_SLICE_S: Final = 0.5


def _consumer(options: KafkaOptions, role: str, **settings: Any) -> Any:
    consumer = AIOKafkaConsumer(
        **options.client(role),
        isolation_level="read_committed",
        enable_auto_commit=False,
        # Every position is set here; what then is out of range has to be an error.
        auto_offset_reset="none",
        fetch_max_wait_ms=FETCH_WAIT_MS,
        max_partition_fetch_bytes=RECORD_BYTES_MAX,
        **settings,
    )
    hangs_up_at_once(consumer._client)
    return consumer


async def _stop(consumer: Any) -> None:
    """Leave the group and disconnect, also when aiokafka waits for a group that does not answer."""
    if await within(STOP_TIMEOUT_S, quietly(consumer.stop())):
        return
    if consumer._coordinator is not None:
        task = getattr(consumer._coordinator, "_coordination_task", None)
        if task is not None:
            task.cancel()
    if consumer._fetcher is not None:
        await within(STOP_TIMEOUT_S, quietly(consumer._fetcher.close()))
    await within(STOP_TIMEOUT_S, quietly(consumer._client.close()))


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    def __init__(self, consumer: "KafkaConsumer") -> None:
        self._consumer = consumer

    async def on_partitions_revoked(self, revoked: object) -> None:
        await self._consumer.revoke()

    async def on_partitions_assigned(self, assigned: Sequence[Any]) -> None:
        await self._consumer.assign(assigned)


class KafkaConsumer:
    """A member of a group; made by KafkaLog.consumer."""

    def __init__(
        self,
        options: KafkaOptions,
        group: str,
        topics: Sequence[str],
        listener: RebalanceListener | None,
    ) -> None:
        self._options = options
        self._group = group
        self._topics = topics
        self._listener = listener
        self._consumer: Any = None
        self._owned: frozenset[TopicPartition] = frozenset()
        self._sought: set[TopicPartition] = set()
        self._reading = False
        self._changed = asyncio.Event()
        self._moving = asyncio.Lock()
        self._leaving = False
        self._failure: BaseException | None = None

    async def open(self) -> None:
        """Connect and ask to join; partitions come with a later poll. Raises LogError."""
        joining = f"join {self._group} on {self._options.bootstrap_servers}"
        async with connecting(self._options, joining):
            self._consumer = _consumer(
                self._options,
                f"group-{self._group}",
                group_id=self._options.name(self._group),
                group_instance_id=self._instance,
                partition_assignment_strategy=(RangePartitionAssignor,),
                session_timeout_ms=self._options.session_timeout_ms,
                heartbeat_interval_ms=min(HEARTBEAT_MS_MAX, self._options.session_timeout_ms // 4),
                rebalance_timeout_ms=REBALANCE_TIMEOUT_MS,
                max_poll_interval_ms=IDLE_MS_MAX,
            )
            try:
                await self._consumer.start()
                names = [self._options.name(topic) for topic in self._topics]
                self._consumer.subscribe(topics=names, listener=_Listener(self))
            except BaseException:
                await _stop(self._consumer)
                raise

    @property
    def _instance(self) -> str | None:
        instance = self._options.instance
        return None if instance is None else f"{self._options.name(self._group)}-{instance}"

    def assignment(self) -> frozenset[TopicPartition]:
        """The partitions that this member owns now."""
        return self._owned

    async def poll(self, records_max: int, timeout_s: float) -> list[Fetched]:
        """See log.protocol.Consumer."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while True:
            self._check_usable()
            left = deadline - loop.time()
            if self._reading:
                with translated(f"read as a member of {self._group}"):
                    fetched = await self._fetch(records_max, max(0.0, left))
                if fetched or left <= 0:
                    return fetched
            elif left <= 0:
                return []
            else:
                await self._wait(min(left, WAIT_SLICE_S))

    def _check_usable(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._leaving:
            raise LogError(f"this consumer of group {self._group} is closed")
        with translated(f"be a member of {self._group}"):
            # While there is nothing to read, only this tells that joining has failed for good.
            self._consumer._coordinator.check_errors()
            _check_fetcher(self._consumer)

    async def _wait(self, timeout_s: float) -> None:
        self._changed.clear()
        await within(timeout_s, self._changed.wait())

    async def _fetch(self, records_max: int, timeout_s: float) -> list[Fetched]:
        try:
            async with asyncio.timeout(timeout_s + WAIT_SLICE_S):
                found = await self._consumer.getmany(
                    timeout_ms=int(timeout_s * 1000), max_records=records_max
                )
        except TimeoutError:
            # A rebalance has begun meanwhile; aiokafka waits for its end without a limit.
            return []
        except errors.NoOffsetForPartitionError:
            if self._reading:
                raise
            return []
        except errors.OffsetOutOfRangeError as error:
            if self._reading:
                raise await self._out_of_range(error) from error
            return []
        if not self._reading:
            # Read, or failed to, from positions that were not set here: they are about to be.
            return []
        return [await self._converted(part, records) for part, records in found.items()]

    async def _out_of_range(self, error: Any) -> OffsetOutOfRangeError:
        """What to tell, and what to do about it."""
        ((part, offset),) = error.args[0].items()
        start = (await self._consumer.beginning_offsets([part]))[part]
        group = self._options.name(self._group)
        return OffsetOutOfRangeError(
            f"group {group} is to read {part.topic}/{part.partition} at offset {offset} and the "
            f"log begins at {start}: {RECORDS_GONE} (kafka-consumer-groups --reset-offsets "
            f"--to-earliest --group {group} --topic {part.topic}:{part.partition} --execute)"
        )

    async def _converted(self, kafka_part: Any, records: Sequence[Any]) -> Fetched:
        part = self._part(kafka_part)
        # Past the last record, and past markers and aborted records behind it.
        next_offset = await self._consumer.position(kafka_part)
        return _fetched(part, records, next_offset)

    def _part(self, kafka_part: Any) -> TopicPartition:
        topic = kafka_part.topic.removeprefix(self._options.topic_prefix)
        return TopicPartition(topic, kafka_part.partition)

    def _named(self, part: TopicPartition) -> Any:
        return KafkaPartition(self._options.name(part.topic), part.partition)

    async def commit(self, offsets: Offsets) -> None:
        """Raises LogError for a partition that is not owned (any more)."""
        self._check_owned(offsets, "commit")
        named = {self._named(part): offset for part, offset in offsets.items()}
        with translated(f"commit offsets of {self._group}"):
            async with asyncio.timeout(COMMIT_TIMEOUT_S):
                await self._consumer.commit(named)

    async def seek(self, offsets: Offsets) -> None:
        """Raises LogError for a partition that is not owned; poll tells what is out of range."""
        self._check_owned(offsets, "seek in")
        with translated(f"seek as a member of {self._group}"):
            for part, offset in offsets.items():
                self._consumer.seek(self._named(part), offset)
                self._sought.add(part)

    def _check_owned(self, offsets: Offsets, doing: str) -> None:
        for part in offsets:
            if part not in self._owned:
                raise LogError(
                    f"cannot {doing} {part.topic}/{part.partition}: this member of group "
                    f"{self._group} does not own it"
                )

    async def lag(self) -> dict[TopicPartition, int]:
        """Offsets between this member's position and the end of all that is written, by partition.

        What has been written counts until it has been passed by a poll: a transaction's marker,
        and the records of a transaction that is not over or whose markers are on their way. So
        a zero means that nothing is to come of any commit that was answered before the call.
        """
        if not self._reading or not self._owned:
            return {}
        with translated(f"tell the lag of {self._group}"):
            async with asyncio.timeout(LOOKUP_TIMEOUT_S):
                named = {self._named(part): part for part in self._owned}
                ends = await _written_ends(self._consumer, list(named))
                return {
                    part: max(0, ends[kafka_part] - await self._consumer.position(kafka_part))
                    for kafka_part, part in named.items()
                }

    async def revoke(self) -> None:
        """Let go of everything, once the listener has returned."""
        self._reading = False
        async with self._moving:
            if self._owned:
                if self._listener is not None:
                    await self._tell(self._listener.on_revoked)
                self._owned = frozenset()

    async def assign(self, assigned: Sequence[Any]) -> None:
        """Own these partitions and read them, once the listener has returned."""
        async with self._moving:
            if self._leaving:
                return
            self._owned = frozenset(map(self._part, assigned))
            self._sought = set()
            if self._owned and self._listener is not None:
                await self._tell(self._listener.on_assigned)
            # aiokafka logs what its callback raises and goes on, so it is kept for the next poll.
            (failure,) = await asyncio.gather(self._set_positions(), return_exceptions=True)
            if failure is not None:
                self._fail(failure)
            self._reading = True
            self._changed.set()

    async def _set_positions(self) -> None:
        with translated(f"look up the offsets of {self._group}"):
            async with asyncio.timeout(LOOKUP_TIMEOUT_S):
                await self._seek_committed()

    async def _seek_committed(self) -> None:
        parts = [self._named(part) for part in self._owned - self._sought]
        committed = await asyncio.gather(*map(self._consumer.committed, parts))
        positions = dict(zip(parts, committed, strict=True))
        fresh = [part for part, offset in positions.items() if offset is None]
        if fresh:
            starts = await self._consumer.beginning_offsets(fresh)
            self._check_whole(starts)
            positions |= starts
        for part, offset in positions.items():
            self._consumer.seek(part, offset)

    def _check_whole(self, starts: Mapping[Any, int]) -> None:
        """Refuse to begin where retention has been: who has no offsets may have had some."""
        cut = [f"{part.topic}/{part.partition}" for part, start in starts.items() if start > 0]
        if cut:
            raise OffsetOutOfRangeError(
                f"group {self._options.name(self._group)} has no offsets (it is new, or Kafka has "
                f"forgotten them), and the start of {', '.join(sorted(cut))} was trimmed: "
                f"{RECORDS_GONE}"
            )

    async def _tell(self, listener: Callable[[Sequence[TopicPartition]], Awaitable[None]]) -> None:
        """Await a listener; what it raises is raised by the next poll, as its own error."""
        (failure,) = await asyncio.gather(listener(sorted(self._owned)), return_exceptions=True)
        if failure is not None:
            self._fail(failure)

    def _fail(self, failure: BaseException) -> None:
        self._failure = failure
        self._changed.set()

    async def close(self) -> None:
        """Leave the group; raises what the listener raises at letting go."""
        if self._leaving:
            return
        self._leaving = True
        told = self._failure
        await self.revoke()
        self._changed.set()
        await _stop(self._consumer)
        if self._failure is not None and self._failure is not told:
            raise self._failure


async def _written_ends(consumer: Any, parts: Sequence[Any]) -> dict[Any, int]:
    """Where partitions end, whether or not what they end with is committed yet."""
    # aiokafka looks ends up as the consumer reads, so up to the last stable offset only.
    fetcher = copy.copy(consumer._fetcher)
    fetcher._isolation_level = READ_UNCOMMITTED
    found = await fetcher._retrieve_offsets(dict.fromkeys(parts, OffsetResetStrategy.LATEST))
    return {part: offset for part, (offset, _) in found.items()}


def _check_fetcher(consumer: Any) -> None:
    """Raise what ended aiokafka's fetching task: its own getmany would wait in vain."""
    fetching = consumer._fetcher.error_future
    if fetching.done() and not fetching.cancelled():
        fetching.result()


def _fetched(part: TopicPartition, records: Sequence[Any], next_offset: int) -> Fetched:
    data = pack([(record.key or b"", record.value) for record in records])
    return Fetched(*part, [record.offset for record in records], data, next_offset)
