"""`bss-stream model coverage`: plays stories and says what of the models they exercise."""

from dataclasses import asdict, dataclass
from typing import Any

import orjson
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bss_stream.coverage import Coverage, CoverageReport, Share, report
from bss_stream.stories import Library, Stage
from bss_stream.topic_table import TopicTable


@dataclass
class Result:
    """What the stories have exercised."""

    stories: int
    faults: list[str]
    """Of stories that do not go as they are told."""
    report: CoverageReport
    floor_percent: float

    @property
    def ok(self) -> bool:
        """Whether every story goes as told and every model reaches the floor."""
        return not self.faults and not self.report.below(self.floor_percent)

    def as_json(self) -> str:
        """One JSON object: shares as `exercised`, `all`, `missing`."""
        return orjson.dumps(asdict(self) | {"ok": self.ok}, option=orjson.OPT_INDENT_2).decode()

    def __rich__(self) -> RenderableType:
        parts: list[RenderableType] = [self._headline(), _models(self.report), _others(self.report)]
        parts += (Text(fault, "red") for fault in self.faults)
        parts += _missing(self.report)
        return Group(*parts)

    def _headline(self) -> Text:
        short = self.report.below(self.floor_percent)
        told = f"{self.stories} stories"
        if self.faults:
            told += ", of which some do not go as they are told"
        if short:
            floor = f"{self.floor_percent:g} % of transitions"
            return Text(f"{told}: below {floor}: {', '.join(short)}", "red")
        return Text(f"{told}: every model has {self.floor_percent:g} % of its transitions or more")


def play(library: Library, topic_table: TopicTable, floor_percent: float) -> Result:
    """Play every story. Raises ConfigError for one that cannot be played."""
    coverage = Coverage()
    faults = []
    for name in library.names:
        stage = Stage(library.load(name), topic_table=topic_table).perform()
        faults += stage.faults
        coverage.add(stage.play.coverage)
    return Result(len(library.names), faults, report(coverage, topic_table), floor_percent)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    return table


def _models(found: CoverageReport) -> Table:
    table = _table("model", "states", "signals", "transitions", "compression")
    for name, model in found.models.items():
        shares = (model.states, model.signals, model.transitions, model.compression)
        table.add_row(name, *map(_text, shares))
    return table


def _others(found: CoverageReport) -> Table:
    table = _table("besides", "exercised")
    table.add_row("rows of the topic table", _text(found.topics))
    table.add_row("events of entities", _text(found.events))
    table.add_row("reasons", _text(found.reasons))
    return table


def _text(share: Share) -> str:
    # Cut, not rounded: 100 % must mean all of it.
    return f"{share.exercised}/{share.all} {int(share.percent):3} %" if share.all else "none"


def _missing(found: CoverageReport) -> list[Text]:
    """One line for each thing that was not exercised."""
    shares: dict[str, Any] = {}
    for name, model in found.models.items():
        for part in ("states", "signals", "transitions", "compression"):
            shares[f"{name}, {part}"] = getattr(model, part)
    shares |= {"topics": found.topics, "events": found.events, "reasons": found.reasons}
    return [
        Text(f"not exercised: {what}: {thing}")
        for what, share in shares.items()
        for thing in share.missing
    ]
