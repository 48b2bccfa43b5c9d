"""The metrics of a process: its roles' counters, and what is looked at when somebody asks."""

import asyncio
from collections.abc import Awaitable, Iterator, Mapping
from typing import Final, TypeVar

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.core import (
    Metric as Family,
)
from prometheus_client.registry import Collector

from bss_stream import __version__
from bss_stream._engine import Census
from bss_stream.counters import Distribution, RoleCounters
from bss_stream.errors import BssStreamError
from bss_stream.log.protocol import TopicPartition
from bss_stream.mqtt.client import MqttClient
from bss_stream.observe import metrics
from bss_stream.observe.metrics import Metric
from bss_stream.processor import ENDINGS
from bss_stream.roles import Platform, Role

T = TypeVar("T")

PATIENCE_S: Final = 2.0
"""How long a scrape waits for what a role must be asked for, such as its lag."""

ENTITIES: Final = ("plan", "station", "asset")


class Exporter:
    """Writes what there is to tell of a platform in Prometheus's text format."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._found = _Found()
        self._registry.register(self._found)
        # One scrape at a time: two of them would mix what they found.
        self._scraping = asyncio.Lock()

    async def render(self) -> bytes:
        """All metrics, as they are now."""
        async with self._scraping:
            page = self._found.page = _Page()
            await self._look(page)
            return generate_latest(self._registry)

    async def _look(self, page: "_Page") -> None:
        platform = self._platform
        config = platform.config
        page.add(
            metrics.INFO,
            1,
            *(__version__, platform.instance, config.log.backend, ",".join(platform.roles)),
        )
        page.add(metrics.PARTITIONS, config.partitions)
        missing = platform.missing()
        for role in platform.roles:
            page.add(metrics.READY, role not in missing, role)
        for role, counters in platform.counters().items():
            page.count(role, counters)
            page.add(metrics.UNBALANCED, len(counters.balance()), role)
        for role, client in platform.clients().items():
            _add_client(page, role, client)
        asked = [_lag(page, role, lag()) for role, lag in platform.lags().items()]
        if platform.processor is not None:
            asked.append(_shards(page, platform.processor.census()))
            restoring = platform.processor.restoring()
            for shard, share in restoring.items():
                page.add(metrics.RESTORED, share, str(shard))
            page.add(metrics.SHARDS, len(restoring), "restoring")
            page.add(metrics.SHARDS, len(platform.processor.shards), "ready")
        answered = await asyncio.gather(*asked)
        page.add(metrics.LEFT_OUT, answered.count(False))


class _Page:
    """The families of one scrape."""

    def __init__(self) -> None:
        self._families: dict[str, Family] = {}

    def add(self, metric: Metric, value: float, *labels: str) -> None:
        """One series of a counter or a gauge."""
        made = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
        family = self._families.get(metric.name)
        if family is None:
            family = made(metric.name, metric.help, labels=metric.labels)
            self._families[metric.name] = family
        assert isinstance(family, CounterMetricFamily | GaugeMetricFamily)
        family.add_metric(labels, float(value))

    def count(self, role: Role, counters: RoleCounters) -> None:
        """All that a role has counted."""
        named = metrics.COUNTED[role]
        for name, label, value in counters.values():
            metric = named[name]
            if metric.labels == ("ending", "reason"):
                self.add(metric, value, ENDINGS[label], label)
            else:
                self.add(metric, value, *((label,) if metric.labels else ()))
        for name, distribution in counters.distributions():
            self._distribute(named[name], distribution)

    def _distribute(self, metric: Metric, distribution: Distribution) -> None:
        bounds = [*(format(bound, "g") for bound in distribution.bounds), "+Inf"]
        passed = 0
        buckets = []
        for bound, count in zip(bounds, distribution.counts, strict=True):
            passed += count
            buckets.append((bound, float(passed)))
        family = HistogramMetricFamily(metric.name, metric.help)
        family.add_metric((), buckets, distribution.total)
        self._families[metric.name] = family

    def families(self) -> Iterator[Family]:
        """In the order in which they came."""
        return iter(self._families.values())


class _Found(Collector):
    """Gives the client's registry what has been found."""

    def __init__(self) -> None:
        self.page = _Page()

    def collect(self) -> Iterator[Family]:
        return self.page.families()


def _add_client(page: _Page, role: Role, client: MqttClient) -> None:
    counted = client.counters
    page.add(metrics.CONNECTED, client.connected, role)
    page.add(metrics.CONNECTIONS, counted.connections, role)
    page.add(metrics.SENT_AGAIN, counted.sent_again, role)
    page.add(metrics.PAUSES, counted.pauses, role)
    page.add(metrics.UNEXPECTED_ACKS, counted.unexpected_acks, role)


async def _answer(asked: Awaitable[T]) -> T | None:
    """The answer; None if it does not come in time, or the log is away."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            return await asked
    except (TimeoutError, BssStreamError):
        return None


async def _lag(page: _Page, role: Role, asked: Awaitable[Mapping[TopicPartition, int]]) -> bool:
    lag = await _answer(asked)
    for (topic, partition), records in sorted((lag or {}).items()):
        page.add(metrics.LAG, records, role, topic, str(partition))
    return lag is not None


async def _shards(page: _Page, asked: Awaitable[Mapping[int, Census]]) -> bool:
    shards = await _answer(asked)
    for number, census in (shards or {}).items():
        shard = str(number)
        for entity, count in zip(ENTITIES, census.entities, strict=True):
            page.add(metrics.ENTITIES, count, shard, entity)
        page.add(metrics.TIMERS, census.timers_armed, shard)
        page.add(metrics.HOLDS, census.holds_open, shard)
        page.add(metrics.ALLOCATIONS, census.allocations_open, shard)
        for location_id, fleet_id, batteries, promised in census.stock:
            page.add(metrics.STOCK, batteries, location_id, fleet_id)
            page.add(metrics.PROMISED, promised, location_id, fleet_id)
    return shards is not None
