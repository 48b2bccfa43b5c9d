"""An MQTT 5 client that acknowledges by hand, works in batches and outlives its connections.

Received messages wait in a bounded inbox; past its bounds the socket is not read, so memory stays
bounded whatever the broker sends. Published messages wait until the broker has acknowledged them,
over as many connections as that takes.
"""

import asyncio
import itertools
import logging
import random
from collections.abc import AsyncIterator, Iterable, Sequence
from types import TracebackType
from typing import Final, NamedTuple, Self

from bss_stream.errors import MqttError
from bss_stream.mqtt.inbox import Inbox
from bss_stream.mqtt.messages import Message, MqttSettings, Received, Refusal, Subscription
from bss_stream.mqtt.outgoing import PACKET_ID_MAX, Outgoing
from bss_stream.mqtt.wire import (
    Connection,
    ConnectionFailedError,
    Lost,
    Opened,
    open_connection,
)

log = logging.getLogger(__name__)

BATCH_BYTES_MAX: Final = 8 * 1024 * 1024
"""What one batch of received messages holds, unless told otherwise."""

_SETTLED_S: Final = 5.0
"""A connection that lived so long was a good one: the pauses start small again after it."""


class ClientCounters(NamedTuple):
    """What a client has done since it was made."""

    connections: int
    received: int
    acknowledged: int
    published: int
    refused: int
    sent_again: int
    pauses: int
    """Times that reading was paused because the inbox was full."""
    unexpected_acks: int
    """PUBACKs for packets that this client does not wait for: the broker's fault."""


