"""What queries, reports and the console need of a ledger database, whichever server keeps it.

One view is one moment of the database, however many questions it is asked. Those of the queries are
answered out of an index: the time that they take does not grow with a plan's history.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, NamedTuple, Protocol

from bss_stream.sink.entry import EntryRow
from bss_stream.sink.store import (
    ENTRY_COLUMNS,
    StoreUnavailableError,
    driver_missing,
    schema_too_new,
    unknown_scheme,
)

Rows = list[tuple[Any, ...]]

_RECORDED_AT: Final = "SELECT max(recorded_at_ms) FROM sink_offsets"
_HAS_PLAN: Final = "SELECT 1 FROM ledger_entries WHERE plan_id = ? LIMIT 1"
# From one service of the plan to the next, then to the newest entry of each.
_ACCOUNTS: Final = """
    WITH RECURSIVE service (id) AS (
      SELECT min(service_id) FROM ledger_entries WHERE plan_id = ?
      UNION ALL
      SELECT (SELECT min(service_id) FROM ledger_entries
              WHERE plan_id = ? AND service_id > service.id)
      FROM service WHERE service.id IS NOT NULL
    )
    SELECT (SELECT entry FROM ledger_entries
            WHERE plan_id = ? AND service_id = service.id ORDER BY seq DESC LIMIT 1)
    FROM service WHERE service.id IS NOT NULL"""
_LAST_PAYMENT: Final = """
    SELECT entry FROM ledger_entries
    WHERE plan_id = ? AND ledger = 'payment' AND kind IN ({kinds}) ORDER BY seq DESC LIMIT 1"""
_ENTRIES: Final = """
    SELECT entry FROM ledger_entries
    WHERE plan_id = ? AND seq <= ? AND kind IN ({kinds}) ORDER BY seq DESC LIMIT ?"""
# Pages of entries in the order of their times, each beginning behind the last one's end.
_WITHIN: Final = """
    SELECT event_at_ms, plan_id, seq, entry FROM ledger_entries
    WHERE kind IN ({kinds}) AND event_at_ms >= ? AND event_at_ms < ?
      AND (event_at_ms, plan_id, seq) > (?, ?, ?)
    ORDER BY event_at_ms, plan_id, seq LIMIT ?"""
_PAGE_ROWS: Final = 10_000
_STATIONS: Final = """
    SELECT location_id, state FROM station_states
    WHERE location_id IN ({ids}) AND state IS NOT NULL"""


# Of each kind its newest, out of the index by kind and time; then the newest of these.
_BY_KIND: Final = """
    SELECT * FROM (SELECT {columns} FROM ledger_entries
    WHERE kind = ?{filters} ORDER BY event_at_ms DESC, entry_id DESC LIMIT ?) AS of_kind"""
_BY_TIME: Final = "{of_kinds} ORDER BY event_at_ms DESC, entry_id DESC LIMIT ?"
_BY_PLAN: Final = """
    SELECT {columns} FROM ledger_entries
    WHERE plan_id = ?{filters} ORDER BY seq DESC LIMIT ?"""
_BY_SIGNAL: Final = """
    SELECT {columns} FROM ledger_entries
    WHERE signal_id = ?{filters} ORDER BY event_at_ms DESC, entry_id DESC LIMIT ?"""
_BY_ID: Final = """
    SELECT {columns} FROM ledger_entries
    WHERE entry_id IN ({ids}){filters} ORDER BY event_at_ms DESC, entry_id DESC LIMIT ?"""
_PLAN: Final = "SELECT {columns} FROM ledger_entries WHERE plan_id = ? ORDER BY seq"

ENTRIES_OF_A_CAUSE_MAX: Final = 64
"""Entries of one record that a search by it looks for: the engine writes far fewer."""


class Search(NamedTuple):
    """Which entries are looked for, of one plan, signal or cause, or of kinds."""

    kinds: Sequence[str] = ()
    """None for all; named where nothing else is, since there is no index by time alone."""
    plan_id: str | None = None
    service_id: str | None = None
    signal_id: str | None = None
    source: tuple[int, int] | None = None
    """Partition and offset of the plan's signal that caused them."""
    since_ms: int | None = None
    until_ms: int | None = None
    """By `event_at_ms`, the end not included."""


class Place(NamedTuple):
    """Where a page of entries ended: its last one."""

    event_at_ms: int
    entry_id: str
    seq: int


class ReadModel(Protocol):
    """Where the queries read, without the right to write.

    Calls block, so they are made in one thread, one at a time. Each raises StoreUnavailableError
    when the database is away or has not been brought to this program's schema yet, after which a
    new call connects again, and SinkError for a fault that waiting does not mend.
    """

    def view(self) -> AbstractContextManager["ReadView"]:
        """The database as it is now."""

    def close(self) -> None:
        """Disconnect; harmless when there is no connection."""


