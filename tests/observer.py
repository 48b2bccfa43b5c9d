"""Whoever listens in on a broker: which requests were made, and which of them were answered."""

import asyncio
from collections import Counter
from types import TracebackType
from typing import Self

from bss_stream.mqtt.client import MqttClient
from bss_stream.mqtt.messages import MqttSettings, Received, Subscription
from tests.eventually import eventually

_REQUESTS = (
    "emit/uxi/attendant/plan/+/identify_customer",
    "emit/uxi/attendant/plan/+/payment_and_service",
    "emit/uxi/service/plan/+/customer_binding",
    "emit/uxi/service/plan/+/initialize_states",
    "emit/odo/subscription/plan/+/sync",
    "emit/abs/bss/payment/+/service_payment",
)
_ECHOES = ("echo/abs/#", "echo/odo/#")


class Observer:
    """A client of the broker on a loopback port: listens from entry to exit.

    Requests are told apart by the plan in their topic and their correlation data, as clients do.
    """

    def __init__(self, port: int) -> None:
        self.requests: Counter[tuple[str, str]] = Counter()
        self.echoes: Counter[tuple[str, str]] = Counter()
        self._client = MqttClient(
            MqttSettings(host="127.0.0.1", port=port, client_id="observer", clean_start=True)
        )
        self._task: asyncio.Task[None] | None = None

    async def all_answered(self, within_s: float = 30.0) -> None:
        """Wait until every request that was heard has an echo; fail after `within_s`."""
        try:
            await eventually(lambda: self.requests.keys() <= self.echoes.keys(), within_s)
        finally:
            unanswered = sorted(self.requests.keys() - self.echoes.keys())
            print(f"{len(self.requests)} requests, without an echo: {unanswered}")

    async def __aenter__(self) -> Self:
        await self._client.connect()
        await self._client.subscribe(*(Subscription(name) for name in (*_REQUESTS, *_ECHOES)))
        self._task = asyncio.create_task(self._listen())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])
        await self._client.close()

    async def _listen(self) -> None:
        async for batch in self._client.batches(1_000):
            for message in batch:
                self._take(message)
            self._client.ack(batch)

    def _take(self, message: Received) -> None:
        plan_id = message.topic.split("/")[4]
        heard = self.echoes if message.topic.startswith("echo/") else self.requests
        heard[plan_id, (message.correlation or b"").decode()] += 1
