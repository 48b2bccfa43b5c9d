"""One connection to an MQTT 5 broker, and the only module that knows the client library.

The library is the codec below aiomqtt 3 (docs/decisions/0004-mqtt-client.md): packets come and go
as its types, and this protocol moves their bytes. It knows no session and never reconnects.
"""

import asyncio
import socket
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol, cast

import aiomqtt
import mqtt5
from aiomqtt import ConnAckPacket, PubAckPacket, PublishPacket, QoS, SubAckPacket
from mqtt5 import (
    ConnAckReasonCode,
    ConnectPacket,
    DisconnectPacket,
    DisconnectReasonCode,
    PingReqPacket,
    PingRespPacket,
    PubAckReasonCode,
    SubscribePacket,
)

from bss_stream import tls
from bss_stream.errors import MqttError
from bss_stream.mqtt.messages import Message, MqttSettings, Received, Subscription, Will

_BUFFER_BYTES: Final = 256 * 1024
"""How much one read takes at most, and so how far the inbox can overshoot its bounds."""

_CLOSE_TIMEOUT_S: Final = 2.0
"""How long a broker may take to hang up after a DISCONNECT."""

_QUICK_ACK: Final[int | None] = getattr(socket, "TCP_QUICKACK", None)
"""Linux has it."""

_STRING_BYTES_MAX: Final = 65_535
_DUPLICATE_FLAG: Final = 0x08
_FAILURE_MIN: Final = 0x80
"""MQTT 5 reason codes from here on are failures."""

# The codec's enumerations have no hash, hence tuples.
_PASSING_REFUSALS: Final = (
    ConnAckReasonCode.UNSPECIFIED_ERROR,
    ConnAckReasonCode.IMPLEMENTATION_SPECIFIC_ERROR,
    ConnAckReasonCode.SERVER_UNAVAILABLE,
    ConnAckReasonCode.SERVER_BUSY,
    ConnAckReasonCode.QUOTA_EXCEEDED,
    ConnAckReasonCode.CONNECTION_RATE_EXCEEDED,
)
"""Refusals of a CONNECT that another attempt may overcome."""

_WRONG_USER: Final = (
    ConnAckReasonCode.BAD_USER_NAME_OR_PASSWORD,
    ConnAckReasonCode.NOT_AUTHORIZED,
)
_CHECK_USER: Final = "check the user name and the password, and that the broker knows them"

_FINAL_DISCONNECTS: Final = (
    # Whoever reconnects after a take-over throws the other client out in turn, for ever.
    DisconnectReasonCode.SESSION_TAKEN_OVER,
    DisconnectReasonCode.NOT_AUTHORIZED,
)

_QOS: Final = (QoS.AT_MOST_ONCE, QoS.AT_LEAST_ONCE)
_PING: Final = PingReqPacket().write()


class ConnectionFailedError(MqttError):
    """A connection could not be made; `final` when no further attempt can do better."""

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


class Opened(NamedTuple):
    """What the broker's CONNACK says."""

    session_present: bool
    receive_max: int
    packet_bytes_max: int | None


class Lost(NamedTuple):
    """Why a connection ended; `final` when reconnecting would do harm."""

    reason: str
    final: bool


class Listener(Protocol):
    """Who is told of a connection's traffic, synchronously, a read at a time."""

    def on_opened(self, connection: "Connection", opened: Opened) -> None:
        """The broker has said yes. Comes before any message of the connection."""

    def on_lost(self, connection: "Connection") -> None:
        """The connection has ended, whether it was opened or not."""

    def on_received(self, messages: list[Received]) -> None: ...

    def on_acknowledged(self, accepted: list[int], refused: list[tuple[int, str]]) -> None:
        """PUBACKs by packet id, the refused ones with the reason."""

    def on_writable(self) -> None:
        """The write buffer has drained."""


class UnpublishableError(MqttError):
    """No broker could take the message."""


def encode(message: Message, packet_id: int | None) -> bytes:
    """The PUBLISH packet of a message. Raises UnpublishableError."""
    topic = message.topic
    if not topic or "+" in topic or "#" in topic or "\0" in topic:
        raise UnpublishableError(f"topic {topic[:80]!r}: expected a name without wildcards or NUL")
    if message.qos not in (0, 1):
        raise UnpublishableError(f"qos is {message.qos}: expected 0 or 1")
    data = PublishPacket(
        topic,
        message.payload,
        qos=_QOS[message.qos],
        retain=message.retain,
        packet_id=packet_id,
        message_expiry_interval=message.expiry_s,
        content_type=message.content_type,
        response_topic=message.response_topic,
        correlation_data=message.correlation,
        user_properties=list(message.user_properties),
    ).write()
    if len(data) - len(message.payload) > _STRING_BYTES_MAX:
        _check_lengths(message)
    return data


