"""The client against real brokers: acknowledgement, order, bounds, and broken connections."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiomqtt
import pytest
from mqtt5 import DisconnectPacket, DisconnectReasonCode

from bss_stream.errors import ConfigError, MqttError
from bss_stream.mqtt.broker import IN_FLIGHT_MAX, EmbeddedBroker
from bss_stream.mqtt.client import MqttClient
from bss_stream.mqtt.messages import Message, MqttSettings, Received, Subscription, Will
from tests.eventually import eventually
from tests.servers.certificates import Certificates
from tests.servers.mosquitto import Mosquitto, MosquittoFactory, password_file
from tests.servers.proxy import Proxy

pytestmark = pytest.mark.mosquitto
TOPIC = "emit/uxi/attendant/plan/plan-1/identify_customer"
FILTER = Subscription("emit/uxi/attendant/plan/+/identify_customer")
WAIT_S = 10.0


def client(port: int, client_id: str, **settings: Any) -> MqttClient:
    settings = {"backoff_min_s": 0.01, "backoff_max_s": 0.1, **settings}
    return MqttClient(MqttSettings(host="127.0.0.1", port=port, client_id=client_id, **settings))


def numbered(count: int, start: int = 0) -> list[Message]:
    return [Message(topic=TOPIC, payload=b"%d" % i) for i in range(start, start + count)]


def numbers(messages: list[Received]) -> list[int]:
    return [int(message.payload) for message in messages]


async def take(receiver: MqttClient, count: int) -> list[Received]:
    """Receive exactly `count` messages without acknowledging them."""
    taken: list[Received] = []
    while len(taken) < count:
        batch = await receiver.receive(count - len(taken), timeout_s=WAIT_S)
        assert batch, f"{len(taken)} of {count} messages came"
        taken += batch
    return taken


async def take_and_ack(receiver: MqttClient, count: int) -> list[Received]:
    """Receive exactly `count` messages, acknowledging them batch by batch."""
    taken: list[Received] = []
    while len(taken) < count:
        batch = await take(receiver, min(50, count - len(taken)))
        receiver.ack(batch)
        taken += batch
    return taken


async def acknowledgements_read(receiver: MqttClient) -> None:
    """Wait until the broker has read them: it has once it answers what was sent after them."""
    await receiver.publish([Message(topic="elsewhere", payload=b"")])


async def nothing_comes(receiver: MqttClient) -> bool:
    return await receiver.receive(1, timeout_s=0.2) == []


async def test_properties_survive_the_way(broker_port: int) -> None:
    sent = Message(
        topic=TOPIC,
        payload=b"\x00body",
        correlation=b"corr-1",
        expiry_s=300,
        user_properties=[("agent_type", "BSS_AGENT_V2"), ("name", "é"), ("name", "again")],
        content_type="application/json",
        response_topic="echo/x",
    )
    async with client(broker_port, "receiver") as receiver, client(broker_port, "sender") as sender:
        await receiver.subscribe(FILTER)
        assert await sender.publish([sent]) == []
        [message] = await take(receiver, 1)
        assert (message.topic, message.payload) == (TOPIC, b"\x00body")
        assert (message.qos, message.correlation) == (1, b"corr-1")
        assert message.user_properties == sent.user_properties
        assert receiver.ack([message]) == 1


async def test_another_client_understands_what_we_publish(mosquitto: Mosquitto) -> None:
    async with (
        aiomqtt.Client(hostname="127.0.0.1", port=mosquitto.port) as reader,
        client(mosquitto.port, "sender") as sender,
    ):
        await reader.subscribe(TOPIC)
        message = Message(topic=TOPIC, payload=b"x", expiry_s=300, content_type="text/plain")
        waiting = asyncio.ensure_future(anext(reader.messages()))
        await sender.publish([message])
        packet = await waiting
        assert isinstance(packet, aiomqtt.PublishPacket)
        assert (packet.payload, packet.content_type) == (b"x", "text/plain")
        assert packet.message_expiry_interval == 300


async def test_many_messages_come_once_each_and_in_order(broker_port: int) -> None:
    count = 5_000
    async with (
        client(broker_port, "receiver", receive_max=IN_FLIGHT_MAX) as receiver,
        client(broker_port, "sender", publish_max=500) as sender,
    ):
        await receiver.subscribe(FILTER)
        publishing = asyncio.ensure_future(sender.publish(numbered(count)))
        got: list[int] = []
        async for batch in receiver.batches(300, linger_s=0.001):
            assert len(batch) <= 300
            got += numbers(batch)
            receiver.ack(batch)
            if len(got) == count:
                break
        assert got == list(range(count))
        assert await publishing == []
        assert sender.counters.published == count
        assert receiver.counters.acknowledged == count


async def test_calls_of_publish_keep_their_order(broker_port: int) -> None:
    async with client(broker_port, "receiver") as receiver, client(broker_port, "sender") as sender:
        await receiver.subscribe(FILTER)
        calls = [sender.publish(numbered(10, start)) for start in range(0, 100, 10)]
        assert await asyncio.gather(*calls) == [[]] * 10
        assert numbers(await take(receiver, 100)) == list(range(100))


async def test_what_is_not_acknowledged_comes_again(broker_port: int) -> None:
    async with Proxy(broker_port) as proxy, client(broker_port, "sender") as sender:
        async with client(proxy.port, "receiver", session_expiry_s=60) as receiver:
            await receiver.subscribe(FILTER)
            await sender.publish(numbered(50))
            first = await take(receiver, 50)
            assert receiver.ack(first[:20]) == 20
            await acknowledgements_read(receiver)
        async with client(proxy.port, "receiver", session_expiry_s=60) as receiver:
            again = await take(receiver, 30)
            assert numbers(again) == list(range(20, 50))
            receiver.ack(again)
            assert await nothing_comes(receiver)


async def test_an_acknowledgement_dies_with_its_connection(broker_port: int) -> None:
    async with (
        Proxy(broker_port) as proxy,
        client(broker_port, "sender") as sender,
        client(proxy.port, "receiver", session_expiry_s=60) as receiver,
    ):
        await receiver.subscribe(FILTER)
        await sender.publish(numbered(30))
        old = await take(receiver, 30)
        proxy.cut()
        again = await take(receiver, 30)
        # The broker uses the same packet ids again: the old tokens must not acknowledge them.
        assert {m.packet_id for m in old} & {m.packet_id for m in again}
        assert receiver.ack(old) == 0
        proxy.cut()
        once_more = await take(receiver, 30)
        assert numbers(once_more) == list(range(30))
        assert receiver.ack(once_more) == 30


async def test_an_acknowledgement_counts_once_even_if_the_packet_id_is_used_again() -> None:
    # rumqttd has 100 packet ids, so they come round quickly.
    async with (
        EmbeddedBroker() as broker,
        Proxy(broker.port) as proxy,
        client(broker.port, "sender") as sender,
        client(proxy.port, "receiver", session_expiry_s=60) as receiver,
    ):
        await receiver.subscribe(FILTER)
        await sender.publish(numbered(IN_FLIGHT_MAX))
        first = await take(receiver, IN_FLIGHT_MAX)
        ids = [m.packet_id for m in first]
        assert receiver.ack(first) == IN_FLIGHT_MAX
        await sender.publish(numbered(IN_FLIGHT_MAX, start=1_000))
        second = await take(receiver, IN_FLIGHT_MAX)
        assert [m.packet_id for m in second] == ids
        assert receiver.ack(first) == 0
        proxy.cut()
        assert numbers(await take(receiver, IN_FLIGHT_MAX)) == numbers(second)


async def test_messages_in_the_inbox_are_not_handed_out_twice(broker_port: int) -> None:
    async with (
        Proxy(broker_port) as proxy,
        client(broker_port, "sender") as sender,
        client(proxy.port, "receiver", session_expiry_s=60) as receiver,
    ):
        await receiver.subscribe(FILTER)
        await sender.publish(numbered(40))
        await eventually(lambda: receiver.counters.received == 40)
        await take(receiver, 10)
        proxy.cut()
        await eventually(lambda: receiver.counters.received == 80)
        # The ten come again, which nobody can help; the other thirty waited here, and come once.
        assert numbers(await take(receiver, 40)) == list(range(40))
        assert await nothing_comes(receiver)


async def _reconnected(mqtt: MqttClient, connections: int) -> None:
    await eventually(lambda: mqtt.counters.connections >= connections and mqtt.connected)


async def test_the_inbox_is_bounded_and_loses_nothing(mosquitto: Mosquitto) -> None:
    # The broker may send everything at once, so only our not reading holds it back.
    count, bound, body = 5_000, 100, b"x" * 2_000
    sent = [Message(topic=TOPIC, payload=b"%d %s" % (i, body)) for i in range(count)]
    async with (
        client(
            mosquitto.port, "receiver", inbox_messages_max=bound, receive_max=65_535
        ) as receiver,
        client(mosquitto.port, "sender") as sender,
    ):
        await receiver.subscribe(FILTER)
        await sender.publish(sent)
        assert receiver.counters.received < bound + 256 * 1024 // len(body)
        assert receiver.counters.pauses == 1
        got = await take_and_ack(receiver, count)
        assert [m.payload for m in got] == [m.payload for m in sent]


async def test_the_inbox_is_bounded_in_bytes(mosquitto: Mosquitto) -> None:
    body = b"x" * 100_000
    async with (
        client(mosquitto.port, "receiver", inbox_bytes_max=1_000_000) as receiver,
        client(mosquitto.port, "sender") as sender,
    ):
        await receiver.subscribe(FILTER)
        await sender.publish([Message(topic=TOPIC, payload=body)] * 200)
        assert receiver.counters.received <= 10 + 3
        batch = await receiver.receive(200, bytes_max=250_000)
        assert len(batch) == 2
        assert len(await take(receiver, 198)) == 198


async def test_a_message_larger_than_a_read_comes_whole(broker_port: int) -> None:
    body = bytes(range(256)) * 4_000
    async with client(broker_port, "receiver") as receiver, client(broker_port, "sender") as sender:
        await receiver.subscribe(FILTER)
        await sender.publish([*numbered(1), Message(topic=TOPIC, payload=body), *numbered(1)])
        assert [m.payload for m in await take(receiver, 3)] == [b"0", body, b"0"]


async def test_publishing_goes_on_over_a_cut(broker_port: int) -> None:
    async with (
        Proxy(broker_port) as proxy,
        client(broker_port, "receiver") as receiver,
        client(proxy.port, "sender", session_expiry_s=60, publish_max=100) as sender,
    ):
        await receiver.subscribe(FILTER)
        proxy.hold_answers()
        publishing = asyncio.ensure_future(sender.publish(numbered(300)))
        # The broker has the first hundred; we have none of its PUBACKs.
        await take_and_ack(receiver, 100)
        proxy.cut()
        assert await publishing == []
        assert sender.counters.sent_again == 100
        # QoS 1: what had arrived comes a second time, and the rest behind it.
        assert numbers(await take_and_ack(receiver, 300)) == list(range(300))


async def test_a_cancelled_publish_takes_back_what_was_not_sent(broker_port: int) -> None:
    async with (
        Proxy(broker_port) as proxy,
        client(broker_port, "receiver") as receiver,
        client(proxy.port, "sender", publish_max=10) as sender,
    ):
        await receiver.subscribe(FILTER)
        proxy.hold_answers()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await sender.publish(numbered(1_000))
        proxy.let_through()
        assert await sender.publish(numbered(5, start=5_000)) == []
        assert numbers(await take(receiver, 15)) == [*range(10), *range(5_000, 5_005)]


async def test_a_message_that_no_broker_takes_is_refused_alone(mosquitto: Mosquitto) -> None:
    bad = [
        Message(topic="a/+", payload=b""),
        Message(topic="", payload=b""),
        Message(topic="x" * 70_000, payload=b""),
        Message(topic="a", payload=b"", user_properties=[("k", "v" * 70_000)]),
        Message(topic="a", payload=b"", qos=2),
    ]
    async with client(mosquitto.port, "receiver") as receiver:
        await receiver.subscribe(FILTER)
        refusals = await receiver.publish([*numbered(1), *bad, *numbered(1, start=1)])
        assert [refusal.position for refusal in refusals] == [1, 2, 3, 4, 5]
        assert "without wildcards" in refusals[0].reason
        assert "70000 bytes" in refusals[2].reason
        assert numbers(await take(receiver, 2)) == [0, 1]


async def test_a_message_over_the_broker_s_limit_is_refused(
    start_mosquitto: MosquittoFactory,
) -> None:
    broker = start_mosquitto(lines=["max_packet_size 1000"])
    async with client(broker.port, "sender") as sender:
        [refusal] = await sender.publish([Message(topic="a", payload=b"x" * 2_000), *numbered(1)])
        assert refusal.position == 0
        assert "the broker takes 1000" in refusal.reason


async def test_qos_0_is_delivered_without_a_token(mosquitto: Mosquitto) -> None:
    async with client(mosquitto.port, "both") as both:
        await both.subscribe(FILTER)
        await both.publish([Message(topic=TOPIC, payload=b"x", qos=0)])
        [message] = await take(both, 1)
        assert (message.qos, message.packet_id) == (0, 0)
        assert both.ack([message]) == 0


async def test_shared_subscriptions_split_the_messages(mosquitto: Mosquitto) -> None:
    shared = FILTER.shared("bridges")
    async with (
        client(mosquitto.port, "one") as one,
        client(mosquitto.port, "two") as two,
        client(mosquitto.port, "sender") as sender,
    ):
        await one.subscribe(shared)
        await two.subscribe(shared)
        await sender.publish(numbered(100))
        parts = [await take(one, 50), await take(two, 50)]
        assert sorted(numbers(parts[0] + parts[1])) == list(range(100))


async def test_the_client_comes_back_after_the_broker(start_mosquitto: MosquittoFactory) -> None:
    broker = start_mosquitto(persistence=True)
    async with (
        client(broker.port, "receiver", session_expiry_s=60) as receiver,
        client(broker.port, "sender", session_expiry_s=60) as sender,
    ):
        await receiver.subscribe(FILTER)
        await sender.publish(numbered(10))
        await take(receiver, 10)
        broker.stop()
        publishing = asyncio.ensure_future(sender.publish(numbered(10, start=10)))
        await eventually(lambda: not sender.connected and not receiver.connected)
        broker.start()
        assert await publishing == []
        assert numbers(await take_and_ack(receiver, 20)) == list(range(20))


async def test_the_client_comes_back_after_a_killed_broker(mosquitto: Mosquitto) -> None:
    async with (
        client(mosquitto.port, "receiver") as receiver,
        client(mosquitto.port, "sender") as sender,
    ):
        await receiver.subscribe(FILTER)
        mosquitto.kill()
        mosquitto.start()
        await _reconnected(receiver, 2)
        assert await sender.publish(numbered(10)) == []
        assert numbers(await take_and_ack(receiver, 10)) == list(range(10))


async def test_a_lost_session_is_subscribed_again(mosquitto: Mosquitto) -> None:
    async with (
        client(mosquitto.port, "receiver") as receiver,
        client(mosquitto.port, "sender") as sender,
    ):
        await receiver.subscribe(FILTER)
        await sender.publish(numbered(1))
        await asyncio.sleep(0)
        mosquitto.restart()
        await _reconnected(receiver, 2)
        await sender.publish(numbered(1, start=1))
        # Nobody will send the first one again, so it has been kept.
        assert numbers(await take(receiver, 2)) == [0, 1]


async def test_a_restarted_broker_that_forgot_a_shared_subscription_is_told_of_it(
    start_mosquitto: MosquittoFactory,
) -> None:
    """Mosquitto says that it has kept the session, and has not written this part of it down."""
    mosquitto = start_mosquitto(persistence=True)
    async with (
        client(mosquitto.port, "receiver", session_expiry_s=600) as receiver,
        client(mosquitto.port, "sender") as sender,
    ):
        await receiver.subscribe(Subscription(FILTER.filter).shared("group"))
        await sender.publish(numbered(1))
        assert numbers(await take_and_ack(receiver, 1)) == [0]
        await acknowledgements_read(receiver)
        mosquitto.restart()
        await _reconnected(receiver, 2)
        await _reconnected(sender, 2)
        number = 1
        async with asyncio.timeout(WAIT_S):
            # The subscription is on its way; what came before it went to nobody.
            while not (taken := await receiver.receive(1, timeout_s=0.1)):
                await sender.publish(numbered(1, start=number))
                number += 1
        assert numbers(taken)[0] >= 1


async def test_a_silent_broker_is_noticed(mosquitto: Mosquitto) -> None:
    async with (
        Proxy(mosquitto.port) as proxy,
        client(proxy.port, "receiver", keep_alive_s=1) as receiver,
    ):
        proxy.hold_answers()
        await eventually(lambda: not receiver.connected)
        proxy.let_through()
        await _reconnected(receiver, 2)


async def test_a_full_inbox_is_no_silent_broker(mosquitto: Mosquitto) -> None:
    async with (
        client(mosquitto.port, "receiver", keep_alive_s=1, inbox_messages_max=1) as receiver,
        client(mosquitto.port, "sender") as sender,
    ):
        await receiver.subscribe(FILTER)
        await sender.publish(numbered(10))
        await asyncio.sleep(2.5)
        assert receiver.counters.connections == 1
        assert numbers(await take(receiver, 10)) == list(range(10))


async def test_a_full_window_is_no_silent_broker() -> None:
    # rumqttd answers no ping while its window is full.
    async with (
        EmbeddedBroker() as broker,
        client(broker.port, "receiver", keep_alive_s=1, receive_max=IN_FLIGHT_MAX) as receiver,
        client(broker.port, "sender") as sender,
    ):
        await receiver.subscribe(FILTER)
        await sender.publish(numbered(IN_FLIGHT_MAX + 50))
        await eventually(lambda: receiver.counters.received == IN_FLIGHT_MAX)
        await asyncio.sleep(2.5)
        assert receiver.counters.connections == 1
        assert numbers(await take_and_ack(receiver, IN_FLIGHT_MAX + 50)) == list(
            range(IN_FLIGHT_MAX + 50)
        )


async def test_a_will_is_published_when_the_connection_dies(mosquitto: Mosquitto) -> None:
    will = Will(topic=TOPIC, payload=b"gone")
    async with Proxy(mosquitto.port) as proxy, client(mosquitto.port, "receiver") as receiver:
        await receiver.subscribe(FILTER)
        async with client(proxy.port, "mortal", will=will):
            proxy.refuse()
            proxy.cut()
            assert [m.payload for m in await take(receiver, 1)] == [b"gone"]


@pytest.fixture
def passwords(tmp_path: Path) -> Path:
    """A file that knows user `me` with password `right`."""
    return password_file(tmp_path / "passwords", {"me": "right"})


async def test_a_refused_password_is_an_error_at_once(
    start_mosquitto: MosquittoFactory, passwords: Path
) -> None:
    broker = start_mosquitto(lines=["allow_anonymous false", f"password_file {passwords}"])
    async with client(broker.port, "a", username="me", password="right") as accepted:
        assert accepted.connected
    with pytest.raises(MqttError, match=r"refused client 'b'.*NOT_AUTHORIZED \(135\)"):
        await client(broker.port, "b", username="me", password="wrong").connect(patience_s=60)


async def test_an_absent_broker_is_an_error_after_patience() -> None:
    with pytest.raises(MqttError, match=r"127\.0\.0\.1:9 cannot be reached"):
        await client(9, "a").connect(patience_s=0.1)


@pytest.fixture
async def thrower() -> AsyncIterator[int]:
    """The port of a server that accepts a client and says at once that its session is gone.

    Neither broker here sends that reason, others do.
    """
    words = (
        aiomqtt.ConnAckPacket(),
        DisconnectPacket(reason_code=DisconnectReasonCode.SESSION_TAKEN_OVER),
    )

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1_000)
        writer.write(b"".join(word.write() for word in words))
        await reader.read()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


async def test_a_session_taken_over_is_final(thrower: int) -> None:
    async with client(thrower, "same") as mqtt:
        with pytest.raises(MqttError, match=r"client 'same'.*SESSION_TAKEN_OVER \(142\)"):
            await mqtt.receive(1)
        with pytest.raises(MqttError, match="SESSION_TAKEN_OVER"):
            await mqtt.publish(numbered(1))
        assert mqtt.counters.connections == 1


async def test_close_ends_those_who_wait(mosquitto: Mosquitto) -> None:
    receiver = client(mosquitto.port, "receiver")
    await receiver.connect()

    async def read() -> int:
        return sum([len(batch) async for batch in receiver.batches(10)])

    reading = asyncio.ensure_future(read())
    await asyncio.sleep(0)
    await receiver.close()
    assert await reading == 0
    with pytest.raises(MqttError, match="is closed"):
        await receiver.publish(numbered(1))


async def test_stop_intake_hands_out_what_is_there_and_ends(mosquitto: Mosquitto) -> None:
    async with (
        client(mosquitto.port, "receiver", session_expiry_s=60) as receiver,
        client(mosquitto.port, "sender") as sender,
    ):
        await receiver.subscribe(FILTER)
        await sender.publish(numbered(10))
        await eventually(lambda: receiver.counters.received == 10)
        receiver.stop_intake()
        await sender.publish(numbered(10, start=10))
        batches = [batch async for batch in receiver.batches(4)]
        assert [numbers(batch) for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
        assert sum(receiver.ack(batch) for batch in batches) == 10
    async with client(mosquitto.port, "receiver", session_expiry_s=60) as receiver:
        assert numbers(await take(receiver, 10)) == list(range(10, 20))


async def test_tls(start_mosquitto: MosquittoFactory, certificates: Certificates) -> None:
    cert, key = certificates.server
    broker = start_mosquitto(lines=[f"certfile {cert}", f"keyfile {key}"])
    trusted = ssl.create_default_context(cafile=str(certificates.ca))
    async with client(broker.port, "both", tls=trusted) as both:
        await both.subscribe(FILTER)
        await both.publish(numbered(500))
        assert numbers(await take(both, 500)) == list(range(500))
    with pytest.raises(MqttError, match="certificate verify failed"):
        await client(broker.port, "x", tls=ssl.create_default_context()).connect(patience_s=60)


async def test_the_embedded_broker_refuses_a_port_that_is_taken() -> None:
    async with EmbeddedBroker() as broker:
        with pytest.raises(ConfigError, match=rf"mqtt\.broker\.port: {broker.port}"):
            await EmbeddedBroker(port=broker.port).start()


async def test_the_embedded_broker_frees_its_port_and_says_when_it_dies() -> None:
    broker = EmbeddedBroker()
    await broker.start()
    watching = asyncio.ensure_future(broker.watch())
    await asyncio.sleep(0)
    await broker.stop()
    await watching
    async with EmbeddedBroker(port=broker.port) as again, client(again.port, "a") as mqtt:
        assert mqtt.connected
