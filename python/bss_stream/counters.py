"""What roles count, and whether it adds up: what went in has come out, or is in hand.

A field is a metric and a key of a Counter its label, so an exporter has only to read `values` and
`distributions`: whoever counts pays for no exporter.
"""

import dataclasses
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple


class Sample(NamedTuple):
    """One number: `received`, or `refused` with the label `bad_key`."""

    name: str
    label: str
    value: int | float


LATENCIES_S: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0),
)
"""Bounds of what takes time: the promised seconds are among them."""

BATCHES: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)
"""Bounds of what comes in batches."""


class Distribution:
    """How many values there were up to each bound, and what all of them add up to."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """By the lowest bound that is not passed; the last has what passes them all."""
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value; below zero, as a clock that was set back gives it, it is zero."""
        value = max(0.0, value)
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times


def seconds() -> Distribution:
    """An empty distribution of seconds."""
    return Distribution(LATENCIES_S)


def sizes() -> Distribution:
    """An empty distribution of how many there are in a batch."""
    return Distribution(BATCHES)


class RoleCounters:
    """Base of the roles' counters, dataclasses of numbers, of Counters and of Distributions."""

    def balance(self) -> list[str]:
        """What does not add up, a line each: nothing, unless the program is wrong."""
        raise NotImplementedError

    def values(self) -> Iterator[Sample]:
        """Every number."""
        for name, value in self._fields():
            if isinstance(value, Counter):
                for label, count in sorted(value.items()):
                    yield Sample(name, label, count)
            elif not isinstance(value, Distribution):
                yield Sample(name, "", value)

    def distributions(self) -> Iterator[tuple[str, Distribution]]:
        """Every distribution, by its field."""
        return ((name, one) for name, one in self._fields() if isinstance(one, Distribution))

    def _fields(self) -> Iterator[tuple[str, Any]]:
        assert dataclasses.is_dataclass(self)
        return ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))

    def __str__(self) -> str:
        return ", ".join(_shown(sample) for sample in self.values() if sample.value) or "nothing"


def _shown(sample: Sample) -> str:
    name = f"{sample.name}.{sample.label}" if sample.label else sample.name
    value = f"{sample.value:.3f}" if isinstance(sample.value, float) else str(sample.value)
    return f"{name}={value}"


def unbalanced(whole: str, count: int, parts: Mapping[str, int]) -> list[str]:
    """A line if the parts are not the whole."""
    total = sum(parts.values())
    if total == count:
        return []
    listed = " + ".join(f"{name} {part}" for name, part in parts.items())
    return [f"{whole} is {count}, and {listed} is {total}"]
