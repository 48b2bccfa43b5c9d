"""The publisher between the real embedded log and real brokers: properties, order, redelivery."""

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import aiomqtt
import pytest

from bss_stream import topics
from bss_stream._engine import pack, partition_for, unpack
from bss_stream.frames import (
    DeadLetter,
    OutboxKind,
    OutboxMessage,
    decode_dead_letter,
    encode_outbox,
)
from bss_stream.log.embedded import EmbeddedLog
from bss_stream.log.protocol import Chunk, Log
from bss_stream.mqtt.client import MqttClient
from bss_stream.mqtt.messages import Received, Subscription
from bss_stream.publisher import Publisher, PublisherSettings
from tests.eventually import eventually
from tests.integration.bridge_process import PARTITIONS, mqtt_settings
from tests.integration.held_log import HeldLog
from tests.integration.publisher_process import GROUP
from tests.servers.mosquitto import Mosquitto, MosquittoFactory
from tests.servers.proxy import Proxy

NOW_MS = 1_795_552_200_123
PLANS = 7


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[EmbeddedLog]:
    log = EmbeddedLog(tmp_path / "log", partitions=PARTITIONS, durability="process")
    await log.open()
    yield log
    await log.close()


def echo_topic(plan: str) -> str:
    return f"echo/abs/attendant/plan/{plan}/identify_customer"


def echo(plan: str, payload: bytes, **changes: Any) -> OutboxMessage:
    one = OutboxMessage(OutboxKind.ECHO, 1, False, 300, "corr-1", echo_topic(plan), payload)
    return one._replace(**changes)


async def fill(log: EmbeddedLog, records: Sequence[tuple[str, bytes]]) -> None:
    """Records of the outbox, as (key, value), each in a chunk of its partition."""
    by_partition: dict[int, list[tuple[bytes, bytes]]] = {}
    for key, value in records:
        partition = partition_for(key.encode(), PARTITIONS)
        by_partition.setdefault(partition, []).append((key.encode(), value))
    appender = await log.appender()
    await appender.append(
        [Chunk(topics.OUTBOX, part, len(some), pack(some)) for part, some in by_partition.items()]
    )
    await appender.close()


async def fill_numbered(log: EmbeddedLog, count: int, start: int = 0) -> None:
    numbers = range(start, start + count)
    plans = [f"plan-{i % PLANS}" for i in numbers]
    await fill(
        log, [(p, encode_outbox(echo(p, b"%d" % i))) for p, i in zip(plans, numbers, strict=True)]
    )


@asynccontextmanager
async def running(log: Log, port: int, **settings: Any) -> AsyncIterator[Publisher]:
    """Run a publisher; at the end it drains."""
    mqtt = mqtt_settings(port, client_id="publisher")
    publisher = Publisher(
        log, mqtt, PublisherSettings(group=GROUP, **settings), clock_ms=lambda: NOW_MS
    )
    task = asyncio.create_task(publisher.run())
    try:
        yield publisher
    finally:
        publisher.stop(drain=True)
        await task
        assert publisher.counters.balance() == []


@asynccontextmanager
async def listening(port: int) -> AsyncIterator[MqttClient]:
    async with MqttClient(mqtt_settings(port, client_id="app")) as app:
        await app.subscribe(Subscription("echo/#"))
        yield app


async def take(app: MqttClient, count: int) -> list[Received]:
    taken: list[Received] = []
    while len(taken) < count:
        batch = await app.receive(100, timeout_s=10.0)
        assert batch, f"{len(taken)} of {count} messages came"
        app.ack(batch)
        taken += batch
    return taken


