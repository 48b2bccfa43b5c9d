"""The lines of a report: what was measured, and how far apart several runs of it lie."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from rich.table import Table


class Line(NamedTuple):
    """One figure, and what it is compared with."""

    value: float
    unit: str
    ratio: float | None
    compared: str
    """To what the ratio is."""


@dataclass(slots=True)
class Sheet:
    """One run's lines, in the order in which they were first written."""

    lines: dict[str, Line] = field(default_factory=dict)
    ends: set[str] = field(default_factory=set)
    """After which of them a section ends."""
    notes: list[str] = field(default_factory=list)
    """What was not measured, and why."""

    def add(
        self,
        what: str,
        value: float,
        ratio: float | None = None,
        *,
        to: str = "",
        unit: str = "/s",
    ) -> None:
        """Write a line."""
        self.lines[what] = Line(value, unit, ratio, to)

    def section(self) -> None:
        """What follows is about something else."""
        if self.lines:
            self.ends.add(next(reversed(self.lines)))

    def note(self, why: str) -> None:
        """Say what this run leaves out."""
        self.notes.append(why)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10 else f"{value:.3g}"


def _spread(values: Sequence[float]) -> str:
    return f"{_number(min(values))} to {_number(max(values))}"


def shown(sheets: Sequence[Sheet], title: str) -> Table:
    """Medians over the runs; with several, the least and the greatest as well."""
    several = len(sheets) > 1
    notes = dict.fromkeys(note for sheet in sheets for note in sheet.notes)
    table = Table(title=title, caption="\n".join(notes) or None)
    table.add_column("what")
    table.add_column("figure", justify="right")
    table.add_column("ratio", justify="right")
    table.add_column("to")
    if several:
        table.add_column(f"of {len(sheets)} runs", justify="right")
    for what, first in sheets[0].lines.items():
        found = [sheet.lines[what] for sheet in sheets if what in sheet.lines]
        values = [line.value for line in found]
        ratios = [line.ratio for line in found if line.ratio is not None]
        cells = [
            what,
            _number(statistics.median(values)) + first.unit,
            f"{statistics.median(ratios):.3g}" if ratios else "",
            first.compared,
        ]
        if several:
            cells.append(_spread(values) + (f"; {_spread(ratios)}" if ratios else ""))
        table.add_row(*cells, end_section=what in sheets[0].ends)
    return table
