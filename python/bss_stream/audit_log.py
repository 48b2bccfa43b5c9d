"""The balance of a log: what came in has come to an end, counted from the records alone.

Roles count only while they live; this counts what they have left behind, and so holds over any
number of crashes. It looks at one partition at a time: an entity's signals, echoes, dead letters
and ledger entries have its partition.
"""

import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from bss_stream import topics
from bss_stream._engine import unpack
from bss_stream.dead_letters.letters import REPLAYED, Filter, Letter, correlation_id, letters
from bss_stream.errors import FrameError
from bss_stream.frames import (
    ENGINE,
    REPLAY,
    OutboxKind,
    decode_outbox,
    decode_signal,
)
from bss_stream.log.protocol import ReadableLog

FAULTS_MAX: Final = 1_000
"""How many faults a balance lists; it counts all of them."""

DECIDED_LATER: Final = frozenset(("customer_binding", "station_tap"))
"""Requests that are answered once ARM has answered, or has been waited for long enough."""

ANYTHING: Final = Filter()
TRAIL: Final = Filter(reasons=frozenset((REPLAYED,)))


@dataclass
class LogBalance:
    """What a log holds, and what does not add up in it."""

    signals: int = 0
    """From outside, as far as the log still has them; replays are among them."""
    internal: int = 0
    """That entities sent each other."""
    replays: int = 0
    requests: int = 0
    """Different requests to plans among the signals, by plan and correlation id."""
    answered: int = 0
    """Of those, how many have an echo or a dead letter."""
    unanswered: int = 0
    """Of those, how many have neither: still to be processed, or under way."""
    echoes: int = 0
    messages: int = 0
    """Commands and notifications in the outbox."""
    entries: int = 0
    """In both ledgers."""
    dead_letters: Counter[str] = field(default_factory=Counter)
    """By who refused it: bridge, processor, publisher."""
    faults: list[str] = field(default_factory=list)
    """The first ones, FAULTS_MAX at most."""
    faults_total: int = 0

    @property
    def ok(self) -> bool:
        """Whether all adds up."""
        return not self.faults_total

    def fault(self, text: str) -> None:
        """Note that something does not add up."""
        self.faults_total += 1
        if len(self.faults) < FAULTS_MAX:
            self.faults.append(text)

    def check_copied(self, entries: int) -> None:
        """Hold the entries in the ledger database against those in the log."""
        if entries != self.entries:
            self.fault(f"the ledgers have {self.entries} entries in the log, {entries} in SQL")


async def balance_log(
    log: ReadableLog, *, drained: bool = False, at_rest: bool = False
) -> LogBalance:
    """Balance an open log. Raises LogError.

    `drained` says that every signal has been processed: then a request without an answer is a
    fault, unless it waits for ARM; `at_rest`, that none does so any more. Of what retention has
    taken the beginning nothing is expected.
    """
    balance, replays = LogBalance(), _Replays()
    for partition in range(log.partitions):
        part = _Partition(log, partition, balance, replays)
        await part.read()
        part.settle(drained, at_rest)
    if drained or at_rest:
        for text in replays.faults():
            balance.fault(text)
    return balance


class _Replays:
    """Replayed signals against the records of their replays; the two may differ in partition."""

    def __init__(self) -> None:
        self.trimmed: set[str] = set()
        """Topics whose beginning is gone."""
        self._surplus: Counter[tuple[str, bytes]] = Counter()

    def signal(self, topic: str, value: bytes) -> None:
        """A signal says that it is a replay."""
        self._surplus[topic, hashlib.blake2b(value, digest_size=16).digest()] += 1

    def on_record(self, letter: Letter) -> None:
        """A record says that a signal was replayed."""
        topic = letter.body.detail.partition("/")[0]
        self._surplus[topic, hashlib.blake2b(letter.body.raw, digest_size=16).digest()] -= 1

    def faults(self) -> Iterator[str]:
        """What is there without the other."""
        for (topic, _), surplus in self._surplus.items():
            if surplus > 0:
                yield f"{topic}: {surplus} signals are replays and no record says so"
            elif surplus < 0 and topic not in self.trimmed:
                yield f"{topic}: {-surplus} replays are on record and not there"


class _Record(NamedTuple):
    offset: int
    key: bytes
    value: bytes


def _digest(key: bytes, correlation: str) -> bytes:
    """A request in few bytes: a partition may have millions."""
    digest = hashlib.blake2b(key, digest_size=16)
    digest.update(b"\0")
    digest.update(correlation.encode())
    return digest.digest()


