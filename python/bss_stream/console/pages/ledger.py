"""Ledger: entries by plan, kind, service, time, and by what asked for or caused them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlencode

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bss_stream import topics
from bss_stream.console import forms
from bss_stream.console.context import Context
from bss_stream.ledger_kinds import RULES
from bss_stream.setup.documents import is_id
from bss_stream.sink.entry import EntryRow, epoch_ms
from bss_stream.sink.read_model import Place, Search

PAGE_ROWS: Final = 50
DAY_MS: Final = 86_400_000
"""How far back a search goes that names no plan, correlation or cause, and no time."""

_PLACE: Final = re.compile(r"(-?[0-9]{1,18})_([0-9]{1,18})_([\x21-\x7e]{1,160})")
_SOURCE: Final = re.compile(rf"{re.escape(topics.SIGNALS_PLAN)}/([0-9]{{1,6}})/([0-9]{{1,18}})")
_FIELDS: Final = ("plan", "kind", "service", "correlation", "cause", "from", "until")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One entry as a row of a table."""

    row: EntryRow
    detail: str
    fields: Sequence[tuple[str, str]]
    """All of the entry, as it was written."""


class Ledger:
    """The page."""

    def __init__(self, context: Context) -> None:
        self._context = context

    @property
    def routes(self) -> list[Route]:
        return [Route("/ledger", self.page)]

    async def page(self, request: Request) -> Response:
        fields = {name: forms.asked(request, name) for name in _FIELDS}
        faults: dict[str, str] = {}
        wanted = self._search(fields, faults)
        after = _place(forms.asked(request, "after"))
        rows: list[EntryRow] = []
        if not faults:
            rows = await self._context.database.ask(
                lambda view: view.search(wanted, after, PAGE_ROWS + 1)
            )
        shown = rows[:PAGE_ROWS]
        query = {name: value for name, value in fields.items() if value}
        return self._context.renderer.page(
            "ledger.html",
            request.scope,
            status=400 if faults else 200,
            fields=fields,
            faults=faults,
            kinds=sorted(RULES),
            services=sorted(self._context.markets.catalogue.service_names().items()),
            entries=[show(self._context, row) for row in shown],
            is_first=after is None,
            first=f"?{urlencode(query)}",
            older=_older(query, shown[-1]) if len(rows) > PAGE_ROWS else None,
            since_ms=wanted.since_ms,
            is_default_time=not fields["from"] and wanted.since_ms is not None,
        )

    def _search(self, fields: Mapping[str, str], faults: dict[str, str]) -> Search:
        for name in ("plan", "service"):
            if fields[name] and not is_id(fields[name]):
                faults[name] = "An id has 1 to 64 characters of A-Z a-z 0-9 . _ : @ -"
        if fields["kind"] and fields["kind"] not in RULES:
            faults["kind"] = "This is no kind of ledger entry."
        source = _SOURCE.fullmatch(fields["cause"])
        if fields["cause"] and source is None:
            faults["cause"] = f"A cause is written {topics.SIGNALS_PLAN}/PARTITION/OFFSET."
        since_ms = _moment_ms(fields["from"], "from", faults)
        has_key = any(fields[name] for name in ("plan", "correlation", "cause"))
        if since_ms is None and not has_key:
            since_ms = self._context.clock_ms() - DAY_MS
        kinds = (fields["kind"],) if fields["kind"] else () if has_key else tuple(RULES)
        return Search(
            kinds=kinds,
            plan_id=fields["plan"] or None,
            service_id=fields["service"] or None,
            signal_id=fields["correlation"] or None,
            source=None if source is None else (int(source[1]), int(source[2])),
            since_ms=since_ms,
            until_ms=_moment_ms(fields["until"], "until", faults),
        )


def _older(query: Mapping[str, str], last: EntryRow) -> str:
    return "?" + urlencode({**query, "after": f"{last.event_at_ms}_{last.seq}_{last.entry_id}"})


def _place(text: str) -> Place | None:
    found = _PLACE.fullmatch(text)
    return None if found is None else Place(int(found[1]), found[3], int(found[2]))


def _moment_ms(text: str, name: str, faults: dict[str, str]) -> int | None:
    """Epoch ms of what a field for date and time gives, which has no zone: UTC."""
    if not text:
        return None
    try:
        return epoch_ms(datetime.fromisoformat(text).replace(tzinfo=UTC))
    except ValueError:
        faults[name] = "A time is written 2026-11-24T10:00, in UTC."
        return None


def show(context: Context, row: EntryRow) -> Shown:
    """What people want to see of an entry."""
    try:
        entry = msgspec.json.decode(row.entry, type=dict[str, Any])
    except ValueError:
        entry = {}
    units, catalogue = context.units, context.markets.catalogue
    parts = []
    if row.amount_minor:
        parts.append(units.money(row.amount_minor, row.currency))
    if row.units:
        parts.append(units.quota(row.units, row.service_id))
    if entry.get("returned_asset_id") or entry.get("asset_id"):
        swapped = (entry.get("returned_asset_id"), entry.get("asset_id"))
        parts.append(" → ".join(str(one) if one else "none" for one in swapped))
    location_id = entry.get("location_id")
    if isinstance(location_id, str):
        parts.append(catalogue.station_name(location_id) or location_id)
    parts += [str(entry[name]) for name in ("template_id", "detail") if entry.get(name)]
    return Shown(
        row=row,
        detail=" · ".join(parts),
        fields=[
            (name, value if isinstance(value, str) else msgspec.json.encode(value).decode())
            for name, value in entry.items()
        ],
    )
