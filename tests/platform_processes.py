"""The platform as a user runs it: `bss-stream` commands as processes of their own."""

import asyncio
import signal
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

CLI = (sys.executable, "-c", "from bss_stream.cli import main; main()")
"""`bss-stream` of the package that the tests import."""

READY = b"Ctrl-C drains and ends"
READY_TIMEOUT_S = 60.0
END_TIMEOUT_S = 60.0


class PlatformProcess:
    """One `bss-stream` command: an asynchronous context manager, ready when entered.

    What it logs goes into a file beside its configuration, shown when something goes wrong.
    """

    def __init__(self, config: Path, command: str, *, instance: str = "0") -> None:
        self._arguments = [command, "--config", str(config), "--instance", instance]
        self._log = config.with_name(f"{command}-{instance}.log")
        self._process: asyncio.subprocess.Process | None = None

    @property
    def log(self) -> str:
        """What the process has logged, over all its starts."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    @property
    def process(self) -> asyncio.subprocess.Process:
        """The process that runs now."""
        assert self._process is not None, "start it first"
        return self._process

    async def start(self) -> None:
        """Start it and wait until it says that it runs."""
        seen = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *CLI,
                *self._arguments,
                stdout=log,
                stderr=log,
            )
        async with asyncio.timeout(READY_TIMEOUT_S):
            while READY not in self._log.read_bytes()[seen:]:
                assert self.process.returncode is None, self.log
                await asyncio.sleep(0.05)

    async def kill(self) -> None:
        """End it without a chance to do anything (SIGKILL)."""
        self.process.kill()
        await self.process.wait()

    async def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to drain; its exit code."""
        self.process.send_signal(how)
        async with asyncio.timeout(END_TIMEOUT_S):
            return await self.process.wait()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            print(f"--- {self._log.name}\n{self.log}")
        if self._process is not None and self._process.returncode is None:
            await self.kill()


def embedded_config(folder: Path, port: int) -> Path:
    """A configuration for one process with everything in it."""
    file = folder / "bss.toml"
    file.write_text(
        f"""
data_dir = "{folder / "data"}"
[log.embedded]
durability = "process"
[mqtt]
port = {port}
"""
    )
    return file


def servers_config(folder: Path, kafka: str, mqtt_port: int, dsn: str) -> Path:
    """A configuration for roles on a Kafka, a broker and a PostgreSQL of their own."""
    (folder / "dsn").write_text(dsn)
    file = folder / "bss.toml"
    file.write_text(
        f"""
[log]
backend = "kafka"
[log.kafka]
bootstrap_servers = ["{kafka}"]
replication_factor = 1
min_insync_replicas = 1
[mqtt]
embedded = false
port = {mqtt_port}
shared_group = "bridges"
[sink]
backend = "postgres"
dsn_file = "{folder / "dsn"}"
"""
    )
    return file


async def audit(config: Path) -> tuple[int, str]:
    """Exit code and output of an audit that expects nothing to be under way."""
    process = await asyncio.create_subprocess_exec(
        *CLI,
        "audit",
        "--drained",
        "--config",
        str(config),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()