class _Partition:
    """One partition of all topics."""

    def __init__(
        self, log: ReadableLog, partition: int, balance: LogBalance, replays: _Replays
    ) -> None:
        self._log = log
        self._partition = partition
        self._balance = balance
        self._replays = replays
        self._starts: dict[str, int] = {}
        self._ends: dict[str, int] = {}
        self._echoed: set[bytes] = set()
        self._asked: dict[bytes, tuple[bytes, str, int]] = {}
        """Requests, with the plan, event and offset of the last record."""
        self._refused: Counter[tuple[str, int]] = Counter()
        """Signals with dead letters, by topic and offset."""

    async def read(self) -> None:
        # What follows from a record is read before the record: it may be added meanwhile.
        await self._read_outbox()
        await self._read_letters()
        for topic in topics.SIGNALS:
            await self._read_signals(topic)
        for topic in topics.LEDGERS:
            async for _ in self._records(topic):
                self._balance.entries += 1

    async def _records(self, topic: str) -> AsyncIterator[_Record]:
        async for fetched in self._log.replay(topic, self._partition):
            self._starts.setdefault(topic, fetched.offsets[0])
            self._ends[topic] = fetched.next_offset
            for offset, (key, value) in zip(fetched.offsets, unpack(fetched.data), strict=True):
                yield _Record(offset, key, value or b"")

    async def _read_outbox(self) -> None:
        async for record in self._records(topics.OUTBOX):
            try:
                message = decode_outbox(record.value)
            except FrameError as error:
                self._fault(topics.OUTBOX, record.offset, str(error))
                continue
            if message.kind is OutboxKind.ECHO:
                self._balance.echoes += 1
                self._echoed.add(_digest(record.key, message.correlation))
            else:
                self._balance.messages += 1

    async def _read_letters(self) -> None:
        async for letter in letters(self._log, self._partition, ANYTHING):
            body = letter.body
            if letter.is_from_bridge:
                self._balance.dead_letters["bridge"] += 1
            elif body.source_topic == topics.OUTBOX:
                self._balance.dead_letters["publisher"] += 1
            else:
                self._balance.dead_letters["processor"] += 1
                self._refused[body.source_topic, body.offset] += 1
        async for letter in letters(self._log, self._partition, TRAIL):
            self._balance.replays += 1
            self._replays.on_record(letter)

    async def _read_signals(self, topic: str) -> None:
        async for offset, key, value in self._records(topic):
            try:
                signal = decode_signal(value)
            except FrameError:
                self._balance.signals += 1
                self._expect_letter(topic, offset)
                continue
            if signal.source == ENGINE:
                self._balance.internal += 1
                continue
            self._balance.signals += 1
            if signal.source.startswith(REPLAY):
                self._replays.signal(topic, value)
            if topic == topics.SIGNALS_PLAN:
                self._asked[_digest(key, correlation_id(signal))] = key, signal.event, offset

    def _expect_letter(self, topic: str, offset: int) -> None:
        if not self._refused[topic, offset]:
            self._fault(topic, offset, "it is no signal, and has no dead letter")

    def settle(self, drained: bool, at_rest: bool) -> None:
        """Hold what followed against what came in."""
        for (topic, offset), count in self._refused.items():
            if count > 1:
                self._fault(topic, offset, f"it has {count} dead letters")
            # Letters were read first, so their signals must be there, unless all is trimmed.
            if offset >= self._ends.get(topic, offset + 1):
                self._fault(topic, offset, "it has a dead letter, and is not there")
        self._replays.trimmed.update(topic for topic in self._starts if not self._is_whole(topic))
        if not self._is_whole(topics.OUTBOX):
            return
        for digest, (key, event, offset) in self._asked.items():
            self._balance.requests += 1
            if digest in self._echoed or self._refused[topics.SIGNALS_PLAN, offset]:
                self._balance.answered += 1
                continue
            self._balance.unanswered += 1
            if at_rest or (drained and event not in DECIDED_LATER):
                plan = key.decode("utf-8", "replace")
                self._fault(topics.SIGNALS_PLAN, offset, f"the request of {plan} has no answer")

    def _is_whole(self, topic: str) -> bool:
        return self._starts.get(topic, 0) == 0

    def _fault(self, topic: str, offset: int, text: str) -> None:
        self._balance.fault(f"{topic}/{self._partition} offset {offset}: {text}")
