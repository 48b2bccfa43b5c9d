"""`bss-stream demo` and `simulate`: a live table while riders swap, then what the ledgers say."""

import asyncio
import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.live import Live

from bss_stream.cli import running, view
from bss_stream.config import Bridge, Config, EmbeddedLog, Log, Mqtt
from bss_stream.errors import MqttError
from bss_stream.roles import Platform, mqtt_settings, mqtt_tls_files
from bss_stream.setup import compile_setup
from bss_stream.simulate import SimulationConfig, SimulatorProcess, Snapshot
from bss_stream.sink.store import open_ledger_store


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """What a demonstration is told."""

    duration_s: float
    rate: float
    plans: int
    seed: int
    data_dir: Path | None


@contextlib.contextmanager
def _directory(chosen: Path | None) -> Iterator[Path]:
    if chosen is not None:
        yield chosen
        return
    with tempfile.TemporaryDirectory(prefix="bss-demo-") as directory:
        yield Path(directory)


async def demo(options: DemoOptions, console: Console) -> bool:
    """Run the embedded platform under simulated riders; whether the audit is clean."""
    with _directory(options.data_dir) as directory:
        config = Config(
            data_dir=str(directory),
            # A power cut would lose a demonstration's last moments, and nobody minds.
            log=Log(embedded=EmbeddedLog(durability="process")),
            mqtt=Mqtt(port=0),
            # Little is lost by small batches at a demonstration's rates, and two lingers by a swap.
            bridge=Bridge(linger_ms=1),
        )
        simulation = SimulationConfig(
            seed=options.seed,
            run_id=_run_id(options),
            plans=options.plans,
            rate=options.rate,
            joining_rate=max(500.0, options.rate),
        )
        stop = asyncio.Event()
        with running.stop_signals(stop):
            async with Platform(config) as platform:
                broker = mqtt_settings(config, "simulate", platform.broker)
                riders = SimulatorProcess(
                    platform.setup, broker, simulation, duration_s=options.duration_s
                )
                last = await _watch(riders, stop, console, platform)
                await platform.drain()
                return await _conclude(platform, last, console)


def _run_id(options: DemoOptions) -> str:
    """Kept data is continued by riders of their own."""
    return "" if options.data_dir is None else f"d{options.seed}"


async def simulate(
    config: Config, simulation: SimulationConfig, duration_s: float | None, console: Console
) -> bool:
    """Run simulated riders against a broker; whether every answer was one that was due."""
    setup = compile_setup(config.load_setup())
    broker, tls = mqtt_settings(config, "simulate", None), mqtt_tls_files(config.mqtt)
    riders = SimulatorProcess(setup, broker, simulation, tls=tls, duration_s=duration_s)
    stop = asyncio.Event()
    with running.stop_signals(stop):
        last = await _watch(riders, stop, console, None)
    console.print(view.summary(last))
    return last is not None and last.unexpected_total == 0


async def _watch(
    riders: SimulatorProcess,
    stop: asyncio.Event,
    console: Console,
    platform: Platform | None,
) -> Snapshot | None:
    last: Snapshot | None = None
    stopping = asyncio.create_task(stop.wait())
    async with riders as simulator:

        def end(task: asyncio.Task[bool]) -> None:
            if not task.cancelled():
                simulator.stop()

        stopping.add_done_callback(end)
        with Live(console=console, refresh_per_second=4, transient=True) as live:
            async for snapshot in simulator.snapshots():
                last = snapshot
                live.update(view.table(snapshot, platform))
    stopping.cancel()
    return last


async def _conclude(platform: Platform, last: Snapshot | None, console: Console) -> bool:
    if last is None:
        raise MqttError("the simulator ended before it reported anything")
    console.print(view.table(last, platform))
    store = open_ledger_store(platform.config.ledger_url().reveal())
    await asyncio.to_thread(store.open)
    try:
        report = await running.audit_with(platform.config, store, platform.log, drained=True)
    finally:
        await asyncio.to_thread(store.close)
    console.print(report)
    console.print(view.balance(platform))
    console.print(view.summary(last))
    return report.ok and not platform.balance()