def _check_lengths(message: Message) -> None:
    """The codec writes a length that overflows, and such a packet breaks the connection."""
    texts = [message.topic, message.content_type or "", message.response_topic or ""]
    texts.extend(part for pair in message.user_properties for part in pair)
    for part in (*(text.encode() for text in texts), message.correlation or b""):
        if len(part) > _STRING_BYTES_MAX:
            raise UnpublishableError(
                f"{part[:40]!r}... has {len(part)} bytes: at most {_STRING_BYTES_MAX}"
            )


def as_duplicate(publish: bytes) -> bytes:
    """The same PUBLISH packet, marked as sent before."""
    return bytes((publish[0] | _DUPLICATE_FLAG,)) + publish[1:]


def _connect_packet(settings: MqttSettings, clean_start: bool) -> bytes:
    return ConnectPacket(
        settings.client_id,
        username=settings.username,
        password=None if settings.password is None else settings.password.encode(),
        clean_start=clean_start,
        will=None if settings.will is None else _will(settings.will),
        keep_alive=settings.keep_alive_s,
        session_expiry_interval=settings.session_expiry_s,
        receive_max=settings.receive_max,
        max_packet_size=settings.packet_bytes_max,
    ).write()


def _will(will: Will) -> mqtt5.Will:
    return mqtt5.Will(
        will.topic,
        payload=will.payload,
        qos=_QOS[will.qos],
        retain=will.retain,
        will_delay_interval=will.delay_s,
    )


