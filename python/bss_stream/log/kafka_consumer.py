"""The Kafka log's reader: a member of a consumer group.

aiokafka joins the group and tells of each new assignment; what is read, and from where, is decided
here. Nothing is fetched before the listener has returned and every partition has been set to its
committed offset, looked up after that: the former owner may still be committing until then.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from aiokafka import errors  # type: ignore[import-untyped]
from aiokafka.abc import ConsumerRebalanceListener  # type: ignore[import-untyped]
from aiokafka.consumer.fetcher import (  # type: ignore[import-untyped]
    READ_COMMITTED,
    READ_UNCOMMITTED,
)
from aiokafka.consumer.group_coordinator import GroupCoordinator  # type: ignore[import-untyped]
from aiokafka.consumer.subscription_state import SubscriptionState  # type: ignore[import-untyped]
from aiokafka.coordinator.assignors.range import (  # type: ignore[import-untyped]
    RangePartitionAssignor,
)
from aiokafka.structs import OffsetAndMetadata  # type: ignore[import-untyped]
from aiokafka.structs import TopicPartition as KafkaPartition

from bss_stream.errors import RECORDS_GONE, LogError, OffsetOutOfRangeError
from bss_stream.log.kafka_client import (
    STOP_TIMEOUT_S,
    KafkaOptions,
    connecting,
    quietly,
    translated,
    within,
)
from bss_stream.log.kafka_fetch import EARLIEST, LATEST, KafkaFetcher, look_up
from bss_stream.log.kafka_requests import KafkaRequests
from bss_stream.log.protocol import Fetched, Offsets, RebalanceListener, TopicPartition

HEARTBEAT_MS_MAX: Final = 1_000
"""A heartbeat's answer is also how a member learns that the others wait for it."""

IDLE_MS_MAX: Final = 24 * 3600 * 1000
"""A member that restores its shards polls nothing meanwhile, and must not leave for that. One whose
loop hangs sends no heartbeats."""

REBALANCE_TIMEOUT_MS: Final = 60_000
"""How long the others wait for a listener's `on_revoked` before they go on without it."""

