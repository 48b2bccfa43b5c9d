"""A Mosquitto broker that dies under load, and messages that come twice."""

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from bss_stream import topics
from bss_stream.config import Config
from tests.eventually import eventually
from tests.faults.network import network, riding
from tests.observer import Observer
from tests.platform_processes import read_contents
from tests.servers.mosquitto import Mosquitto, MosquittoFactory
from tests.servers.proxy import Proxy
from tests.undisturbed import is_internal

pytestmark = [pytest.mark.kafka, pytest.mark.mosquitto, pytest.mark.postgres]

ASK_AGAIN_MS = 5_000
"""Mosquitto may have acknowledged what it had not written down when it was killed: riders ask
again, as clients do."""

AWAY_S = 1.0
"""How long a killed broker stays away."""

QUIET_S = 12.0
"""Longer than a hold waits for ARM: after that no echo comes of itself."""

TELL_SUBSCRIPTIONS = [f"log_type {what}" for what in ("error", "warning", "notice", "subscribe")]
"""Lines of a broker's configuration with which its log shows who subscribes."""

REQUESTS = 20
"""So many at least are under way when a fault strikes."""


async def all_riders_wait(observer: Observer, quiet_s: float = 2.0) -> None:
    """Riders ask while nobody answers, until the last of them waits and nothing has moved for
    `quiet_s`."""
    begun = len(observer.requests)
    await eventually(lambda: len(observer.requests) >= begun + REQUESTS, 60.0)
    heard = -1
    while heard < observer.heard:
        heard = observer.heard
        await asyncio.sleep(quiet_s)


async def all_subscribe_again(broker: Mosquitto, since: int, *clients: str) -> None:
    """Wait until these clients have subscribed, by what the broker has logged from `since` on.

    A broker that was killed has forgotten the sessions of whoever was connected: what is published
    before they subscribe again, they never hear.
    """
    await eventually(lambda: all(f" {client} 1 " in broker.log[since:] for client in clients), 60.0)


async def test_a_broker_killed_with_messages_waiting_for_a_bridge_that_is_away(
    tmp_path: Path, kafka: str, start_mosquitto: MosquittoFactory, postgres: str
) -> None:
    """They wait in the bridge's session, which the broker has written down.

    It does not write down shared subscriptions, so this bridge subscribes plainly.
    """
    broker = start_mosquitto(persistence=True, lines=TELL_SUBSCRIPTIONS)
    async with (
        network(tmp_path, kafka, broker.port, postgres, shared=False) as of,
        riding(broker.port, "waiting") as ride,
    ):
        await ride.swaps(30)
        bridge = of.roles["bridge-0"]
        await bridge.kill()
        await all_riders_wait(of.observer, QUIET_S)
        broker.kill()
        killed = len(broker.log)
        await asyncio.sleep(AWAY_S)
        broker.start()
        await all_subscribe_again(
            broker, killed, "observer", "simulate-waiting-riders", "simulate-waiting-arm"
        )
        await bridge.start()
        await ride.swaps(60)
        await of.end(ride, held_up=True)


async def test_a_broker_killed_under_load(
    tmp_path: Path, kafka: str, start_mosquitto: MosquittoFactory, postgres: str
) -> None:
    """It says that it has kept the bridge's session, and has forgotten what that subscribed to."""
    broker = start_mosquitto(persistence=True)
    async with (
        network(tmp_path, kafka, broker.port, postgres) as of,
        riding(broker.port, "load", answer_timeout_ms=ASK_AGAIN_MS) as ride,
    ):
        await ride.swaps(30)
        broker.kill()
        await asyncio.sleep(AWAY_S)
        broker.start()
        await ride.swaps(60)
        # ARM's answers may be among what is forgotten.
        await of.end(ride, held_up=True, broker_forgets=True)


def sent_again(broker: Mosquitto) -> int:
    """Messages to the bridge that the broker has marked as DUP."""
    return broker.log.count("Sending PUBLISH to bss-bridge-0 (d1, q1")


async def test_messages_that_were_not_appended_come_again_marked_dup_and_are_not_skipped(
    tmp_path: Path, kafka: str, start_mosquitto: MosquittoFactory, postgres: str
) -> None:
    """The bridge is frozen with them in its socket, and killed before it has looked at one."""
    broker = start_mosquitto(lines=["log_type all"])
    async with (
        network(tmp_path, kafka, broker.port, postgres) as of,
        riding(broker.port, "dup") as ride,
    ):
        await ride.swaps(30)
        bridge = of.roles["bridge-0"]
        bridge.freeze()
        await all_riders_wait(of.observer)
        await bridge.kill()
        await bridge.start()
        await eventually(lambda: sent_again(broker) >= REQUESTS, 60.0)
        await ride.swaps(60)
        await of.end(ride)


async def test_messages_that_were_appended_come_again_marked_dup_and_apply_once(
    tmp_path: Path, kafka: str, start_mosquitto: MosquittoFactory, postgres: str
) -> None:
    """The bridge has appended and acknowledged them; no acknowledgement reaches the broker."""
    broker = start_mosquitto(lines=["log_type all"])
    async with Proxy(broker.port) as proxy, AsyncExitStack() as stack:
        of = await stack.enter_async_context(
            network(tmp_path, kafka, broker.port, postgres, bridge_port=proxy.port)
        )
        ride = await stack.enter_async_context(riding(broker.port, "ack"))
        await ride.swaps(30)
        proxy.hold_requests()
        await ride.swaps(REQUESTS)
        proxy.cut()
        await eventually(lambda: sent_again(broker) >= REQUESTS, 60.0)
        await ride.swaps(60)
        await of.end(ride)
        contents = await read_contents(Config.load(of.config))
    copies = Counter(
        record.value.partition(b"\n")[2]
        for record in contents[topics.SIGNALS_PLAN]
        if not is_internal(record.value)
    )
    assert sum(count > 1 for count in copies.values()) >= REQUESTS // 2
