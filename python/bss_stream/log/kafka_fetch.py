"""Reading partitions of the Kafka log: fetched ahead, and no object for a record.

Every broker is asked for all that it leads in one request, again as soon as it has answered. So
whatever comes in ends the wait, in whichever partition, and nothing waits for another one's fetch.
"""

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Final, NamedTuple

from aiokafka import errors  # type: ignore[import-untyped]
from aiokafka.consumer.fetcher import READ_COMMITTED  # type: ignore[import-untyped]
from aiokafka.protocol.fetch import FetchRequest  # type: ignore[import-untyped]
from aiokafka.protocol.offset import OffsetRequest  # type: ignore[import-untyped]
from aiokafka.structs import TopicPartition as KafkaPartition  # type: ignore[import-untyped]

from bss_stream._engine import byte_after, read_batches
from bss_stream.log.kafka_client import RECORD_BYTES_MAX, within
from bss_stream.log.kafka_requests import Failure, KafkaRequests, failure_of

EARLIEST: Final = -2
LATEST: Final = -1

FETCH_BYTES_MAX: Final = 8 * 1024 * 1024
FETCH_WAIT_MS: Final = 250
"""How long a broker waits for something to come in. A partition that is sought meanwhile waits so
long at most."""

FETCH_WAIT_FULL_MS: Final = 5
"""The same while some partitions are left out, which may have room again at any moment."""

AHEAD_BYTES_MAX: Final = 16 * 1024 * 1024
"""What is kept that nobody has taken yet, of all partitions; one more answer may pass it."""

AHEAD_OF_ONE_BYTES_MAX: Final = 2 * 1024 * 1024
"""What is kept of one partition before it is left out of the next request."""

AT_ONCE_BYTES_MAX: Final = 64 * 1024
"""Up to this size batches are read in less time than a thread takes to begin."""

NOBODY: Final = -1


class Page(NamedTuple):
    """Records of one partition in a row."""

    offsets: list[int]
    data: bytes
    next_offset: int
    """Where reading goes on: past the records, and past markers and aborted records behind them."""


async def look_up(
    requests: KafkaRequests, parts: Iterable[Any], which: int, isolation: int
) -> dict[Any, int]:
    """The first offset of each partition or the one behind its last, as `isolation` sees it."""
    missing = set(parts)
    found: dict[Any, int] = {}

    async def ask() -> Failure:
        led: dict[int, dict[str, list[tuple[int, int]]]] = {}
        for part in missing - found.keys():
            of_leader = led.setdefault(requests.leader(part), {})
            of_leader.setdefault(part.topic, []).append((part.partition, which))
        answers = await asyncio.gather(
            *(
                requests.ask_leader(leader, OffsetRequest(-1, isolation, list(wanted.items())))
                for leader, wanted in led.items()
            )
        )
        codes = []
        for answer in answers:
            for topic, partitions in answer.topics:
                for partition, code, _, offset, *_ in partitions:
                    codes.append(code)
                    if code == 0:
                        found[KafkaPartition(topic, partition)] = offset
        return failure_of(codes)

    await requests.until_done(ask)
    return found


async def read_page(fields: list[Any], position: int) -> Page:
    """The committed records in an answer's fields for a partition, of whatever version: the list
    of aborted transactions stands at one place among numbers, and the batches at the end."""
    aborted = next((f for f in fields if isinstance(f, list)), [])
    batches = fields[-1] or b""
    read = partial(read_batches, batches, aborted, position)
    try:
        if len(batches) <= AT_ONCE_BYTES_MAX:
            return Page(*read())
        return Page(*await asyncio.to_thread(read))
    except ValueError as error:
        raise errors.CorruptRecordException(str(error)) from error


def cut(page: Page, records: int) -> tuple[Page, Page]:
    """A page's first records and the rest of it. Both have some."""
    at = byte_after(page.data, records)
    first = Page(page.offsets[:records], page.data[:at], page.offsets[records - 1] + 1)
    return first, Page(page.offsets[records:], page.data[at:], page.next_offset)


class _Reading:
    """A partition being read: what was fetched, and what was taken of it."""

    __slots__ = ("ahead", "pages", "part", "position", "size")

    def __init__(self, part: Any, position: int) -> None:
        self.part = part
        self.position = self.ahead = position
        self.pages: deque[Page] = deque()
        self.size = 0

    def push(self, page: Page) -> None:
        self.pages.append(page)
        self.size += len(page.data)
        self.ahead = page.next_offset

    def take(self, records_max: int) -> Page:
        """About as many records, and what has none behind them."""
        offsets: list[int] = []
        data: list[bytes] = []
        while self.pages and (not self.pages[0].offsets or len(offsets) < records_max):
            page = self.pages.popleft()
            left = records_max - len(offsets)
            if len(page.offsets) > left:
                page, rest = cut(page, left)
                self.pages.appendleft(rest)
            offsets += page.offsets
            data.append(page.data)
            self.size -= len(page.data)
            self.position = page.next_offset
        return Page(offsets, data[0] if len(data) == 1 else b"".join(data), self.position)


