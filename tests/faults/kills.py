"""kill -9 of roles at random moments under load, as many as are asked for.

    python -m tests.faults.kills --kills 200 --seed 7

starts its own Kafka, Mosquitto and PostgreSQL, kills, checks everything, and prints what was lost
(0) and what was applied twice (0). Exit code 1 if a check fails.
"""

import argparse
import asyncio
import contextlib
import logging
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from random import Random

from bss_stream.config import Config
from tests.effects import twice
from tests.faults.network import Network, Ride, network, riding
from tests.platform_processes import read_contents
from tests.servers.kafka import KafkaServer
from tests.servers.mosquitto import mosquitto_server
from tests.servers.postgres import PostgresServer

PAUSE_S = (0.2, 2.5)
"""Bounds of the time between two kills: some strike a role that has not come up yet."""

SWAPS_BETWEEN = 10
"""So many are waited for after every few kills: it is load that they strike."""

KILLS_BETWEEN = 10


async def kill_roles(of: Network, ride: Ride, random: Random, kills: int) -> Counter[str]:
    """Kill roles and start them again, each one once at first; how often each was killed."""
    roles = list(of.roles.values())
    order = random.sample(roles, len(roles))[:kills]
    order += random.choices(roles, k=kills - len(order))
    done: Counter[str] = Counter()
    for number, victim in enumerate(order, 1):
        await asyncio.sleep(random.uniform(*PAUSE_S))
        await victim.kill()
        await victim.spawn()
        done[victim.name] += 1
        print(f"kill {number}: {victim.name} after {ride.done} swaps", flush=True)
        if number % KILLS_BETWEEN == 0:
            await ride.swaps(SWAPS_BETWEEN)
    await asyncio.gather(*(role.ready() for role in roles))
    return done


@contextlib.contextmanager
def _servers(folder: Path) -> Iterator[tuple[str, int, str]]:
    """Kafka's address, Mosquitto's port and a database."""
    with contextlib.ExitStack() as stack:
        postgres_folder = Path(tempfile.mkdtemp(prefix="bss-postgres-"))
        stack.callback(shutil.rmtree, postgres_folder)
        postgres = PostgresServer(postgres_folder)
        postgres.start()
        stack.callback(postgres.stop)
        (folder / "kafka").mkdir()
        kafka = KafkaServer(folder / "kafka")
        kafka.start()
        stack.callback(kafka.kill)
        mosquitto = mosquitto_server(folder / "mosquitto", persistence=True)
        mosquitto.start()
        stack.callback(mosquitto.kill)
        yield kafka.bootstrap, mosquitto.port, postgres.create_database("kills")


@contextlib.asynccontextmanager
async def _at_work(
    folder: Path, servers: tuple[str, int, str]
) -> AsyncIterator[tuple[Network, Ride]]:
    kafka, port, dsn = servers
    async with (
        network(folder, kafka, port, dsn, processors=2, bridges=2) as of,
        riding(port, "kills", rate=40) as ride,
    ):
        yield of, ride


async def _run(folder: Path, servers: tuple[str, int, str], kills: int, seed: int) -> None:
    began_s = time.monotonic()
    async with _at_work(folder, servers) as (of, ride):
        await ride.swaps(30)
        done = await kill_roles(of, ride, Random(seed), kills)
        await ride.swaps(60)
        snapshot = await of.end(ride)
    contents = await read_contents(Config.load(of.config))
    restarts = ", ".join(f"{name} {count}" for name, count in sorted(done.items()))
    print(f"kills {done.total()} ({restarts}) in {time.monotonic() - began_s:.0f} s, seed {seed}")
    print(f"signals {of.observer.signals.total()}, swaps {snapshot.swaps}")
    print(f"lost {len(of.observer.lost(contents))}, twice {len(twice(contents))}")
    print("audit clean; the log is what an undisturbed engine makes of the same signals")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=None, help="repeats the moments of a run")
    parser.add_argument("--folder", type=Path, help="keeps logs and data there")
    given = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    seed = time.time_ns() % 1_000_000 if given.seed is None else given.seed
    print(f"seed {seed}", flush=True)
    with contextlib.ExitStack() as stack:
        folder = given.folder
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bss-kills-")))
        folder.mkdir(parents=True, exist_ok=True)
        servers = stack.enter_context(_servers(folder))
        try:
            asyncio.run(_run(folder, servers, given.kills, seed))
        except AssertionError as failure:
            print(f"FAILED, seed {seed}: {failure}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
