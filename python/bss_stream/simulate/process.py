"""A simulation in a process of its own, so that it has a core of its own.

The parent writes one line of JSON (a job) to the child's standard input and keeps it open:
closing it ends the run. The child writes one line of JSON a report to its standard output.
"""

import asyncio
import contextlib
import gc
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Final, Self

import msgspec

from bss_stream.errors import BssStreamError, MqttError
from bss_stream.mqtt.messages import MqttSettings
from bss_stream.simulate.config import SimulationConfig
from bss_stream.simulate.simulation import Simulation, check_run
from bss_stream.simulate.tally import Snapshot
from bss_stream.tls import ClientFiles

_LINE_BYTES_MAX: Final = 8 * 1024 * 1024
_STOP_TIMEOUT_S: Final = 15.0
_STDIN: Final = 0


class Job(msgspec.Struct, frozen=True):
    """What a child is asked to do."""

    setup: msgspec.Raw
    host: str
    port: int
    client_id: str
    username: str | None
    password: str | None
    tls: ClientFiles | None
    config: SimulationConfig
    duration_s: float | None
    plans_done: int | None
    interval_s: float


class _Report(msgspec.Struct, frozen=True, omit_defaults=True):
    snapshot: Snapshot | None = None
    final: bool = False
    error: str | None = None
    is_mqtt_error: bool = False


class SimulatorProcess:
    """A child process that runs one simulation: an asynchronous context manager.

    Arguments are those of Simulation and its `run`; a snapshot comes every `interval_s`.
    `tls` are the files of a broker with TLS: the child makes its own context of them.
    Raises ConfigError for what Simulation refuses.
    """

    def __init__(
        self,
        setup: bytes,
        broker: MqttSettings,
        config: SimulationConfig,
        *,
        tls: ClientFiles | None = None,
        duration_s: float | None = None,
        plans_done: int | None = None,
        interval_s: float = 1.0,
    ) -> None:
        check_run(setup, config)
        assert (broker.tls is None) == (tls is None), "a context, and the files that it is made of"
        self._job = Job(
            # Models stand in the setup as they stand in their files, with line ends in them.
            msgspec.Raw(msgspec.json.format(setup, indent=-1)),
            broker.host,
            broker.port,
            broker.client_id,
            broker.username,
            broker.password,
            tls,
            config,
            duration_s,
            plans_done,
            interval_s,
        )
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "bss_stream.simulate"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_LINE_BYTES_MAX,
        )
        stdin = self._process.stdin
        assert stdin is not None  # asked for above
        stdin.write(msgspec.json.encode(self._job) + b"\n")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        try:
            async with asyncio.timeout(_STOP_TIMEOUT_S):
                # The rest is read, or a child that writes to a full pipe would never end.
                await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()

    def stop(self) -> None:
        """End the run soon; its final snapshot still comes."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    async def snapshots(self) -> AsyncIterator[Snapshot]:
        """Snapshots until the run ends; the last one is its final state.

        Raises MqttError when the child's connection failed, BssStreamError when it died.
        """
        process = self._process
        if process is None or process.stdout is None:
            raise BssStreamError("the simulator process is not running: enter its context first")
        async for line in process.stdout:
            report = msgspec.json.decode(line, type=_Report)
            if report.error is not None:
                raise (MqttError if report.is_mqtt_error else BssStreamError)(report.error)
            if report.snapshot is not None:
                yield report.snapshot
            if report.final:
                return
        raise BssStreamError(f"the simulator process ended with code {await process.wait()}")


async def _serve(job: Job) -> None:
    broker = MqttSettings(
        host=job.host,
        port=job.port,
        client_id=job.client_id,
        username=job.username,
        password=job.password,
        tls=None if job.tls is None else job.tls.context(),
    )
    simulation = Simulation(bytes(job.setup), broker, job.config)
    loop = asyncio.get_running_loop()
    if sys.platform != "win32":
        loop.add_signal_handler(signal.SIGTERM, simulation.stop)
    # Ctrl-C reaches the whole process group; the parent decides when the run ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    reporter = asyncio.create_task(_report(simulation, job.interval_s))
    watcher = threading.Thread(target=_stop_with_parent, args=(loop, simulation), daemon=True)
    watcher.start()
    try:
        final = await simulation.run(job.duration_s, plans_done=job.plans_done)
    finally:
        reporter.cancel()
    _write(_Report(snapshot=final, final=True))


async def _report(simulation: Simulation, interval_s: float) -> None:
    frozen = False
    while True:
        await asyncio.sleep(interval_s)
        snapshot = simulation.snapshot()
        _write(_Report(snapshot=snapshot))
        if not frozen and snapshot.phase == "swapping":
            # Riders and batteries stay: looking through them again would only cost latency.
            gc.collect()
            gc.freeze()
            frozen = True


def _stop_with_parent(loop: asyncio.AbstractEventLoop, simulation: Simulation) -> None:
    """A thread, as a pipe cannot be read otherwise on every system.

    It reads past sys.stdin, whose lock it would hold when the process ends.
    """
    while os.read(_STDIN, 1):
        pass
    with contextlib.suppress(RuntimeError):  # the run has ended before, and its loop with it
        loop.call_soon_threadsafe(simulation.stop)


def _write(report: _Report) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")
    sys.stdout.buffer.flush()


async def _main() -> int:
    job = await asyncio.to_thread(sys.stdin.buffer.readline)
    try:
        await _serve(msgspec.json.decode(job, type=Job))
    except BssStreamError as error:
        _write(_Report(error=str(error), is_mqtt_error=isinstance(error, MqttError)))
        return 1
    return 0


def main() -> int:
    """The child's main function."""
    if sys.platform == "win32":
        return asyncio.run(_main())
    import uvloop

    return uvloop.run(_main())
