"""What engines have come through, summed up: transitions, rows of compression, events, reasons."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self, TypeVar

from bss_stream import _engine
from bss_stream.topic_table import TopicTable

Thing = TypeVar("Thing", bound=Hashable)


class Transition(NamedTuple):
    """One transition of one model."""

    model: str
    cycle: str
    state: str
    signal: str
    next_state: str

    def __str__(self) -> str:
        return f"{self.cycle}: {self.state} on {self.signal} to {self.next_state}"


class Row(NamedTuple):
    """One row of a model's compression table."""

    model: str
    row: int
    external: str
    cycle: str

    def __str__(self) -> str:
        return f"compression[{self.row}]: {self.external} to the {self.cycle} cycle"


@dataclass
class Coverage:
    """How often each thing has been come through; what never was counts 0 if it is known at all."""

    transitions: Counter[Transition] = field(default_factory=Counter)
    compression: Counter[Row] = field(default_factory=Counter)
    endings: Counter[tuple[str | None, str]] = field(default_factory=Counter)
    """By event, None where it was unknown, and reason."""
    topics: Counter[str] = field(default_factory=Counter)
    """By filter of the topic table: messages that came in by it."""

    def add_shard(self, found: _engine.Coverage) -> None:
        """Add what one shard of an engine has counted."""
        for model, cycle, state, signal, next_state, count in found.transitions:
            self.transitions[Transition(model, cycle, state, signal, next_state)] += count
        for model, row, external, cycle, count in found.compression:
            self.compression[Row(model, row, external, cycle)] += count
        for event, reason, count in found.endings:
            self.endings[event, reason] += count

    def add(self, other: Self) -> None:
        """Add what others have counted."""
        self.transitions.update(other.transitions)
        self.compression.update(other.compression)
        self.endings.update(other.endings)
        self.topics.update(other.topics)


@dataclass
class Share:
    """How much of something has been exercised."""

    exercised: int
    all: int
    missing: list[str]
    """What has not been, by name."""

    @property
    def percent(self) -> float:
        """Of 100; 100 if there is nothing to exercise."""
        return 100 * self.exercised / self.all if self.all else 100.0


@dataclass
class ModelShares:
    """How much of one model has been exercised."""

    states: Share
    signals: Share
    """Fundamental signals, each in each cycle that takes it."""
    transitions: Share
    compression: Share


@dataclass
class CoverageReport:
    """How much of everything has been exercised."""

    models: dict[str, ModelShares]
    topics: Share
    """Rows of the topic table by which a message has come in."""
    events: Share
    """Events that entities take, from outside and from each other, that one has taken in."""
    reasons: Share
    """Reasons for which a signal has ended."""

    def below(self, floor_percent: float) -> list[str]:
        """Models of which less than so much of the transitions has been exercised."""
        return [
            name for name, model in self.models.items() if model.transitions.percent < floor_percent
        ]


def report(coverage: Coverage, topic_table: TopicTable) -> CoverageReport:
    """How much of the models that came up, and of all there is besides, has been exercised."""
    names = dict.fromkeys(one.model for one in coverage.transitions)
    events = Counter[str]()
    reasons = Counter[str]()
    for (event, reason), count in coverage.endings.items():
        reasons[reason] += count
        if event is not None:
            events[event] += count
    topics = {filter: coverage.topics[filter] for filter in topic_table.filters}
    return CoverageReport(
        models={name: _model(coverage, name) for name in names},
        topics=_share(topics.items()),
        events=_share((event, events[event]) for _, event in _engine.events()),
        reasons=_share((code, reasons[code]) for code, *_ in _engine.reasons()),
    )


def _model(coverage: Coverage, name: str) -> ModelShares:
    transitions = {one: count for one, count in coverage.transitions.items() if one.model == name}
    rows = {row: count for row, count in coverage.compression.items() if row.model == name}

    def of(*parts: Callable[[Transition], str]) -> Share:
        return _share(
            (f"{one.cycle}: {part(one)}", count)
            for one, count in transitions.items()
            for part in parts
        )

    return ModelShares(
        states=of(lambda one: one.state, lambda one: one.next_state),
        signals=of(lambda one: one.signal),
        transitions=_share(transitions.items()),
        compression=_share(rows.items()),
    )


def _share(counts: Iterable[tuple[Any, int]]) -> Share:
    total = Counter[str]()
    for thing, count in counts:
        total[str(thing)] += count
    missing = [thing for thing, count in total.items() if not count]
    return Share(len(total) - len(missing), len(total), missing)
