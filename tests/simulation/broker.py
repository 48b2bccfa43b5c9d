"""A simulated MQTT 5 broker and the connections to it: the roles' own client speaks to it in bytes.

It keeps sessions, as Mosquitto with persistence does: what a client has not acknowledged comes
again, marked DUP, when it returns. Connections deliver in order, take time, and break.
"""

import asyncio
import contextvars
from collections import Counter, deque
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final, NamedTuple

import mqtt5
from mqtt5 import (
    ConnAckPacket,
    ConnectPacket,
    DisconnectPacket,
    PingReqPacket,
    PingRespPacket,
    PubAckPacket,
    PublishPacket,
    QoS,
    SubAckPacket,
    SubAckReasonCode,
    SubscribePacket,
)

from tests.simulation.chance import Chance
from tests.simulation.loop import PROCESS, WORLD

TYPICAL_S: Final = 0.001
IN_FLIGHT_MAX: Final = 20
"""Messages that the broker sends a client ahead of its acknowledgements."""

Listener = Callable[[str, bytes, bytes], None]
"""Hears topic, payload and correlation data."""


class Published(NamedTuple):
    """One message as the broker keeps it."""

    topic: str
    payload: bytes
    correlation: bytes | None
    user_properties: list[tuple[str, str]]


class Session:
    """What the broker knows of a client, also while it is away."""

    def __init__(self, client_id: str) -> None:
        self.client_id = client_id
        self.filters: dict[str, None] = {}
        self.queue: deque[Published] = deque()
        self.in_flight: dict[int, Published] = {}
        self.link: Link | None = None
        self.kept = False
        """Whether it outlives its connection."""
        self._packet_id = 0

    def send(self, message: Published) -> None:
        """Deliver a message, now or when there is room for it."""
        self.queue.append(message)
        self.pump()

    def resume(self, link: "Link") -> None:
        """Begin anew on a connection: first what was not acknowledged on the last one."""
        self.link = link
        for packet_id, message in self.in_flight.items():
            link.to_client(_packet(message, packet_id, duplicate=True))
        self.pump()

    def acknowledged(self, packet_id: int) -> None:
        """The client has a message."""
        self.in_flight.pop(packet_id, None)
        self.pump()

    def pump(self) -> None:
        """Send what there is room for."""
        while self.link is not None and self.queue and len(self.in_flight) < IN_FLIGHT_MAX:
            message = self.queue.popleft()
            self._packet_id = self._packet_id % 60_000 + 1
            self.in_flight[self._packet_id] = message
            self.link.to_client(_packet(message, self._packet_id, duplicate=False))


def _packet(message: Published, packet_id: int, *, duplicate: bool) -> bytes:
    return PublishPacket(
        message.topic,
        message.payload,
        qos=QoS.AT_LEAST_ONCE,
        packet_id=packet_id,
        duplicate=duplicate,
        correlation_data=message.correlation,
        user_properties=message.user_properties,
    ).write()


class Broker:
    """Sessions and the routes between them; whoever is not simulated in bytes is a listener."""

    def __init__(self, chance: Chance) -> None:
        self.down = False
        self.chance = chance
        self.links: list[Link] = []
        self.published: Counter[tuple[str, bytes]] = Counter()
        """What roles have published, by topic and payload."""
        self.listener: Listener = lambda topic, payload, correlation: None
        self._sessions: dict[str, Session] = {}

    @property
    def heard(self) -> bool:
        """Whether anybody has subscribed: what comes before that is nobody's."""
        return any(session.filters for session in self._sessions.values())

    @property
    def pending(self) -> list[Published]:
        """Messages that a client has yet to acknowledge."""
        sessions = self._sessions.values()
        return [m for s in sessions for m in (*s.in_flight.values(), *s.queue)]

    async def connect(self, factory: Callable[[], asyncio.BaseProtocol]) -> asyncio.Transport:
        """A new connection of the running process. Raises ConnectionRefusedError."""
        await asyncio.sleep(self.chance.delay_s(TYPICAL_S))
        if self.down:
            raise ConnectionRefusedError("the broker is down")
        link = Link(self, factory())
        self.links.append(link)
        process = PROCESS.get(None)
        if process is not None:
            process.on_killed.append(link.cut)
        link.protocol.connection_made(link)
        return link

    def crash(self) -> None:
        """Go away for a while; sessions are on disk."""
        self.down = True
        for link in list(self.links):
            link.cut()

    def accept(self, topic: str, payload: bytes, correlation: bytes) -> None:
        """Take a message from a client that is not simulated in bytes."""
        self.route(Published(topic, payload, correlation, []))

    def route(self, message: Published) -> None:
        """Hand a message to every subscriber, and to one of each shared subscription."""
        shared: dict[str, list[Session]] = {}
        for session in self._sessions.values():
            for filter in session.filters:
                group, plain = _split_shared(filter)
                if not matches(plain, message.topic):
                    continue
                if group is None:
                    session.send(message)
                else:
                    shared.setdefault(group, []).append(session)
        for members in shared.values():
            present = [member for member in members if member.link is not None]
            self.chance.random.choice(present or members).send(message)

    def session(self, client_id: str, *, clean: bool) -> tuple[Session, bool]:
        """A client's session, and whether there was one."""
        known = self._sessions.get(client_id)
        if known is not None and known.link is not None:
            known.link.cut()
        known = self._sessions.get(client_id)
        if known is not None and not clean:
            return known, True
        self._sessions[client_id] = session = Session(client_id)
        return session, False

    def end(self, session: Session) -> None:
        """A client's connection is over."""
        session.link = None
        if not session.kept and self._sessions.get(session.client_id) is session:
            del self._sessions[session.client_id]

    def hear(self, packet: PublishPacket) -> None:
        """Take a message that a role has published."""
        loop = asyncio.get_running_loop()
        self.chance.note(loop.time(), f"published {packet.topic}", packet.payload)
        self.published[packet.topic, packet.payload] += 1
        correlation = packet.correlation_data or b""
        loop.call_later(
            self.chance.delay_s(TYPICAL_S),
            self.listener,
            *(packet.topic, packet.payload, correlation),
            context=WORLD,
        )
        self.route(
            Published(packet.topic, packet.payload, correlation, list(packet.user_properties))
        )


