"""Processes killed without a word in the middle of their work: afterwards the ledgers are whole,
each signal has had its effect once, and every rider an answer that its plan explains.

The moments are random; FAULT_SEED repeats those of a run that failed.
"""

import asyncio
import os
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random

import pytest

from bss_stream.mqtt.messages import MqttSettings
from bss_stream.setup import compile_setup, load_setup
from bss_stream.simulate import NO_FAULTS, ArmConfig, Simulation, SimulationConfig, Snapshot
from tests.observer import Observer
from tests.platform_processes import (
    PlatformProcess,
    all_copied,
    audit,
    check_log,
    come_to_rest,
    embedded_config,
    servers_config,
)
from tests.servers.mosquitto import MosquittoFactory
from tests.servers.ports import free_port

IN_VAIN_S = 120.0
CALM_S = (0.3, 1.2)
"""Bounds of the time between a start and the next kill."""


@pytest.fixture
def random() -> Random:
    """Where the moments come from."""
    seed = int(os.environ.get("FAULT_SEED", time.time_ns() % 1_000_000))
    print(f"FAULT_SEED={seed}")
    return Random(seed)


async def ride_through(
    port: int, run_id: str, victims: Sequence[PlatformProcess], random: Random
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
    riding = asyncio.create_task(simulation.run())
    try:
        async with asyncio.timeout(IN_VAIN_S):
            await swaps_done(simulation, riding, 30)
            for victim in victims:
                await asyncio.sleep(random.uniform(*CALM_S))
                await victim.kill()
                print(f"killed {victim.name} after {simulation.snapshot().swaps} swaps")
                await victim.start()
            # Whatever was under way at the last kill has had its chance to go wrong by then.
            await swaps_done(simulation, riding, simulation.snapshot().swaps + 60)
            simulation.stop()
            return await riding
    finally:
        riding.cancel()


def check_answers(snapshot: Snapshot) -> None:
    """Every answer is one that the plan explains.

    A request that was in the log before its acknowledgement was out comes again, and the copy of a
    self-service swap is told that the first one is under way.
    """
    unexplained = [line for line in snapshot.unexpected if line.got != "in_progress"]
    assert unexplained == [], snapshot.samples


async def swaps_done(simulation: Simulation, riding: asyncio.Task[Snapshot], swaps: int) -> None:
    while simulation.snapshot().swaps < swaps:
        assert not riding.done(), riding
        await asyncio.sleep(0.05)


async def test_the_whole_platform_on_the_embedded_log(tmp_path: Path, random: Random) -> None:
    port = free_port()
    config = embedded_config(tmp_path, port)
    async with PlatformProcess(config, "run") as platform:
        snapshot = await ride_through(port, "f1", [platform, platform], random)
        # The embedded broker keeps messages in memory, so echoes on their way are lost with it, and
        # ARM's answers: the platform asks again after ten seconds.
        check_answers(snapshot)
        await come_to_rest(config)
        assert await platform.end() == 0, platform.log
    code, output = await audit(config)
    assert code == 0, output
    await check_log(config)


@pytest.mark.kafka
@pytest.mark.mosquitto
@pytest.mark.postgres
async def test_each_role_on_real_servers(
    tmp_path: Path, kafka: str, start_mosquitto: MosquittoFactory, postgres: str, random: Random
) -> None:
    """The bridge's session stays with the broker, so what it had not acknowledged comes again."""
    mosquitto = start_mosquitto(persistence=True)
    config = servers_config(tmp_path, kafka, mosquitto.port, postgres)
    first, *others = roles = [
        PlatformProcess(config, role) for role in ("process", "publish", "sink", "bridge")
    ]
    async with AsyncExitStack() as stack:
        # It makes the topics.
        await stack.enter_async_context(first)
        await asyncio.gather(*map(stack.enter_async_context, others))
        observer = await stack.enter_async_context(Observer(mosquitto.port))
        victims = random.sample(roles, len(roles))
        snapshot = await ride_through(mosquitto.port, "f2", victims, random)
        check_answers(snapshot)
        assert (snapshot.timeouts, snapshot.plans.busy) == (0, 0), "requests without an echo"
        await observer.all_answered()
        await come_to_rest(config)
        # Its group gives the last sink up only after a while.
        await all_copied(config)
        for role in reversed(roles):
            assert await role.end() == 0, role.log
    code, output = await audit(config)
    assert code == 0, output
    assert await check_log(config) == observer.requests.keys()
