"""Operator: the operators' report of each station (OP1 to OP6), those first that need somebody."""

from collections.abc import Mapping
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bss_stream.console import forms
from bss_stream.console.context import Context
from bss_stream.reports.operator import operator_report
from bss_stream.reports.stations import REFUSALS, stations

_ORDER: Final = {"NOT_READY": 0, "LIMITED": 1, "READY": 2}
DAYS: Final = (("today", "today"), ("day_before", "the day before"))


class Operator:
    """The page."""

    def __init__(self, context: Context) -> None:
        self._context = context

    @property
    def routes(self) -> list[Route]:
        return [Route("/operator", self.page)]

    async def page(self, request: Request) -> Response:
        markets = self._context.markets
        name, market = markets.chosen(forms.asked(request, "market"))
        found = await self._context.database.ask(
            lambda view: stations(view, markets.network, market, market.stations)
        )
        report: list[dict[str, Any]] = operator_report(found, self._context.clock_ms())
        report.sort(key=lambda one: (_ORDER[one["readiness"]], one["location_id"]))
        return self._context.renderer.page(
            "operator.html",
            request.scope,
            markets=list(markets.stations),
            market=name,
            stations=report,
            fleets=market.fleets,
            days=DAYS,
            refused=refused,
        )


def refused(day: Mapping[str, int]) -> int:
    """Requests of a day that got no battery."""
    return sum(day[name] for name in REFUSALS)
