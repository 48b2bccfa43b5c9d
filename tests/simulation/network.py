"""Requests to a simulated server: they take time, get lost, and so do their answers."""

import asyncio
from collections.abc import Callable
from typing import Final, TypeVar

from bss_stream.errors import BssStreamError, LogError
from tests.simulation.chance import Chance
from tests.simulation.loop import WORLD

T = TypeVar("T")

TYPICAL_S: Final = 0.002
TIMEOUT_S: Final = 3.0
"""How long a client waits for an answer. What it asked for may still be done after that."""


class Network:
    """The way to one server and back. `chance` None for one that is instant and perfect."""

    def __init__(self, chance: Chance | None = None, *, lost_share: float = 0.0) -> None:
        self.down = False
        """While set, every request is lost."""
        self._chance = chance
        self._lost_share = lost_share

    def strikes(self, fault: str, share: float) -> bool:
        """Whether a fault of the server's own happens here."""
        return self._chance is not None and self._chance.strikes(fault, share)

    async def call(self, name: str, work: Callable[[], T], *, loses: bool = True) -> T:
        """What `work` gives when the request arrives; LogError when no answer has come.

        The request goes its way whatever becomes of the caller. `work` runs in the world's context,
        at one moment.
        """
        chance = self._chance
        if chance is None:
            await asyncio.sleep(0)
            return work()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        request_lost = loses and (
            self.down or chance.strikes(f"{name}: request lost", self._lost_share)
        )
        answer_lost = loses and chance.strikes(f"{name}: answer lost", self._lost_share)

        def arrive() -> None:
            if self.down:
                return
            error: BssStreamError | None = None
            result: list[T] = []
            try:
                result.append(work())
            except BssStreamError as refusal:
                error = refusal
            if not answer_lost:
                loop.call_later(chance.delay_s(TYPICAL_S), reply, result, error, context=WORLD)

        def reply(result: list[T], error: BssStreamError | None) -> None:
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(result[0])

        if not request_lost:
            loop.call_later(chance.delay_s(TYPICAL_S), arrive, context=WORLD)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return await answer
        except TimeoutError:
            raise LogError(f"{name}: no answer from the log within {TIMEOUT_S} s") from None

    async def pause(self) -> None:
        """What something on its way takes."""
        chance = self._chance
        await asyncio.sleep(0 if chance is None else chance.delay_s(TYPICAL_S))

    def shuffled(self, items: list[T]) -> list[T]:
        """The same in another order."""
        if self._chance is not None:
            self._chance.random.shuffle(items)
        return items

    def some(self, most: int) -> int:
        """How much of `most` comes at once: one at least."""
        if self._chance is None or most <= 1 or self._chance.random.random() < 0.5:
            return most
        return self._chance.random.randint(1, min(most, 20))
