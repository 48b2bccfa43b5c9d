"""The embedded log with appends that wait or fail on demand; what gets through is real."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from bss_stream.errors import LogError
from bss_stream.log.embedded import EmbeddedAppender, EmbeddedLog
from bss_stream.log.protocol import Chunk


class FaultyLog(EmbeddedLog):
    """A log for a test of whoever appends to it."""

    def __init__(self, directory: Path, *, partitions: int) -> None:
        super().__init__(directory, partitions=partitions, durability="process")
        self.failures = 0
        """So many of the next appends fail."""
        self.attempts = 0
        self.gate = asyncio.Event()
        """Appends wait until it is set."""
        self.gate.set()

    async def appender(self) -> EmbeddedAppender:
        return _FaultyAppender(self)


class _FaultyAppender(EmbeddedAppender):
    def __init__(self, log: FaultyLog) -> None:
        super().__init__(log._store)
        self._log = log

    async def append(self, chunks: Sequence[Chunk]) -> None:
        self._log.attempts += 1
        await self._log.gate.wait()
        if self._log.failures:
            self._log.failures -= 1
            raise LogError("the test has the log fail")
        await super().append(chunks)
