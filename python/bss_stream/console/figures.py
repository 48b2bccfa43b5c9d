"""What the live page shows, counted a second at a time as records go by."""

import math
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import msgspec

from bss_stream import topics
from bss_stream._engine import unpack
from bss_stream.dead_letters.letters import REPLAYED
from bss_stream.errors import FrameError
from bss_stream.frames import OutboxKind, decode_dead_letter, decode_outbox
from bss_stream.log.protocol import Fetched
from bss_stream.queries.plans import SWAP_KINDS
from bss_stream.sink.entry import epoch_ms

SECONDS_KEPT: Final = 300
SERIES_S: Final = 120
"""How far back a sparkline goes."""
RATE_S: Final = 10
"""Over how many seconds a rate is told."""
EVENTS_KEPT: Final = 40
EVENTS_OF_A_BATCH_MAX: Final = 12
LAGS_OF_A_SECOND_MAX: Final = 200
COUNTED: Final = ("swaps", "signals", "echoes", "entries", "letters")

_QUIET_KINDS: Final = frozenset(("quota_granted", "quota_held"))
"""Entries that come with every plan or before every swap: no news."""


class _Entry(msgspec.Struct, frozen=True):
    plan_id: str
    kind: str
    source: str
    recorded_at: datetime
    units: int
    amount_minor: int
    currency: str
    service_id: str | None = None
    asset_id: str | None = None
    location_id: str | None = None


class _Metadata(msgspec.Struct, frozen=True):
    reason: str = ""


class _EchoData(msgspec.Struct, frozen=True):
    metadata: _Metadata = _Metadata()


class _Echo(msgspec.Struct, frozen=True):
    data: _EchoData = _EchoData()


_entry: Final = msgspec.json.Decoder(_Entry)
_echo: Final = msgspec.json.Decoder(_Echo)


@dataclass(slots=True)
class _Second:
    at_s: int
    counts: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    lags_ms: list[int] = field(default_factory=list)


class Figures:
    """Counts of the last SECONDS_KEPT seconds, and the last events."""

    def __init__(self, clock_ms: Callable[[], int]) -> None:
        self._clock_ms = clock_ms
        self._seconds: deque[_Second] = deque(maxlen=SECONDS_KEPT)
        self._events: deque[dict[str, Any]] = deque(maxlen=EVENTS_KEPT)
        self.totals: Counter[str] = Counter()
        """Since the console started."""
        self.newest_recorded_ms: int | None = None
        """Of the ledger entries that went by."""

    def take(self, fetched: Fetched) -> None:
        """Count what was read of one partition."""
        second = self._now()
        if fetched.topic in topics.SIGNALS:
            self._count(second, "signals", len(fetched.offsets))
            return
        if fetched.topic == topics.DEAD_LETTER:
            self._take_letters(second, fetched)
            return
        values = [value for _, value in unpack(fetched.data) if value is not None]
        if fetched.topic in topics.LEDGERS:
            self._take_entries(second, values)
        elif fetched.topic == topics.OUTBOX:
            self._take_messages(second, values)

    def _count(self, second: _Second, name: str, count: int) -> None:
        second.counts[name] += count
        self.totals[name] += count

    def _take_entries(self, second: _Second, values: Sequence[bytes]) -> None:
        self._count(second, "entries", len(values))
        now_ms = self._clock_ms()
        swaps = set()
        told = []
        for value in values:
            try:
                entry = _entry.decode(value)
            except (ValueError, RecursionError):
                continue  # The sink keeps it as a reject, and the audit says so.
            recorded_ms = epoch_ms(entry.recorded_at)
            self.newest_recorded_ms = max(recorded_ms, self.newest_recorded_ms or 0)
            if entry.kind in SWAP_KINDS:
                swaps.add(entry.source)
            if len(second.lags_ms) < LAGS_OF_A_SECOND_MAX and entry.source != "timer":
                second.lags_ms.append(max(now_ms - recorded_ms, 0))
            if entry.kind not in _QUIET_KINDS:
                told.append(entry)
        self._count(second, "swaps", len(swaps))
        self._tell(told)

    def _tell(self, entries: Sequence[_Entry]) -> None:
        """One event for what one signal did of one kind, however many services it was about."""
        of_one: dict[tuple[str, str, str], list[_Entry]] = {}
        for entry in entries:
            of_one.setdefault((entry.plan_id, entry.source, entry.kind), []).append(entry)
        for (plan_id, _, kind), found in list(of_one.items())[-EVENTS_OF_A_BATCH_MAX:]:
            self._events.append(
                {
                    "at_ms": epoch_ms(found[0].recorded_at),
                    "type": "entry",
                    "what": kind,
                    "plan_id": plan_id,
                    "parts": [
                        (one.units, one.service_id or "", one.amount_minor, one.currency)
                        for one in found
                    ],
                    "where": found[0].location_id or "",
                }
            )

    def _take_messages(self, second: _Second, values: Sequence[bytes]) -> None:
        for value in values:
            try:
                message = decode_outbox(value)
            except FrameError:
                continue  # The publisher makes a dead letter of it.
            if message.kind is OutboxKind.ECHO:
                self._count(second, "echoes", 1)
                second.outcomes[_reason(message.payload)] += 1

    def _take_letters(self, second: _Second, fetched: Fetched) -> None:
        for offset, (_, value) in zip(fetched.offsets, unpack(fetched.data), strict=True):
            letter = decode_dead_letter(value or b"")
            if letter.reason != REPLAYED:
                self._count(second, "letters", 1)
            self._events.append(
                {
                    "at_ms": letter.received_ms,
                    "type": "letter",
                    "what": letter.reason,
                    "letter": f"{fetched.partition}-{offset}",
                    "plan_id": "",
                    "detail": letter.detail[:120],
                }
            )

    def _now(self) -> _Second:
        at_s = self._clock_ms() // 1000
        if not self._seconds or self._seconds[-1].at_s != at_s:
            self._seconds.append(_Second(at_s))
        return self._seconds[-1]

    def snapshot(self) -> dict[str, Any]:
        """Rates, series of counts a second (the last whole one last), outcomes, lag, events."""
        last_s = self._clock_ms() // 1000 - 1
        by_second = {second.at_s: second for second in self._seconds}
        spans = range(last_s - SERIES_S + 1, last_s + 1)
        series = {
            name: [by_second[at].counts[name] if at in by_second else 0 for at in spans]
            for name in COUNTED
        }
        outcomes: Counter[str] = Counter()
        lags: list[int] = []
        for second in self._seconds:
            if second.at_s > last_s - SECONDS_KEPT:
                outcomes += second.outcomes
            if second.at_s > last_s - RATE_S:
                lags += second.lags_ms
        return {
            "rates": {name: sum(counts[-RATE_S:]) / RATE_S for name, counts in series.items()},
            "series": series,
            "totals": {name: self.totals[name] for name in COUNTED},
            "outcomes": outcomes.most_common(),
            "lag_p50_ms": _percentile(lags, 0.5),
            "lag_p99_ms": _percentile(lags, 0.99),
            "events": [dict(event) for event in sorted(self._events, key=_at, reverse=True)],
        }


def _at(event: dict[str, Any]) -> int:
    at_ms: int = event["at_ms"]
    return at_ms


def _percentile(values: list[int], share: float) -> int | None:
    if not values:
        return None
    return sorted(values)[min(math.ceil(share * len(values)), len(values)) - 1]


def _reason(payload: bytes) -> str:
    try:
        return _echo.decode(payload).data.metadata.reason or "none"
    except (ValueError, RecursionError):
        return "none"
