"""Payment status queries: what Odoo knows of a plan's payments, asked and answered over MQTT."""

import asyncio
import logging
import re
from collections.abc import Callable
from typing import Final

import msgspec

from bss_stream.echo import rfc3339
from bss_stream.errors import OdooRefusedError, OdooUnavailableError
from bss_stream.mqtt.client import MqttClient
from bss_stream.mqtt.messages import Message, Received
from bss_stream.odoo.billing import Measures, UnmappableError
from bss_stream.odoo.counters import OdooCounters
from bss_stream.odoo.payments import Domain, Invoice, Payments, exact
from bss_stream.queries import wire
from bss_stream.queries.wire import PaymentStatus, Reading, Rejection
from bss_stream.stopping import pause, unless_stopped

logger = logging.getLogger(__name__)

BATCH_MAX: Final = 32
ANSWER_INVOICES_MAX: Final = 20
BACKOFF_MIN_S: Final = 0.2
BACKOFF_MAX_S: Final = 10.0
STOP_PATIENCE_S: Final = 5.0
ROW_ID: Final = re.compile("[0-9]{1,9}")


class StatusQueries:
    """Answers until stopped, one query after the other: Odoo has other work."""

    def __init__(
        self,
        payments: Payments,
        measures: Measures,
        intake: MqttClient,
        echoes: MqttClient,
        counters: OdooCounters,
        *,
        clock_ms: Callable[[], int],
    ) -> None:
        """Both clients are connected, and `intake` is subscribed, when `run` is called."""
        self._payments = payments
        self._measures = measures
        self._intake = intake
        self._echoes = echoes
        self._counters = counters
        self._clock_ms = clock_ms
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Have `run` end; queries that are not answered are asked again by the app."""
        self._stopping.set()

    def reload(self, measures: Measures) -> None:
        """Answer by another set-up from now on."""
        self._measures = measures

    async def run(self) -> None:
        """Raises OdooError but for OdooUnavailableError, and MqttError."""
        while not self._stopping.is_set():
            batch = await unless_stopped(self._intake.receive(BATCH_MAX), self._stopping)
            if not batch:
                continue
            self._counters.queries += len(batch)
            self._counters.in_hand = len(batch)
            for message in batch:
                if not await self._serve(message):
                    return

    async def _serve(self, message: Received) -> bool:
        """Answer one; False when stopped before that worked."""
        pause_s = BACKOFF_MIN_S
        while True:
            try:
                asking = self._answer(message)
                answer = await unless_stopped(asking, self._stopping, patience_s=STOP_PATIENCE_S)
            except OdooUnavailableError as error:
                logger.warning("%s: a payment query waits %.1f s", error, pause_s)
                await pause(pause_s, self._stopping)
                pause_s = min(pause_s * 2, BACKOFF_MAX_S)
                if self._stopping.is_set():
                    return False
                continue
            if answer is None:
                return False
            outcome, echo = answer
            for refusal in await self._echoes.publish([echo]) if echo is not None else ():
                logger.error("the broker refused an echo: %s", refusal.reason)
                self._counters.echoes_refused += 1
            self._intake.ack([message])
            self._counters.answers[outcome] += 1
            self._counters.in_hand -= 1
            return True

    async def _answer(self, message: Received) -> tuple[str, Message | None]:
        route = wire.route(message.topic)
        if route is None:
            logger.warning("no query, and no topic to say so on: %r", message.topic[:120])
            return "no_query", None
        reading = wire.read(route, message)
        request = reading.request
        if isinstance(request, Rejection):
            return request.reason, wire.refused(reading, request, {}, self._clock_ms())
        assert isinstance(request, PaymentStatus)  # no other topic is subscribed to
        return await self._found(reading, request)

    async def _found(self, reading: Reading, asked: PaymentStatus) -> tuple[str, Message | None]:
        now_ms = self._clock_ms()
        try:
            payments = await self._states(asked)
        except (UnmappableError, OdooRefusedError) as error:
            # What one rider asks must not end the answers to all others.
            logger.error("payments of plan %s are not told: %s", asked.plan_id, error)
            return "unreadable", None
        told = {"as_of": rfc3339(now_ms), "payments": payments}
        return "ok", wire.answered(reading, told, now_ms)

    async def _states(self, asked: PaymentStatus) -> list[dict[str, object]]:
        found = await self._payments.invoices(
            self._domain(asked), order="id desc", limit=ANSWER_INVOICES_MAX
        )
        invoices = [one for one in found if asked.payment_id in (None, one.payment_id)]
        wanted = {one.payment_id for one in invoices}
        if asked.payment_id is not None:
            wanted.add(asked.payment_id)
        lines = await self._payments.with_ids(wanted) if wanted else []
        applied = {line.payment_id for line in lines if line.plan_id == asked.plan_id}
        states = [self._invoiced(one, one.payment_id in applied) for one in invoices]
        others = sorted(applied - {one.payment_id for one in invoices})
        return states + [{"payment_id": one, "invoice_id": None, "applied": True} for one in others]

    def _domain(self, asked: PaymentStatus) -> Domain:
        of_plan = [self._payments.invoice_field("plan_id"), "=", asked.plan_id]
        _, is_invoice, invoice_id = (asked.payment_id or "").rpartition(":invoice:")
        if not is_invoice:
            return [of_plan]
        name = self._payments.invoice_field("id")
        if name != "id":
            return [of_plan, [name, "=", invoice_id]]
        # Odoo's own ids are numbers of 32 bits, and no invoice has 0.
        row = int(invoice_id) if ROW_ID.fullmatch(invoice_id) else 0
        return [of_plan, [name, "=", row]]

    def _invoiced(self, invoice: Invoice, applied: bool) -> dict[str, object]:
        amount = exact(invoice.amount, invoice.currency, self._measures)
        return {
            "payment_id": invoice.payment_id,
            "invoice_id": invoice.id,
            "payment_state": invoice.payment_state,
            "amount": msgspec.Raw(amount.encode()),
            "currency": invoice.currency,
            "applied": applied,
        }
