"""The inbox: what it hands out, and when it is full."""

from hypothesis import given
from hypothesis import strategies as st

from bss_stream.mqtt.inbox import MESSAGE_BYTES, PROPERTY_BYTES, Inbox
from bss_stream.mqtt.messages import Received


def message(body: bytes, packet_id: int = 1, connection: int = 1) -> Received:
    qos = 1 if packet_id else 0
    return Received("t", body, qos, False, False, None, [], packet_id, connection)


def size(message: Received) -> int:
    return MESSAGE_BYTES + len(message.payload) + len(message.topic)


def test_whatever_a_client_fills_counts() -> None:
    inbox = Inbox(messages_max=100, bytes_max=100_000)
    one = message(b"body")
    one.correlation = b"c" * 1_000
    one.user_properties = [("name", "v" * 50_000)]
    inbox.put([one])
    assert inbox.bytes == size(one) + 1_000 + PROPERTY_BYTES + len("name") + 50_000
    inbox.take(1, 1)
    assert inbox.bytes == 0


def test_full_at_a_bound_and_free_again_at_half_of_it() -> None:
    inbox = Inbox(messages_max=4, bytes_max=10_000)
    inbox.put([message(b"")] * 3)
    assert not inbox.full
    inbox.put([message(b"")])
    assert inbox.full
    inbox.take(1, 1_000)
    assert inbox.full
    inbox.take(1, 1_000)
    assert not inbox.full


def test_full_in_bytes() -> None:
    inbox = Inbox(messages_max=100, bytes_max=1_000)
    inbox.put([message(b"x" * (999 - len("t") - MESSAGE_BYTES))])
    assert not inbox.full
    inbox.put([message(b"")])
    assert inbox.full
    inbox.take(1, 1)
    assert not inbox.full


def test_only_what_the_broker_will_send_again_is_dropped() -> None:
    inbox = Inbox(messages_max=2, bytes_max=10_000)
    old, qos_0, new = message(b"a"), message(b"b", packet_id=0), message(b"c", connection=2)
    inbox.put([old, qos_0, new])
    assert inbox.drop_unacknowledged(before=2) == 1
    assert inbox.take(9, 10_000) == [qos_0, new]
    assert not inbox.full


@given(st.lists(st.binary(max_size=20)), st.integers(1, 5), st.integers(1, 2_000))
def test_batches_keep_order_and_bounds(bodies: list[bytes], most: int, bytes_max: int) -> None:
    inbox = Inbox(messages_max=100, bytes_max=100_000)
    inbox.put([message(body) for body in bodies])
    got: list[bytes] = []
    while len(inbox):
        batch = inbox.take(most, bytes_max)
        assert 1 <= len(batch) <= most
        assert len(batch) == 1 or sum(map(size, batch)) <= bytes_max
        got += [m.payload for m in batch]
    assert got == bodies
    assert inbox.bytes == 0
