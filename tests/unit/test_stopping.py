"""Work that is given up at a shutdown."""

import asyncio

import pytest

from bss_stream import stopping as module
from bss_stream.errors import LogError, OffsetOutOfRangeError
from bss_stream.stopping import done_unless_stopped, unless_stopped, work_and_rejoin


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


async def test_whether_work_was_done_before_the_stop() -> None:
    stopping = asyncio.Event()
    assert await done_unless_stopped(asyncio.sleep(0), stopping)
    stopping.set()
    assert not await done_unless_stopped(_hang(), stopping)


async def _hang() -> None:
    await asyncio.Event().wait()


class _Work:
    """Work that fails as often as it is told, and what was counted meanwhile."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.rejoined = 0
        self.stopping = asyncio.Event()

    async def __call__(self) -> None:
        if self.failures:
            raise self.failures.pop(0)

    async def run(self) -> None:
        await work_and_rejoin(
            "tester", self, self.stopping, progress=lambda: 0, on_rejoin=self._count
        )

    def _count(self) -> None:
        self.rejoined += 1


async def test_work_is_done_anew_after_each_failure_of_the_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "REJOIN_PAUSE_MIN_S", 0.001)
    work = _Work(LogError("away"), LogError("still away"))
    await work.run()
    assert (work.rejoined, work.failures) == (2, [])


async def test_what_the_log_has_lost_is_not_waited_for() -> None:
    work = _Work(OffsetOutOfRangeError("gone"), LogError("never reached"))
    with pytest.raises(OffsetOutOfRangeError):
        await work.run()
    assert (work.rejoined, len(work.failures)) == (0, 1)


async def test_who_is_stopped_does_not_join_again() -> None:
    work = _Work(LogError("away"), LogError("never reached"))
    work.stopping.set()
    with pytest.raises(LogError, match="away"):
        await work.run()
    assert (work.rejoined, len(work.failures)) == (0, 1)
