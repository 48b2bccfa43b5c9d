"""Plans: found by id, with their cycles, accounts, day, timeline, and the chain's verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any, Final
from urllib.parse import quote, urlencode
from zoneinfo import ZoneInfo

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from bss_stream.audit import AuditReport, audit_plan
from bss_stream.console import drawing, forms, render
from bss_stream.console.context import Context, Template
from bss_stream.console.pages.ledger import show
from bss_stream.console.trail import Event, trail
from bss_stream.errors import BssStreamError, LogError
from bss_stream.ledger_kinds import RULES
from bss_stream.queries.plans import SWAP_KINDS
from bss_stream.setup.documents import is_id
from bss_stream.sink.entry import EntryRow, epoch_ms
from bss_stream.sink.read_model import Search

RECENT_MAX: Final = 24
RECENT_ROWS: Final = 200
TIMELINE_MAX: Final = 60
DIFFERENCES_SHOWN: Final = 12
DAY_MS: Final = 86_400_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A service of a plan."""

    service_id: str
    used: int
    held: int
    quota: int | str
    credit_minor: int
    battery: str | None

    @property
    def left(self) -> int | str:
        """What may still be used."""
        if isinstance(self.quota, str):
            return self.quota
        return max(self.quota - self.used - self.held, 0)

    @property
    def used_width(self) -> float:
        """Of its part of the bar, out of 100."""
        return self._width(self.used)

    @property
    def held_width(self) -> float:
        return min(self._width(self.held), 100 - self.used_width)

    def _width(self, units: int) -> float:
        if isinstance(self.quota, str) or self.quota <= 0:
            return 0.0
        return 100 * min(max(units, 0) / self.quota, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """One cycle, drawn, and where it can go from here."""

    name: str
    current: str | None
    svg: str
    steps: Sequence[tuple[str, str]]
    """Signal and next state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Day:
    """What of today's swaps has been made."""

    date: str
    zone: str
    used: int
    limit: int | None

    @property
    def width(self) -> float:
        """Of its bar, out of 100."""
        return 0.0 if not self.limit else 100 * min(self.used / self.limit, 1.0)


class Plans:
    """The search and the plan's page."""

    def __init__(self, context: Context) -> None:
        self._context = context

    @property
    def routes(self) -> list[Route]:
        return [Route("/plans", self.search), Route("/plans/{plan_id}", self.page)]

    async def search(self, request: Request) -> Response:
        plan_id = forms.asked(request, "plan_id")
        if is_id(plan_id):
            return RedirectResponse(f"/plans/{quote(plan_id, safe='')}", 303)
        since_ms = self._context.clock_ms() - DAY_MS
        wanted = Search(kinds=tuple(RULES), since_ms=since_ms)
        rows = await self._context.database.ask(lambda view: view.search(wanted, None, RECENT_ROWS))
        recent: dict[str, EntryRow] = {}
        for row in rows:
            recent.setdefault(row.plan_id, row)
        return self._context.renderer.page(
            "plans.html",
            request.scope,
            status=400 if plan_id else 200,
            plan_id=plan_id,
            recent=list(recent.values())[:RECENT_MAX],
        )

    async def page(self, request: Request) -> Response:
        context = self._context
        plan_id = request.path_params["plan_id"]
        if not is_id(plan_id):
            raise HTTPException(404, "This is no plan's id.")
        # The state first: entries that come meanwhile are then ahead of it, and told apart.
        state, state_fault = await self._state(plan_id)
        rows = await context.database.ask(lambda view: view.plan(plan_id))
        if state is None and not rows and not state_fault:
            return context.renderer.page(
                "plan_unknown.html", request.scope, status=404, plan_id=plan_id
            )
        events, trail_fault = await self._trail(plan_id)
        template = self._template(state)
        return context.renderer.page(
            "plan.html",
            request.scope,
            plan_id=plan_id,
            state=state,
            state_fault=state_fault,
            template=template,
            market=context.markets.names.get((state or {}).get("market_id", "")),
            currency=rows[-1].currency if rows else "",
            accounts=_accounts(state),
            cycles=self._cycles(state, template),
            day=self._day(rows, template),
            report=self._audit(plan_id, rows, state),
            differences_shown=DIFFERENCES_SHOWN,
            entries=len(rows),
            newest=rows[-1] if rows else None,
            timeline=self._timeline(plan_id, rows, events),
            trail_fault=trail_fault,
            ledger="/ledger?" + urlencode({"plan": plan_id}),
            now_ms=context.clock_ms(),
        )

    async def _state(self, plan_id: str) -> tuple[dict[str, Any] | None, str]:
        """The described state, and why there is none."""
        watch = self._context.watch
        if not watch.has_states:
            return None, watch.fault
        value = await watch.plan_state(plan_id)
        if value is None:
            return None, ""
        try:
            return self._context.markets.plan_state(plan_id, value), ""
        except ValueError as error:
            return None, f"This console's set-up does not explain it: {error}"

    async def _trail(self, plan_id: str) -> tuple[list[Event], str]:
        try:
            async with self._context.open_log() as log:
                return await trail(log, plan_id), ""
        except LogError as error:
            return [], str(error)

    def _template(self, state: Mapping[str, Any] | None) -> Template | None:
        if state is None:
            return None
        return self._context.markets.template(state["template_id"], state["template_version"])

    def _cycles(self, state: Mapping[str, Any] | None, template: Template | None) -> list[Drawn]:
        model = self._context.markets.models.get(template.model) if template else None
        if model is None or state is None:
            return []
        drawn = []
        for name, cycle in model.cycles.items():
            current = state.get(f"{name}_state")
            drawn.append(
                Drawn(
                    name=name,
                    current=current,
                    svg=drawing.draw(name, cycle, current),
                    steps=[
                        (one.signal, one.target)
                        for one in cycle.transitions
                        if one.source == current
                    ],
                )
            )
        return drawn

    def _day(self, rows: Sequence[EntryRow], template: Template | None) -> Day | None:
        """Today's swaps, by the time of their events in the market's zone."""
        if template is None:
            return None
        zone = self._context.markets.zones[template.market_id]
        now = datetime.fromtimestamp(self._context.clock_ms() / 1000, UTC)
        today = now.astimezone(ZoneInfo(zone)).replace(hour=0, minute=0, second=0, microsecond=0)
        first_ms, last_ms = epoch_ms(today), epoch_ms(today + timedelta(days=1))
        used = {
            row.source
            for row in rows
            if row.kind in SWAP_KINDS and first_ms <= row.event_at_ms < last_ms
        }
        limit = template.swaps_a_day_max
        return Day(date=today.strftime("%Y-%m-%d"), zone=zone, used=len(used), limit=limit)

    def _audit(
        self, plan_id: str, rows: Sequence[EntryRow], state: Mapping[str, Any] | None
    ) -> AuditReport | str:
        """What the audit says of the plan, or why it says nothing."""
        try:
            return audit_plan(plan_id, rows, state)
        except BssStreamError as error:
            return str(error)

    def _timeline(
        self, plan_id: str, rows: Sequence[EntryRow], events: Sequence[Event]
    ) -> list[tuple[str, list[Event]]]:
        """Newest first, by day."""
        entries = [self._entry_event(plan_id, row) for row in rows[-TIMELINE_MAX:]]
        timed = [event for event in events if event.at_ms]
        # What one signal did stands in the order in which it was done: signal, entries, echoes.
        order = {"signal": 0, "entry": 1}
        newest = sorted(
            (*timed, *entries),
            key=lambda event: (event.at_ms, order.get(event.type, 2)),
            reverse=True,
        )[:TIMELINE_MAX]
        return [
            (date, list(found))
            for date, found in groupby(newest, lambda event: render.day(event.at_ms))
        ]

    def _entry_event(self, plan_id: str, row: EntryRow) -> Event:
        shown = show(self._context, row)
        service = self._context.units.service(row.service_id)
        return Event(
            at_ms=row.recorded_at_ms,
            type="entry",
            what=row.kind,
            detail=" · ".join(filter(None, (service, shown.detail))),
            correlation_id=row.signal_id or "",
            link="/ledger?" + urlencode({"plan": plan_id, "correlation": row.signal_id or ""}),
        )


def _accounts(state: Mapping[str, Any] | None) -> list[Account]:
    if state is None:
        return []
    return [
        Account(
            service_id=one["service_id"],
            used=one["used"],
            held=one["held"],
            quota=one["quota"],
            credit_minor=one["credit_minor"],
            battery=one["current_asset"],
        )
        for one in state["services"]
    ]
