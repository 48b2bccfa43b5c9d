"""Follows the log for the console: figures as they come, and every plan's newest state on disk."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Final

from bss_stream import topics
from bss_stream._engine import unpack
from bss_stream.audit_states import Spool
from bss_stream.console.figures import Figures
from bss_stream.errors import BssStreamError
from bss_stream.log.protocol import Fetched, FollowableLog, TopicPartition

logger = logging.getLogger(__name__)

PAUSE_S: Final = 2.0
"""Before a log that was away is looked for again."""

FOLLOWED: Final = (*topics.SIGNALS, *topics.LEDGERS, topics.OUTBOX, topics.DEAD_LETTER)
"""From their ends on; the plans' changelog from its start."""

OpenLog = Callable[[], contextlib.AbstractAsyncContextManager[FollowableLog]]


class Watch:
    """One reader for all pages. A log that is away is waited for, and read anew."""

    def __init__(self, open_log: OpenLog, figures: Figures) -> None:
        self.figures = figures
        self.fault: str = "the log is being opened"
        """Why nothing is followed, empty while it is."""
        self.has_states = False
        """Whether all plans' states have been read."""
        self._open_log = open_log
        self._states = Spool()
        self._turn = asyncio.Lock()

    async def run(self) -> None:
        """Follow until cancelled. Raises what is no fault of the log's: then nothing is shown."""
        try:
            while True:
                try:
                    async with self._open_log() as log:
                        await self._follow(log)
                except (BssStreamError, ValueError) as error:
                    logger.warning("the console does not see the log: %s", error)
                    self.fault = str(error)
                    self.has_states = False
                await asyncio.sleep(PAUSE_S)
        finally:
            self._states.close()

    async def plan_state(self, plan_id: str) -> bytes | None:
        """A plan's newest changelog value, None if there is none (yet)."""
        async with self._turn:
            return await asyncio.to_thread(self._states.get, plan_id.encode())

    async def _follow(self, log: FollowableLog) -> None:
        starts = {
            TopicPartition(topic, partition): (await log.extent(topic, partition)).end
            for topic in FOLLOWED
            for partition in range(log.partitions)
        }
        fresh = Spool()
        async with self._turn:
            old, self._states = self._states, fresh
            await asyncio.to_thread(old.close)
        for partition in range(log.partitions):
            place = TopicPartition(topics.STATE_PLAN, partition)
            starts[place] = 0
            async for fetched in log.replay(topics.STATE_PLAN, partition):
                await self._keep(fetched)
                starts[place] = fetched.next_offset
        self.fault, self.has_states = "", True
        async with contextlib.aclosing(log.follow(starts)) as following:
            async for fetched in following:
                if fetched.topic == topics.STATE_PLAN:
                    await self._keep(fetched)
                else:
                    self.figures.take(fetched)

    async def _keep(self, fetched: Fetched) -> None:
        newest = dict(unpack(fetched.data))
        async with self._turn:
            await asyncio.to_thread(self._states.put, newest.items())