@lru_cache(maxsize=1_000)
def _split_shared(filter: str) -> tuple[str | None, str]:
    if not filter.startswith("$share/"):
        return None, filter
    _, group, plain = filter.split("/", 2)
    return group, plain


@lru_cache(maxsize=20_000)
def matches(filter: str, topic: str) -> bool:
    """Whether a topic filter takes a topic."""
    wanted, has = filter.split("/"), topic.split("/")
    if wanted[-1] == "#":
        wanted, has = wanted[:-1], has[: len(wanted) - 1]
    return len(wanted) == len(has) and all(
        one in ("+", other) for one, other in zip(wanted, has, strict=True)
    )


class Link(asyncio.Transport):
    """One connection: the client's transport, and the broker's end of it."""

    def __init__(self, broker: Broker, protocol: asyncio.BaseProtocol) -> None:
        super().__init__()
        self.protocol: Any = protocol
        self._broker = broker
        self._client = contextvars.copy_context()
        self._session: Session | None = None
        self._up: deque[bytes] = deque()
        self._down: deque[bytes] = deque()
        self._up_at_s = self._down_at_s = 0.0
        self._unread = b""
        self._reading = True
        self._stalled = False
        self._closing = False
        self._cut = False

    # The client's end.

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._closing and data:
            self._up.append(bytes(data))
            self._up_at_s = self._later(self._up_at_s, self._arrive, WORLD)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._up.append(b"")
        self._up_at_s = self._later(self._up_at_s, self._arrive, WORLD)

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self.abort()

    def abort(self) -> None:
        self._closing = True
        self.cut()

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        if self._stalled:
            self._stalled = False
            asyncio.get_running_loop().call_soon(self._deliver, context=self._client)

    def get_protocol(self) -> asyncio.BaseProtocol:
        protocol: asyncio.BaseProtocol = self.protocol
        return protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    # The wire.

    def to_client(self, data: bytes) -> None:
        """Send what the broker says."""
        self._down.append(data)
        self._down_at_s = self._later(self._down_at_s, self._deliver, self._client)

    def cut(self) -> None:
        """Break: what is on its way is lost, both ends notice."""
        if self._cut:
            return
        self._cut = self._closing = True
        self._up.clear()
        self._down.clear()
        self._broker.links.remove(self)
        if self._session is not None:
            self._broker.end(self._session)
        loop = asyncio.get_running_loop()
        error = ConnectionResetError("the connection broke")
        loop.call_soon(self.protocol.connection_lost, error, context=self._client)

    def _later(
        self, after_s: float, callback: Callable[[], None], context: contextvars.Context
    ) -> float:
        """Call in order: not before what went this way before."""
        loop = asyncio.get_running_loop()
        at_s = max(after_s, loop.time() + self._broker.chance.delay_s(TYPICAL_S))
        loop.call_at(at_s, callback, context=context)
        return at_s

    def _deliver(self) -> None:
        while self._down and not self._cut:
            if not self._reading:
                self._stalled = True
                return
            data = self._down.popleft()
            view = self.protocol.get_buffer(len(data))
            taken = min(len(view), len(data))
            view[:taken] = data[:taken]
            if taken < len(data):
                self._down.appendleft(data[taken:])
            self.protocol.buffer_updated(taken)

    # The broker's end.

    def _arrive(self) -> None:
        if self._cut or not self._up:
            return
        data = self._up.popleft()
        if not data:
            self.cut()
            return
        self._unread += data
        while self._unread and not self._cut:
            try:
                packet, size = mqtt5.read(memoryview(self._unread))
            except IndexError:
                return
            self._unread = self._unread[size:]
            self._take(packet)

    def _take(self, packet: object) -> None:
        match packet:
            case ConnectPacket():
                self._open(packet)
            case PublishPacket():
                self._broker.hear(packet)
                if packet.packet_id is not None:
                    self.to_client(PubAckPacket(packet.packet_id).write())
            case PubAckPacket():
                self._of().acknowledged(packet.packet_id)
            case SubscribePacket():
                session = self._of()
                session.filters.update(dict.fromkeys(s.pattern for s in packet.subscriptions))
                codes = [SubAckReasonCode.GRANTED_QOS_AT_LEAST_ONCE] * len(packet.subscriptions)
                self.to_client(SubAckPacket(packet.packet_id, codes).write())
            case PingReqPacket():
                self.to_client(PingRespPacket().write())
            case DisconnectPacket():
                self.cut()
            case _:
                raise AssertionError(f"unexpected {packet!r}")

    def _open(self, packet: ConnectPacket) -> None:
        session, present = self._broker.session(packet.client_id, clean=packet.clean_start)
        session.kept = packet.session_expiry_interval > 0
        self._session = session
        self.to_client(ConnAckPacket(session_present=present).write())
        session.resume(self)

    def _of(self) -> Session:
        assert self._session is not None, "a packet before the CONNECT"
        return self._session
