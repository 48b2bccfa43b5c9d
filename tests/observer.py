"""Whoever listens in on a broker: which signals and requests were sent, and what was answered."""

import asyncio
from collections import Counter
from types import TracebackType
from typing import Self

from bss_stream import topic_table, topics
from bss_stream.frames import OutboxKind, decode_outbox, decode_signal
from bss_stream.mqtt.client import MqttClient
from bss_stream.mqtt.messages import MqttSettings, Received, Subscription
from tests.effects import Request, check_alike
from tests.eventually import eventually
from tests.undisturbed import Contents, is_internal

_ECHOES = ("echo/abs/#", "echo/odo/#")
Sent = tuple[str, bytes]
"""MQTT topic and payload."""


class Observer:
    """A client of the broker on a loopback port: listens from entry to exit.

    Requests are told apart by the plan in their topic and their correlation data, as clients do.
    With a session expiry it also hears what comes while the broker restarts.
    """

    def __init__(self, port: int, *, session_expiry_s: int = 0) -> None:
        self.requests: Counter[Request] = Counter()
        self.echoes: Counter[Request] = Counter()
        self.signals: Counter[Sent] = Counter()
        """Everything that bridges have to bring to the log."""
        self.answers: dict[tuple[Request, Sent], int] = {}
        """How often each echo was heard."""
        self._table = topic_table.load()
        self._client = MqttClient(
            MqttSettings(
                host="127.0.0.1",
                port=port,
                client_id="observer",
                clean_start=True,
                session_expiry_s=session_expiry_s,
                inbox_messages_max=100_000,
            )
        )
        self._task: asyncio.Task[None] | None = None

    @property
    def heard(self) -> int:
        """Messages so far."""
        return self.signals.total() + self.echoes.total()

    async def all_answered(self, within_s: float = 60.0) -> None:
        """Wait until every request that was heard has an echo; fail after `within_s`."""
        try:
            await eventually(lambda: self.requests.keys() <= self.echoes.keys(), within_s)
        finally:
            unanswered = sorted(self.requests.keys() - self.echoes.keys())
            print(f"{len(self.requests)} requests, without an echo: {unanswered}")

    def lost(self, contents: Contents) -> list[Sent]:
        """The signals heard that a log does not have."""
        logged = {
            (signal.source, signal.payload)
            for topic in topics.SIGNALS
            for record in contents[topic]
            if not is_internal(record.value)
            for signal in (decode_signal(record.value),)
        }
        return [sent for sent in self.signals if sent not in logged]

    def check_echoes(self, contents: Contents) -> None:
        """What was heard is what the log's outbox says, and alike for each request."""
        messages = (decode_outbox(record.value) for record in contents[topics.OUTBOX])
        decided = {(m.topic, m.payload) for m in messages if m.kind is OutboxKind.ECHO}
        invented = [sent for _, sent in self.answers if sent not in decided]
        assert not invented, f"{len(invented)} echoes are not the log's: {invented[:3]}"
        check_alike((request, *sent) for request, sent in self.answers)

    async def __aenter__(self) -> Self:
        await self._client.connect()
        filters = [Subscription(name) for name in _ECHOES]
        await self._client.subscribe(*self._table.subscriptions(None), *filters)
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
        sent, correlation = (message.topic, message.payload), (message.correlation or b"").decode()
        if message.topic.startswith(("echo/abs/", "echo/odo/")):
            request = (message.topic.split("/")[4], correlation)
            self.echoes[request] += 1
            self.answers[request, sent] = self.answers.get((request, sent), 0) + 1
            return
        routed = self._table.route(*sent)
        assert routed is not None, f"{message.topic} is subscribed to and in no row of the table"
        self.signals[sent] += 1
        if routed.log_topic == topics.SIGNALS_PLAN and routed.key is not None:
            self.requests[routed.key, correlation] += 1