class Connection(asyncio.BufferedProtocol):
    """The protocol of one connection; `open_connection` makes it.

    The bytes it holds are bounded by one packet of `packet_bytes_max`, and the packets it
    hands on by one read. `number` tells connections apart in acknowledgement tokens.
    """

    def __init__(self, settings: MqttSettings, listener: Listener, number: int) -> None:
        loop = asyncio.get_running_loop()
        self.number = number
        self.unacknowledged = 0
        """Messages of QoS 1 received here and not acknowledged yet."""
        self.writable = True
        self.opened: asyncio.Future[Opened] = loop.create_future()
        self.lost: asyncio.Future[Lost] = loop.create_future()
        self._settings = settings
        self._listener = listener
        self._transport: asyncio.Transport | None = None
        self._socket: socket.socket | None = None
        self._replies: dict[int, asyncio.Future[list[str | None]]] = {}
        self._gone: asyncio.Future[None] = loop.create_future()
        self._buffer = bytearray(_BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._filled = 0
        self._reading = True
        self._heard = True
        self._silent_ticks = 0
        self._timer: asyncio.TimerHandle | None = None
        self._end: Lost | None = None

    # What the client asks for.

    def send(self, data: bytes) -> None:
        """Write packets. Nothing happens on a connection that has ended."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def acknowledge(self, packet_ids: Sequence[int]) -> None:
        """Write the PUBACKs of these packets in one go."""
        self.unacknowledged -= len(packet_ids)
        self.send(b"".join([PubAckPacket(packet_id).write() for packet_id in packet_ids]))

    def subscribe(
        self, packet_id: int, subscriptions: Sequence[Subscription]
    ) -> asyncio.Future[list[str | None]]:
        """Send SUBSCRIBE; the result has a reason for each filter refused, else None."""
        wanted = [
            mqtt5.Subscription(
                s.filter,
                max_qos=_QOS[s.qos],
                no_local=s.no_local,
                # A filter that the session has already must not bring retained messages again.
                retain_handling=mqtt5.RetainHandling.SEND_IF_SUBSCRIPTION_NOT_EXISTS,
            )
            for s in subscriptions
        ]
        reply: asyncio.Future[list[str | None]] = asyncio.get_running_loop().create_future()
        if self._end is not None:
            reply.set_exception(MqttError(self._end.reason))
        else:
            self._replies[packet_id] = reply
            self.send(SubscribePacket(packet_id, wanted).write())
        return reply

    def pause_reading(self) -> None:
        """Leave what comes in the kernel's buffers, then in the broker's queue."""
        if self._reading and self._transport is not None:
            self._reading = False
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Undo `pause_reading`."""
        if not self._reading and self._transport is not None:
            self._reading = True
            self._heard = True
            self._transport.resume_reading()

    async def close(self) -> None:
        """Say DISCONNECT and wait until the broker has read it and hung up.

        What still comes is thrown away, but it is read: closing a socket with unread bytes resets
        the connection, and the acknowledgements on their way would be lost with it.
        """
        self._finish(Lost("closed by this client", final=False))
        if self._transport is None:
            return
        self.send(DisconnectPacket().write())
        if self._transport.can_write_eof():
            # rumqttd reads the DISCONNECT and leaves the connection open: this ends it, too.
            self._transport.write_eof()
        self.resume_reading()
        await asyncio.wait([self._gone], timeout=_CLOSE_TIMEOUT_S)
        self._transport.abort()

    def abort(self, reason: str) -> None:
        """Drop the connection at once, without a DISCONNECT."""
        self._finish(Lost(reason, final=False))
        if self._transport is not None:
            self._transport.abort()

    # What the transport tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._socket = transport.get_extra_info("socket")
        self._acknowledge_at_once()

    def _acknowledge_at_once(self) -> None:
        """Have the kernel acknowledge what has come without its delay of up to 40 ms.

        A broker that leaves Nagle's algorithm on, as the embedded one does, holds back its next
        small packet until then. The kernel forgets the option, so it is set after every read.
        """
        if _QUICK_ACK is not None and self._socket is not None:
            self._socket.setsockopt(socket.IPPROTO_TCP, _QUICK_ACK, 1)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._gone.done():
            self._gone.set_result(None)
        # With TLS 1.3 a server judges a client's certificate once the client believes it is in.
        advice = tls.refusal(exc)
        reason = f"connection lost: {exc}" if exc else "closed by the broker"
        self._finish(Lost(f"{reason}; {advice}" if advice else reason, advice is not None))

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        self._listener.on_writable()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        if self._end is not None:
            return
        self._heard = True
        self._acknowledge_at_once()
        self._filled += nbytes
        received: list[Received] = []
        accepted: list[int] = []
        refused: list[tuple[int, str]] = []
        used = self._decode(received, accepted, refused)
        rest = self._filled - used
        if used:
            self._buffer[:rest] = self._view[used : self._filled]
        self._filled = rest
        if rest:
            self._make_room(rest)
        if accepted or refused:
            self._listener.on_acknowledged(accepted, refused)
        if received:
            self._listener.on_received(received)

    def _decode(
        self, received: list[Received], accepted: list[int], refused: list[tuple[int, str]]
    ) -> int:
        """Sort whole packets into the lists; the bytes that they took."""
        read, view, filled, used = mqtt5.read, self._view, self._filled, 0
        now_s = asyncio.get_running_loop().time()
        try:
            while used < filled and self._end is None:
                try:
                    packet, size = read(view[used:filled])
                except IndexError:
                    break  # Not come in whole; `_make_room` tells that from a broken packet.
                if type(packet) is PublishPacket:
                    received.append(self._received(packet, now_s))
                elif type(packet) is PubAckPacket:
                    if packet.reason_code is PubAckReasonCode.SUCCESS:
                        accepted.append(packet.packet_id)
                    else:
                        _sort_puback(packet, accepted, refused)
                else:
                    self._control(packet)
                used += size
        except ValueError as error:
            self._break_off(f"malformed packet from the broker: {error}")
            return filled
        return used

    def _received(self, packet: PublishPacket, now_s: float) -> Received:
        packet_id = packet.packet_id or 0
        if packet_id:
            if packet.qos is QoS.EXACTLY_ONCE:
                # Never asked for, and taking it as QoS 1 would leave the broker waiting.
                raise ValueError(f"QoS 2 message on {packet.topic!r}")
            self.unacknowledged += 1
        return Received(
            packet.topic,
            packet.payload,
            1 if packet_id else 0,
            packet.retain,
            packet.duplicate,
            packet.correlation_data,
            packet.user_properties,
            packet_id,
            self.number,
            now_s,
        )

    def _control(self, packet: object) -> None:
        match packet:
            case PingRespPacket():
                pass
            case ConnAckPacket():
                self._connected(packet)
            case SubAckPacket():
                reply = self._replies.pop(packet.packet_id, None)
                if reply is not None and not reply.done():
                    codes = packet.reason_codes
                    reply.set_result([_text(code) if _failed(code) else None for code in codes])
            case DisconnectPacket():
                reason = _text(packet.reason_code, packet.reason_str)
                final = packet.reason_code in _FINAL_DISCONNECTS
                self._finish(Lost(f"the broker disconnected this client: {reason}", final))
                if self._transport is not None:
                    self._transport.abort()
            case _:
                raise ValueError(f"unexpected {type(packet).__name__}")

    def _connected(self, packet: ConnAckPacket) -> None:
        if self.opened.done():
            raise ValueError("a second CONNACK")
        if packet.reason_code is not ConnAckReasonCode.SUCCESS:
            refusal = aiomqtt.NegativeAckError(packet)
            advice = _CHECK_USER if packet.reason_code in _WRONG_USER else None
            self._refuse(
                f"{refusal} ({packet.reason_code.value})"
                + "".join(f": {text}" for text in (refusal.reason_str, advice) if text),
                final=packet.reason_code not in _PASSING_REFUSALS,
            )
            return
        # The broker's word goes before ours.
        keep_alive_s = packet.server_keep_alive or self._settings.keep_alive_s
        self._tick(keep_alive_s / 2)
        opened = Opened(packet.session_present, packet.receive_max, packet.max_packet_size)
        self.opened.set_result(opened)
        self._listener.on_opened(self, opened)

    def _refuse(self, reason: str, *, final: bool) -> None:
        text = f"{self._settings.endpoint} refused client {self._settings.client_id!r}: {reason}"
        self.opened.set_exception(ConnectionFailedError(text, final=final))
        self.abort(text)

    def _tick(self, interval_s: float) -> None:
        """Ping twice within each keep alive; a broker that stays silent for one is gone."""
        if self._end is not None:
            return
        # Neither a full inbox nor a full window proves anything: rumqttd answers no PINGREQ while
        # a client owes it all the acknowledgements that it may.
        waits_for_us = not self._reading or self.unacknowledged >= self._settings.receive_max
        self._silent_ticks = 0 if self._heard or waits_for_us else self._silent_ticks + 1
        self._heard = False
        if self._silent_ticks >= 3:
            self.abort(f"no sign of life from the broker for {2 * interval_s:.0f} s")
            return
        self.send(_PING)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(interval_s, self._tick, interval_s)

    def _make_room(self, rest: int) -> None:
        """Grow the buffer when the packet begun in it is longer, and judge what never ends."""
        size = _packet_size(self._view[:rest])
        if size is None:
            return
        if size <= rest:
            self._break_off("malformed packet from the broker: a field passes the packet's end")
        elif size > self._settings.packet_bytes_max:
            limit = self._settings.packet_bytes_max
            self._break_off(f"the broker sent a packet of {size} bytes: at most {limit}")
        elif size > len(self._buffer):
            grown = bytearray(size)
            grown[:rest] = self._view[:rest]
            self._buffer, self._view = grown, memoryview(grown)

    def _break_off(self, reason: str) -> None:
        self.send(DisconnectPacket(reason_code=DisconnectReasonCode.PROTOCOL_ERROR).write())
        self.abort(reason)

    def _finish(self, end: Lost) -> None:
        """Settle everybody who waits; only the first reason counts."""
        if self._end is not None:
            return
        self._end = end
        if self._timer is not None:
            self._timer.cancel()
        self._listener.on_lost(self)
        for reply in self._replies.values():
            if not reply.done():
                reply.set_exception(MqttError(end.reason))
        self._replies.clear()
        if not self.opened.done():
            text = f"{self._settings.endpoint}: {end.reason} before it answered the CONNECT"
            self.opened.set_exception(ConnectionFailedError(text, final=end.final))
        if not self.lost.done():
            self.lost.set_result(end)


async def open_connection(
    settings: MqttSettings, listener: Listener, number: int, *, clean_start: bool
) -> tuple[Connection, Opened]:
    """Connect and wait for the CONNACK. Raises ConnectionFailedError."""
    loop = asyncio.get_running_loop()
    connection = Connection(settings, listener, number)
    try:
        async with asyncio.timeout(settings.connect_timeout_s):
            await loop.create_connection(
                lambda: connection, settings.host, settings.port, ssl=settings.tls
            )
            connection.send(_connect_packet(settings, clean_start))
            return connection, await connection.opened
    except TimeoutError as error:
        connection.abort("timed out")
        raise ConnectionFailedError(
            f"{settings.endpoint} did not answer within {settings.connect_timeout_s} s"
        ) from error
    except OSError as error:
        advice = tls.refusal(error)
        text = f"{settings.endpoint} cannot be reached: {error}"
        if advice is not None:
            raise ConnectionFailedError(f"{text}; {advice}", final=True) from error
        raise ConnectionFailedError(text) from error
    except asyncio.CancelledError:
        connection.abort("cancelled")
        raise
    finally:
        _retrieve(connection.opened)


def _retrieve(future: asyncio.Future[Opened]) -> None:
    """Mark a failed CONNACK as seen: nobody else will look at it."""
    if future.done() and not future.cancelled():
        future.exception()


def _sort_puback(packet: PubAckPacket, accepted: list[int], refused: list[tuple[int, str]]) -> None:
    code = packet.reason_code
    if _failed(code):
        refused.append((packet.packet_id, _text(code, packet.reason_str)))
    else:
        accepted.append(packet.packet_id)


def _packet_size(begun: memoryview) -> int | None:
    """The length that a packet's fixed header declares, None while that is incomplete."""
    length = 0
    for index in range(1, min(len(begun), 5)):
        length |= (begun[index] & 0x7F) << (7 * (index - 1))
        if not begun[index] & 0x80:
            return 1 + index + length
    return None


class _ReasonCode(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def value(self) -> int: ...


def _failed(code: _ReasonCode) -> bool:
    return code.value >= _FAILURE_MIN


def _text(code: _ReasonCode, detail: str | None = None) -> str:
    text = f"{code.name} ({code.value})"
    return f"{text}: {detail}" if detail else text
