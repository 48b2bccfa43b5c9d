"""Which dead letters can be replayed, and their way back into the log, once.

A replay is the signal once more, as the bridge would write it now, in one transaction with the
record that it was made. It is judged by the engine like any other; what is told apart here is
what the engine cannot know, because it lies before its dedupe window
(docs/decisions/0034-dead-letters-as-work.md).
"""

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final, NamedTuple, Self

import msgspec

from bss_stream import topics
from bss_stream._engine import last_received_ms, pack, partition_for, unpack
from bss_stream.clock import epoch_ms
from bss_stream.dead_letters.letters import (
    REPLAYED,
    Filter,
    Letter,
    correlation_id,
    letters,
    replays,
    with_replays,
)
from bss_stream.errors import FrameError
from bss_stream.frames import (
    ENGINE,
    REPLAY,
    DeadLetter,
    Signal,
    decode_signal,
    encode_dead_letter,
    encode_signal,
)
from bss_stream.log.protocol import Chunk, Log, ReadableLog
from bss_stream.setup.compile import Limits
from bss_stream.topic_table import CLEAN_ID, TopicTable, load

CANDIDATES_MAX: Final = 10_000
CANDIDATES_BYTES_MAX: Final = 64 * 1024 * 1024
"""So many of the oldest letters that may be replayed are looked at in one go."""

AWAITED: Final = frozenset(
    (
        "identify_customer",
        "validate",
        "customer_binding",
        "station_tap",
        "report_lost",
        "continue_service",
        "station_readiness",
        "operator_shift",
    )
)
"""Somebody stood there, was told no, and asks again: an answer now would open a door to nobody."""

REPORTS: Final = {
    "odoo_sync": "subscription",
    "station_stock": "stock",
    "station_equipment": "equipment",
    "asset_status": "asset",
    "asset_scan": "asset",
}
"""Events that say how something is, with what they speak of: the latest one counts."""


NOW: Final = "just now"
"""Why a letter is REPLAYED that this very call has replayed."""


class Standing(StrEnum):
    """What can be done about a letter; everything but KEPT speaks against a replay."""

    KEPT = "kept"
    """Nothing of it was applied."""
    REPLAYED = "replayed"
    RECORDED = "recorded"
    """What it tells of has happened, and has had its effects."""
    OUTGOING = "outgoing"
    UNREADABLE = "unreadable"
    CUT = "cut"
    UNROUTABLE = "unroutable"
    NAMELESS = "nameless"
    EXPIRED = "expired"
    OLD = "old"
    SUPERSEDED = "superseded"
    CAME_AGAIN = "came_again"
    FORGOTTEN = "forgotten"
    APPLIED = "applied"


class Target(NamedTuple):
    """Where a signal goes: what the topic table makes of its MQTT message today."""

    topic: str
    partition: int
    key: bytes
    event: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A letter, and whether it can be replayed."""

    letter: Letter
    standing: Standing
    why: str
    target: Target | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """By what letters are judged."""

    table: TopicTable
    now_ms: int
    age_ms_max: int
    """The engine takes no signal with an older time stamp (`limits.skew_past_ms`)."""
    dedupe_window_ms: int
    again: bool = False
    """Whether what has been replayed, or has come again, may be replayed all the same."""

    @classmethod
    def present(cls, now_ms: int, *, again: bool = False) -> Self:
        """The program's own topic table and limits."""
        limits = Limits()
        return cls(
            table=load(),
            now_ms=now_ms,
            age_ms_max=limits.skew_past_ms,
            dedupe_window_ms=limits.dedupe_window_ms,
            again=again,
        )

    def may_repeat(self, target: "Target") -> bool:
        """Only plans have ledgers, which prove that nothing of it was applied."""
        return self.again and target.topic == topics.SIGNALS_PLAN


class Listing(NamedTuple):
    """The newest letters that are meant, oldest first, and all of them by reason."""

    verdicts: list[Verdict]
    reasons: Counter[str]


