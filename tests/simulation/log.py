"""The log protocol over a simulated server: what Kafka promises and nothing more.

The server outlives whoever talks to it. Requests and answers go over a network that may lose them,
so an outcome can be unknown; members of a group are thrown out when they stay silent; and what a
transaction leaves behind has gaps, as Kafka's markers are.
"""

import asyncio
import bisect
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from bss_stream import topics
from bss_stream._engine import pack, unpack
from bss_stream.errors import FencedError, LogError, OffsetOutOfRangeError
from bss_stream.log.groups import assign_ranges
from bss_stream.log.protocol import (
    Chunk,
    Extent,
    Fetched,
    Offsets,
    RebalanceListener,
    TopicPartition,
)
from tests.simulation.loop import PROCESS, WORLD, SimulatedProcess
from tests.simulation.network import Network

SESSION_TIMEOUT_S: Final = 6.0
REBALANCE_TIMEOUT_S: Final = 10.0
"""How long a group waits for a member to let go before it goes on without it."""

Record = tuple[bytes, bytes | None]
Moved = tuple[str, Offsets]
"""A group, and the offsets that a transaction moves it to."""


@dataclass(slots=True)
class Partition:
    """The committed records of one partition, by offset."""

    offsets: list[int] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    start: int = 0
    end: int = 0

    def append(self, records: Sequence[Record]) -> None:
        """Add records at the end."""
        self.offsets += range(self.end, self.end + len(records))
        self.records += records
        self.end += len(records)

    def read(self, position: int, records_max: int) -> tuple[list[int], list[Record], int]:
        """Offsets and records from `position` on, and where reading goes on."""
        first = bisect.bisect_left(self.offsets, position)
        last = min(first + records_max, len(self.offsets))
        whole = last == len(self.offsets)
        next_offset = self.end if whole else self.offsets[last]
        return self.offsets[first:last], self.records[first:last], next_offset


@dataclass(frozen=True, slots=True)
class Committed:
    """One transaction that the log has taken, in the order of taking."""

    transactional_id: str
    chunks: Sequence[Chunk]
    offsets: Offsets
    at_s: float


