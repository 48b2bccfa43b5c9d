"""All roles as a user runs them, driven by the simulator: no answer is unexpected, every request is
echoed, each signal has its effect once, and the audit is clean."""

import asyncio
import shutil
import signal
import subprocess
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from bss_stream import topics
from bss_stream.config import Config
from bss_stream.mqtt.messages import MqttSettings
from bss_stream.roles import open_log
from bss_stream.setup import compile_setup, load_setup
from bss_stream.setup.load import packaged_markets
from bss_stream.simulate import ArmConfig, FaultShares, Simulation, SimulationConfig, Snapshot
from tests.eventually import eventually
from tests.logs import join
from tests.observer import Observer
from tests.platform_processes import (
    CLI,
    PlatformProcess,
    audit,
    check_log,
    come_to_rest,
    embedded_config,
    servers_config,
)
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


MET = frozenset({"ok", "location_not_allowed", "duplicate"})
"""Outcomes that so many riders do not miss by chance; a few seconds more of them may."""


async def ride(
    port: int, run_id: str, *, seconds: float = 6, rate: float = 60, plans: int = 150
) -> Snapshot:
    """Riders of all templates with every fault."""
    config = SimulationConfig(
        run_id=run_id,
        plans=plans,
        rate=rate,
        joining_rate=5_000,
        faults=FAULTS,
        arm=ArmConfig(shelf_batteries=60),
    )
    broker = MqttSettings(host="127.0.0.1", port=port, client_id=f"simulate-{run_id}")
    simulation = Simulation(compile_setup(load_setup()), broker, config)
    async with asyncio.timeout(120):
        return await simulation.run(seconds)


def check(snapshot: Snapshot, *, met: frozenset[str] = MET) -> None:
    assert snapshot.unexpected == (), snapshot.samples
    assert snapshot.timeouts == 0
    assert snapshot.swaps > 100
    assert snapshot.outcomes.keys() >= met


async def test_run_on_the_embedded_log_and_broker(tmp_path: Path) -> None:
    port = free_port()
    config = embedded_config(tmp_path, port)
    async with PlatformProcess(config, "run") as platform, Observer(port) as observer:
        check(await ride(port, "e1"))
        platform.process.send_signal(signal.SIGHUP)
        check(await ride(port, "e2", seconds=3), met=frozenset({"ok"}))
        assert "the set-up was read again" in platform.log
        await observer.all_answered()
        assert await platform.end() == 0, platform.log
    code, output = await audit(config)
    assert code == 0, output
    assert "Ledgers consistent" in output
    assert await check_log(config) == observer.requests.keys()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
async def test_a_drain_under_load_leaves_nothing_behind(
    tmp_path: Path, how: signal.Signals
) -> None:
    """What was taken in is decided, published and in the ledger database when the program ends."""
    port = free_port()
    config = embedded_config(tmp_path, port)
    async with PlatformProcess(config, "run") as platform:
        # So many riders that their joining takes longer than this.
        riding = asyncio.create_task(ride(port, "d1", plans=10_000))
        await asyncio.sleep(1)
        assert await platform.end(how) == 0, platform.log
        riding.cancel()
        await asyncio.wait([riding])
    assert "has not taken" not in platform.log
    code, output = await audit(config)
    assert code == 0, output
    await check_log(config, at_rest=False)
    log = await open_log(Config.load(config))
    consumer = await log.consumer(Config.load(config).group("publisher"), [topics.OUTBOX])
    await join(consumer)
    assert set((await consumer.lag()).values()) == {0}
    await log.close()


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
    said = done.stderr.replace("\n", "")
    assert str(tmp_path / "data") in said
    assert "is in use by process" in said
    assert "Traceback" not in said


async def test_a_faulty_set_up_changes_nothing_on_sighup(tmp_path: Path) -> None:
    markets = tmp_path / "markets"
    shutil.copytree(Path(str(packaged_markets())), markets)
    config = embedded_config(tmp_path, free_port())
    config.write_text(config.read_text() + f'[setup]\ndirectories = ["{markets}"]\n')
    file = next(markets.rglob("*-plan-*.json"))
    sound = file.read_bytes()
    async with PlatformProcess(config, "run") as platform:
        for content, said in ((b"{", file.name), (sound, "the set-up was read again")):
            file.write_bytes(content)
            platform.process.send_signal(signal.SIGHUP)
            await eventually(lambda said=said: said in platform.log, 30.0)  # type: ignore[misc]
        assert "the set-up stays as it was" in platform.log
        assert await platform.end() == 0, platform.log


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
        # It makes the topics.
        await stack.enter_async_context(processors[0])
        together = (processors[1], *others, *bridges)
        await asyncio.gather(*map(stack.enter_async_context, together))
        observer = await stack.enter_async_context(Observer(mosquitto.port))
        snapshot = await ride(mosquitto.port, "k1", seconds=8, rate=30)
        check(snapshot)
        await observer.all_answered()
        await come_to_rest(config)
        # All at once, as a supervisor does.
        everyone = (*bridges, *processors, *others)
        codes = await asyncio.gather(*(process.end() for process in everyone))
        assert set(codes) == {0}, "\n".join(process.log for process in everyone)
    code, output = await audit(config)
    assert code == 0, output
    assert await check_log(config) == observer.requests.keys()


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
    outcomes, latencies = ("outcomes", "reason", "│ok "), ("publish to echo", "p50", "p99.9")
    ledgers = ("sink: ledger entries", "quota_used", "Money (minor units)")
    for shown in ("swaps", "stock", *outcomes, *latencies, *ledgers):
        assert shown in done.stdout
    assert "Ledgers consistent" in done.stdout
    assert " 0 unexpected answers" in done.stdout
