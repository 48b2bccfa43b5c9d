"""A clock that is stepped forward and back under the whole platform."""

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

from bss_stream.config import Config
from bss_stream.roles import Platform
from tests.effects import check_effects, requests
from tests.faults.network import HELD_UP, check_answers, riding
from tests.observer import Observer
from tests.platform_processes import REST_TIMEOUT_S, audit, embedded_config
from tests.servers.ports import free_port
from tests.undisturbed import check_contents, read_log, undisturbed

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS

STEPS_MS = (
    2 * HOUR_MS,
    # Below the true time by less than what makes a sender's time stamp too far ahead.
    -2 * HOUR_MS - 4 * MINUTE_MS,
    4 * MINUTE_MS,
)


@dataclass
class Clock:
    """The machine's clock, some way off."""

    ahead_ms: int = 0

    def __call__(self) -> int:
        return time.time_ns() // 1_000_000 + self.ahead_ms


async def check(platform: Platform, now_ms: int) -> None:
    """Everything in the log is what one engine makes of the signals, and has come to its end."""
    contents, partitions = await read_log(platform.log), platform.log.partitions
    expected = undisturbed(contents, platform.setup, partitions=partitions, now_ms=now_ms)
    check_contents(contents, expected)
    check_effects(contents, platform.setup, partitions=partitions)


async def come_to_rest(platform: Platform, clock: Clock) -> None:
    """Wait until nothing is left to decide, or fail with what is missing."""
    give_up_s = time.monotonic() + REST_TIMEOUT_S
    while True:
        try:
            await check(platform, clock())
        except AssertionError:
            if time.monotonic() > give_up_s:
                raise
        else:
            return
        await asyncio.sleep(0.2)


async def test_a_clock_that_is_stepped_forward_and_back(tmp_path: Path) -> None:
    """All roles tell the time by it: what they stamp goes back, too, and holds run out at once."""
    port, clock = free_port(), Clock()
    config = embedded_config(tmp_path, port)
    async with (
        Platform(Config.load(config), clock_ms=clock) as platform,
        Observer(port) as observer,
        riding(port, "clock") as ride,
    ):
        await ride.swaps(30)
        for step_ms in STEPS_MS:
            clock.ahead_ms += step_ms
            await ride.swaps(30)
        check_answers(await ride.end(), HELD_UP)
        await observer.all_answered()
        # What was begun while the clock was ahead ends when it has come there again.
        clock.ahead_ms += 3 * HOUR_MS
        await come_to_rest(platform, clock)
        contents = await read_log(platform.log)
        assert requests(contents) == observer.requests.keys()
        assert observer.lost(contents) == []
        observer.check_echoes(contents)
        await platform.drain()
        assert platform.balance() == []
    code, output = await audit(config)
    assert code == 0, output
