"""Work that must not hold up a shutdown for ever."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


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
