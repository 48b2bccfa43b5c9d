"""Every plan's live state, kept on disk in the order of plan ids."""

import asyncio
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Final, Self

import msgspec

from bss_stream import topics
from bss_stream._engine import unpack
from bss_stream.errors import FrameError, LogError
from bss_stream.log.protocol import ReadableLog

Describe = Callable[[str, bytes, bytes], bytes]
"""`_engine.describe_state`: state topic, key and value to JSON."""

_UPSERT: Final = "INSERT INTO spool VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value"


class Spool:
    """Keyed bytes in a private temporary file, the last value of a key winning."""

    def __init__(self) -> None:
        # An empty name is SQLite's temporary file: it spills to disk and goes with the
        # connection. Calls come one at a time, though not always from one thread.
        self._connection = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode = OFF")
        self._connection.execute("CREATE TABLE spool (key BLOB PRIMARY KEY, value BLOB NOT NULL)")

    def put(self, items: Iterable[tuple[bytes, bytes | None]]) -> None:
        """Set values in order; None removes a key."""
        self._connection.execute("BEGIN")
        for key, value in items:
            if value is None:
                self._connection.execute("DELETE FROM spool WHERE key = ?", (key,))
            else:
                self._connection.execute(_UPSERT, (key, value))
        self._connection.execute("COMMIT")

    def get(self, key: bytes) -> bytes | None:
        """A key's value, None without one."""
        row = self._connection.execute("SELECT value FROM spool WHERE key = ?", (key,)).fetchone()
        return None if row is None else bytes(row[0])

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values, by key."""
        return iter(self._connection.execute("SELECT key, value FROM spool ORDER BY key"))

    def close(self) -> None:
        self._connection.close()


class LiveStates:
    """The states of all plans as (plan id, described state), by plan id.

    Iterating raises FrameError for a state that the engine cannot read. Close it, or use it in a
    `with` statement.
    """

    def __init__(self, describe: Describe) -> None:
        self._describe = describe
        self._spool = Spool()

    def apply(self, records: Iterable[tuple[bytes, bytes | None]]) -> None:
        """Take changelog records in order; one without a value removes its plan."""
        self._spool.put(records)

    def __iter__(self) -> Iterator[tuple[str, dict[str, object]]]:
        for key, value in self._spool.items():
            try:
                described = self._describe(topics.STATE_PLAN, key, value)
                state = msgspec.json.decode(described, type=dict[str, object])
                plan_id = key.decode("utf-8")
            except ValueError as error:
                raise FrameError(f"{topics.STATE_PLAN} record of key {key!r}: {error}") from error
            yield plan_id, state

    def close(self) -> None:
        """Delete the temporary file."""
        self._spool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


async def collect_states(log: ReadableLog, describe: Describe) -> LiveStates:
    """The plans' present states, by replaying the changelog of `log`. Raises LogError."""
    states = LiveStates(describe)
    try:
        for partition in range(log.partitions):
            async for fetched in log.replay(topics.STATE_PLAN, partition):
                try:
                    records = unpack(fetched.data)
                except ValueError as error:
                    raise LogError(
                        f"{topics.STATE_PLAN} partition {partition} before offset "
                        f"{fetched.next_offset}: the chunk is damaged: {error}"
                    ) from error
                await asyncio.to_thread(states.apply, records)
    except BaseException:
        states.close()
        raise
    return states
