"""Work that must not hold up a shutdown for ever, and work that goes on until one."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

from bss_stream.errors import LogAccessError, LogError, OffsetOutOfRangeError

T = TypeVar("T")

REJOIN_PAUSE_MIN_S: Final = 0.2
REJOIN_PAUSE_MAX_S: Final = 10.0

logger = logging.getLogger(__name__)


async def unless_stopped(
    work: Coroutine[Any, Any, T], stopping: asyncio.Event, *, patience_s: float = 0.0
) -> T | None:
    """The result of `work`, or None when it was given up: `patience_s` after `stopping` was set.

    Raises what `work` raises. Cancelled from outside, it cancels `work` and waits for its end.
    """
    working = asyncio.create_task(work)
    told = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait((working, told), return_when=asyncio.FIRST_COMPLETED)
        if not working.done() and patience_s > 0:
            await asyncio.wait((working,), timeout=patience_s)
        return await working if working.done() else None
    finally:
        told.cancel()
        working.cancel()
        await asyncio.wait((working, told))


async def done_unless_stopped(work: Coroutine[Any, Any, None], stopping: asyncio.Event) -> bool:
    """Whether `work` was done before `stopping` was set. Raises what `work` raises."""

    async def done() -> bool:
        await work
        return True

    return await unless_stopped(done(), stopping) is not None


async def pause(pause_s: float, stopping: asyncio.Event) -> None:
    """Wait so long, or until `stopping` is set."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stopping.wait(), pause_s)


async def work_and_rejoin(
    role: str,
    work: Callable[[], Awaitable[None]],
    stopping: asyncio.Event,
    *,
    progress: Callable[[], int],
    on_rejoin: Callable[[], None],
) -> None:
    """Do `work` until it returns, anew after each LogError, with pauses that grow.

    They start small again when `progress`, which counts what has been done, has risen. Raises the
    LogError once `stopping` is set, and OffsetOutOfRangeError and LogAccessError at once: no
    waiting brings back what the log has lost, or lets in whom it refuses.
    """
    pause_s = REJOIN_PAUSE_MIN_S
    while True:
        before = progress()
        try:
            await work()
            return
        except (LogAccessError, OffsetOutOfRangeError):
            raise
        except LogError as error:
            if stopping.is_set():
                raise
            if progress() > before:
                pause_s = REJOIN_PAUSE_MIN_S
            on_rejoin()
            logger.warning("the %s has lost the log and joins again: %s", role, error)
        await pause(pause_s, stopping)
        pause_s = min(pause_s * 2, REJOIN_PAUSE_MAX_S)
