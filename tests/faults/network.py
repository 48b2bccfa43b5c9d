"""A swap network on real servers for a fault to strike: every role a process of its own, riders at
work, an observer on the broker; and what must hold once the fault is over."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from bss_stream.config import Config
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
    read_contents,
    servers_config,
)

IN_VAIN_S = 180.0
"""What no passing test comes near: then riders wait in vain."""

SESSION_EXPIRY_S = 600

PATIENCE_MS = 600_000
"""Riders who wait so long never ask twice: what is lost leaves them without an answer."""


class Ride:
    """Riders at work on a broker; whoever waits for their swaps fails when they have ended."""

    def __init__(self, port: int, run_id: str, *, rate: float, answer_timeout_ms: int) -> None:
        config = SimulationConfig(
            run_id=run_id,
            plans=120,
            rate=rate,
            faults=NO_FAULTS,
            arm=ArmConfig(shelf_batteries=60),
            answer_timeout_ms=answer_timeout_ms,
        )
        broker = MqttSettings(
            host="127.0.0.1",
            port=port,
            client_id=f"simulate-{run_id}",
            # Whoever is away for a moment hears what was said meanwhile.
            session_expiry_s=SESSION_EXPIRY_S,
            backoff_max_s=1.0,
        )
        self._simulation = Simulation(compile_setup(load_setup()), broker, config)
        self._riding = asyncio.create_task(self._simulation.run())

    @property
    def done(self) -> int:
        """Swaps so far."""
        return self._simulation.snapshot().swaps

    async def swaps(self, more: int) -> None:
        """Wait until riders have swapped so many times more."""
        wanted = self.done + more
        give_up_s = time.monotonic() + IN_VAIN_S
        while self.done < wanted:
            assert not self._riding.done(), self._riding
            if time.monotonic() > give_up_s:
                raise AssertionError(
                    f"{self.done} of {wanted} swaps: {self._simulation.snapshot()}"
                )
            await asyncio.sleep(0.05)

    async def end(self) -> Snapshot:
        """No more arrivals; how it went, a few seconds after."""
        self._simulation.stop()
        return await self._riding

    async def cancel(self) -> None:
        """Send the riders home in the middle of whatever they do."""
        self._riding.cancel()
        await asyncio.wait([self._riding])


@asynccontextmanager
async def riding(
    port: int, run_id: str, *, rate: float = 25, answer_timeout_ms: int = PATIENCE_MS
) -> AsyncIterator[Ride]:
    """Riders at work until the end of the block, at the latest."""
    ride = Ride(port, run_id, rate=rate, answer_timeout_ms=answer_timeout_ms)
    try:
        yield ride
    finally:
        await ride.cancel()


HELD_UP = frozenset({"allocation_timed_out", "battery_mismatch", "allocation_denied"})
"""ARM answers while nothing reaches the log for longer than a hold waits: the rider is told that
the swap came to nothing, and the battery is the plan's once the answer is read. What the rider
then brings back is another battery than the plan's, or one that ARM has on its shelf."""


def check_answers(snapshot: Snapshot, explained: frozenset[str] = frozenset()) -> None:
    """Every answer is one that the plan explains."""
    unexplained = [line for line in snapshot.unexpected if line.got not in explained]
    assert unexplained == [], snapshot.samples


class Network:
    """The roles by name, `process-0` and so on, and the observer."""

    def __init__(self, config: Path, roles: Sequence[PlatformProcess], observer: Observer) -> None:
        self.config = config
        self.roles = {role.name: role for role in roles}
        self.observer = observer

    async def end(
        self, ride: Ride, *, held_up: bool = False, broker_forgets: bool = False
    ) -> Snapshot:
        """Let all that was begun come to its end, stop every role in order, and check it all.

        `held_up` if nothing reached the log for long, `broker_forgets` if MQTT messages may be
        gone that their senders had an acknowledgement of.
        """
        snapshot = await ride.end()
        check_answers(snapshot, HELD_UP if held_up else frozenset())
        if not broker_forgets:
            await self.observer.all_answered()
        await come_to_rest(self.config)
        # A group gives up a sink that was killed only after a while.
        await all_copied(self.config)
        for role in reversed(self.roles.values()):
            assert await role.end() == 0, role.log
            assert "do not add up" not in role.log, role.log
        await self._check(broker_forgets)
        return snapshot

    async def _check(self, broker_forgets: bool) -> None:
        """The audit is clean; each signal is logged and had its effect once; echoes are alike."""
        code, output = await audit(self.config)
        assert code == 0, output
        made = await check_log(self.config)
        contents = await read_contents(Config.load(self.config))
        self.observer.check_echoes(contents)
        lost = self.observer.lost(contents)
        if broker_forgets:
            print(f"{len(lost)} signals that the broker forgot")
            return
        assert not lost, f"{len(lost)} signals are not in the log: {lost[:3]}"
        assert self.observer.requests.keys() <= made


@asynccontextmanager
async def network(
    folder: Path,
    kafka: str,
    mqtt_port: int,
    dsn: str,
    *,
    processors: int = 1,
    bridges: int = 1,
    bridge_port: int | None = None,
    shared: bool = True,
) -> AsyncIterator[Network]:
    """All roles at work on these servers.

    Bridges reach the broker through another port; with `shared` by a shared subscription.
    """
    config = servers_config(folder, kafka, mqtt_port, dsn)
    if not shared:
        config.write_text(config.read_text().replace('shared_group = "bridges"\n', ""))
    bridge_config = config
    if bridge_port is not None:
        bridge_config = folder / "bridge.toml"
        bridge_config.write_text(
            config.read_text().replace(f"port = {mqtt_port}", f"port = {bridge_port}")
        )
    roles = [
        *(PlatformProcess(config, "process", instance=str(n)) for n in range(processors)),
        PlatformProcess(config, "publish"),
        PlatformProcess(config, "sink"),
        *(PlatformProcess(bridge_config, "bridge", instance=str(n)) for n in range(bridges)),
    ]
    first, *others = roles
    async with AsyncExitStack() as stack:
        # It makes the topics.
        await stack.enter_async_context(first)
        await asyncio.gather(*map(stack.enter_async_context, others))
        observer = Observer(mqtt_port, session_expiry_s=SESSION_EXPIRY_S)
        await stack.enter_async_context(observer)
        yield Network(config, roles, observer)
