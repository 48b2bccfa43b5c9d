"""The embedded log followed by another process: what its owner commits, soon after."""

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from bss_stream.errors import LogError
from bss_stream.log.protocol import Fetched, TopicPartition
from bss_stream.log.sqlite_file import (
    READ_BYTES_MAX,
    Position,
    connect_reader,
    explained,
    join,
    read_rows,
)

POLL_S: Final = 0.2
"""SQLite tells no other process of a commit, so the file is looked at this often."""

RECORDS_MAX: Final = 10_000
_END: Final = 2**63 - 1

Streams = Mapping[TopicPartition, int]


async def follow(
    path: Path, readers: ThreadPoolExecutor, streams: Streams, starts: Mapping[TopicPartition, int]
) -> AsyncGenerator[Fetched, None]:
    """Records of these partitions from these offsets on, as they are committed; never ends.

    Raises LogError, also when another file has taken the log's place.
    """
    run = asyncio.get_running_loop().run_in_executor
    positions = dict(starts)
    with explained(path, "follow"):
        connection = await run(readers, connect_reader, path)
        try:
            file = _identity(path)
            while True:
                found = await run(readers, _read, connection, streams, positions)
                for fetched in found:
                    yield fetched
                    positions[TopicPartition(fetched.topic, fetched.partition)] = (
                        fetched.next_offset
                    )
                if not found:
                    if _identity(path) != file:
                        raise LogError(f"the log {path} has been replaced: open it anew")
                    await asyncio.sleep(POLL_S)
        finally:
            await run(readers, connection.close)


def _read(
    connection: sqlite3.Connection, streams: Streams, positions: Mapping[TopicPartition, int]
) -> list[Fetched]:
    """What each partition has beyond its position, up to READ_BYTES_MAX in all."""
    found = []
    bytes_left = READ_BYTES_MAX
    for part, start in positions.items():
        if bytes_left <= 0:
            break
        position = Position(streams[part], start, _END)
        rows = read_rows(connection, position, RECORDS_MAX, bytes_left)
        if rows:
            bytes_left -= sum(len(row.data) for row in rows)
            found.append(join(part, max(start, rows[0].base_offset), rows))
    return found


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
