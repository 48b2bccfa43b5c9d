"""A busy event loop lets the log's threads have the interpreter now and then.

A thread that comes back from SQLite has to win the GIL from the loop. As long as the loop rests
between events that is a matter of microseconds; but a loop that is never idle gives the GIL up
for too short a time, again and again, and the thread can lose for many seconds (measured: 20 s).
"""

import asyncio
import time
from typing import Final

CHECK_S: Final = 0.002
PAUSE_S: Final = 0.0005
BUSY: Final = 0.5
"""From this share of the time on, spent on the CPU, the loop counts as never idle."""


class GiveWay:
    """Counts the work that threads have under way, and rests for it if the loop does not."""

    def __init__(self) -> None:
        self._under_way = 0
        self._watching = False
        self._since_s = (0.0, 0.0)

    def begin(self) -> None:
        """A thread has something to do that the loop waits for."""
        self._under_way += 1
        if not self._watching:
            self._watching = True
            self._watch()

    def end(self) -> None:
        """It is done."""
        self._under_way -= 1

    def _watch(self) -> None:
        self._since_s = (time.monotonic(), time.thread_time())
        asyncio.get_running_loop().call_later(CHECK_S, self._check)

    def _check(self) -> None:
        if not self._under_way:
            self._watching = False
            return
        wall_s, cpu_s = self._since_s
        if time.thread_time() - cpu_s > BUSY * (time.monotonic() - wall_s):
            time.sleep(PAUSE_S)
        self._watch()