def by_plan(messages: list[Received]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for message in messages:
        found.setdefault(message.topic.split("/")[4], []).append(int(message.payload))
    return found


def in_order(count: int, start: int = 0) -> dict[str, list[int]]:
    numbers = range(start, start + count)
    return {f"plan-{p}": [i for i in numbers if i % PLANS == p] for p in range(PLANS)}


async def committed(log: EmbeddedLog) -> int:
    """How many records of the outbox the group has committed: those it would not read again."""
    consumer = await log.consumer(GROUP, [topics.OUTBOX])
    left = 0
    while len(consumer.assignment()) < PARTITIONS:
        left += sum(len(one.offsets) for one in await consumer.poll(1, 0.05))
    left += sum((await consumer.lag()).values())
    await consumer.close()
    total = 0
    for partition in range(PARTITIONS):
        async for fetched in log.replay(topics.OUTBOX, partition):
            total += len(fetched.offsets)
    return total - left


async def letters(log: EmbeddedLog) -> list[DeadLetter]:
    return [
        decode_dead_letter(value or b"")
        for partition in range(PARTITIONS)
        async for fetched in log.replay(topics.DEAD_LETTER, partition)
        for _, value in unpack(fetched.data)
    ]


async def test_a_drain_before_the_group_has_been_joined_publishes_what_there_is(
    log: EmbeddedLog, broker_port: int
) -> None:
    await fill_numbered(log, 50)
    held = HeldLog(log)
    held.joining.clear()
    async with listening(broker_port) as app:
        async with running(held, broker_port) as publisher:
            await eventually(lambda: publisher.client.connected)
            publisher.stop(drain=True)
            held.joining.set()
        assert by_plan(await take(app, 50)) == in_order(50)
    assert await committed(log) == 50


@pytest.mark.mosquitto
async def test_an_echo_has_the_contract_s_properties(
    log: EmbeddedLog, mosquitto: Mosquitto
) -> None:
    kept = echo("plan-1", b"{}", retain=True, expiry_s=0)
    command = OutboxMessage(
        OutboxKind.CMD, 1, False, 20, "corr-2", "cmd/ABS/EPS/station-1/allocate", b"{}"
    )
    event = OutboxMessage(OutboxKind.EMIT, 0, False, 0, "", "emit/ABS/BSS/plan-1/x", b"\xff")
    async with aiomqtt.Client(hostname="127.0.0.1", port=mosquitto.port) as app:
        await app.subscribe("#", max_qos=aiomqtt.QoS.AT_LEAST_ONCE)
        packets: list[aiomqtt.PublishPacket] = []

        async def read() -> None:
            async for packet in app.messages():
                assert isinstance(packet, aiomqtt.PublishPacket)
                packets.append(packet)

        reading = asyncio.create_task(read())
        async with running(log, mosquitto.port):
            # aiomqtt takes a message of QoS 0 only while it waits for one.
            await fill(log, [("plan-1", encode_outbox(event))])
            await eventually(lambda: len(packets) == 1)
            echoes = [echo("plan-1", b"{}"), kept]
            await fill(log, [("plan-1", encode_outbox(f)) for f in (*echoes, command)])
            await eventually(lambda: len(packets) == 4)
        reading.cancel()
    properties = [
        ("agent_type", "BSS_AGENT_V2"),
        ("response_type", "AGENT_CALCULATION_RESULT"),
        ("response_pattern", "echo"),
        ("platform_version", version("bss_stream")),
        ("application", "abs-platform"),
    ]
    assert [
        (p.topic, p.correlation_data, p.message_expiry_interval, p.user_properties, p.retain)
        for p in packets
    ] == [
        (event.topic, None, None, [], False),
        (echo_topic("plan-1"), b"corr-1", 300, properties, False),
        (echo_topic("plan-1"), b"corr-1", 300, properties, True),
        (command.topic, b"corr-2", 20, [], False),
    ]
    assert [int(p.qos.value) for p in packets] == [0, 1, 1, 1]


async def test_order_is_kept_within_a_plan(log: EmbeddedLog, broker_port: int) -> None:
    async with listening(broker_port) as app:
        await fill_numbered(log, 1_000)
        async with running(log, broker_port, batch_records_max=64) as publisher:
            await fill_numbered(log, 1_000, start=1_000)
            got = await take(app, 2_000)
    assert by_plan(got) == in_order(2_000)
    assert publisher.counters.published == 2_000
    assert publisher.counters.commits > 0
    assert await committed(log) == 2_000


async def test_what_was_published_but_not_committed_comes_again(
    tmp_path: Path, broker_port: int
) -> None:
    count, directory = 60, tmp_path / "log"
    log = EmbeddedLog(directory, partitions=PARTITIONS, durability="process")
    await log.open()
    await fill_numbered(log, count)
    await log.close()
    async with listening(broker_port) as app:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.integration.publisher_process"),
            *(str(broker_port), str(directory)),
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        assert int(await process.stdout.readline()) > 0
        process.kill()
        await process.wait()
        await take(app, count)
        log = EmbeddedLog(directory, partitions=PARTITIONS, durability="process")
        await log.open()
        async with running(log, broker_port):
            again = await take(app, count)
        assert by_plan(again) == in_order(count)
        assert await committed(log) == count
        await log.close()


async def test_nothing_is_committed_before_its_puback(log: EmbeddedLog, broker_port: int) -> None:
    async with Proxy(broker_port) as proxy, listening(broker_port) as app:
        async with running(log, proxy.port) as publisher:
            await eventually(lambda: publisher.client.connected)
            proxy.hold_answers()
            await fill_numbered(log, 50)
            assert by_plan(await take(app, 50)) == in_order(50)
            assert publisher.counters.commits == 0
            proxy.let_through()
            await eventually(lambda: publisher.counters.published == 50)
        assert await committed(log) == 50


async def test_a_cut_repeats_what_was_not_acknowledged(log: EmbeddedLog, broker_port: int) -> None:
    async with Proxy(broker_port) as proxy, listening(broker_port) as app:
        async with running(log, proxy.port) as publisher:
            await eventually(lambda: publisher.client.connected)
            proxy.hold_answers()
            await fill_numbered(log, 50)
            await take(app, 50)
            proxy.cut()
            assert by_plan(await take(app, 50)) == in_order(50)
            await eventually(lambda: publisher.counters.published == 50)
        assert publisher.client.counters.sent_again == 50
        assert await committed(log) == 50


@pytest.mark.mosquitto
async def test_what_the_broker_refuses_holds_nothing_up(
    log: EmbeddedLog, start_mosquitto: MosquittoFactory
) -> None:
    broker = start_mosquitto(lines=["max_packet_size 20000"])
    bad = [
        encode_outbox(echo("plan-1", b"", topic="echo/+/wild")),
        encode_outbox(echo("plan-1", b"x" * 30_000)),
        b"no frame",
    ]
    async with listening(broker.port) as app, running(log, broker.port) as publisher:
        good = [encode_outbox(echo("plan-1", b"%d" % i)) for i in range(4)]
        await fill(log, [("plan-1", v) for pair in zip(good, bad, strict=False) for v in pair])
        await fill(log, [("plan-1", good[3])])
        assert by_plan(await take(app, 4)) == {"plan-1": [0, 1, 2, 3]}
    assert publisher.counters.refused == {"publish_refused": 2, "bad_frame": 1}
    partition = partition_for(b"plan-1", PARTITIONS)
    found = {letter.raw: letter for letter in await letters(log)}
    assert set(found) == set(bad)
    for letter in found.values():
        assert letter[1:3] == (topics.OUTBOX, partition)
        assert letter.received_ms == NOW_MS
    assert "without wildcards" in found[bad[0]].detail
    assert "the broker takes 20000" in found[bad[1]].detail
    assert [found[value].offset for value in bad] == [1, 3, 5]
    assert await committed(log) == 7


@pytest.mark.mosquitto
async def test_two_publishers_share_the_partitions(log: EmbeddedLog, mosquitto: Mosquitto) -> None:
    async with listening(mosquitto.port) as app:
        one, two = (
            Publisher(
                log,
                mqtt_settings(mosquitto.port, client_id=name),
                PublisherSettings(group=GROUP),
            )
            for name in ("one", "two")
        )
        first = asyncio.create_task(one.run())
        await fill_numbered(log, 100)
        got = by_plan(await take(app, 100))
        assert got == in_order(100)
        second = asyncio.create_task(two.run())
        await eventually(lambda: two.client.connected)
        start = 100
        while two.counters.published == 0:
            await fill_numbered(log, 100, start=start)
            start += 100
            await take(app, 100)
        await eventually(lambda: one.counters.published + two.counters.published == start)
        one.stop()
        await first
        await fill_numbered(log, 100, start=start)
        assert by_plan(await take(app, 100)) == in_order(100, start)
        two.stop()
        await second
    assert await committed(log) == start + 100


async def test_stop_does_not_wait_for_an_absent_broker(log: EmbeddedLog) -> None:
    await fill_numbered(log, 10)
    async with running(log, 9, connect_patience_s=3_600.0):
        await asyncio.sleep(0.05)
    assert await committed(log) == 0