class MqttClient:
    """One client of a broker: an asynchronous context manager, or `connect` and `close`.

    It belongs to one event loop and has one receiver, which must not wait for `publish` or
    `subscribe` of the same client before it acknowledges: rumqttd answers neither while its window
    is full. Once the client has failed for good (credentials refused, session taken over) every
    call raises MqttError.
    """

    def __init__(self, settings: MqttSettings) -> None:
        self.settings = settings
        self._connection: Connection | None = None
        self._connected = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._failure: MqttError | None = None
        self._closed = False
        self._resumed = False
        """Whether the connection goes on with a session that the broker has kept."""
        self._subscriptions: dict[str, Subscription] = {}
        self._numbers = itertools.count(1)
        self._request_ids = itertools.cycle(range(PACKET_ID_MAX + 1, 65_536))
        self._inbox = Inbox(settings.inbox_messages_max, settings.inbox_bytes_max)
        self._outgoing = Outgoing(settings.publish_max)
        self._intake_stopped = False
        self._waiter: asyncio.Future[None] | None = None
        self._wanted = (1, BATCH_BYTES_MAX)
        self._attempt = 0
        self._connections = 0
        self._received = 0
        self._acknowledged = 0
        self._pauses = 0

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        return self._connection is not None

    @property
    def counters(self) -> ClientCounters:
        """A snapshot."""
        out = self._outgoing
        return ClientCounters(
            self._connections,
            self._received,
            self._acknowledged,
            out.published,
            out.refused,
            out.sent_again,
            self._pauses,
            out.unexpected_acks,
        )

    # Connecting.

    async def connect(self, *, patience_s: float = 10.0) -> None:
        """Connect, and stay connected until `close`.

        A broker that cannot be reached is tried again for `patience_s`. Raises MqttError then, or
        at once if the broker's refusal is final.
        """
        first = await self._open(asyncio.get_running_loop().time() + patience_s)
        self._keeper = asyncio.create_task(self._stay_connected(first), name="mqtt-client")
        self._keeper.add_done_callback(self._keeper_ended)

    async def close(self) -> None:
        """Disconnect. What is not acknowledged by then comes again in the next session."""
        self._closed = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
            self._keeper = None
        if self._connection is not None:
            await self._connection.close()
        self._fail(MqttError(f"client {self.settings.client_id!r} is closed"))

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def subscribe(self, *subscriptions: Subscription) -> None:
        """Subscribe, now and on every later connection. Raises MqttError when refused.

        Some brokers refuse by hanging up, so a connection that ends during the request is a
        refusal, too, if the next one ends likewise.
        """
        try:
            replies = await (await self._usable()).subscribe(next(self._request_ids), subscriptions)
        except MqttError:
            replies = await (await self._usable()).subscribe(next(self._request_ids), subscriptions)
        _check(subscriptions, replies)
        self._subscriptions.update({s.filter: s for s in subscriptions})

    async def _usable(self) -> Connection:
        while self._connection is None:
            if self._failure is not None:
                raise self._failure
            await self._connected.wait()
        return self._connection

    async def _stay_connected(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        while True:
            opened_at = loop.time()
            lost = await self._until_lost(connection)
            reason = f"{self.settings.endpoint}, client {self.settings.client_id!r}: {lost.reason}"
            if lost.final:
                raise MqttError(reason)
            log.warning("%s; connecting again", reason)
            # Two clients that share an id throw each other out: their pauses have to grow, too.
            self._attempt = 0 if loop.time() - opened_at >= _SETTLED_S else self._attempt + 1
            connection = await self._open(None)
            log.info("%s: connected again", self.settings.endpoint)

    async def _until_lost(self, connection: Connection) -> Lost:
        """Raises ConnectionFailedError when a kept session's subscriptions are refused."""
        renewing = asyncio.create_task(self._renew(connection))
        try:
            await asyncio.wait((connection.lost, renewing), return_when=asyncio.FIRST_COMPLETED)
            if not connection.lost.done():
                await renewing
            return await connection.lost
        finally:
            renewing.cancel()
            await asyncio.wait((renewing,))

    async def _renew(self, connection: Connection) -> None:
        """Subscribe again in a session that was kept: Mosquitto keeps one over a restart, but
        without its shared subscriptions, and would never say so.

        Not waited for before messages are taken: rumqttd answers only once some are acknowledged.
        """
        wanted = list(self._subscriptions.values())
        if not wanted or not self._resumed:
            return
        try:
            replies = await connection.subscribe(next(self._request_ids), wanted)
        except MqttError:
            return  # The connection is gone, and the next one subscribes again.
        _check(wanted, replies)

    async def _open(self, give_up_at: float | None) -> Connection:
        """Connect and subscribe, with growing pauses between attempts."""
        settings, loop = self.settings, asyncio.get_running_loop()
        while True:
            if self._attempt:
                pause_s = settings.backoff_min_s * 2.0 ** min(self._attempt - 1, 30)
                # Jitter, so that the clients of a restarted broker do not come all at once.
                await asyncio.sleep(min(pause_s, settings.backoff_max_s) * random.uniform(0.5, 1.0))
            try:
                return await self._open_once()
            except ConnectionFailedError as error:
                if error.final or (give_up_at is not None and loop.time() >= give_up_at):
                    raise
                log.warning("%s; trying again", error)
            self._attempt += 1

    async def _open_once(self) -> Connection:
        # Later connections resume the session that the first one began.
        clean_start = self.settings.clean_start and self._connections == 0
        connection, opened = await open_connection(
            self.settings, self, next(self._numbers), clean_start=clean_start
        )
        self._resumed = opened.session_present
        wanted = list(self._subscriptions.values())
        if wanted and not self._resumed:
            try:
                replies = await connection.subscribe(next(self._request_ids), wanted)
            except MqttError as error:
                raise ConnectionFailedError(str(error)) from error
            _check(wanted, replies)
        return connection

    def on_opened(self, connection: Connection, opened: Opened) -> None:
        self._connections += 1
        self._connection = connection
        self._connected.set()
        if opened.session_present:
            # The broker sends these again, in their order; without a session they are all we have.
            self._inbox.drop_unacknowledged(before=connection.number)
        if self._inbox.full or self._intake_stopped:
            connection.pause_reading()
        self._outgoing.begin(opened.receive_max, opened.packet_bytes_max)
        self.on_writable()

    def on_lost(self, connection: Connection) -> None:
        if connection is self._connection:
            self._connection = None
            self._connected.clear()

    def _keeper_ended(self, keeper: asyncio.Task[None]) -> None:
        error = None if keeper.cancelled() else keeper.exception()
        if error is None:
            return
        log.error("%s: %s", self.settings.endpoint, error, exc_info=error)
        if self._connection is not None:
            self._connection.abort(str(error))
        self._fail(error if isinstance(error, MqttError) else MqttError(repr(error)))

    def _fail(self, error: MqttError) -> None:
        """Tell everybody who waits, and whoever comes later."""
        self._failure = self._failure or error
        self._connected.set()
        self._wake()
        self._outgoing.fail(self._failure)

    # Receiving.

    async def receive(
        self,
        messages_max: int,
        *,
        bytes_max: int = BATCH_BYTES_MAX,
        linger_s: float = 0.0,
        timeout_s: float | None = None,
    ) -> list[Received]:
        """The next messages, in order: one at least, `messages_max` and `bytes_max` at most.

        Waits for the first one up to `timeout_s`, then up to `linger_s` for more. Empty once
        that time has passed, or once `stop_intake` was called and everything has been handed out.
        Raises MqttError after the client has failed and everything has been handed out.
        """
        while not self._inbox and not self._intake_stopped and self._failure is None:
            if not await self._wait(1, timeout_s):
                return []
        if linger_s > 0 and self._inbox and not self._ready(messages_max, bytes_max):
            await self._wait(messages_max, linger_s, bytes_max)
        if not self._inbox and self._failure is not None and not self._intake_stopped:
            raise self._failure
        batch = self._inbox.take(messages_max, bytes_max)
        if self._connection is not None and not self._inbox.full and not self._intake_stopped:
            self._connection.resume_reading()
        return batch

    async def batches(
        self, messages_max: int, *, bytes_max: int = BATCH_BYTES_MAX, linger_s: float = 0.0
    ) -> AsyncIterator[list[Received]]:
        """What `receive` returns, again and again until `stop_intake` or `close`."""
        while True:
            try:
                batch = await self.receive(messages_max, bytes_max=bytes_max, linger_s=linger_s)
            except MqttError:
                if self._closed:
                    return
                raise
            if batch:
                yield batch
            elif self._intake_stopped:
                return

    def ack(self, messages: Iterable[Received]) -> int:
        """Acknowledge messages, in the order in which they came; how many could be.

        Leaves out what came over a connection that is gone (the broker sends it again), what is
        acknowledged already, and QoS 0.
        """
        connection = self._connection
        if connection is None:
            return 0
        packet_ids = []
        for message in messages:
            if message.connection == connection.number and message.packet_id:
                packet_ids.append(message.packet_id)
                message.packet_id = 0
        if packet_ids:
            connection.acknowledge(packet_ids)
        self._acknowledged += len(packet_ids)
        return len(packet_ids)

    def stop_intake(self) -> None:
        """Read nothing more from the broker; what is in the inbox can still be received.

        For a client that publishes, too, this comes after its last `publish`: PUBACKs are not
        read either.
        """
        self._intake_stopped = True
        if self._connection is not None:
            self._connection.pause_reading()
        self._wake()

    def on_received(self, messages: list[Received]) -> None:
        self._received += len(messages)
        self._inbox.put(messages)
        if self._inbox.full and self._connection is not None:
            self._pauses += 1
            self._connection.pause_reading()
        if self._waiter is not None and self._ready(*self._wanted):
            self._wake()

    def _ready(self, messages: int, size: int) -> bool:
        """Whether waiting for more than what is there would be in vain."""
        return (
            len(self._inbox) >= messages
            or self._inbox.bytes >= size
            or self._inbox.full
            or self._intake_stopped
            or self._failure is not None
            or self._connection is None
            # The broker sends little more before it gets acknowledgements.
            or self._connection.unacknowledged * 4 >= self.settings.receive_max
        )

    async def _wait(
        self, messages: int, timeout_s: float | None, size: int = BATCH_BYTES_MAX
    ) -> bool:
        """Wait for `_ready`; False when the time ran out."""
        if self._waiter is not None:
            raise RuntimeError("another task waits in receive: a client has one receiver")
        self._wanted = (messages, size)
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout_s):
                await self._waiter
            return True
        except TimeoutError:
            return False
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # Publishing.

    async def publish(self, messages: Sequence[Message]) -> list[Refusal]:
        """Publish messages in order and wait for every PUBACK; what was refused, and why.

        Messages of QoS 0 count as done once written. A lost connection is waited out, and what
        it left unacknowledged is sent again with DUP. Cancelling the call takes back what has
        not been sent. Raises MqttError once the client has failed or is closed.
        """
        if self._failure is not None:
            raise self._failure
        if not messages:
            return []
        done = self._outgoing.add(messages)
        self.on_writable()
        return await done

    def on_acknowledged(self, accepted: list[int], refused: list[tuple[int, str]]) -> None:
        self._outgoing.acknowledged(accepted, refused)
        self.on_writable()

    def on_writable(self) -> None:
        connection = self._connection
        while connection is not None and connection.writable:
            packets = self._outgoing.packets()
            if not packets:
                return
            connection.send(b"".join(packets))


def _check(subscriptions: Sequence[Subscription], replies: Sequence[str | None]) -> None:
    if len(replies) != len(subscriptions):
        text = f"the broker answered {len(replies)} of {len(subscriptions)} subscriptions"
        raise ConnectionFailedError(text, final=True)
    pairs = zip(subscriptions, replies, strict=True)
    refused = [f"{wanted.filter}: {reason}" for wanted, reason in pairs if reason is not None]
    if refused:
        text = "the broker refused subscriptions: " + "; ".join(refused)
        raise ConnectionFailedError(text, final=True)