class LogServer:
    """All that a log holds, and the groups that read it."""

    def __init__(self, network: Network, *, partitions: int, markers: bool = True) -> None:
        """`markers` leaves a gap behind what each transaction writes to a partition."""
        self.network = network
        self.partitions = partitions
        self.parts = {
            TopicPartition(topic, number): Partition()
            for topic in topics.ALL
            for number in range(partitions)
        }
        self.committed: dict[tuple[str, TopicPartition], int] = {}
        self.epochs: defaultdict[str, int] = defaultdict(int)
        self.journal: list[Committed] = []
        self.groups: dict[str, Group] = {}
        self.on_change: Callable[[str, bytes], None] = lambda what, data: None
        self._markers = markers
        # In the order of coming: a set's order is not the seed's.
        self._followers: dict[asyncio.Event, None] = {}

    def check(self, chunks: Sequence[Chunk]) -> None:
        """Raises LogError for a chunk that no log can hold."""
        for topic, partition, records, data in chunks:
            if (topic, partition) not in self.parts:
                right = f"partitions 0..{self.partitions - 1} of {', '.join(topics.ALL)}"
                raise LogError(f"the log has no {topic}/{partition}: expected one of {right}")
            if not (records > 0 and data):
                raise LogError(f"a chunk for {topic}/{partition} is empty: expected at least 1")

    def append(self, chunk: Chunk, *, marker: bool = False) -> int:
        """Take a chunk, and leave a gap behind it if it is a transaction's; where it ends."""
        part = self.parts[chunk.topic, chunk.partition]  # type: ignore[index]
        part.append(unpack(chunk.data))
        end = part.end
        part.end += marker and self._markers
        self.on_change(f"{chunk.topic}/{chunk.partition}", bytes(chunk.data))
        self.wake()
        return end

    def commit(
        self, transactional_id: str, epoch: int, chunks: Sequence[Chunk], offsets: Sequence[Moved]
    ) -> Offsets:
        """Take a transaction as a whole; the offset behind its last record of each partition.

        Raises FencedError.
        """
        self.check_epoch(transactional_id, epoch)
        ends: dict[TopicPartition, int] = {}
        for chunk in chunks:
            ends[TopicPartition(chunk.topic, chunk.partition)] = self.append(chunk, marker=True)
        moved = {part: offset for _, moves in offsets for part, offset in moves.items()}
        for group, moves in offsets:
            self.committed.update({(group, part): offset for part, offset in moves.items()})
        now_s = asyncio.get_running_loop().time()
        self.journal.append(Committed(transactional_id, tuple(chunks), moved, now_s))
        self.on_change(f"commit {transactional_id} {sorted(moved.items())}", b"")
        return ends

    def check_epoch(self, transactional_id: str, epoch: int) -> None:
        """Raises FencedError when the id has been taken again since."""
        newest = self.epochs[transactional_id]
        if epoch != newest:
            raise FencedError(
                f"{transactional_id} of epoch {epoch} is fenced: another has epoch {newest}"
            )

    def fence(self, transactional_id: str) -> int:
        """Take an id from whoever had it; the epoch that is now valid."""
        self.epochs[transactional_id] += 1
        self.on_change(f"fence {transactional_id}", b"")
        return self.epochs[transactional_id]

    def follow(self, event: asyncio.Event) -> None:
        """Have `event` set at every append."""
        self._followers[event] = None

    def unfollow(self, event: asyncio.Event) -> None:
        """Undo `follow`."""
        self._followers.pop(event, None)

    def wake(self) -> None:
        """Tell everybody who waits for records."""
        for event in self._followers:
            event.set()

    def compact(self) -> None:
        """Drop the states that a later one of the same key replaces."""
        for place, part in self.parts.items():
            if place.topic in topics.STATES:
                newest = {key: i for i, (key, _) in enumerate(part.records)}
                kept = sorted(newest.values())
                part.offsets = [part.offsets[i] for i in kept]
                part.records = [part.records[i] for i in kept]

    def trim(self, place: TopicPartition, start: int) -> None:
        """Lose what lies before an offset, as retention does."""
        part = self.parts[place]
        kept = bisect.bisect_left(part.offsets, start)
        part.offsets, part.records, part.start = part.offsets[kept:], part.records[kept:], start

    def group(self, name: str) -> "Group":
        """The group of that name, made when missing."""
        if name not in self.groups:
            self.groups[name] = Group(name, self)
        return self.groups[name]

    def silence(self, process: SimulatedProcess) -> None:
        """Have the groups notice, after a while, that a process says nothing any more."""

        def notice() -> None:
            if process.alive and not process.frozen:
                return
            for group in self.groups.values():
                for seat in [seat for seat in group.seats if seat.process is process]:
                    group.expel(seat)

        asyncio.get_running_loop().call_later(SESSION_TIMEOUT_S, notice, context=WORLD)


class Seat:
    """One member of a group, as the group sees it."""

    def __init__(self, read: Sequence[str]) -> None:
        self.topics = read
        self.process = PROCESS.get(None)
        self.parts: frozenset[TopicPartition] = frozenset()
        self.orders: list[tuple[str, list[TopicPartition]]] = []
        """What the member has yet to do: `revoke`, `assign`, or `lost` once it is thrown out."""
        self.ordered = asyncio.Event()

    def order(self, what: str, parts: Sequence[TopicPartition] = ()) -> None:
        """Tell the member something."""
        self.orders.append((what, list(parts)))
        self.ordered.set()


