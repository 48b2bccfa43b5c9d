"""Processes killed without a word in the middle of their work: afterwards the ledgers are whole,
and every rider has had an answer that its plan explains."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from bss_stream.mqtt.messages import MqttSettings
from bss_stream.setup import compile_setup, load_setup
from bss_stream.simulate import NO_FAULTS, ArmConfig, Simulation, SimulationConfig, Snapshot
from tests.platform_processes import PlatformProcess, audit, embedded_config, servers_config
from tests.servers.mosquitto import MosquittoFactory
from tests.servers.ports import free_port


async def ride_through(
    port: int, run_id: str, victims: Sequence[PlatformProcess], *, seconds: float
) -> Snapshot:
    """Ride while one process after the other is killed and started again.

    Riders wait for 30 seconds, as clients do: within that time everything is up again.
    """
    config = SimulationConfig(
        run_id=run_id,
        plans=120,
        rate=25,
        faults=NO_FAULTS,
        arm=ArmConfig(shelf_batteries=60),
    )
    broker = MqttSettings(host="127.0.0.1", port=port, client_id=f"simulate-{run_id}")
    simulation = Simulation(compile_setup(load_setup()), broker, config)
    riding = asyncio.create_task(simulation.run(seconds))
    while simulation.snapshot().swaps < 30:
        assert not riding.done(), riding
        await asyncio.sleep(0.1)
    for victim in victims:
        await victim.kill()
        await victim.start()
        await asyncio.sleep(1)
    async with asyncio.timeout(120):
        return await riding


async def test_the_whole_platform_on_the_embedded_log(tmp_path: Path) -> None:
    port = free_port()
    config = embedded_config(tmp_path, port)
    async with PlatformProcess(config, "run") as platform:
        snapshot = await ride_through(port, "f1", [platform, platform], seconds=14)
        # The embedded broker keeps messages in memory, so echoes on their way are lost with it.
        assert snapshot.unexpected == (), snapshot.samples
        assert await platform.end() == 0, platform.log
    code, output = await audit(config)
    assert code == 0, output


@pytest.mark.kafka
@pytest.mark.mosquitto
@pytest.mark.postgres
async def test_each_role_on_real_servers(
    tmp_path: Path, kafka: str, start_mosquitto: MosquittoFactory, postgres: str
) -> None:
    """The bridge's session stays with the broker, so what it had not acknowledged comes again."""
    mosquitto = start_mosquitto(persistence=True)
    config = servers_config(tmp_path, kafka, mosquitto.port, postgres)
    roles = [PlatformProcess(config, role) for role in ("process", "publish", "sink", "bridge")]
    async with AsyncExitStack() as stack:
        for role in roles:
            await stack.enter_async_context(role)
        snapshot = await ride_through(mosquitto.port, "f2", roles, seconds=20)
        assert snapshot.unexpected == (), snapshot.samples
        assert (snapshot.timeouts, snapshot.plans.busy) == (0, 0), "requests without an echo"
        for role in reversed(roles):
            assert await role.end() == 0, role.log
    code, output = await audit(config)
    assert code == 0, output
