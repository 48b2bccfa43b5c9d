"""A disk that is full under the embedded log and the ledger database.

A real full disk needs a file system of its own, and so privileges. A limit on the size of files
(RLIMIT_FSIZE), set from outside on the running process, fails the same writes, wherever the tests
run: no file may grow, what is in place can be overwritten.
"""

import asyncio
import resource
from pathlib import Path

from tests.eventually import eventually
from tests.faults.network import HELD_UP, check_answers, riding
from tests.observer import Observer
from tests.platform_processes import (
    PlatformProcess,
    audit,
    check_log,
    come_to_rest,
    embedded_config,
)
from tests.servers.ports import free_port

FULL_S = 3.0


def fill(platform: PlatformProcess, folder: Path) -> None:
    """Let no file of a running platform grow any more."""
    # What it logs must get through: it is smaller than that.
    largest = max(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    limits = (largest, resource.RLIM_INFINITY)
    resource.prlimit(platform.process.pid, resource.RLIMIT_FSIZE, limits)


def make_room(platform: PlatformProcess) -> None:
    """Undo it."""
    limits = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    resource.prlimit(platform.process.pid, resource.RLIMIT_FSIZE, limits)


async def test_a_full_disk_holds_everything_up_and_loses_nothing(tmp_path: Path) -> None:
    """It says what is wrong, and goes on by itself once there is room again."""
    port = free_port()
    config = embedded_config(tmp_path, port)
    async with (
        PlatformProcess(config, "run") as platform,
        Observer(port) as observer,
        riding(port, "full") as ride,
    ):
        await ride.swaps(30)
        fill(platform, tmp_path / "data")
        await eventually(lambda: "the log took no signals" in platform.log, 60.0)
        await asyncio.sleep(FULL_S)
        make_room(platform)
        await ride.swaps(60)
        check_answers(await ride.end(), HELD_UP)
        await observer.all_answered()
        await come_to_rest(config)
        assert await platform.end() == 0, platform.log
    assert "full" in platform.log
    assert "do not add up" not in platform.log
    code, output = await audit(config)
    assert code == 0, output
    assert await check_log(config) == observer.requests.keys()
