"""A real Kafka for benches, started as the tests start it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.servers.kafka import KafkaServer


@asynccontextmanager
async def kafka_broker(directory: Path) -> AsyncIterator[str]:
    """The bootstrap address of a broker with its data below `directory`, killed at the end."""
    home = directory / "kafka"
    await asyncio.to_thread(home.mkdir)
    server = KafkaServer(home)
    await asyncio.to_thread(server.start)
    try:
        yield server.bootstrap
    finally:
        await asyncio.to_thread(server.kill)