async def newest(log: ReadableLog, wanted: Filter, rules: Rules, limit: int) -> Listing:
    """List letters, each with what it says of itself. Raises LogError."""
    kept: list[Verdict] = []
    reasons: Counter[str] = Counter()
    for partition in range(log.partitions):
        replayed = await replays(log, partition)
        last: deque[Verdict] = deque(maxlen=limit)
        async for letter in letters(log, partition, wanted):
            reasons[letter.body.reason] += 1
            verdict = judge(with_replays(letter, replayed), rules, log.partitions)
            last.append(replace(verdict, letter=verdict.letter.without_raw()))
        kept = sorted((*kept, *last), key=_by_age)[-limit:]
    return Listing(kept, reasons)


def _by_age(verdict: Verdict) -> tuple[int, int, int]:
    return verdict.letter.body.received_ms, *verdict.letter.place


class Judgement(NamedTuple):
    """The verdicts, oldest letter first, and whether there were too many to look at all."""

    verdicts: list[Verdict]
    more: bool


async def judged(log: ReadableLog, wanted: Filter, rules: Rules) -> Judgement:
    """What can be done about the letters that a filter takes. Raises LogError."""
    verdicts: list[Verdict] = []
    size = 0
    more = False
    for partition in range(log.partitions):
        replayed = await replays(log, partition)
        async for letter in letters(log, partition, wanted):
            if len(verdicts) >= CANDIDATES_MAX or size >= CANDIDATES_BYTES_MAX:
                more = True
                continue  # To the end: a reading of the log that breaks off stays open.
            verdict = judge(with_replays(letter, replayed), rules, log.partitions)
            if verdict.standing is not Standing.KEPT:
                verdict = replace(verdict, letter=letter.without_raw())
            size += len(verdict.letter.body.raw)
            verdicts.append(verdict)
    verdicts.sort(key=_by_age)
    return Judgement(await _with_history(log, verdicts, rules), more)


def judge(letter: Letter, rules: Rules, partitions: int) -> Verdict:
    """What a letter alone says."""
    body, signal = letter.body, letter.signal

    def no(standing: Standing, why: str) -> Verdict:
        return Verdict(letter=letter, standing=standing, why=why)

    if body.reason == REPLAYED:
        return no(Standing.RECORDED, "it is the record of a replay")
    if body.source_topic == topics.OUTBOX:
        return no(Standing.OUTGOING, "it is a message to clients, and has expired")
    if signal is None:
        return no(Standing.UNREADABLE, "it is no signal")
    if signal.source == ENGINE:
        return no(Standing.RECORDED, "one entity told another of what has happened")
    if letter.is_from_bridge and body.reason == "payload_too_large":
        return no(Standing.CUT, "its payload was not kept whole")
    target = _target(letter, signal, rules.table, partitions)
    if target is None:
        return no(Standing.UNROUTABLE, "the topic table does not say whose it is")
    if target.event in AWAITED:
        return no(Standing.EXPIRED, "who asked was told no, and asks again")
    if target.event not in REPORTS and not letter.correlation_id:
        return no(Standing.NAMELESS, "without a correlation id nobody could tell a repeat")
    age_ms = rules.now_ms - body.received_ms
    if age_ms > rules.age_ms_max:
        hours = rules.age_ms_max // 3_600_000
        return no(Standing.OLD, f"it is older than the {hours} hours that the engine goes back")
    if letter.replays and not rules.may_repeat(target):
        return no(Standing.REPLAYED, f"it has been replayed {letter.replays} times")
    return Verdict(letter=letter, standing=Standing.KEPT, why="", target=target)


def _target(letter: Letter, signal: Signal, table: TopicTable, partitions: int) -> Target | None:
    routed = table.route(letter.mqtt_topic, signal.payload)
    if routed is None or routed.key is None or not CLEAN_ID.fullmatch(routed.key):
        return None
    key = routed.key.encode()
    return Target(routed.log_topic, partition_for(key, partitions), key, routed.event)


# What has come since.


