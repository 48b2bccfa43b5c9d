"""The simulator as a client of real brokers, with the real engine answering behind them."""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from random import Random

import pytest

from bss_stream import topics
from bss_stream.errors import ConfigError, MqttError
from bss_stream.mqtt.broker import EmbeddedBroker
from bss_stream.mqtt.client import MqttClient
from bss_stream.mqtt.messages import Message, MqttSettings, Subscription
from bss_stream.simulate import (
    ArmConfig,
    FaultShares,
    Simulation,
    SimulationConfig,
    SimulatorProcess,
    Snapshot,
)
from bss_stream.simulate.arm import ArmDecisions
from bss_stream.simulate.arm_client import ArmSimulator
from bss_stream.simulate.garbage import REASONS, Garbage
from tests.engine_platform import EnginePlatform, serve
from tests.servers.mosquitto import MosquittoFactory
from tests.simulated_day import NETWORK, SETUP

CONFIG = SimulationConfig(
    plans=60,
    rate=60.0,
    joining_rate=1_000.0,
    identify_share=0.3,
    answer_timeout_ms=10_000,
    arm=ArmConfig(shelf_batteries=20),
    faults=FaultShares(garbage=0.2, duplicate=0.1),
)


@pytest.fixture(params=["embedded", pytest.param("mosquitto", marks=pytest.mark.mosquitto)])
async def broker(request: pytest.FixtureRequest) -> AsyncIterator[MqttSettings]:
    """Where a broker listens."""
    if request.param == "mosquitto":
        start: MosquittoFactory = request.getfixturevalue("start_mosquitto")
        yield settings(start().port, "sim")
        return
    async with EmbeddedBroker() as embedded:
        yield settings(embedded.port, "sim")


def settings(port: int, client_id: str) -> MqttSettings:
    return MqttSettings(host="127.0.0.1", port=port, client_id=client_id, clean_start=True)


@contextlib.asynccontextmanager
async def platform_on(broker: MqttSettings) -> AsyncIterator[EnginePlatform]:
    """The engine, subscribed and answering."""
    platform = EnginePlatform(SETUP)
    async with MqttClient(settings(broker.port, "platform")) as client:
        ready = asyncio.Event()
        task = asyncio.create_task(serve(platform, client, ready))
        await ready.wait()
        try:
            yield platform
        finally:
            task.cancel()
            await asyncio.wait([task])


def check_result(final: Snapshot, platform: EnginePlatform) -> None:
    assert final.unexpected == ()
    assert final.unexpected_total == 0
    assert final.timeouts == 0
    assert final.swaps > 20
    assert final.arm.issued > 0
    assert final.swap_latency.count >= final.swaps
    assert final.faults["duplicate"].answered == final.faults["duplicate"].sent
    letters = Counter(platform.dead_letters())
    for garbage, count in final.faults.items():
        if garbage in set(Garbage):
            (reason,) = REASONS[Garbage(garbage)]
            assert letters[reason] >= count.sent


async def test_a_run_of_all_riders_over_a_real_broker(broker: MqttSettings) -> None:
    async with platform_on(broker) as platform:
        simulation = Simulation(SETUP, broker, CONFIG)
        final = await simulation.run(2)
    check_result(final, platform)
    assert final.phase == "stopping"
    assert final.plans.joining == final.plans.stuck == final.plans.busy == 0
    # ARM and the platform agree on what lies on every shelf.
    for level in final.stock:
        station = platform.play.state(topics.STATE_STATION, level.location_id)
        stock = {entry["fleet_id"]: entry["current_stock"] for entry in station["stock"]}
        assert stock[level.fleet_id] == level.available


async def test_a_run_ends_when_enough_plans_have_lived_their_life(broker: MqttSettings) -> None:
    config = SimulationConfig(plans=10, rate=200.0, swaps_per_plan=1, joining_rate=1_000.0)
    async with platform_on(broker):
        final = await Simulation(SETUP, broker, config).run(plans_done=12)
    assert final.unexpected == ()
    assert final.plans.done >= 12