COMMIT_TIMEOUT_S: Final = 30.0
LOOKUP_TIMEOUT_S: Final = 30.0
WAIT_SLICE_S: Final = 0.5


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
        self._requests = KafkaRequests(options, f"group-{group}")
        self._fetcher = KafkaFetcher(self._requests)
        self._subscription: Any = None
        self._coordinator: Any = None
        self._owned: frozenset[TopicPartition] = frozenset()
        self._sought: dict[TopicPartition, int] = {}
        """Where to begin, for what was sought before anything is read."""
        self._reading = False
        self._changed = asyncio.Event()
        self._moving = asyncio.Lock()
        self._leaving = False
        self._failure: BaseException | None = None

    async def open(self) -> None:
        """Connect and ask to join; partitions come with a later poll. Raises LogError."""
        joining = f"join {self._group} on {self._options.bootstrap_servers}"
        async with connecting(self._options, joining):
            names = {self._options.name(topic) for topic in self._topics}
            try:
                async with asyncio.timeout(LOOKUP_TIMEOUT_S):
                    await self._requests.open(self._topics)
                self._subscription = SubscriptionState()
                # aiokafka's own fetcher would have somebody wait there.
                self._subscription.register_fetch_waiters(set())
                self._subscription.subscribe(names, _Listener(self))
                self._coordinator = GroupCoordinator(
                    self._requests.client,
                    self._subscription,
                    group_id=self._options.name(self._group),
                    group_instance_id=self._instance,
                    assignors=(RangePartitionAssignor,),
                    session_timeout_ms=self._options.session_timeout_ms,
                    heartbeat_interval_ms=min(
                        HEARTBEAT_MS_MAX, self._options.session_timeout_ms // 4
                    ),
                    rebalance_timeout_ms=REBALANCE_TIMEOUT_MS,
                    max_poll_interval_ms=IDLE_MS_MAX,
                    enable_auto_commit=False,
                )
            except BaseException:
                await self._disconnect()
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
            self._coordinator.check_errors()

    async def _wait(self, timeout_s: float) -> None:
        self._changed.clear()
        await within(timeout_s, self._changed.wait())

    async def _fetch(self, records_max: int, timeout_s: float) -> list[Fetched]:
        # A slice at a time: between two of them errors of the group are looked for.
        wait_s = min(timeout_s, WAIT_SLICE_S)
        try:
            # A member that takes nothing for too long leaves the group, unless it is in here.
            with self._subscription.fetch_context():
                found = await self._fetcher.take(records_max, wait_s)
        except errors.OffsetOutOfRangeError as error:
            raise await self._out_of_range(error) from error
        return [
            Fetched(*self._part(part), page.offsets, page.data, page.next_offset)
            for part, page in found.items()
        ]

    async def _out_of_range(self, error: Any) -> OffsetOutOfRangeError:
        """What to tell, and what to do about it."""
        ((part, offset),) = error.args[0].items()
        start = (await self._starts([part]))[part]
        group = self._options.name(self._group)
        return OffsetOutOfRangeError(
            f"group {group} is to read {part.topic}/{part.partition} at offset {offset} and the "
            f"log begins at {start}: {RECORDS_GONE} (kafka-consumer-groups --reset-offsets "
            f"--to-earliest --group {group} --topic {part.topic}:{part.partition} --execute)"
        )

    async def _starts(self, parts: Sequence[Any]) -> dict[Any, int]:
        return await look_up(self._requests, parts, EARLIEST, READ_COMMITTED)

    def _part(self, kafka_part: Any) -> TopicPartition:
        topic = kafka_part.topic.removeprefix(self._options.topic_prefix)
        return TopicPartition(topic, kafka_part.partition)

    def _named(self, part: TopicPartition) -> Any:
        return KafkaPartition(self._options.name(part.topic), part.partition)

    async def commit(self, offsets: Offsets) -> None:
        """Raises LogError for a partition that is not owned (any more)."""
        self._check_owned(offsets, "commit")
        named = {
            self._named(part): OffsetAndMetadata(offset, "") for part, offset in offsets.items()
        }
        with translated(f"commit offsets of {self._group}"):
            async with asyncio.timeout(COMMIT_TIMEOUT_S):
                await self._coordinator.commit_offsets(None, named)

    async def seek(self, offsets: Offsets) -> None:
        """Raises LogError for a partition that is not owned; poll tells what is out of range."""
        self._check_owned(offsets, "seek in")
        if self._reading:
            for part, offset in offsets.items():
                self._fetcher.seek(self._named(part), offset)
        else:
            self._sought.update(offsets)

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
                ends = await look_up(self._requests, named, LATEST, READ_UNCOMMITTED)
                if not self._reading:
                    return {}
                return {
                    part: max(0, ends[kafka_part] - self._fetcher.position(kafka_part))
                    for kafka_part, part in named.items()
                }

    async def revoke(self) -> None:
        """Let go of everything, once the listener has returned."""
        self._reading = False
        self._fetcher.read({})
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
            self._sought = {}
            if self._owned and self._listener is not None:
                await self._tell(self._listener.on_assigned)
            # aiokafka logs what its callback raises and goes on, so it is kept for the next poll.
            (failure,) = await asyncio.gather(self._begin(), return_exceptions=True)
            if failure is not None:
                self._fail(failure)
            self._reading = True
            self._changed.set()

    async def _begin(self) -> None:
        with translated(f"look up the offsets of {self._group}"):
            async with asyncio.timeout(LOOKUP_TIMEOUT_S):
                self._fetcher.read(await self._positions())

    async def _positions(self) -> dict[Any, int]:
        """Where to begin: where a listener has sought, else where the group has committed."""
        sought = {self._named(part): offset for part, offset in self._sought.items()}
        parts = [part for part in map(self._named, self._owned) if part not in sought]
        found = await self._coordinator.fetch_committed_offsets(parts)
        committed = {part: commit.offset for part, commit in found.items()}
        fresh = [part for part in parts if part not in committed]
        starts = await self._starts(fresh)
        self._check_whole(starts)
        return sought | committed | starts

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
        await self._disconnect()
        if self._failure is not None and self._failure is not told:
            raise self._failure

    async def _disconnect(self) -> None:
        """Leave the group and disconnect, also when the group does not answer."""
        await self._fetcher.close()
        coordinator = self._coordinator
        if coordinator is not None and not await within(
            STOP_TIMEOUT_S, quietly(coordinator.close())
        ):
            coordinator._coordination_task.cancel()
        await self._requests.close()
