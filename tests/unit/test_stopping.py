"""Work that is given up at a shutdown."""

import asyncio

import pytest

from bss_stream.stopping import unless_stopped


async def test_the_result_or_the_error_of_the_work() -> None:
    async def answer() -> int:
        return 42

    async def fail() -> int:
        raise KeyError("no")

    stopping = asyncio.Event()
    assert await unless_stopped(answer(), stopping) == 42
    with pytest.raises(KeyError):
        await unless_stopped(fail(), stopping)


async def test_work_is_given_up_and_has_ended_before_the_answer() -> None:
    stopping, ended = asyncio.Event(), asyncio.Event()

    async def hang() -> bool:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.set()
        return True

    waiting = asyncio.create_task(unless_stopped(hang(), stopping))
    await asyncio.sleep(0)
    stopping.set()
    assert await waiting is None
    assert ended.is_set()
    ended.clear()
    cancelled = asyncio.create_task(unless_stopped(hang(), asyncio.Event()))
    await asyncio.sleep(0.01)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert ended.is_set()


async def test_patience_lets_work_end_after_the_stop() -> None:
    stopping = asyncio.Event()
    stopping.set()

    async def slow() -> str:
        await asyncio.sleep(0.01)
        return "done"

    assert await unless_stopped(slow(), stopping, patience_s=10.0) == "done"
