"""A PostgreSQL server that dies under load: the sink waits for it, and nobody else notices."""

import asyncio
from pathlib import Path

import pytest

from tests.faults.network import network, riding
from tests.servers.mosquitto import MosquittoFactory
from tests.servers.postgres import PostgresServer

pytestmark = [pytest.mark.kafka, pytest.mark.mosquitto, pytest.mark.postgres]


async def test_a_database_that_is_killed_and_started_again(
    tmp_path: Path,
    kafka: str,
    start_mosquitto: MosquittoFactory,
    postgres_server: PostgresServer,
    postgres: str,
) -> None:
    """Riders go on while it is away; each entry is there once when it is back."""
    port = start_mosquitto().port
    async with (
        network(tmp_path, kafka, port, postgres) as of,
        riding(port, "database") as ride,
    ):
        await ride.swaps(30)
        await asyncio.to_thread(postgres_server.kill)
        await ride.swaps(30)
        await asyncio.to_thread(postgres_server.start)
        await ride.swaps(30)
        await asyncio.to_thread(postgres_server.restart)
        await ride.swaps(30)
        await of.end(ride)