async def test_a_run_stops_when_it_is_told_to(broker: MqttSettings) -> None:
    async with platform_on(broker):
        simulation = Simulation(SETUP, broker, CONFIG)
        run = asyncio.create_task(simulation.run())
        for _ in range(1_000):
            await asyncio.sleep(0.02)
            if simulation.snapshot().swaps >= 5:
                break
        simulation.stop()
        final = await run
    assert final.swaps >= 5
    assert final.unexpected == ()


async def test_a_process_of_its_own_sends_snapshots_until_it_is_stopped(
    broker: MqttSettings,
) -> None:
    snapshots = []
    async with (
        platform_on(broker) as platform,
        SimulatorProcess(SETUP, broker, CONFIG, interval_s=0.1) as simulator,
    ):
        async for snapshot in simulator.snapshots():
            snapshots.append(snapshot)
            if snapshot.swaps > 30:
                simulator.stop()
    assert len(snapshots) > 3
    assert [s.swaps for s in snapshots] == sorted(s.swaps for s in snapshots)
    check_result(snapshots[-1], platform)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (SimulationConfig(plans=0), r"\$\.plans"),
        (SimulationConfig(templates={"template-of-nobody": 1}), "template-of-nobody: expected"),
    ],
)
def test_a_configuration_that_makes_no_run_is_refused(config: SimulationConfig, named: str) -> None:
    for kind in (Simulation, SimulatorProcess):
        with pytest.raises(ConfigError, match=named):
            kind(SETUP, settings(1, "sim"), config)


@pytest.mark.mosquitto
async def test_a_refused_connection_is_told_across_the_process_boundary(
    start_mosquitto: MosquittoFactory,
) -> None:
    broker = settings(start_mosquitto(lines=["allow_anonymous false"]).port, "sim")
    async with SimulatorProcess(SETUP, broker, CONFIG) as simulator:
        with pytest.raises(MqttError, match="sim-riders"):
            async for _ in simulator.snapshots():
                raise AssertionError("a run without a connection has no snapshots")


async def test_arm_answers_commands_and_reports_every_shelf(broker: MqttSettings) -> None:
    decisions = ArmDecisions(NETWORK.shelves, ArmConfig(), Random(1), run="t")
    async with (
        MqttClient(settings(broker.port, "arm")) as arm_client,
        MqttClient(settings(broker.port, "abs")) as client,
        ArmSimulator(arm_client, decisions, run="t", qos=1) as arm,
    ):
        await client.subscribe(
            Subscription("echo/ABS/EPS/+/allocate"), Subscription("emit/arm/station/+/stock")
        )
        await arm.start()
        reports = await _receive(client, len(NETWORK.shelves))
        stock = {
            (topic.split("/")[3], body["fleet_id"]): body["available"] for topic, body in reports
        }
        assert stock == {(s.location_id, s.fleet_id): s.stock for s in NETWORK.shelves}
        serving = asyncio.create_task(arm.serve())
        command = {
            "fleet_id": "fleet-nairobi-standard-4ah",
            "plan_id": "plan-1",
            "location_id": "station-nbi-001",
            "correlation_id": "c-1",
            "returned_asset_id": None,
            "attempt": 1,
            "timestamp": "2026-11-24T12:00:00Z",
        }
        topic = "cmd/ABS/EPS/station-nbi-001/allocate"
        payloads = [json.dumps(command).encode(), b"{", json.dumps(command).encode()]
        await client.publish([Message(topic=topic, payload=payload) for payload in payloads])
        (echo_topic, first), (_, second) = await _receive(client, 2)
        assert echo_topic == "echo/ABS/EPS/station-nbi-001/allocate"
        assert (first["status"], first["correlation_id"]) == ("issued", "c-1")
        assert second == first | {"timestamp": second["timestamp"]}
        counts = arm.counts()
        assert (counts.commands, counts.issued, counts.repeated, counts.unreadable) == (3, 1, 1, 1)
        serving.cancel()
        await asyncio.wait([serving])


async def _receive(client: MqttClient, wanted: int) -> list[tuple[str, dict[str, object]]]:
    found: list[tuple[str, dict[str, object]]] = []
    async with asyncio.timeout(20):
        while len(found) < wanted:
            batch = await client.receive(1_000)
            client.ack(batch)
            found += [(message.topic, json.loads(message.payload)) for message in batch]
    return found
