"""The Odoo adapter: the one process that speaks to Odoo; on the log and on MQTT a role like others.

Three things side by side: what the ledgers and plans' states say goes out, payment status queries
are answered, and paid invoices that MQTT has missed are looked for.
"""

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from bss_stream.clock import epoch_ms
from bss_stream.errors import OdooUnavailableError
from bss_stream.log.protocol import Log, TopicPartition
from bss_stream.mqtt.client import MqttClient
from bss_stream.mqtt.messages import MqttSettings
from bss_stream.odoo.billing import Measures
from bss_stream.odoo.client import Connection, OdooClient
from bss_stream.odoo.config import Odoo
from bss_stream.odoo.counters import OdooCounters
from bss_stream.odoo.outbound import Describe, Outbound, OutboundSettings
from bss_stream.odoo.payments import Payments
from bss_stream.odoo.reconcile import ReconcileSettings, Reconciliation
from bss_stream.odoo.status import StatusQueries
from bss_stream.odoo.upsert import Upserts
from bss_stream.queries import wire
from bss_stream.stopping import done_unless_stopped, pause


@dataclass(frozen=True, slots=True, kw_only=True)
class OdooSettings:
    """How the adapter works."""

    outbound: OutboundSettings
    reconcile: ReconcileSettings
    shared_group: str | None = None
    """Processes of one group share the queries. Not with the embedded broker, which it crashes."""
    connect_patience_s: float = 30.0


class OdooAdapter:
    """`run` until `stop`."""

    def __init__(
        self,
        log: Log,
        mqtt: MqttSettings,
        connection: Connection,
        models: Odoo,
        measures: Measures,
        describe: Describe,
        settings: OdooSettings,
        *,
        clock_ms: Callable[[], int] = epoch_ms,
    ) -> None:
        """`mqtt` asks for no session expiry; `describe` is that of an engine with the set-up."""
        self.counters = OdooCounters()
        self.ready = asyncio.Event()
        """Set once the broker has the subscription."""
        self.stopped = asyncio.Event()
        """Set once it is told to stop."""
        self.client = MqttClient(mqtt)
        self._odoo = OdooClient(connection)
        self._settings = settings
        # rumqttd sends no PUBACK to a client that owes it many of its own.
        self._echoes = MqttClient(dataclasses.replace(mqtt, client_id=f"{mqtt.client_id}-echo"))
        self._payments = Payments(self._odoo, models)
        self._outbound = Outbound(
            log,
            Upserts(self._odoo, models),
            measures,
            describe,
            settings.outbound,
            self.counters,
            clock_ms=clock_ms,
        )
        self._queries = StatusQueries(
            *(self._payments, measures, self.client, self._echoes, self.counters),
            clock_ms=clock_ms,
        )
        self._reconciliation = Reconciliation(
            *(self._payments, measures, self._echoes, settings.reconcile, self.counters),
            is_due_here=lambda: self._outbound.is_first,
            clock_ms=clock_ms,
        )

    def missing(self) -> list[str]:
        """What it waits for before it can do its work."""
        found = []
        if not (self.client.connected and self._echoes.connected):
            found.append("a connection to the broker")
        elif not self.ready.is_set():
            found.append("subscriptions")
        return found + self._outbound.missing()

    async def lag(self) -> dict[TopicPartition, int]:
        """Records that it has not settled yet. Raises LogError."""
        return await self._outbound.lag()

    def stop(self) -> None:
        """Have `run` end once Odoo has what the log holds, or after the drain time."""
        self.stopped.set()
        self._outbound.stop()
        self._queries.stop()
        self._reconciliation.stop()

    def reload(self, measures: Measures, describe: Describe) -> None:
        """Go on by another set-up."""
        self._outbound.reload(measures, describe)
        self._queries.reload(measures)
        self._reconciliation.reload(measures)

    async def run(self) -> None:
        """Work until stopped.

        Raises OdooAccessError when Odoo does not let the user in or lacks what is configured,
        MqttError when a client fails for good, and what a consumer of the log raises for good.
        """
        try:
            if not await done_unless_stopped(self._connect(), self.stopped):
                return
            await _side_by_side(self._outbound.run(), self._inbound())
        finally:
            await self._close()

    async def _inbound(self) -> None:
        """Queries and reconciliation, once Odoo has what they read."""
        await self._until_checked()
        await _side_by_side(self._queries.run(), self._reconcile())

    async def _until_checked(self) -> None:
        pause_s = self._settings.outbound.backoff_min_s
        while not self.stopped.is_set():
            try:
                await self._payments.check()
            except OdooUnavailableError:
                # Outbound makes the same attempts, and says so.
                await pause(pause_s, self.stopped)
                pause_s = min(pause_s * 2, self._settings.outbound.backoff_max_s)
            else:
                return

    async def _reconcile(self) -> None:
        if self._settings.reconcile.interval_s > 0:
            await self._reconciliation.run()

    async def _connect(self) -> None:
        await self._echoes.connect(patience_s=self._settings.connect_patience_s)
        await self.client.connect(patience_s=self._settings.connect_patience_s)
        filters = wire.subscriptions(self._settings.shared_group, wire.PAYMENT_FILTERS)
        await self.client.subscribe(*filters)
        self.ready.set()

    async def _close(self) -> None:
        async with contextlib.AsyncExitStack() as closing:
            for close in (self._odoo.close, self._echoes.close, self.client.close):
                closing.push_async_callback(close)


async def _side_by_side(*work: Coroutine[Any, Any, None]) -> None:
    """Do all of it to its end; the first failure ends the rest and is raised."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
