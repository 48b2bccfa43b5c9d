"""What roles count, and whether it adds up: what went in has come out, or is in hand.

A field is a metric and a key of a Counter its label, so an exporter has only to read `values`.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple


class Sample(NamedTuple):
    """One number: `received`, or `refused` with the label `bad_key`."""

    name: str
    label: str
    value: int | float


class RoleCounters:
    """Base of the roles' counters, which are dataclasses of numbers and of Counters."""

    def balance(self) -> list[str]:
        """What does not add up, a line each: nothing, unless the program is wrong."""
        raise NotImplementedError

    def values(self) -> Iterator[Sample]:
        """Every number."""
        assert dataclasses.is_dataclass(self)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Counter):
                for label, count in sorted(value.items()):
                    yield Sample(field.name, label, count)
            else:
                yield Sample(field.name, "", value)

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
