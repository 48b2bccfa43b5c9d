"""What a user of MQTT sees of it: messages and settings, free of any client library."""

import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

SESSION_WEEK_S = 7 * 24 * 3600
"""A session expiry that outlives a long week-end without a bridge."""


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One message to publish, with its MQTT 5 properties."""

    topic: str
    payload: bytes
    qos: int = 1
    """0 or 1. QoS 2 is not offered: a repeat is harmless here, and it costs twice the packets."""
    retain: bool = False
    correlation: bytes | None = None
    expiry_s: int | None = None
    user_properties: Sequence[tuple[str, str]] = ()
    content_type: str | None = None
    response_topic: str | None = None


class Received(msgspec.Struct, eq=False, gc=False):
    """One message from the broker, with what is needed to acknowledge it once.

    `packet_id` and `connection` are the token of the acknowledgement: packet ids are used again,
    so they mean something on the connection they came from only. `MqttClient.ack` sets
    `packet_id` to 0, as it is from the start for a message of QoS 0.
    """

    topic: str
    payload: bytes
    qos: int
    retain: bool
    duplicate: bool
    correlation: bytes | None
    user_properties: list[tuple[str, str]]
    packet_id: int
    connection: int
    received_s: float = 0.0
    """When it came in, by the event loop's clock."""


class Refusal(NamedTuple):
    """A message that the broker understood and will not take: publishing it again is no use."""

    position: int
    """Where the message stands in the sequence given to `publish`."""
    reason: str


class Subscription(NamedTuple):
    """One topic filter. QoS 1 at most, also where the publisher used QoS 2."""

    filter: str
    qos: int = 1
    no_local: bool = False

    def shared(self, group: str) -> "Subscription":
        """The same filter, its messages split among the members of `group`."""
        return self._replace(filter=f"$share/{group}/{self.filter}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Will:
    """What the broker publishes when this client goes away without saying so."""

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = False
    delay_s: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MqttSettings:
    """How to reach a broker, and the limits that keep memory bounded."""

    host: str
    port: int = 1883
    client_id: str
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = None
    will: Will | None = None

    clean_start: bool = False
    """Ask for a fresh session at the first connection; later ones resume it."""
    session_expiry_s: int = 0
    """How long the broker keeps the session of an absent client; 0 ends it with the connection."""
    keep_alive_s: int = 30
    connect_timeout_s: float = 10.0

    backoff_min_s: float = 0.1
    backoff_max_s: float = 15.0
    """Bounds of the pause before a new attempt to connect: doubled each time, with jitter."""

    receive_max: int = 2_000
    """Messages that the broker may send ahead of their acknowledgement. Some brokers send more,
    some (rumqttd) never more than 100: a smaller number here makes `receive` linger in vain."""
    publish_max: int = 2_000
    """Messages sent ahead of their PUBACK; the broker's own Receive Maximum bounds it, too."""
    inbox_messages_max: int = 8_192
    inbox_bytes_max: int = 16 * 1024 * 1024
    """Received messages that wait for `receive`. Past either bound the socket is not read."""
    packet_bytes_max: int = 2 * 1024 * 1024

    def __post_init__(self) -> None:
        for name in ("receive_max", "publish_max"):
            if not 1 <= getattr(self, name) <= 65_535:
                raise ValueError(f"{name} is {getattr(self, name)}: expected 1 to 65535")
        if not 1 <= self.keep_alive_s <= 65_535:
            # rumqttd closes a connection without keep alive, and a half-open one is never noticed.
            raise ValueError(f"keep_alive_s is {self.keep_alive_s}: expected 1 to 65535")
        if not 0 < self.backoff_min_s <= self.backoff_max_s:
            raise ValueError(
                f"backoff_min_s is {self.backoff_min_s} and backoff_max_s {self.backoff_max_s}: "
                "expected 0 < backoff_min_s <= backoff_max_s"
            )

    @property
    def endpoint(self) -> str:
        """`host:port`, as messages name the broker."""
        return f"{self.host}:{self.port}"
