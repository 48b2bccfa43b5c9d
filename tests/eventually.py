"""Waiting in tests for what another task or process brings about."""

import asyncio
from collections.abc import Callable

_STEP_S = 0.005


async def eventually(holds: Callable[[], bool], within_s: float = 10.0) -> None:
    """Return once `holds()` is true; fail after `within_s`, which no passing test comes near."""
    for _ in range(int(within_s / _STEP_S)):
        if holds():
            return
        await asyncio.sleep(_STEP_S)
    raise AssertionError(f"did not come true within {within_s} s")
