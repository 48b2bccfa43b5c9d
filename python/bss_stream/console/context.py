"""What every page works with, made once from the configuration."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import msgspec

from bss_stream import _engine, diagram, topics
from bss_stream.console.access import Access
from bss_stream.console.database import LedgerDatabase
from bss_stream.console.render import Renderer, Units
from bss_stream.console.watch import Watch
from bss_stream.dead_letters import Judgement, Order
from bss_stream.log.protocol import FollowableLog
from bss_stream.queries.catalogue import Catalogue
from bss_stream.reports.network import Market, Network
from bss_stream.setup import Setup, compile_setup
from bss_stream.setup.documents import LocationFile, PlanFile, Station


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """What a customer has signed, as far as it is shown."""

    name: str
    model: str
    market_id: str
    swaps_a_day_max: int | None
    """The strictest limit of its services."""


class Markets:
    """The set-up as pages look things up in it."""

    def __init__(self, setup: Setup) -> None:
        self._engine = _engine.Engine(compile_setup(setup), partitions=1)
        self.catalogue = Catalogue.of(setup, self._engine.describe_state)
        self.network = Network.of(setup, self._engine.describe_state)
        self.models = {
            model.model_id: diagram.read(model.raw)
            for model in setup.models
            if model.kind == "plan"
        }
        self.stations: dict[str, tuple[Station, ...]] = {}
        """By the market's name."""
        self.zones: dict[str, str] = {}
        """By the market's id, as are the names."""
        self.names: dict[str, str] = {}
        self._templates: dict[tuple[str, int], Template] = {}
        for market in setup.markets:
            settings = market.settings()
            assert settings is not None  # checked at load
            self.zones[settings.market_id] = settings.time_zone
            self.names[settings.market_id] = settings.name
            self.stations[settings.name] = tuple(
                station
                for document in market.documents(LocationFile)
                for station in document.stations
            )
            for plan in market.documents(PlanFile):
                limits = [one.rate_limit_per_day for one in plan.services if one.rate_limit_per_day]
                self._templates[plan.template_id, plan.version_number] = Template(
                    name=plan.name,
                    model=plan.model,
                    market_id=settings.market_id,
                    swaps_a_day_max=min(limits, default=None),
                )

    def chosen(self, name: str) -> tuple[str, Market]:
        """The market of this name, and the name; the first one if there is none."""
        by_name = {self.names[market.market_id]: market for market in self.network.markets}
        found = name if name in by_name else next(iter(by_name))
        return found, by_name[found]

    def template(self, template_id: str, version: int) -> Template | None:
        """None for one that the set-up has no longer."""
        return self._templates.get((template_id, version))

    def plan_state(self, plan_id: str, value: bytes) -> dict[str, Any]:
        """A plan's changelog value. Raises ValueError where it names what the set-up lacks."""
        described = self._engine.describe_state(topics.STATE_PLAN, plan_id.encode(), value)
        return msgspec.json.decode(described, type=dict[str, Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """All that pages use."""

    access: Access
    database: LedgerDatabase
    reports: LedgerDatabase
    """The same, by a connection of its own: a report reads long, and others must not wait."""
    watch: Watch
    markets: Markets
    units: Units
    renderer: Renderer
    open_log: Callable[[], AbstractAsyncContextManager[FollowableLog]]
    replay: Callable[[Order], Awaitable[Judgement]]
    clock_ms: Callable[[], int]
