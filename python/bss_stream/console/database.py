"""The ledger database as the pages ask it: one view a question, in one thread, never the loop's."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from bss_stream.errors import SinkError
from bss_stream.sink.read_model import ReadModel, ReadView

T = TypeVar("T")


class LedgerDatabase:
    """Asks a read model, whose calls come one at a time."""

    def __init__(self, model: ReadModel) -> None:
        self._model = model
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="bss-console-database")

    async def ask(self, question: Callable[[ReadView], T]) -> T:
        """The answer, all of one moment. Raises SinkError while the database is away."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._ask, question)

    def _ask(self, question: Callable[[ReadView], T]) -> T:
        try:
            with self._model.view() as view:
                return question(view)
        except SinkError:
            # Whatever it was, the next question connects anew.
            self._model.close()
            raise

    async def close(self) -> None:
        """Disconnect."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._model.close)
        self._thread.shutdown(wait=False)
