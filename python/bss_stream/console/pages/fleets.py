"""Fleets: the asset manager's report of a market (AM1 to AM6), out of states and ledgers."""

import asyncio
from functools import partial
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bss_stream.console import forms
from bss_stream.console.context import Context
from bss_stream.reports.fleet import fleet_report
from bss_stream.reports.network import Market
from bss_stream.sink.read_model import ReadView

KEPT_S: Final = 30.0
"""How long a report is shown again before it is made anew: it reads the ledgers of days."""
DAYS: Final = (1, 7, 30)
BATTERIES_SHOWN: Final = 12


class Fleets:
    """The page, and the reports made last: one a market and number of days."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._kept: dict[tuple[str, int], tuple[float, dict[str, Any]]] = {}
        self._making = asyncio.Lock()

    @property
    def routes(self) -> list[Route]:
        return [Route("/fleets", self.page)]

    async def page(self, request: Request) -> Response:
        markets = self._context.markets
        name, market = markets.chosen(forms.asked(request, "market"))
        asked = forms.asked(request, "days")
        days = int(asked) if asked in map(str, DAYS) else 7
        return self._context.renderer.page(
            "fleets.html",
            request.scope,
            markets=list(markets.stations),
            market=name,
            days=days,
            choices=DAYS,
            report=await self._report(market, days),
            places=market.stations,
            fleets=market.fleets,
            batteries_shown=BATTERIES_SHOWN,
        )

    async def _report(self, market: Market, days: int) -> dict[str, Any]:
        key = market.market_id, days
        async with self._making:
            now_s = asyncio.get_running_loop().time()
            made_s, report = self._kept.get(key, (0.0, {}))
            if not report or now_s - made_s > KEPT_S:
                report = await self._context.reports.ask(partial(self._make, market, days))
                self._kept[key] = (now_s, report)
            return report

    def _make(self, market: Market, days: int, view: ReadView) -> dict[str, Any]:
        now_ms = self._context.clock_ms()
        return fleet_report(
            view,
            self._context.markets.network,
            market,
            now_ms=now_ms,
            last=market.day(now_ms),
            days=days,
        )