class KafkaFetcher:
    """Reads partitions, each from a position that was set here."""

    def __init__(self, requests: KafkaRequests) -> None:
        self._requests = requests
        self._readings: dict[Any, _Reading] = {}
        self._asking: dict[int, asyncio.Task[None]] = {}
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._failure: BaseException | None = None
        self._turn = 0

    def read(self, positions: Mapping[Any, int]) -> None:
        """Read these partitions from now on, and no others."""
        self._readings = {part: _Reading(part, offset) for part, offset in positions.items()}
        self._failure = None
        self._news.set()
        self._ask_all()

    def seek(self, part: Any, offset: int) -> None:
        """Read a partition on from elsewhere."""
        self._readings[part] = _Reading(part, offset)
        self._ask_all()

    def position(self, part: Any) -> int:
        """The offset behind all that was taken."""
        return self._readings[part].position

    async def take(self, records_max: int, timeout_s: float) -> dict[Any, Page]:
        """What is there, or comes within the time: nothing, too, where less than a record came in,
        or `read` was called. Raises OffsetOutOfRangeError with the partition and its offset."""
        self._news.clear()
        taken = self._taken(records_max)
        if not taken and self._failure is None:
            await within(timeout_s, self._news.wait())
            taken = self._taken(records_max)
        if not taken and self._failure is not None:
            raise self._failure
        return taken

    def _taken(self, records_max: int) -> dict[Any, Page]:
        taken: dict[Any, Page] = {}
        for reading in self._in_turn():
            if reading.pages and records_max > 0:
                page = reading.take(records_max)
                if page.offsets:
                    records_max -= len(page.offsets)
                    taken[reading.part] = page
        self._room.set()
        return taken

    def _in_turn(self) -> list[_Reading]:
        """All partitions, another one first each time."""
        readings = list(self._readings.values())
        self._turn = (self._turn + 1) % max(1, len(readings))
        return [*readings[self._turn :], *readings[: self._turn]]

    def _leader(self, part: Any) -> int:
        try:
            return self._requests.leader(part)
        except errors.LeaderNotAvailableError:
            return NOBODY

    def _ask_all(self) -> None:
        """Have every leader asked; where there is none, until one is known."""
        for node in {self._leader(part) for part in self._readings}:
            if node not in self._asking:
                self._asking[node] = asyncio.create_task(self._ask(node), name="kafka-fetch")
        self._room.set()

    async def _ask(self, node: int) -> None:
        try:
            while any(self._leader(part) == node for part in self._readings):
                await self._requests.until_done(partial(self._fetch, node))
                self._ask_all()
        except Exception as error:  # noqa: BLE001 - whoever takes next is told
            self._failure = error
            self._news.set()
        finally:
            del self._asking[node]

    async def _fetch(self, node: int) -> Failure:
        led = [reading for reading in self._in_turn() if self._leader(reading.part) == node]
        if not led:
            return None
        wanted = {r.part: (r, r.ahead) for r in led if r.size < AHEAD_OF_ONE_BYTES_MAX}
        if not wanted or sum(r.size for r in self._readings.values()) >= AHEAD_BYTES_MAX:
            self._room.clear()
            await self._room.wait()
            return None
        if node == NOBODY:
            failure: Failure = errors.LeaderNotAvailableError()
            return failure
        topics: dict[str, list[tuple[int, int, int]]] = {}
        for part, (_, ahead) in wanted.items():
            topics.setdefault(part.topic, []).append((part.partition, ahead, RECORD_BYTES_MAX))
        wait_ms = FETCH_WAIT_MS if len(wanted) == len(led) else FETCH_WAIT_FULL_MS
        request = FetchRequest(wait_ms, 1, FETCH_BYTES_MAX, READ_COMMITTED, list(topics.items()))
        answer = await self._requests.fetch(node, request)
        codes = []
        for topic, partitions in answer.topics:
            for partition, code, *fields in partitions:
                reading, ahead = wanted[KafkaPartition(topic, partition)]
                if not self._is_read(reading):
                    continue
                if errors.for_code(code) is errors.OffsetOutOfRangeError:
                    raise errors.OffsetOutOfRangeError({reading.part: ahead})
                codes.append(code)
                page = await read_page(fields, ahead) if code == 0 else None
                if page is not None and page.next_offset > ahead and self._is_read(reading):
                    reading.push(page)
                    self._news.set()
        return failure_of(codes)

    def _is_read(self, reading: _Reading) -> bool:
        """Whether its partition was neither lost nor sought since."""
        return self._readings.get(reading.part) is reading

    async def close(self) -> None:
        """Fetch nothing more."""
        self._readings = {}
        asking = list(self._asking.values())
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
