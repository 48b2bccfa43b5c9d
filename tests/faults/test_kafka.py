"""A Kafka broker that dies, hangs or freezes under load."""

import asyncio
from pathlib import Path

import orjson
import pytest

from bss_stream.mqtt.client import MqttClient
from bss_stream.mqtt.messages import Message, MqttSettings
from tests.faults.network import network, riding
from tests.servers.kafka import KafkaServer
from tests.servers.mosquitto import MosquittoFactory
from tests.servers.proxy import Proxy

pytestmark = [pytest.mark.kafka, pytest.mark.mosquitto, pytest.mark.postgres]

BURST = 2_000
"""Messages that come in while Kafka hangs."""

AWAY_S = 2.0
"""How long a killed broker stays away."""

FROZEN_S = 5.0
"""Longer than the session time-out of a group's members."""


async def burst(port: int) -> None:
    """Attendants ask about many plans, of which there is none: each gets that as its echo."""
    settings = MqttSettings(host="127.0.0.1", port=port, client_id="burst", clean_start=True)
    messages = []
    for number in range(BURST):
        plan_id, correlation = f"plan-nobody-{number}", f"burst-{number}"
        body = {
            "timestamp": "2026-11-24T06:00:00Z",
            "plan_id": plan_id,
            "correlation_id": correlation,
            "data": {"qr_code_data": "qr"},
        }
        messages.append(
            Message(
                topic=f"emit/uxi/attendant/plan/{plan_id}/identify_customer",
                payload=orjson.dumps(body),
                correlation=correlation.encode(),
            )
        )
    async with MqttClient(settings) as client:
        assert await client.publish(messages) == []


@pytest.mark.parametrize("hang_s", [20, pytest.param(75, marks=pytest.mark.long)])
async def test_no_message_fails_while_kafka_hangs(
    tmp_path: Path,
    faulty_kafka: KafkaServer,
    start_mosquitto: MosquittoFactory,
    postgres: str,
    hang_s: int,
) -> None:
    """Connections stay open, nothing is answered: what is not acknowledged waits at the broker.

    20 seconds are longer than a request may take; 75 are longer than anything waits.
    """
    port = start_mosquitto().port
    kafka = faulty_kafka
    async with (
        Proxy(kafka.port_behind_proxy, port=kafka.proxy_port) as proxy,
        network(tmp_path, f"127.0.0.1:{proxy.port}", port, postgres) as of,
        riding(port, "hang") as ride,
    ):
        await ride.swaps(30)
        proxy.hang()
        await burst(port)
        await asyncio.sleep(hang_s)
        proxy.let_through()
        await ride.swaps(60)
        await of.end(ride, held_up=True)
        assert len(of.observer.requests) > BURST


async def test_a_broker_that_freezes(
    tmp_path: Path, faulty_kafka: KafkaServer, start_mosquitto: MosquittoFactory, postgres: str
) -> None:
    """When it wakes, every session is over by its clock, and all members are still there."""
    port = start_mosquitto().port
    async with (
        network(tmp_path, faulty_kafka.bootstrap, port, postgres, processors=2) as of,
        riding(port, "frozen") as ride,
    ):
        await ride.swaps(30)
        faulty_kafka.freeze()
        try:
            await asyncio.sleep(FROZEN_S)
        finally:
            faulty_kafka.thaw()
        await ride.swaps(60)
        await of.end(ride)


async def test_a_broker_that_is_killed_and_started_again(
    tmp_path: Path, faulty_kafka: KafkaServer, start_mosquitto: MosquittoFactory, postgres: str
) -> None:
    port = start_mosquitto().port
    async with (
        network(tmp_path, faulty_kafka.bootstrap, port, postgres) as of,
        riding(port, "killed") as ride,
    ):
        await ride.swaps(30)
        await asyncio.to_thread(faulty_kafka.kill)
        await asyncio.sleep(AWAY_S)
        await asyncio.to_thread(faulty_kafka.start)
        await ride.swaps(60)
        await of.end(ride)