@dataclass(slots=True)
class _Case:
    """A letter that can be replayed unless the log says otherwise."""

    verdict: Verdict
    target: Target
    copies: list[int] = field(default_factory=list)
    """Offsets of the other records of the same signal, those before it, too."""
    judged_since: list[int] = field(default_factory=list)
    """Those of them that came after it and were not just told that they are repeats."""
    superseded_by: int | None = None
    remembered: bool = False
    """Whether the log still holds all that came since."""

    @property
    def identity(self) -> tuple[str, str]:
        return self.target.event, self.verdict.letter.correlation_id

    @property
    def own_offset(self) -> int | None:
        """Where the signal stands in its topic, None if the bridge refused it."""
        body = self.verdict.letter.body
        place = (body.source_topic, body.partition)
        return body.offset if place == (self.target.topic, self.target.partition) else None


class _Ledgered(msgspec.Struct):
    source: str


_ledgered: Final = msgspec.json.Decoder(_Ledgered)


async def _with_history(
    log: ReadableLog, verdicts: Sequence[Verdict], rules: Rules
) -> list[Verdict]:
    cases = {one.letter.place: _Case(one, one.target) for one in verdicts if one.target is not None}
    by_place: defaultdict[tuple[str, int], dict[bytes, list[_Case]]] = defaultdict(dict)
    for case in cases.values():
        keyed = by_place[case.target.topic, case.target.partition]
        keyed.setdefault(case.target.key, []).append(case)
    for (topic, partition), keyed in by_place.items():
        refused = await _refused(log, partition, topic, keyed)
        await _look_for_copies(log, topic, partition, keyed, refused, rules)
        applied = await _applied(log, topic, partition, keyed)
        for case in (case for of_key in keyed.values() for case in of_key):
            case.verdict = _settled(case, applied, rules)
    return [
        cases[one.letter.place].verdict if one.letter.place in cases else one for one in verdicts
    ]


async def _refused(
    log: ReadableLog, partition: int, topic: str, keyed: dict[bytes, list[_Case]]
) -> frozenset[int]:
    """Offsets of these keys' signals that have dead letters of their own."""
    found = [
        letter.body.offset
        async for letter in letters(log, partition, Filter())
        if letter.key in keyed and letter.body.source_topic == topic
    ]
    return frozenset(found)


async def _look_for_copies(
    log: ReadableLog,
    topic: str,
    partition: int,
    keyed: dict[bytes, list[_Case]],
    refused: frozenset[int],
    rules: Rules,
) -> None:
    first: tuple[int, int] | None = None
    async for fetched in log.replay(topic, partition):
        if first is None:
            oldest = pack(unpack(fetched.data)[:1])
            first = fetched.offsets[0], last_received_ms(oldest) or 0
        for offset, (key, value) in zip(fetched.offsets, unpack(fetched.data), strict=True):
            if key not in keyed or value is None:
                continue
            try:
                signal = decode_signal(value)
            except FrameError:
                continue  # It has a dead letter of its own, and is nobody's copy.
            for case in keyed[key]:
                _compare(case, offset, signal, refused, rules)
    for case in (case for of_key in keyed.values() for case in of_key):
        case.remembered = _remembers(first, case)


def _remembers(first: tuple[int, int] | None, case: _Case) -> bool:
    """Whether a topic that starts with this offset, and time of receipt, has all since a letter."""
    own = case.own_offset
    if own is not None:
        return first is not None and first[0] <= own + 1
    return first is None or first[0] == 0 or first[1] <= case.verdict.letter.body.received_ms


def _compare(
    case: _Case, offset: int, signal: Signal, refused: frozenset[int], rules: Rules
) -> None:
    if signal.source == ENGINE or offset == case.own_offset:
        return
    received_ms = case.verdict.letter.body.received_ms
    own = case.own_offset
    is_later = offset > own if own is not None else signal.received_ms >= received_ms
    family = REPORTS.get(case.target.event)
    if is_later and family is not None and REPORTS.get(signal.event) == family:
        case.superseded_by = offset
    if family is None and (signal.event, correlation_id(signal)) == case.identity:
        case.copies.append(offset)
        # A repeat within the window is told the first outcome, and has none of its own.
        since_ms = signal.received_ms - received_ms
        if is_later and (since_ms > rules.dedupe_window_ms or offset in refused):
            case.judged_since.append(offset)


