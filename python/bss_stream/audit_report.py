"""What an audit found, as data and as tables for a terminal."""

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bss_stream.audit_log import LogBalance

DIFFERENCES_MAX: Final = 1000
"""How many differences a report lists; it counts all of them."""

Value = int | str | None


class Difference(NamedTuple):
    """One place where what was found is not what follows from the rest."""

    plan_id: str
    entry_id: str | None
    """None when it is the plan's live state that differs."""
    field: str
    expected: Value
    found: Value


@dataclass
class KindTotals:
    """All entries of one kind in one currency."""

    entries: int = 0
    units: int = 0
    amount_minor: int = 0


@dataclass
class MoneyTotals:
    """All money of one currency, in its minor unit."""

    received: int = 0
    returned: int = 0
    granted: int = 0
    charged: int = 0
    credit: int = 0
    """What stands to the services' and the plans' credit at the end of the ledgers."""


@dataclass
class AuditReport:
    """What an audit found."""

    drained: bool
    plans: int = 0
    entries: int = 0
    states: int = 0
    behind: int = 0
    """Plans whose entries have not all reached SQL yet. Differences too when `drained`."""
    ahead: int = 0
    """Plans with entries in SQL that their state does not have yet. Differences too when
    `drained`."""
    rejects: dict[str, int] = field(default_factory=dict)
    """Rows of sink_rejects by reason."""
    kinds: dict[tuple[str, str], KindTotals] = field(default_factory=dict)
    """By kind and currency."""
    money: dict[str, MoneyTotals] = field(default_factory=dict)
    """By currency."""
    differences: list[Difference] = field(default_factory=list)
    """The first ones, DIFFERENCES_MAX unless the caller said otherwise."""
    differences_total: int = 0
    log: LogBalance | None = None
    """The log's own balance, if it was read."""

    @property
    def ok(self) -> bool:
        """Whether nothing differs, the sink has rejected nothing, and the log adds up."""
        is_balanced = self.log is None or self.log.ok
        return not self.differences_total and not self.rejects and is_balanced

    def __rich__(self) -> RenderableType:
        return _rendered(self)


def _rendered(report: AuditReport) -> RenderableType:
    parts: list[RenderableType] = [_summary(report)]
    if report.kinds:
        parts.append(_kinds_table(report))
    if report.money:
        parts.append(_money_table(report))
    if report.rejects:
        parts.append(_rejects_table(report))
    if report.log is not None:
        parts.append(_log_table(report.log))
    if report.differences:
        parts.append(_differences_table(report))
    return Group(*parts)


def _summary(report: AuditReport) -> Text:
    verdict = "consistent" if report.ok else "NOT CONSISTENT"
    text = Text(
        f"Ledgers {verdict}: {report.entries} entries of {report.plans} plans, "
        f"{report.states} live states"
    )
    if report.behind:
        text.append(f"\n{report.behind} plans have entries that have not reached SQL yet")
    if report.ahead:
        text.append(f"\n{report.ahead} plans have entries that their live state has not")
    return text


def _kinds_table(report: AuditReport) -> Table:
    table = _table("Entries", "kind", "currency", "#entries", "#units", "#amount (minor)")
    for (kind, currency), totals in sorted(report.kinds.items()):
        _add(table, kind, currency, totals.entries, totals.units, totals.amount_minor)
    return table


def _money_table(report: AuditReport) -> Table:
    table = _table(
        "Money (minor units)",
        *("currency", "#received", "#returned", "#granted", "#charged", "#credit"),
    )
    for currency, money in sorted(report.money.items()):
        _add(
            table,
            *(currency, money.received, money.returned),
            *(money.granted, money.charged, money.credit),
        )
    return table


def _rejects_table(report: AuditReport) -> Table:
    table = _table("Rejected by the sink (table sink_rejects)", "reason", "#records")
    for reason, count in sorted(report.rejects.items()):
        _add(table, reason, count)
    return table


def _log_table(log: LogBalance) -> RenderableType:
    table = _table(f"Log {'adds up' if log.ok else 'DOES NOT ADD UP'}", "what", "#count")
    _add(table, "signals from outside", log.signals)
    _add(table, "of which replays", log.replays)
    _add(table, "signals between entities", log.internal)
    _add(table, "requests to plans", log.requests)
    _add(table, "requests with an answer", log.answered)
    _add(table, "requests still to be answered", log.unanswered)
    _add(table, "echoes", log.echoes)
    _add(table, "commands and notifications", log.messages)
    _add(table, "ledger entries", log.entries)
    for role, count in sorted(log.dead_letters.items()):
        _add(table, f"dead letters of the {role}", count)
    if not log.faults:
        return table
    faults = _table(f"Faults of the log ({len(log.faults)} of {log.faults_total})", "fault")
    for fault in log.faults:
        _add(faults, fault)
    return Group(table, faults)


def _differences_table(report: AuditReport) -> Table:
    shown = len(report.differences)
    title = f"Differences ({shown} of {report.differences_total})"
    table = _table(title, "plan", "entry", "field", "expected", "found")
    for difference in report.differences:
        plan_id, entry_id, name, expected, found = difference
        _add(table, plan_id, entry_id or "(live state)", name, expected, found)
    return table


def _table(title: str, *columns: str) -> Table:
    """A table; a column that starts with # holds numbers."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        numbers = column.startswith("#")
        table.add_column(column.removeprefix("#"), justify="right" if numbers else "left")
    return table


def _add(table: Table, *cells: Value) -> None:
    # Text, because ids may hold what rich takes for markup.
    table.add_row(*(Text(str(cell)) for cell in cells))
