"""The services of docker-compose.yml at work, as processes: their commands and environments, the
broker's configuration, the secrets and the database's users, on real servers of this machine.
"""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import pytest

from bss_stream.config import Config
from tests.deploy.compose import SECRETS, ours
from tests.deploy.tools import ROOT
from tests.integration.databases import query
from tests.platform_processes import CLI, all_copied, come_to_rest, servers_config
from tests.servers.mosquitto import MosquittoFactory
from tests.servers.ports import free_port
from tests.servers.postgres import PostgresServer

pytestmark = [pytest.mark.kafka, pytest.mark.mosquitto, pytest.mark.postgres]

START_S: Final = 60.0
RIDE_S: Final = 120.0

LISTENS: Final = {"BSS_HTTP__PORT", "BSS_CONSOLE__PORT"}
"""Settings that say where a service listens."""

BROKER_FILES: Final = {
    "/etc/mosquitto/certs/ca.pem": "ca.pem",
    "/etc/mosquitto/certs/server.pem": "mosquitto.pem",
    "/etc/mosquitto/certs/server.key": "mosquitto.key",
    "/etc/mosquitto/passwords": "mosquitto-passwords",
    "/etc/mosquitto/acl": "mosquitto-acl",
}
"""Which secret the broker's container has where."""


class Service:
    """A service as a process here."""

    def __init__(
        self, name: str, command: list[str], env: dict[str, str], probe: list[str], folder: Path
    ) -> None:
        self.name = name
        self._probe = probe
        self._command = command
        self._env = {key: value for key, value in os.environ.items() if key[:4] != "BSS_"} | env
        self._log = folder / f"{name}.log"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with self._log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *CLI, *self._command, env=self._env, stdout=log, stderr=log
            )

    async def healthy(self) -> None:
        """Wait until its health check says so."""
        async with asyncio.timeout(START_S):
            while await self._asked() != 0:
                assert self._process is not None
                assert self._process.returncode is None, self._log.read_text()
                await asyncio.sleep(0.2)

    async def _asked(self) -> int:
        asking = await asyncio.create_subprocess_exec(
            sys.executable, *self._probe, stderr=asyncio.subprocess.DEVNULL
        )
        return await asking.wait()

    def stop(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)

    async def ends_well(self, patience_s: float) -> None:
        assert self._process is not None
        async with asyncio.timeout(patience_s):
            assert await self._process.wait() == 0, self._log.read_text()

    def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()


def broker_lines(secrets: Path, port: int) -> list[str]:
    """deploy/mosquitto/mosquitto.conf on another port, with the secrets where they are here."""
    text = (ROOT / "deploy" / "mosquitto" / "mosquitto.conf").read_text()
    for there, here in BROKER_FILES.items():
        assert there in text
        text = text.replace(there, str(secrets / here))
    text = text.replace("listener 8883", f"listener {port} 127.0.0.1")
    of_this_broker = ("#", "per_listener", "max_", "persistence")
    return [line for line in text.splitlines() if line and not line.startswith(of_this_broker)]


def make_users(admin: str, secrets: Path) -> None:
    """Run the script that the database's image runs when it makes the database."""
    name = admin.rpartition("/")[2]
    server = admin.removeprefix("postgresql://").rpartition("/")[0]
    user, _, address = server.partition("@")
    host, _, port = address.partition(":")
    variables = {"POSTGRES_USER": user, "POSTGRES_DB": name, "PGHOST": host, "PGPORT": port}
    script = ROOT / "deploy" / "compose" / "postgres-users.sh"
    env = os.environ | variables | {"SECRETS": str(secrets)}
    subprocess.run(["sh", script], env=env, check=True, capture_output=True)


def localised(secrets: Path, folder: Path, database: str) -> Callable[[str], str]:
    """What a setting that names a secret is here: a dsn's file with this server's address."""

    def local(value: str) -> str:
        if not value.startswith(SECRETS):
            return value
        file = secrets / value.removeprefix(SECRETS)
        if not file.name.startswith("dsn-"):
            return str(file)
        moved = folder / file.name
        moved.write_text(file.read_text().replace("postgres:5432/bss", database))
        return str(moved)

    return local


async def test_the_services_work_together(
    model: dict[str, Any],
    secrets: Path,
    tmp_path: Path,
    kafka: str,
    start_mosquitto: MosquittoFactory,
    postgres_server: PostgresServer,
) -> None:
    port = free_port()
    start_mosquitto(lines=broker_lines(secrets, port))
    postgres_server.start()
    admin = postgres_server.create_database("compose")
    make_users(admin, secrets)
    reading = servers_config(tmp_path, kafka, port, admin)

    local = localised(secrets, tmp_path, admin.rpartition("@")[2])
    here = {"kafka:9092": kafka, "mosquitto": "localhost", "8883": str(port)}
    apart = {
        "BSS_LOG__KAFKA__TOPIC_PREFIX": Config.load(reading, {}).log.kafka.topic_prefix,
        "BSS_PROCESSOR__TIMER_SLACK_MS": "3000",
    }

    def service(name: str, *more: str) -> Service:
        found = ours(model)[name]
        env = {key: local(here.get(value, value)) for key, value in found["environment"].items()}
        command, *probe = found["healthcheck"].get("test", ["CMD", "python"])[1:]
        assert command == "python"
        for setting in LISTENS & env.keys():
            there, env[setting] = env[setting], str(free_port())
            probe = [one.replace(there, env[setting]) for one in probe]
        env |= apart | {"BSS_DATA_DIR": str(tmp_path / name)}
        return Service(name, [*found["command"], *more], env, probe, tmp_path)

    roles = [service(name) for name, one in ours(model).items() if not one.get("profiles")]
    riders = service("simulator", "--duration", "5", "--rate", "20", "--plans", "40")
    async with AsyncExitStack() as stack:
        for one in (*roles, riders):
            stack.callback(one.kill)
        for one in roles:
            await one.start()
        for one in roles:
            await one.healthy()
        await riders.start()
        await riders.ends_well(RIDE_S)
        await come_to_rest(reading)
        await all_copied(reading)
        for one in roles:
            one.stop()
        for one in roles:
            await one.ends_well(float(ours(model)[one.name]["stop_grace_period"].rstrip("s")))

    assert len(checkpoints(tmp_path)) == 4
    ((entries,),) = query(read(tmp_path / "dsn-bss_queries"), "SELECT count(*) FROM ledger_entries")
    assert entries > 40


def checkpoints(folder: Path) -> list[Path]:
    return list(folder.glob("processor-*/checkpoints/*"))


def read(file: Path) -> str:
    return file.read_text()