class ReadView:
    """One moment of a ledger database."""

    def __init__(self, query: Callable[[str, Sequence[object]], Rows]) -> None:
        """`query` runs a statement with `?` for its parameters and returns its rows."""
        self._query = query

    def recorded_at_ms(self) -> int | None:
        """The newest recorded time of all entries, in epoch ms; None without entries."""
        ((newest_ms,),) = self._query(_RECORDED_AT, ())
        return None if newest_ms is None else int(newest_ms)

    def has_plan(self, plan_id: str) -> bool:
        """Whether there is an entry of the plan."""
        return bool(self._query(_HAS_PLAN, (plan_id,)))

    def accounts(self, plan_id: str) -> list[str]:
        """The newest entry of each of a plan's services, by service id."""
        return [entry for (entry,) in self._query(_ACCOUNTS, (plan_id,) * 3)]

    def last_payment(self, plan_id: str, kinds: Sequence[str]) -> str | None:
        """The newest entry of these kinds in a plan's payment ledger."""
        sql = _LAST_PAYMENT.format(kinds=_places(kinds))
        return next((entry for (entry,) in self._query(sql, (plan_id, *kinds))), None)

    def entries(self, plan_id: str, seq_max: int, kinds: Sequence[str], rows_max: int) -> list[str]:
        """A plan's entries of these kinds from `seq_max` back, the newest first."""
        sql = _ENTRIES.format(kinds=_places(kinds))
        rows = self._query(sql, (plan_id, seq_max, *kinds, rows_max))
        return [entry for (entry,) in rows]

    def plan(self, plan_id: str) -> list[EntryRow]:
        """All entries of a plan, by seq."""
        rows = self._query(_PLAN.format(columns=ENTRY_COLUMNS), (plan_id,))
        return [EntryRow(*row) for row in rows]

    def search(self, wanted: Search, after: Place | None, rows_max: int) -> list[EntryRow]:
        """The newest entries that are meant, from behind a place on: a plan's by seq, others by
        the time of their event. Every way to ask goes by an index."""
        filters, values = _filters(wanted, after)
        if wanted.plan_id is not None:
            sql, keys = _BY_PLAN, [wanted.plan_id]
        elif wanted.signal_id is not None:
            sql, keys = _BY_SIGNAL, [wanted.signal_id]
        elif wanted.source is not None:
            partition, offset = wanted.source
            numbers = range(ENTRIES_OF_A_CAUSE_MAX)
            keys = [f"plan-{partition}-{offset}-{number}" for number in numbers]
            sql = _BY_ID.replace("{ids}", _places(keys))
        else:
            return self._search_kinds(wanted.kinds, filters, values, rows_max)
        sql = sql.format(columns=ENTRY_COLUMNS, filters=filters)
        return [EntryRow(*row) for row in self._query(sql, (*keys, *values, rows_max))]

    def _search_kinds(
        self, kinds: Sequence[str], filters: str, values: Sequence[object], rows_max: int
    ) -> list[EntryRow]:
        of_kind = _BY_KIND.format(columns=ENTRY_COLUMNS, filters=filters)
        sql = _BY_TIME.format(of_kinds=" UNION ALL ".join([of_kind] * len(kinds)))
        parameters = [value for kind in kinds for value in (kind, *values, rows_max)]
        return [EntryRow(*row) for row in self._query(sql, (*parameters, rows_max))]

    def entries_within(self, kinds: Sequence[str], from_ms: int, to_ms: int) -> Iterator[str]:
        """All plans' entries of these kinds that happened from one time up to another, in order."""
        sql = _WITHIN.format(kinds=_places(kinds))
        after: tuple[int, str, int] = (from_ms, "", 0)
        while rows := self._query(sql, (*kinds, after[0], to_ms, *after, _PAGE_ROWS)):
            yield from (row[3] for row in rows)
            after = rows[-1][:3]

    def station_states(self, location_ids: Sequence[str]) -> dict[str, bytes]:
        """The changelog's value of each of these stations that has one."""
        if not location_ids:
            return {}
        rows = self._query(_STATIONS.format(ids=_places(location_ids)), location_ids)
        return {location_id: bytes(state) for location_id, state in rows}


def _filters(wanted: Search, after: Place | None) -> tuple[str, list[object]]:
    """What is asked for beyond the key, as SQL and its values."""
    filters: list[tuple[str, tuple[object, ...]]] = []
    by_key = wanted.plan_id or wanted.signal_id or wanted.source
    if wanted.kinds and by_key:
        filters.append((f"kind IN ({_places(wanted.kinds)})", tuple(wanted.kinds)))
    if wanted.service_id is not None:
        filters.append(("service_id = ?", (wanted.service_id,)))
    if wanted.plan_id is not None and wanted.signal_id is not None:
        filters.append(("signal_id = ?", (wanted.signal_id,)))
    if wanted.since_ms is not None:
        filters.append(("event_at_ms >= ?", (wanted.since_ms,)))
    if wanted.until_ms is not None:
        filters.append(("event_at_ms < ?", (wanted.until_ms,)))
    if after is not None and wanted.plan_id is not None:
        filters.append(("seq < ?", (after.seq,)))
    elif after is not None:
        # The first condition is for the index: not every planner sees it in the second one.
        filters.append(("event_at_ms <= ?", (after.event_at_ms,)))
        filters.append(("(event_at_ms < ? OR entry_id < ?)", (after.event_at_ms, after.entry_id)))
    sql = "".join(f" AND {condition}" for condition, _ in filters)
    return sql, [value for _, values in filters for value in values]


def _places(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))


def check_schema(name: str, found: int, known: int) -> None:
    """Raise unless a database has this program's schema: an earlier one, the sink will change."""
    if found > known:
        raise schema_too_new(found, known)
    if found < known:
        raise StoreUnavailableError(
            f"ledger database {name} has schema version {found}: waiting for this program's sink "
            f"to bring it to {known}"
        )


def open_read_model(url: str) -> ReadModel:
    """That of `sqlite:PATH` or `postgresql://...`, not connected yet. Raises ConfigError."""
    scheme, _, rest = url.partition(":")
    if scheme == "sqlite" and rest:
        from bss_stream.sink.sqlite_read import SqliteReadModel

        return SqliteReadModel(rest.removeprefix("//"))
    if scheme in ("postgresql", "postgres"):
        try:
            from bss_stream.sink.postgres_read import PostgresReadModel
        except ImportError as error:
            raise driver_missing(scheme, error) from error
        return PostgresReadModel(url)
    raise unknown_scheme(scheme)
