"""All four roles as a user runs them, driven by the simulator: no answer is unexpected, nothing is
lost, and the audit is clean."""

import asyncio
import signal
import subprocess
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from bss_stream.mqtt.messages import MqttSettings
from bss_stream.setup import compile_setup, load_setup
from bss_stream.simulate import ArmConfig, FaultShares, Simulation, SimulationConfig, Snapshot
from tests.platform_processes import CLI, PlatformProcess, audit, embedded_config, servers_config
from tests.servers.mosquitto import Mosquitto
from tests.servers.ports import free_port

FAULTS = FaultShares(
    wrong_station=0.05,
    exhausted_quota=0.03,
    empty_stock=0.03,
    over_rate_limit=0.03,
    duplicate=0.05,
    garbage=0.08,
)


async def ride(port: int, run_id: str, *, seconds: float = 6, rate: float = 60) -> Snapshot:
    """Riders of all templates with every fault."""
    config = SimulationConfig(
        run_id=run_id,
        plans=150,
        rate=rate,
        faults=FAULTS,
        arm=ArmConfig(shelf_batteries=60),
    )
    broker = MqttSettings(host="127.0.0.1", port=port, client_id=f"simulate-{run_id}")
    simulation = Simulation(compile_setup(load_setup()), broker, config)
    async with asyncio.timeout(120):
        return await simulation.run(seconds)


def check(snapshot: Snapshot) -> None:
    assert snapshot.unexpected == (), snapshot.samples
    assert snapshot.timeouts == 0
    assert snapshot.swaps > 100
    assert snapshot.outcomes.keys() >= {"ok", "location_not_allowed", "duplicate"}


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
async def test_run_on_the_embedded_log_and_broker(tmp_path: Path, how: signal.Signals) -> None:
    port = free_port()
    config = embedded_config(tmp_path, port)
    async with PlatformProcess(config, "run") as platform:
        check(await ride(port, "e1"))
        if how == signal.SIGTERM:
            platform.process.send_signal(signal.SIGHUP)
            check(await ride(port, "e2", seconds=3))
            assert "the set-up was read again" in platform.log
        assert await platform.end(how) == 0, platform.log
    code, output = await audit(config)
    assert code == 0, output
    assert "Ledgers consistent" in output


async def test_a_data_directory_has_one_owner(tmp_path: Path) -> None:
    async with PlatformProcess(embedded_config(tmp_path, free_port()), "run"):
        other = tmp_path / "other"
        other.mkdir()
        config = embedded_config(other, free_port())
        config.write_text(config.read_text().replace(str(other / "data"), str(tmp_path / "data")))
        done = await asyncio.to_thread(
            subprocess.run,
            [*CLI, "run", "--config", str(config)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert str(tmp_path / "data") in done.stderr.replace("\n", "")


@pytest.mark.kafka
@pytest.mark.mosquitto
@pytest.mark.postgres
async def test_each_role_on_its_own_on_real_servers(
    tmp_path: Path, kafka: str, mosquitto: Mosquitto, postgres: str
) -> None:
    """Two bridges share the messages, two processors the shards; the roles drain on SIGTERM."""
    config = servers_config(tmp_path, kafka, mosquitto.port, postgres)
    bridges = [PlatformProcess(config, "bridge", instance=str(n)) for n in range(2)]
    processors = [PlatformProcess(config, "process", instance=str(n)) for n in range(2)]
    others = [PlatformProcess(config, "publish"), PlatformProcess(config, "sink")]
    async with AsyncExitStack() as stack:
        # One after the other: the first makes the topics.
        for process in (*processors, *others, *bridges):
            await stack.enter_async_context(process)
        snapshot = await ride(mosquitto.port, "k1", seconds=8, rate=30)
        check(snapshot)
        for process in (*bridges, *processors, *others):
            assert await process.end() == 0, process.log
    code, output = await audit(config)
    assert code == 0, output


def test_the_demonstration_shows_and_audits_a_network(tmp_path: Path) -> None:
    done = subprocess.run(
        [*CLI, "demo", "--duration", "3", "--rate", "50", "--plans", "200"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for shown in ("swaps", "p99", "outcomes", "stock", "sink: ledger entries", "quota_used"):
        assert shown in done.stdout
    assert "Ledgers consistent" in done.stdout
    assert " 0 unexpected answers" in done.stdout
