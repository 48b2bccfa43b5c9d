"""Paid invoices that MQTT has not brought: told of, and if so configured published once more.

They go in by the front door, as the sync that Odoo should have sent: with the invoice's payment
id, which the engine applies once for a plan's life whoever brings it.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

import msgspec

from bss_stream.echo import rfc3339
from bss_stream.errors import OdooUnavailableError
from bss_stream.mqtt.client import MqttClient
from bss_stream.mqtt.messages import Message
from bss_stream.odoo.billing import Measures, UnmappableError, odoo_time
from bss_stream.odoo.counters import OdooCounters
from bss_stream.odoo.payments import INVOICES_MAX, PAID, Domain, Invoice, Payments, exact
from bss_stream.setup.documents import is_id
from bss_stream.stopping import pause, unless_stopped

logger = logging.getLogger(__name__)

SHOWN_MAX: Final = 20
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class ReconcileSettings(NamedTuple):
    """When to look, how far back, and what to do."""

    interval_s: float = 900.0
    window_s: float = 48 * 3600.0
    grace_s: float = 300.0
    replay: bool = False


class Reconciliation:
    """Looks every so often, in the one process that `is_due_here`."""

    def __init__(
        self,
        payments: Payments,
        measures: Measures,
        mqtt: MqttClient,
        settings: ReconcileSettings,
        counters: OdooCounters,
        *,
        is_due_here: Callable[[], bool],
        clock_ms: Callable[[], int],
    ) -> None:
        """`mqtt` publishes what is replayed; it is connected when `run` is called."""
        self._payments = payments
        self._measures = measures
        self._mqtt = mqtt
        self._settings = settings
        self._counters = counters
        self._is_due_here = is_due_here
        self._clock_ms = clock_ms
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Have `run` end."""
        self._stopping.set()

    def reload(self, measures: Measures) -> None:
        """Count by another set-up from now on."""
        self._measures = measures

    async def run(self) -> None:
        """Look until stopped. Raises OdooError but for OdooUnavailableError, and MqttError."""
        while not self._stopping.is_set():
            await pause(self._settings.interval_s, self._stopping)
            if self._stopping.is_set() or not self._is_due_here():
                continue
            try:
                await unless_stopped(self.look(), self._stopping)
            except OdooUnavailableError as error:
                logger.warning("%s: invoices will be looked at the next time", error)

    async def look(self) -> None:
        """Look at every invoice of the window once."""
        found: Counter[str] = Counter()
        shown: list[str] = []
        last = 0
        while page := await self._payments.invoices(
            self._domain(last), order="id", limit=INVOICES_MAX
        ):
            last = page[-1].row
            for invoice, outcome in await self._judged(page):
                if outcome == "missed" and self._settings.replay:
                    outcome = await self._replayed(invoice)
                found[outcome] += 1
                if outcome != "applied" and len(shown) < SHOWN_MAX:
                    shown.append(f"{outcome} {invoice.payment_id} of plan {invoice.plan_id}")
        self._counters.invoices.update(found)
        self._counters.rounds += 1
        if shown:
            logger.warning("paid invoices that the ledgers do not have: %s", "; ".join(shown))

    def _domain(self, last: int) -> Domain:
        name, settings = self._payments.invoice_field, self._settings
        now = _EPOCH + timedelta(milliseconds=self._clock_ms())
        return [
            ["id", ">", last],
            [name("plan_id"), "!=", False],
            [name("payment_state"), "=", PAID],
            [name("changed_at"), ">=", odoo_time(now - timedelta(seconds=settings.window_s))],
            [name("changed_at"), "<=", odoo_time(now - timedelta(seconds=settings.grace_s))],
        ]

    async def _judged(self, page: Sequence[Invoice]) -> list[tuple[Invoice, str]]:
        lines = await self._payments.with_ids(one.payment_id for one in page)
        applied = {(line.plan_id, line.payment_id) for line in lines}
        missing = [one for one in page if (one.plan_id, one.payment_id) not in applied]
        unnamed: set[str] = set()
        if missing:
            brought = await self._payments.from_odoo(one.plan_id for one in missing)
            unnamed = {line.plan_id for line in brought if line.names_no_invoice}
        outcomes = {one.row: "missed" for one in missing}
        # Which invoice such a payment was for nobody can tell, and once is enough.
        outcomes |= {one.row: "ambiguous" for one in missing if one.plan_id in unnamed}
        return [(one, outcomes.get(one.row, "applied")) for one in page]

    async def _replayed(self, invoice: Invoice) -> str:
        try:
            message = sync_message(invoice, self._measures, self._clock_ms())
        except UnmappableError as error:
            logger.error("invoice %s cannot be replayed: %s", invoice.id, error)
            return "unusable"
        for refusal in await self._mqtt.publish([message]):
            logger.error("the broker refused a sync: %s", refusal.reason)
            return "unusable"
        return "replayed"


def sync_message(invoice: Invoice, measures: Measures, now_ms: int) -> Message:
    """The sync that Odoo sends for a paid invoice. Raises UnmappableError."""
    for value in (invoice.plan_id, invoice.subscription_id, invoice.id):
        if not is_id(value):
            raise UnmappableError(f"{value!r} is no id: 1 to 64 of A-Z a-z 0-9 . _ : @ -")
    correlation_id = f"odoo-reconcile-{invoice.id}"
    body = {
        "timestamp": rfc3339(now_ms),
        "plan_id": invoice.plan_id,
        "correlation_id": correlation_id,
        "actor": {"type": "system", "id": "odoo-reconcile"},
        "data": {
            "action": "SYNC_ODOO_SUBSCRIPTION",
            "odoo_subscription_id": invoice.subscription_id,
            "odoo_invoice_id": invoice.id,
            "odoo_payment_state": invoice.payment_state,
            "odoo_subscription_state": invoice.subscription_state,
            "odoo_currency_id": invoice.currency,
            "odoo_amount_total": msgspec.Raw(
                exact(invoice.amount, invoice.currency, measures).encode()
            ),
        },
    }
    return Message(
        topic=f"emit/odo/subscription/plan/{invoice.plan_id}/sync",
        payload=msgspec.json.encode(body),
        correlation=correlation_id.encode(),
    )
