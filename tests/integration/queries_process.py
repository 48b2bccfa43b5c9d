"""Queries in a process of their own: `python -m tests.integration.queries_process`.

Arguments: a configuration file and the instance. Says `ready`; drains once its input is closed, and
says then how many requests it has answered.
"""

import asyncio
import sys
from pathlib import Path

from bss_stream.config import Config
from bss_stream.roles import Platform, Role

ROLES: tuple[Role, ...] = ("queries",)


async def main(config: Path, instance: str) -> None:
    async with Platform(Config.load(config, {}), ROLES, instance=instance) as platform:
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        await platform.drain()
        assert platform.queries is not None
        print(platform.queries.counters.answers["ok"], flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
