"""The protocol of one connection, fed with bytes as a socket might deliver them."""

import asyncio

import pytest
from aiomqtt import ConnAckPacket, PubAckPacket, PublishPacket, QoS
from hypothesis import given, settings
from hypothesis import strategies as st
from mqtt5 import PingReqPacket

from bss_stream.errors import MqttError
from bss_stream.mqtt.messages import Message, MqttSettings, Received
from bss_stream.mqtt.wire import Connection, Opened, UnpublishableError, as_duplicate, encode

PACKET_BYTES_MAX = 100_000


class Recorder:
    """Notes what a connection tells."""

    def __init__(self) -> None:
        self.received: list[Received] = []
        self.accepted: list[int] = []
        self.refused: list[tuple[int, str]] = []
        self.opened: list[Opened] = []
        self.losses = 0

    def on_opened(self, connection: Connection, opened: Opened) -> None:
        self.opened.append(opened)

    def on_lost(self, connection: Connection) -> None:
        self.losses += 1

    def on_received(self, messages: list[Received]) -> None:
        self.received += messages

    def on_acknowledged(self, accepted: list[int], refused: list[tuple[int, str]]) -> None:
        self.accepted += accepted
        self.refused += refused

    def on_writable(self) -> None:
        raise AssertionError("nothing was written")


def feed(data: bytes, sizes: list[int]) -> tuple[Recorder, str | None]:
    """Give `data` to a new connection in pieces; what it told, and why it ended if it did."""

    async def run() -> tuple[Recorder, str | None]:
        recorder = Recorder()
        wanted = MqttSettings(host="127.0.0.1", client_id="unit", packet_bytes_max=PACKET_BYTES_MAX)
        connection = Connection(wanted, recorder, number=7)
        rest, pieces = data, iter(sizes)
        while rest and not connection.lost.done():
            size = next(pieces, len(rest))
            piece, rest = rest[:size], rest[size:]
            while piece and not connection.lost.done():
                room = connection.get_buffer(-1)
                assert len(room) > 0
                taken = min(len(piece), len(room))
                room[:taken] = piece[:taken]
                piece = piece[taken:]
                connection.buffer_updated(taken)
        ended = connection.lost.result().reason if connection.lost.done() else None
        if connection.opened.done() and not connection.opened.cancelled():
            connection.opened.exception()
        connection.abort("end of the test")
        connection.opened.exception()
        return recorder, ended

    return asyncio.run(run())


packets = st.lists(
    st.builds(
        PublishPacket,
        st.text("abc/", min_size=1, max_size=30),
        st.binary(max_size=3_000),
        qos=st.just(QoS.AT_LEAST_ONCE),
        packet_id=st.integers(1, 65_535),
        correlation_data=st.none() | st.binary(max_size=40),
        user_properties=st.lists(st.tuples(st.text("xyz"), st.text("xyz")), max_size=3),
    )
    | st.builds(PubAckPacket, st.integers(1, 65_535)),
    max_size=20,
)


@given(packets, st.lists(st.integers(1, 4_000), max_size=30))
@settings(max_examples=60, deadline=None)
def test_messages_do_not_depend_on_how_the_bytes_are_cut(
    sent: list[PublishPacket | PubAckPacket], sizes: list[int]
) -> None:
    recorder, ended = feed(b"".join(packet.write() for packet in sent), sizes)
    publishes = [packet for packet in sent if isinstance(packet, PublishPacket)]
    assert ended is None
    assert recorder.accepted == [p.packet_id for p in sent if isinstance(p, PubAckPacket)]
    assert [
        (m.topic, m.payload, m.packet_id, m.correlation, m.user_properties, m.connection)
        for m in recorder.received
    ] == [
        (p.topic, p.payload, p.packet_id, p.correlation_data, p.user_properties, 7)
        for p in publishes
    ]


@given(st.binary(max_size=400), st.lists(st.integers(1, 40), max_size=20))
@settings(max_examples=300, deadline=None)
def test_no_bytes_get_past_the_protocol(data: bytes, sizes: list[int]) -> None:
    recorder, ended = feed(data, sizes)
    assert recorder.losses == 1  # The one that ends every test, or the broken packet.
    assert ended is None or "packet" in ended or "refused" in ended or "disconnected" in ended


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (PingReqPacket().write(), "unexpected PingReqPacket"),
        (ConnAckPacket().write() * 2, "a second CONNACK"),
        (b"\x32\xff\xff\x7f" + b"\x00\x01a", "packet of 2097155 bytes: at most 100000"),
        (b"\x32\xff\xff\xff\xff\x01", "malformed packet"),
        # A topic that claims to be longer than its packet.
        (b"\x32\x05\x00\x50abc" + bytes(200), "malformed packet"),
        (
            PublishPacket("a", b"", qos=QoS.EXACTLY_ONCE, packet_id=1).write(),
            "QoS 2 message on 'a'",
        ),
    ],
    ids=["unexpected", "connack twice", "too large", "bad length", "bad field", "qos 2"],
)
def test_a_broken_packet_ends_the_connection(data: bytes, reason: str) -> None:
    _, ended = feed(data, [])
    assert ended is not None
    assert reason in ended


def test_what_came_before_a_broken_packet_still_counts() -> None:
    good = PublishPacket("a", b"x", qos=QoS.AT_LEAST_ONCE, packet_id=1).write()
    recorder, ended = feed(good + PingReqPacket().write(), [])
    assert [m.payload for m in recorder.received] == [b"x"]
    assert ended is not None


def test_a_duplicate_differs_in_its_flag_only() -> None:
    data = encode(Message(topic="a/b", payload=b"body", retain=True, expiry_s=9), 77)
    duplicate = PublishPacket(
        "a/b",
        b"body",
        qos=QoS.AT_LEAST_ONCE,
        retain=True,
        packet_id=77,
        message_expiry_interval=9,
        duplicate=True,
    )
    assert data != duplicate.write()
    assert as_duplicate(data) == duplicate.write()


def test_long_texts_are_told_from_long_payloads() -> None:
    assert len(encode(Message(topic="a", payload=b"x" * 500_000), 1)) > 500_000
    assert encode(Message(topic="é" * 32_767, payload=b""), 1)
    with pytest.raises(UnpublishableError, match="65536 bytes: at most 65535"):
        encode(Message(topic="é" * 32_768, payload=b""), 1)
    assert issubclass(UnpublishableError, MqttError)
