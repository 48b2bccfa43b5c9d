"""The received messages that nobody has taken yet, bounded in number and in bytes."""

from collections import deque
from collections.abc import Sequence
from typing import Final

from bss_stream.mqtt.messages import Received

MESSAGE_BYTES: Final = 300
"""What a message takes in memory beside its contents."""

PROPERTY_BYTES: Final = 160
"""What a user property takes beside its text."""


class Inbox:
    """A queue that says when it is full, and is no longer full once it is half empty.

    It never turns a message away: whoever fills it stops reading while `full`.
    """

    def __init__(self, messages_max: int, bytes_max: int) -> None:
        self.full = False
        self._messages_max = messages_max
        self._bytes_max = bytes_max
        self._messages: deque[Received] = deque()
        self._bytes = 0

    @property
    def bytes(self) -> int:
        """Bytes of the messages that wait, with what each takes beside its own."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._messages)

    def put(self, messages: Sequence[Received]) -> None:
        """Add messages behind those that wait."""
        self._messages.extend(messages)
        for message in messages:
            self._bytes += _size(message)
        if len(self._messages) >= self._messages_max or self._bytes >= self._bytes_max:
            self.full = True

    def take(self, messages_max: int, bytes_max: int) -> list[Received]:
        """Remove the first messages: one at least, so that one over `bytes_max` gets through."""
        waiting = self._messages
        if messages_max >= len(waiting) and bytes_max >= self._bytes:
            taken = list(waiting)
            waiting.clear()
            self._bytes = 0
        else:
            taken = self._take_some(messages_max, bytes_max)
        if len(waiting) <= self._messages_max // 2 and self._bytes <= self._bytes_max // 2:
            self.full = False
        return taken

    def _take_some(self, messages_max: int, bytes_max: int) -> list[Received]:
        waiting = self._messages
        taken: list[Received] = []
        size = 0
        while waiting and len(taken) < messages_max:
            size += _size(waiting[0])
            if taken and size > bytes_max:
                break
            self._bytes -= _size(waiting[0])
            taken.append(waiting.popleft())
        return taken

    def drop_unacknowledged(self, before: int) -> int:
        """Remove what came unacknowledged over connections numbered below `before`; how many."""
        waiting = self.take(len(self._messages), self._bytes)
        kept = [m for m in waiting if not m.packet_id or m.connection >= before]
        self.put(kept)
        return len(waiting) - len(kept)


def _size(message: Received) -> int:
    """What a message takes in memory, about: a client may fill any part of it."""
    size = MESSAGE_BYTES + len(message.payload) + len(message.topic)
    if message.correlation:
        size += len(message.correlation)
    for name, value in message.user_properties:
        size += PROPERTY_BYTES + len(name) + len(value)
    return size
