"""Publishing without waiting: each batch waits for its PUBACKs in a task of its own.

Riders do not wait for one another's PUBACK, so the sender of the next batch must not either.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from bss_stream.errors import MqttError
from bss_stream.mqtt.client import MqttClient
from bss_stream.mqtt.messages import Message


class Publisher:
    """An asynchronous context, entered once.

    Leaving it drops what is delayed and waits for what is under way; on an error that goes, too.
    """

    def __init__(self, client: MqttClient) -> None:
        self.refused: Counter[str] = Counter()
        """Messages that the broker did not take, by its reason."""
        self._client = client
        self._group = asyncio.TaskGroup()
        self._delayed: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for task in self._delayed:
            task.cancel()
        await self._group.__aexit__(kind, error, traceback)

    def soon(self, messages: Sequence[Message], delay_ms: int = 0) -> None:
        """Publish messages in the order of the calls, or later by `delay_ms`."""
        if messages and not delay_ms:
            self._group.create_task(self._publish(messages))
        elif messages:
            task = self._group.create_task(self._publish_later(messages, delay_ms))
            self._delayed.add(task)
            task.add_done_callback(self._delayed.discard)

    async def _publish_later(self, messages: Sequence[Message], delay_ms: int) -> None:
        await asyncio.sleep(delay_ms / 1000)
        await self._publish(messages)

    async def _publish(self, messages: Sequence[Message]) -> None:
        for refusal in await self._client.publish(messages):
            self.refused[refusal.reason] += 1


def first_mqtt_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The MqttError inside a group of errors, or else the first one that is there."""
    matching = group.subgroup(MqttError)
    error: BaseException = matching if matching is not None else group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
