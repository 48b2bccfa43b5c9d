"""What waits for its PUBACK: order, window, and what a new connection sends again."""

import asyncio

from aiomqtt import PublishPacket
from hypothesis import given, settings
from hypothesis import strategies as st
from mqtt5 import read

from bss_stream.mqtt.messages import Message
from bss_stream.mqtt.outgoing import Outgoing


def numbered(count: int) -> list[Message]:
    return [Message(topic="t", payload=b"%d" % i) for i in range(count)]


def decode(packets: list[bytes]) -> list[PublishPacket]:
    decoded = [read(memoryview(data))[0] for data in packets]
    return [packet for packet in decoded if isinstance(packet, PublishPacket)]


async def test_the_window_is_the_smaller_of_ours_and_the_broker_s() -> None:
    for ours, theirs in ((5, 65_535), (2_000, 5)):
        outgoing = Outgoing(ours)
        outgoing.add(numbered(20))
        outgoing.begin(theirs, None)
        assert len(outgoing.packets()) == 5
        assert outgoing.packets() == []


async def test_a_new_connection_gets_the_old_packets_first_as_duplicates() -> None:
    outgoing = Outgoing(10)
    done = outgoing.add(numbered(12))
    outgoing.begin(100, None)
    first = decode(outgoing.packets())
    outgoing.acknowledged([first[1].packet_id or 0], [])
    outgoing.begin(100, None)
    again, new = decode(outgoing.packets()), decode(outgoing.packets())
    assert [p.payload for p in again] == [b"0", *(b"%d" % i for i in range(2, 10))]
    assert all(p.duplicate for p in again)
    assert [p.packet_id for p in again] == [p.packet_id for p in first if p.payload != b"1"]
    assert [(p.payload, p.duplicate) for p in new] == [(b"10", False)]
    assert outgoing.sent_again == 9
    assert not done.done()


async def test_an_unknown_packet_id_is_counted_and_settles_nothing() -> None:
    outgoing = Outgoing(10)
    done = outgoing.add(numbered(1))
    outgoing.begin(100, None)
    outgoing.packets()
    outgoing.acknowledged([9], [(10, "no")])
    assert outgoing.unexpected_acks == 2
    assert not done.done()


@given(
    window=st.integers(1, 8),
    calls=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    connections=st.lists(
        st.tuples(st.integers(1, 8), st.lists(st.integers(0, 8), max_size=4)), max_size=5
    ),
)
@settings(max_examples=100, deadline=None)
def test_every_message_is_settled_once_over_any_number_of_connections(
    window: int, calls: list[int], connections: list[tuple[int, list[int]]]
) -> None:
    """A broker acknowledges in order, so many at a time, and loses its connection at will."""

    async def run() -> None:
        outgoing = Outgoing(window)
        waiting = [outgoing.add(numbered(count)) for count in calls]
        for receive_max, rounds in [*connections, (8, [8] * sum(calls))]:
            outgoing.begin(receive_max, None)
            on_the_wire: list[int] = []
            for count in rounds:
                while packets := decode(outgoing.packets()):
                    on_the_wire += [packet.packet_id or 0 for packet in packets]
                assert len(set(on_the_wire)) == len(on_the_wire) <= min(window, receive_max)
                settled, on_the_wire = on_the_wire[:count], on_the_wire[count:]
                outgoing.acknowledged(settled[1:], [(i, "refused") for i in settled[:1]])
        refusals = await asyncio.gather(*waiting)
        assert outgoing.unexpected_acks == 0
        assert outgoing.published + outgoing.refused == sum(calls)
        assert sum(map(len, refusals)) == outgoing.refused > 0

    asyncio.run(run())
