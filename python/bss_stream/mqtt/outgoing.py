"""The messages on their way to the broker: each waits for its PUBACK, over many connections.

Order is kept: messages leave in the order of the calls, and a new connection gets what the last
one left unacknowledged, in its old order and marked DUP, before anything new.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Final

from bss_stream.errors import MqttError
from bss_stream.mqtt.messages import Message, Refusal
from bss_stream.mqtt.wire import UnpublishableError, as_duplicate, encode

PACKET_ID_MAX: Final = 65_000
"""Packet ids of messages end here; those above are for SUBSCRIBE."""

_WRITE_BYTES: Final = 128 * 1024
"""Roughly what one write takes: enough to be cheap, little enough to notice a full buffer."""


class _Batch:
    """The messages of one call of `publish`."""

    __slots__ = ("done", "messages", "refusals", "sent", "unsettled")

    def __init__(self, messages: Sequence[Message]) -> None:
        self.messages = messages
        self.sent = 0
        self.unsettled = len(messages)
        self.refusals: list[Refusal] = []
        self.done: asyncio.Future[list[Refusal]] = asyncio.get_running_loop().create_future()

    def settle(self, refusal: Refusal | None) -> None:
        self.unsettled -= 1
        if refusal is not None:
            self.refusals.append(refusal)
        if not self.unsettled and not self.done.done():
            self.done.set_result(self.refusals)


class Outgoing:
    """What is to be published, as far as it is not settled."""

    def __init__(self, in_flight_max: int) -> None:
        self.published = 0
        self.refused = 0
        self.sent_again = 0
        self.unexpected_acks = 0
        """PUBACKs for packets that nobody waits for: the broker's fault."""
        self._in_flight_max = min(in_flight_max, PACKET_ID_MAX)
        self._batches: deque[_Batch] = deque()
        self._unacknowledged: dict[int, tuple[_Batch, int, bytes]] = {}
        """By packet id, in the order of sending: a dict keeps it."""
        self._again: deque[int] = deque()
        self._in_flight = 0
        self._window = 0
        self._packet_bytes_max: int | None = None
        self._packet_id = 0

    def add(self, messages: Sequence[Message]) -> asyncio.Future[list[Refusal]]:
        """Queue messages; done, with those refused, once each one is settled.

        Cancelling the future takes back what has not been sent.
        """
        batch = _Batch(messages)
        self._batches.append(batch)
        return batch.done

    def begin(self, receive_max: int, packet_bytes_max: int | None) -> None:
        """Start on a new connection, within the limits that its broker gave."""
        self._window = min(self._in_flight_max, receive_max)
        self._packet_bytes_max = packet_bytes_max
        self._in_flight = 0
        self._again = deque(self._unacknowledged)

    def packets(self) -> list[bytes]:
        """What to write next: as much as one write should take and the window has room for."""
        return self._old_packets() or self._new_packets()

    def acknowledged(self, accepted: Sequence[int], refused: Sequence[tuple[int, str]]) -> None:
        """Settle packets by id."""
        for packet_id in accepted:
            self._settle(packet_id, None)
        for packet_id, reason in refused:
            self._settle(packet_id, reason)

    def fail(self, error: MqttError) -> None:
        """Nothing more will be sent: tell everybody who waits."""
        batches = [batch for batch, _, _ in self._unacknowledged.values()]
        for batch in (*batches, *self._batches):
            if not batch.done.done():
                batch.done.set_exception(error)
        self._batches.clear()
        self._unacknowledged.clear()

    def _settle(self, packet_id: int, reason: str | None) -> None:
        entry = self._unacknowledged.pop(packet_id, None)
        if entry is None:
            self.unexpected_acks += 1
            return
        batch, position, _ = entry
        self._in_flight -= 1
        if reason is None:
            self.published += 1
            batch.settle(None)
        else:
            self.refused += 1
            batch.settle(Refusal(position, reason))

    def _old_packets(self) -> list[bytes]:
        packets: list[bytes] = []
        size = 0
        while self._again and self._in_flight < self._window and size < _WRITE_BYTES:
            entry = self._unacknowledged.get(self._again.popleft())
            if entry is not None:
                packets.append(as_duplicate(entry[2]))
                size += len(entry[2])
                self._in_flight += 1
        self.sent_again += len(packets)
        return packets

    def _new_packets(self) -> list[bytes]:
        packets: list[bytes] = []
        size = 0
        while self._batches and not self._again and size < _WRITE_BYTES:
            batch = self._batches[0]
            if batch.sent == len(batch.messages) or batch.done.done():
                self._batches.popleft()
                continue
            message = batch.messages[batch.sent]
            if message.qos and self._in_flight >= self._window:
                break
            packet = self._packet(batch, batch.sent, message)
            batch.sent += 1
            if packet is not None:
                packets.append(packet)
                size += len(packet)
        return packets

    def _packet(self, batch: _Batch, position: int, message: Message) -> bytes | None:
        """The encoded message, noted as in flight; None if it is refused here."""
        packet_id = self._next_packet_id() if message.qos else None
        try:
            data = encode(message, packet_id)
            if self._packet_bytes_max is not None and len(data) > self._packet_bytes_max:
                raise UnpublishableError(
                    f"packet of {len(data)} bytes: the broker takes {self._packet_bytes_max}"
                )
        except UnpublishableError as error:
            self.refused += 1
            batch.settle(Refusal(position, str(error)))
            return None
        if packet_id is None:
            self.published += 1
            batch.settle(None)
        else:
            self._unacknowledged[packet_id] = (batch, position, data)
            self._in_flight += 1
        return data

    def _next_packet_id(self) -> int:
        while True:
            self._packet_id = self._packet_id % PACKET_ID_MAX + 1
            if self._packet_id not in self._unacknowledged:
                return self._packet_id