async def _applied(
    log: ReadableLog, topic: str, partition: int, keyed: dict[bytes, list[_Case]]
) -> frozenset[int]:
    """Offsets of these keys' signals that have entries in the ledgers, which are never trimmed."""
    found: set[int] = set()
    prefix = f"{topic}/{partition}/"
    if topic == topics.SIGNALS_PLAN:
        for ledger in topics.LEDGERS:
            async for fetched in log.replay(ledger, partition):
                for key, value in unpack(fetched.data):
                    if key in keyed and value is not None:
                        source = _ledgered.decode(value).source
                        if source.startswith(prefix):
                            found.add(int(source.removeprefix(prefix)))
    return frozenset(found)


def _settled(case: _Case, applied: frozenset[int], rules: Rules) -> Verdict:
    def no(standing: Standing, why: str) -> Verdict:
        letter = case.verdict.letter.without_raw()
        return replace(case.verdict, letter=letter, standing=standing, why=why, target=None)

    for offset in (case.own_offset, *case.copies):
        if offset in applied:
            return no(Standing.APPLIED, f"the ledgers have it from offset {offset}")
    if case.superseded_by is not None:
        return no(Standing.SUPERSEDED, f"a later report is at offset {case.superseded_by}")
    if case.judged_since and not rules.may_repeat(case.target):
        return no(Standing.CAME_AGAIN, f"it came again at offset {case.judged_since[-1]}")
    if not case.remembered:
        return no(Standing.FORGOTTEN, "the log no longer tells what has come since")
    return case.verdict


# The way back.


async def replay(
    log: Log,
    transactional_id: str,
    wanted: Filter,
    rules: Rules,
    *,
    limit: int,
    note: str,
    clock_ms: Callable[[], int] = epoch_ms,
) -> Judgement:
    """Replay the oldest `limit` letters that a filter takes and that can be; the verdicts.

    What was replayed is REPLAYED in the answer, and what was left for another time KEPT. Another
    replay under way is fenced off, so two at once cannot both bring a letter back. Raises
    LogError; what had been replayed by then is on record.
    """
    # Before reading: whoever held the id is done, and what it did can be read.
    producer = await log.transactional_producer(transactional_id)
    try:
        judgement = await judged(log, wanted, rules)
        verdicts = list(judgement.verdicts)
        can_be = [at for at, one in enumerate(verdicts) if one.standing is Standing.KEPT]
        for at in can_be[:limit]:
            async with producer.transaction() as transaction:
                transaction.append(list(_records(verdicts[at], clock_ms(), note)))
            done = verdicts[at]
            letter = replace(done.letter.without_raw(), replays=done.letter.replays + 1)
            verdicts[at] = replace(done, letter=letter, standing=Standing.REPLAYED, why=NOW)
        return Judgement(verdicts, judgement.more)
    finally:
        await producer.close()


def _records(verdict: Verdict, now_ms: int, note: str) -> Iterator[Chunk]:
    """The signal as the bridge would write it now, and the record that it was written."""
    letter, target = verdict.letter, verdict.target
    assert target is not None, "only what can be replayed has somewhere to go"
    assert letter.signal is not None, "a target is made of a signal"
    value = encode_signal(
        Signal(
            target.event,
            # Now, because time does not overtake records: timers have fired since.
            now_ms,
            letter.signal.correlation,
            REPLAY + letter.mqtt_topic,
            letter.signal.payload,
            letter.signal.trace,
        )
    )
    yield Chunk(target.topic, target.partition, 1, pack([(target.key, value)]))
    where = f"{target.topic}/{target.partition}"
    trail = DeadLetter(
        REPLAYED,
        topics.DEAD_LETTER,
        letter.partition,
        letter.offset,
        now_ms,
        f"{where}: {note}" if note else where,
        value,
    )
    data = pack([(letter.key, encode_dead_letter(trail))])
    yield Chunk(topics.DEAD_LETTER, letter.partition, 1, data)
