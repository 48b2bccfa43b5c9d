"""The engine behind MQTT topics without a log: what answers the simulator in its own tests.

Every message goes through the real engine at once (bss_stream.testing), and what it publishes
comes back, so a contradiction between simulator and engine shows here first.
"""

import asyncio
import re
import time
from collections.abc import Callable
from typing import NamedTuple

from bss_stream import topics
from bss_stream.frames import OutboxKind
from bss_stream.mqtt.client import MqttClient
from bss_stream.mqtt.messages import Message, Subscription
from bss_stream.simulate.publisher import Publisher
from bss_stream.testing import Playground

_PLAN_EVENTS = {
    "emit/uxi/attendant/plan/+/identify_customer": "identify_customer",
    "emit/uxi/attendant/plan/+/payment_and_service": "payment_and_service",
    "emit/uxi/service/plan/+/customer_binding": "customer_binding",
    "emit/uxi/service/plan/+/initialize_states": "initialize_states",
    "emit/odo/subscription/plan/+/sync": "odoo_sync",
    "emit/abs/bss/payment/+/service_payment": "service_payment",
}
_STATION_EVENTS = {
    "echo/ABS/EPS/+/allocate": "arm_allocate",
    "emit/arm/station/+/stock": "station_stock",
}
REQUESTS = (*_PLAN_EVENTS, *_STATION_EVENTS)
"""What the platform subscribes to."""


class Sent(NamedTuple):
    topic: str
    payload: bytes
    correlation: bytes


Sabotage = Callable[[Sent], list[Sent]]
"""Turns what the engine publishes into what a broken platform would."""


class EnginePlatform:
    """Brings messages to the engine at a wall-clock time and tells what it publishes."""

    def __init__(self, setup: bytes, sabotage: Sabotage | None = None) -> None:
        self.play = Playground(setup, partitions=2)
        self.play.now_ms = 0
        self._sabotage = sabotage
        self._routes = [
            (re.compile(filter.replace("+", "([^/]+)")), topic, event)
            for topic, events in (
                (topics.SIGNALS_PLAN, _PLAN_EVENTS),
                (topics.SIGNALS_STATION, _STATION_EVENTS),
            )
            for filter, event in events.items()
        ]

    def handle(self, topic: str, payload: bytes, correlation: bytes, wall_ms: int) -> list[Sent]:
        """What the platform publishes on account of one message."""
        play = self.play
        play.now_ms = max(play.now_ms, wall_ms)
        for pattern, signals, event in self._routes:
            match = pattern.fullmatch(topic)
            if match is not None:
                id = correlation.decode()
                play.signal(signals, match[1], event, payload, source=topic, correlation=id)
                return self._published()
        raise AssertionError(f"no route for topic {topic}")

    def advance(self, wall_ms: int) -> list[Sent]:
        """What the platform publishes because time has passed."""
        self.play.advance(max(0, wall_ms - self.play.now_ms))
        return self._published()

    def dead_letters(self) -> list[str]:
        """The reasons of all dead letters so far."""
        return [letter.reason for letter in self.play.dead_letters]

    def _published(self) -> list[Sent]:
        outbox, self.play.outbox = self.play.outbox, []
        sent = [
            Sent(m.topic, m.payload, m.correlation.encode())
            for m in outbox
            if m.kind is not OutboxKind.EMIT
        ]
        if self._sabotage is None:
            return sent
        return [changed for message in sent for changed in self._sabotage(message)]


async def serve(
    platform: EnginePlatform, client: MqttClient, ready: asyncio.Event | None = None
) -> None:
    """Answer over MQTT until cancelled; the client is connected by the caller."""
    await client.subscribe(*(Subscription(name) for name in REQUESTS))
    if ready is not None:
        ready.set()
    # Never waiting for PUBACKs before the next acknowledgement: the embedded broker holds them back
    # from a client that owes it a hundred.
    async with Publisher(client) as publisher:
        async for batch in client.batches(1_000):
            now_ms = time.time_ns() // 1_000_000
            answers = [
                Message(topic=sent.topic, payload=sent.payload, correlation=sent.correlation)
                for message in batch
                for sent in platform.handle(
                    message.topic, message.payload, message.correlation or b"", now_ms
                )
            ]
            client.ack(batch)
            publisher.soon(answers)
