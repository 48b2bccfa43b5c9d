"""Processes killed without a word in the middle of their work: afterwards the ledgers are whole,
each signal has had its effect once, and every rider an answer that its plan explains.

The moments are random; FAULT_SEED repeats those of a run that failed. `python -m
tests.faults.kills` does the same for as long as one likes.
"""

import os
import time
from pathlib import Path
from random import Random

import pytest

from tests.faults.kills import kill_roles
from tests.faults.network import check_answers, network, riding
from tests.platform_processes import (
    PlatformProcess,
    audit,
    check_log,
    come_to_rest,
    embedded_config,
)
from tests.servers.mosquitto import MosquittoFactory
from tests.servers.ports import free_port

ASK_AGAIN_MS = 30_000
"""As clients in the field do."""

KILLS = int(os.environ.get("FAULT_KILLS", "10"))


@pytest.fixture
def random() -> Random:
    """Where the moments come from."""
    seed = int(os.environ.get("FAULT_SEED", time.time_ns() % 1_000_000))
    print(f"FAULT_SEED={seed}")
    return Random(seed)


async def test_the_whole_platform_on_the_embedded_log(tmp_path: Path, random: Random) -> None:
    port = free_port()
    config = embedded_config(tmp_path, port)
    async with (
        PlatformProcess(config, "run") as platform,
        riding(port, "f1", answer_timeout_ms=ASK_AGAIN_MS) as ride,
    ):
        await ride.swaps(30)
        for _ in range(2):
            await platform.kill()
            await platform.start()
            await ride.swaps(random.randrange(5, 30))
        snapshot = await ride.end()
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
    port = start_mosquitto(persistence=True).port
    async with (
        network(tmp_path, kafka, port, postgres, processors=2) as of,
        riding(port, "f2") as ride,
    ):
        await ride.swaps(30)
        await kill_roles(of, ride, random, KILLS)
        # Whatever was under way at the last kill has had its chance to go wrong by then.
        await ride.swaps(60)
        await of.end(ride)
