"""Swaps' latency, rider's publish to rider's echo: a part of `python -m bench.report`.

All roles run in one process, the riders, ARM and the stations in another. First more riders come
than the machine can serve: what it then does is its capacity. Then half as many come.

A latency counts from the moment at which the rider meant to send, so whoever falls behind is not
forgiven the swaps that it kept from being sent (coordinated omission).
"""

import tempfile
from collections.abc import Callable

from bench.kafka import PARTITIONS
from bench.sheet import Sheet
from bss_stream.config import Bridge, Config, Log, Mqtt
from bss_stream.config import KafkaLog as KafkaConfig
from bss_stream.roles import Platform, mqtt_settings
from bss_stream.simulate import SimulationConfig, SimulatorProcess, Snapshot

PLANS = 4_000
JOINING_RATE = 200.0
SHARE = 0.5
CAPACITY_S = 12.0
LATENCY_S = 25.0
PATIENCE_MS = 120_000
"""Riders who ask again would make an overload of their own."""

Where = Callable[[str], Config]
"""The configuration of roles with their data in a directory."""


async def ride(where: Where, rate: float, duration_s: float) -> list[Snapshot]:
    """Riders at this rate on fresh roles; how it stood every second."""
    with tempfile.TemporaryDirectory() as directory:
        config = where(directory)
        simulation = SimulationConfig(
            rate=rate, plans=PLANS, joining_rate=JOINING_RATE, answer_timeout_ms=PATIENCE_MS
        )
        async with Platform(config) as platform:
            broker = mqtt_settings(config, "simulate", platform.broker)
            async with SimulatorProcess(
                platform.setup, broker, simulation, duration_s=duration_s
            ) as simulator:
                return [snapshot async for snapshot in simulator.snapshots()]


async def latency(sheet: Sheet, name: str, where: Where, overload: float) -> None:
    """Capacity, and latency at half of it."""
    told = await ride(where, overload, CAPACITY_S)
    swapping = [one.swaps_per_s_now for one in told if one.swaps]
    # Without the first seconds, in which nothing was warm, and the last, in which riders stop.
    steady = swapping[len(swapping) // 3 : -1] or swapping
    capacity = sum(steady) / len(steady)
    sheet.add(f"all roles on {name}: swaps at capacity", capacity)
    told = await ride(where, capacity * SHARE, LATENCY_S)
    last = told[-1]
    if last.unexpected_total:
        sheet.note(f"{name}: {last.unexpected_total} answers that no rule explains")
    sheet.add(f"all roles on {name}: swaps at half of it", last.swaps_per_s)
    for what, found_ms in (
        ("p50", last.swap_latency.p50_ms),
        ("p99", last.swap_latency.p99_ms),
        ("p99.9", last.swap_latency.p999_ms),
    ):
        sheet.add(f"all roles on {name}: publish to echo, {what}", found_ms, unit=" ms")


async def on_embedded_log(sheet: Sheet) -> None:
    """With the embedded log and the embedded broker."""

    def where(directory: str) -> Config:
        return Config(data_dir=directory, partitions=PARTITIONS, mqtt=Mqtt(port=0))

    await latency(sheet, "the embedded log", where, 2_500.0)


async def on_kafka(sheet: Sheet, bootstrap: str) -> None:
    """With a Kafka of one node on the same machine, and the embedded broker."""
    runs = iter(range(2))

    def where(directory: str) -> Config:
        kafka = KafkaConfig(
            bootstrap_servers=(bootstrap,),
            replication_factor=1,
            min_insync_replicas=1,
            topic_prefix=f"latency-{next(runs)}.",
        )
        return Config(
            data_dir=directory,
            partitions=PARTITIONS,
            log=Log(backend="kafka", kafka=kafka),
            mqtt=Mqtt(port=0),
            bridge=Bridge(linger_ms=1),
        )

    await latency(sheet, "Kafka", where, 1_000.0)
