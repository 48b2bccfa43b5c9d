"""The platform as a user runs it: `bss-stream` commands as processes of their own."""

import asyncio
import itertools
import os
import signal
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from bss_stream import topics
from bss_stream.config import Config
from bss_stream.log.embedded import EmbeddedLog
from bss_stream.log.protocol import ReadableLog
from bss_stream.roles import make_log
from bss_stream.setup import compile_setup
from tests.effects import Request, check_effects, requests
from tests.eventually import eventually
from tests.integration.databases import query
from tests.undisturbed import Contents, check_contents, read_log, undisturbed

CLI = (sys.executable, "-c", "from bss_stream.cli import main; main()")
"""`bss-stream` of the package that the tests import."""

READY = b"Ctrl-C drains and ends"
READY_TIMEOUT_S = 60.0
END_TIMEOUT_S = 60.0
REST_TIMEOUT_S = 60.0
COPY_TIMEOUT_S = 60.0


class PlatformProcess:
    """One `bss-stream` command: an asynchronous context manager, ready when entered.

    What it logs goes into a file beside its configuration, shown when something goes wrong.
    """

    def __init__(
        self, config: Path, command: str, *, instance: str = "0", verbose: bool = False
    ) -> None:
        self.name = f"{command}-{instance}"
        self._arguments = [command, "--config", str(config), "--instance", instance]
        if verbose:
            self._arguments.append("--verbose")
        self._log = config.with_name(f"{self.name}.log")
        self._process: asyncio.subprocess.Process | None = None
        self._seen = 0
        """How much of the log was there before the last start."""

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
        await self.spawn()
        await self.ready()

    async def spawn(self) -> None:
        """Start it."""
        self._seen = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *CLI,
                *self._arguments,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def ready(self) -> None:
        """Wait until it says that it runs."""
        async with asyncio.timeout(READY_TIMEOUT_S):
            while READY not in self._log.read_bytes()[self._seen :]:
                assert self.process.returncode is None, self.log
                await asyncio.sleep(0.05)

    async def kill(self) -> None:
        """End it without a chance to do anything (SIGKILL)."""
        self.process.kill()
        await self.process.wait()

    def freeze(self) -> None:
        """Let it do nothing, with its connections open (SIGSTOP)."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on, as if no time had passed."""
        self.process.send_signal(signal.SIGCONT)

    async def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Ask it and its children to drain, as a terminal or an init system does; its exit code."""
        os.killpg(self.process.pid, how)
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


BUSY: Final = """[processor]
# On a machine with far more to run than it has cores, a record may be seconds on its way.
timer_slack_ms = 3000"""


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
{BUSY}
"""
    )
    return file


_prefixes = itertools.count(1)


def servers_config(folder: Path, kafka: str, mqtt_port: int, dsn: str) -> Path:
    """A configuration for roles with topics, a broker and a database of their own.

    A dead member of a group is given up after two seconds.
    """
    (folder / "dsn").write_text(dsn)
    file = folder / "bss.toml"
    file.write_text(
        f"""
data_dir = "{folder / "data"}"
[log]
backend = "kafka"
[log.kafka]
bootstrap_servers = ["{kafka}"]
replication_factor = 1
min_insync_replicas = 1
session_timeout_ms = 2000
topic_prefix = "platform-{next(_prefixes)}."
[mqtt]
embedded = false
port = {mqtt_port}
shared_group = "bridges"
[sink]
backend = "postgres"
dsn_file = "{folder / "dsn"}"
{BUSY}
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


async def check_log(file: Path, *, at_rest: bool = True) -> set[Request]:
    """Each signal in a platform's log had its effect, once; the requests in it.

    Everything in the log must be what one engine makes of its signals, and, if all came to its end
    (before the platform did), every request be answered, its answers alike and nothing under way.
    """
    config = Config.load(file)
    contents, setup = await read_contents(config), compile_setup(config.load_setup())
    now_ms = time.time_ns() // 1_000_000 if at_rest else 0
    check_contents(
        contents, undisturbed(contents, setup, partitions=config.partitions, now_ms=now_ms)
    )
    made = requests(contents)
    assert made
    if at_rest:
        check_effects(contents, setup, partitions=config.partitions)
    return made


async def come_to_rest(file: Path) -> None:
    """Wait until a platform that runs has nothing left to decide, or fail with what is missing.

    Beyond the last echo there may be batteries to write down; and where ARM was not heard, time
    has to pass.
    """
    give_up_s = time.monotonic() + REST_TIMEOUT_S
    while True:
        try:
            await check_log(file)
        except AssertionError:
            if time.monotonic() > give_up_s:
                raise
        else:
            return
        await asyncio.sleep(0.2)


async def all_copied(file: Path) -> None:
    """Wait until the ledger database has as many entries as the log's ledgers."""
    config = Config.load(file)
    contents = await read_contents(config)
    entries = sum(len(contents[topic]) for topic in topics.LEDGERS)
    await eventually(lambda: _entries_in(config) == entries, COPY_TIMEOUT_S)


def _entries_in(config: Config) -> int:
    ((count,),) = query(config.ledger_url().reveal(), "SELECT count(*) FROM ledger_entries")
    assert isinstance(count, int)
    return count


async def read_contents(config: Config) -> Contents:
    """Everything in the log that a configuration names, also while the platform runs."""
    embedded = config.log.backend == "embedded"
    log: ReadableLog = EmbeddedLog.read_only(config.log_directory) if embedded else make_log(config)
    await log.open()
    try:
        return await read_log(log)
    finally:
        await log.close()