class Group:
    """The coordinator of one group: Kafka's eager rebalance with the range assignor."""

    def __init__(self, name: str, server: LogServer) -> None:
        self.seats: list[Seat] = []
        self._name = name
        self._server = server
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def join(self, seat: Seat) -> None:
        """Add a member; it owns partitions once the others have let go of them."""
        self.seats.append(seat)
        self._change()

    def leave(self, seat: Seat) -> None:
        """Remove a member that has let go of its partitions."""
        if seat in self.seats:
            self.seats.remove(seat)
            self._change()

    def expel(self, seat: Seat, told_after_s: float = 0.0) -> None:
        """Throw out a member, which goes on as if it owned its partitions until it is told."""
        if seat in self.seats:
            self.leave(seat)
            loop = asyncio.get_running_loop()
            loop.call_later(told_after_s, seat.order, "lost", context=WORLD)

    def commit(self, seat: Seat, offsets: Offsets) -> None:
        """Take a member's offsets. Raises LogError for what it does not own."""
        for part in offsets:
            if seat not in self.seats or part not in seat.parts:
                raise LogError(
                    f"cannot commit {part.topic}/{part.partition}: this member of group "
                    f"{self._name} does not own it"
                )
        self._server.committed.update(((self._name, part), at) for part, at in offsets.items())
        self._server.on_change(f"offsets {self._name} {sorted(offsets.items())}", b"")

    def _change(self) -> None:
        self._changed.set()
        if self._task is None:
            loop = asyncio.get_running_loop()
            self._task = loop.create_task(self._run(), context=WORLD.copy())

    async def close(self) -> None:
        """Stop moving partitions."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def _run(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self._take_all_back()
            if self._changed.is_set():
                continue
            seats = list(self.seats)
            shares = assign_ranges([seat.topics for seat in seats], self._server.partitions)
            for seat, share in zip(seats, shares, strict=True):
                seat.parts = frozenset(share)
                if share:
                    seat.order("assign", share)

    async def _take_all_back(self) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + REBALANCE_TIMEOUT_S
        asked = [seat for seat in self.seats if seat.parts]
        for seat in asked:
            seat.order("revoke")
        while holding := [seat for seat in asked if seat.parts and seat in self.seats]:
            if loop.time() >= deadline:
                for seat in holding:
                    self.expel(seat)
                return
            await asyncio.sleep(0.01)


class SimulatedLog:
    """The log as one process sees it: a handle on the server."""

    def __init__(self, server: LogServer) -> None:
        self.partitions = server.partitions
        self._server = server

    async def open(self) -> None:
        """The topics are there."""

    async def appender(self) -> "SimulatedAppender":
        return SimulatedAppender(self._server)

    async def consumer(
        self, group: str, topics: Sequence[str], listener: RebalanceListener | None = None
    ) -> "SimulatedConsumer":
        return SimulatedConsumer(self._server, group, topics, listener)

    async def transactional_producer(self, transactional_id: str) -> "SimulatedProducer":
        server = self._server
        epoch = await server.network.call("fence", lambda: server.fence(transactional_id))
        return SimulatedProducer(server, transactional_id, epoch)

    async def settle(self, topic: str, partition: int) -> None:
        """Opening a producer ends its transaction before it answers."""

    async def extent(self, topic: str, partition: int) -> Extent:
        server = self._server
        part = server.parts[TopicPartition(topic, partition)]
        return await server.network.call(
            "extent", lambda: Extent("simulated", part.start, part.end)
        )

    async def replay(self, topic: str, partition: int, start: int = 0) -> AsyncIterator[Fetched]:
        server, place = self._server, TopicPartition(topic, partition)
        part = server.parts[place]
        end, position = part.end, max(start, part.start)
        while position < end:
            at = position
            offsets, records, position = await server.network.call(
                "replay",
                lambda at=at: part.read(at, 50),  # type: ignore[misc]
            )
            kept = bisect.bisect_left(offsets, end)
            if kept:
                yield Fetched(*place, offsets[:kept], pack(records[:kept]), position)

    async def close(self) -> None:
        """The server goes on."""


class SimulatedAppender:
    """A writer without transactions: some chunks of a failed append may have got through."""

    def __init__(self, server: LogServer) -> None:
        self._server = server

    async def append(self, chunks: Sequence[Chunk]) -> None:
        server = self._server
        server.check(chunks)
        by_part: dict[tuple[str, int], list[Chunk]] = {}
        for chunk in chunks:
            by_part.setdefault((chunk.topic, chunk.partition), []).append(chunk)

        def take(of_part: list[Chunk]) -> None:
            for chunk in of_part:
                server.append(chunk)

        calls = [
            server.network.call("append", lambda of_part=of_part: take(of_part))  # type: ignore[misc]
            for of_part in by_part.values()
        ]
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    async def close(self) -> None:
        """Nothing to let go."""


class SimulatedTransaction:
    """What commits together or not at all."""

    def __init__(self, server: LogServer) -> None:
        self.chunks: list[Chunk] = []
        self.moved: list[Moved] = []
        self.ended = False
        self._server = server

    def append(self, chunks: Sequence[Chunk]) -> None:
        self._check_open()
        self._server.check(chunks)
        self.chunks += chunks

    def offsets(self, group: str, offsets: Offsets) -> None:
        self._check_open()
        self.moved.append((group, dict(offsets)))

    def _check_open(self) -> None:
        if self.ended:
            raise LogError("this transaction has ended: open another one")


class SimulatedProducer:
    """The one writer of a shard."""

    def __init__(self, server: LogServer, transactional_id: str, epoch: int) -> None:
        self._server = server
        self._id = transactional_id
        self._epoch = epoch
        self._busy = False
        self._closed = False
        self._ends: dict[TopicPartition, int] = {}

    @property
    def ends(self) -> Offsets:
        return self._ends

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[SimulatedTransaction]:
        if self._busy or self._closed:
            state = "in a transaction" if self._busy else "closed"
            raise LogError(f"the producer {self._id} is {state}")
        self._busy = True
        transaction = SimulatedTransaction(self._server)
        try:
            yield transaction
            transaction.ended = True
            await self._commit(transaction)
        finally:
            transaction.ended = True
            self._busy = False

    async def _commit(self, transaction: SimulatedTransaction) -> None:
        server = self._server

        def commit() -> Offsets:
            if server.network.strikes("transaction aborted", 0.01):
                raise LogError(f"the log has aborted a transaction of {self._id}")
            return server.commit(self._id, self._epoch, transaction.chunks, transaction.moved)

        call = asyncio.create_task(server.network.call("commit", commit))
        try:
            self._ends.update(await asyncio.shield(call))
        except asyncio.CancelledError:
            await asyncio.wait([call])
            call.exception()  # Retrieved here; the cancellation is what goes on.
            raise

    async def close(self) -> None:
        self._closed = True


class SimulatedConsumer:
    """A member of a group, and the task that does what the group orders."""

    def __init__(
        self,
        server: LogServer,
        group: str,
        read: Sequence[str],
        listener: RebalanceListener | None,
    ) -> None:
        self._server = server
        self._group_name = group
        self._group = server.group(group)
        self._topics = read
        self._listener = listener
        self._positions: dict[TopicPartition, int] = {}
        """Of what is owned; below 0 until it is sought or its committed offset is known."""
        self._reading = False
        self._generation = 0
        self._failure: BaseException | None = None
        self._leaving = False
        self._wake = asyncio.Event()
        self._moving = asyncio.Lock()
        server.follow(self._wake)
        self._seat = self._join()
        self._task = asyncio.create_task(self._obey())

    def _join(self) -> Seat:
        seat = Seat(self._topics)
        if seat.process is not None:
            seat.process.on_killed.append(lambda: self._server.silence(seat.process))  # type: ignore[arg-type]
        self._group.join(seat)
        return seat

    def assignment(self) -> frozenset[TopicPartition]:
        return frozenset(self._positions)

    async def poll(self, records_max: int, timeout_s: float) -> list[Fetched]:
        loop, network = asyncio.get_running_loop(), self._server.network
        deadline = loop.time() + timeout_s
        while True:
            self._wake.clear()
            self._check_usable()
            generation, held_back = self._generation, False
            fetched: list[Fetched] = []
            if self._reading and any(self._ends_after(part) for part in self._positions):
                await network.pause()
                # What was read before a rebalance or a seek is void after it.
                if generation == self._generation and self._reading:
                    fetched, held_back = self._take(records_max)
            left = deadline - loop.time()
            if fetched or left <= 0:
                return fetched
            if held_back:
                await asyncio.sleep(min(left, 0.02))
                continue
            try:
                async with asyncio.timeout(left):
                    await self._wake.wait()
            except TimeoutError:
                return []

    def _check_usable(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._leaving:
            raise LogError(f"this consumer of group {self._group_name} is closed")

    def _ends_after(self, place: TopicPartition) -> bool:
        part, position = self._server.parts[place], self._positions[place]
        if position < part.start or position > part.end:
            raise OffsetOutOfRangeError(
                f"group {self._group_name} is to read {place.topic}/{place.partition} at offset "
                f"{position} and the log has {part.start} to {part.end}"
            )
        return position < part.end

    def _take(self, records_max: int) -> tuple[list[Fetched], bool]:
        """Records of some of the partitions, and whether any were held back for later."""
        network, fetched, held_back = self._server.network, [], False
        for place in network.shuffled(sorted(self._positions)):
            if records_max <= 0 or not self._ends_after(place):
                continue
            if network.strikes("partition lags", 0.1):
                held_back = True
                continue
            part, position = self._server.parts[place], self._positions[place]
            offsets, records, next_offset = part.read(position, network.some(records_max))
            self._positions[place] = next_offset
            records_max -= len(offsets)
            if offsets:
                fetched.append(Fetched(*place, offsets, pack(records), next_offset))
        return fetched, held_back

    async def commit(self, offsets: Offsets) -> None:
        self._check_owned(offsets, "commit")
        seat, moved = self._seat, dict(offsets)
        await self._server.network.call("commit offsets", lambda: self._group.commit(seat, moved))

    async def seek(self, offsets: Offsets) -> None:
        self._check_owned(offsets, "seek in")
        self._generation += 1
        self._positions.update(offsets)
        self._wake.set()

    def _check_owned(self, offsets: Offsets, doing: str) -> None:
        for part in offsets:
            if part not in self._positions:
                raise LogError(
                    f"cannot {doing} {part.topic}/{part.partition}: this member of group "
                    f"{self._group_name} does not own it"
                )

    async def lag(self) -> dict[TopicPartition, int]:
        def look() -> dict[TopicPartition, int]:
            return {
                place: self._server.parts[place].end - position
                for place, position in self._positions.items()
                if position >= 0
            }

        return await self._server.network.call("lag", look)

    async def close(self) -> None:
        if self._leaving:
            return
        self._leaving = True
        told = self._failure
        await self._let_go()
        self._task.cancel()
        self._group.leave(self._seat)
        self._server.unfollow(self._wake)
        self._wake.set()
        if self._failure is not None and self._failure is not told:
            raise self._failure

    async def _obey(self) -> None:
        while not self._leaving:
            await self._seat.ordered.wait()
            self._seat.ordered.clear()
            while self._seat.orders and not self._leaving:
                what, parts = self._seat.orders.pop(0)
                await self._server.network.pause()
                if what == "assign":
                    await self._own(parts)
                else:
                    await self._let_go()
                if what == "lost" and not self._leaving:
                    self._seat = self._join()

    async def _let_go(self) -> None:
        seat = self._seat
        async with self._moving:
            self._reading = False
            self._generation += 1
            if self._positions and self._listener is not None:
                await self._tell(self._listener.on_revoked)
            self._positions = {}
            seat.parts = frozenset()

    async def _own(self, parts: list[TopicPartition]) -> None:
        seat = self._seat
        async with self._moving:
            if self._leaving or seat.parts != frozenset(parts):
                return
            self._positions = dict.fromkeys(sorted(parts), -1)
            if self._listener is not None:
                await self._tell(self._listener.on_assigned)
            try:
                committed = await self._server.network.call("offsets", self._committed)
            except LogError as error:
                self._failure = self._failure or error
                committed = {}
            for place, position in committed.items():
                if self._positions[place] < 0:
                    self._positions[place] = position
            self._generation += 1
            self._reading = self._failure is None
            self._wake.set()

    def _committed(self) -> dict[TopicPartition, int]:
        server = self._server
        return {
            place: server.committed.get((self._group_name, place), server.parts[place].start)
            for place in self._positions
        }

    async def _tell(self, listener: Callable[[Sequence[TopicPartition]], object]) -> None:
        """Await a listener; what it raises is raised by the next poll, as its own error."""
        (failure,) = await asyncio.gather(
            listener(sorted(self._positions)),  # type: ignore[call-overload]
            return_exceptions=True,
        )
        if failure is not None:
            self._failure = failure
            self._wake.set()
