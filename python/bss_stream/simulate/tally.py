"""What a run counts, and the snapshot of it that a live table and a parent process read."""

from collections import Counter
from typing import Final, NamedTuple

from msgspec import Struct

from bss_stream.simulate.latency import LatencyRecorder

SAMPLES_MAX: Final = 20
"""Unexpected answers kept whole; the others are only counted."""

Lines = dict[str, int]


class Latency(Struct, frozen=True):
    """Latencies of one kind of request, intended sending to echo, in milliseconds."""

    count: int
    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float


class Unexpected(Struct, frozen=True):
    """Answers of one kind that no rule of the network explains."""

    kind: str
    expected: str
    got: str
    count: int


class FaultCount(Struct, frozen=True):
    """How often a fault was played, and how often it was answered as it should be."""

    expected: str
    sent: int
    answered: int


class ArmCounts(Struct, frozen=True):
    """What ARM did with its commands."""

    commands: int = 0
    issued: int = 0
    denied: int = 0
    repeated: int = 0
    slow: int = 0
    lost: int = 0
    unreadable: int = 0


class Plans(Struct, frozen=True):
    """Where the riders are in their plans' lives."""

    joining: int = 0
    ready: int = 0
    busy: int = 0
    resting: int = 0
    done: int = 0
    stuck: int = 0


class StockLevel(Struct, frozen=True):
    """Batteries on one shelf."""

    location_id: str
    fleet_id: str
    available: int


class Snapshot(Struct, frozen=True):
    """A run at one moment. Counts are since its start unless a name says otherwise."""

    elapsed_s: float
    phase: str
    swaps: int
    swaps_per_s: float
    """Accepted swaps a second since swapping began."""
    swaps_per_s_now: float
    """The same since the snapshot before."""
    requests: Lines
    """Requests sent, by kind; retries and duplicates count."""
    outcomes: Lines
    """Echoes by reason, as riders read them."""
    swap_latency: Latency
    latencies: dict[str, Latency]
    faults: dict[str, FaultCount]
    unexpected: tuple[Unexpected, ...]
    samples: tuple[str, ...]
    plans: Plans
    arm: ArmCounts
    stock: tuple[StockLevel, ...]
    timeouts: int
    repeated_echoes: int
    """Echoes of requests that had been answered: at least once, harmless."""
    foreign_echoes: int
    """Echoes to other clients."""
    unserved: int
    """Arrivals for which no rider was left: too few plans for the rate."""
    late_ms: float
    """How far the sending of requests is behind now."""

    @property
    def unexpected_total(self) -> int:
        """Answers that no rule of the network explains."""
        return sum(line.count for line in self.unexpected)


class _Line(NamedTuple):
    kind: str
    expected: str
    got: str


def name_reasons(reasons: frozenset[str]) -> str:
    """Reasons as one word for a table."""
    return "|".join(sorted(reasons)) or "silence"


class Tally:
    """The counters of a run."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.latencies: dict[str, LatencyRecorder] = {}
        self.swap_latency = LatencyRecorder()
        self.swaps = 0
        self.timeouts = 0
        self.repeated_echoes = 0
        self.foreign_echoes = 0
        self.unserved = 0
        self.samples: list[str] = []
        self._fault_reasons: dict[str, str] = {}
        self._faults_sent: Counter[str] = Counter()
        self._faults_answered: Counter[str] = Counter()
        self._unexpected: Counter[_Line] = Counter()

    def latency(self, kind: str, latency_us: int) -> None:
        """Record the latency of one request."""
        recorder = self.latencies.get(kind)
        if recorder is None:
            recorder = self.latencies[kind] = LatencyRecorder()
        recorder.record(latency_us)

    def fault_sent(self, fault: str, reasons: frozenset[str]) -> None:
        """A fault was played that should end in one of `reasons`."""
        self._fault_reasons[fault] = name_reasons(reasons)
        self._faults_sent[fault] += 1

    def fault_answered(self, fault: str) -> None:
        """A fault was answered as it should be."""
        self._faults_answered[fault] += 1

    def unexpected(self, kind: str, expected: str, got: str, detail: str) -> None:
        """Count an answer that no rule explains, and keep the first few whole."""
        self._unexpected[_Line(kind, expected, got)] += 1
        self.note(f"{kind}: expected {expected}, got {got}: {detail}")

    def note(self, sample: str) -> None:
        """Keep one of the first few unexpected answers whole."""
        if len(self.samples) < SAMPLES_MAX:
            self.samples.append(sample)

    def faults(self) -> dict[str, FaultCount]:
        """Every fault played so far."""
        return {
            fault: FaultCount(self._fault_reasons[fault], sent, self._faults_answered[fault])
            for fault, sent in sorted(self._faults_sent.items())
        }

    def unexpected_lines(self) -> tuple[Unexpected, ...]:
        """Unexpected answers, the most frequent first."""
        return tuple(Unexpected(*line, count) for line, count in self._unexpected.most_common())


def summarize(recorder: LatencyRecorder) -> Latency:
    """A recorder's percentiles."""

    def at(percent: float) -> float:
        return recorder.percentile_us(percent) / 1000

    return Latency(recorder.count, at(50), at(99), at(99.9), recorder.max_us / 1000)
