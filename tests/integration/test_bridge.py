"""The bridge between real brokers and the real embedded log: nothing is lost, all is in order."""

import asyncio
import itertools
import json
import sqlite3
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bss_stream import topic_table, topics
from bss_stream._engine import unpack
from bss_stream.bridge import PAYLOAD_BYTES_MAX, RAW_BYTES_MAX, Bridge, BridgeSettings
from bss_stream.frames import DeadLetter, Signal, decode_dead_letter, decode_signal
from bss_stream.log import sqlite_file
from bss_stream.mqtt.client import MqttClient
from bss_stream.mqtt.messages import Message, MqttSettings, Subscription
from tests.eventually import eventually
from tests.faulty_log import FaultyLog
from tests.integration.bridge_process import PARTITIONS, mqtt_settings
from tests.servers.mosquitto import Mosquitto, MosquittoFactory
from tests.servers.proxy import Proxy

TABLE = topic_table.load()
NOW_MS = 1_795_552_200_123
FIRST, LAST = "identify_customer", "payment_and_service"


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[FaultyLog]:
    log = FaultyLog(tmp_path / "log", partitions=PARTITIONS)
    await log.open()
    yield log
    await log.close()


def new_bridge(
    log: FaultyLog,
    mqtt: MqttSettings | int,
    *,
    clock_ms: Callable[[], int] = lambda: NOW_MS,
    **settings: Any,
) -> Bridge:
    """A bridge to the broker on a port, or with settings of its own."""
    if isinstance(mqtt, int):
        mqtt = mqtt_settings(mqtt)
    return Bridge(log, mqtt, TABLE, BridgeSettings(**settings), clock_ms=clock_ms)


@asynccontextmanager
async def running(bridge: Bridge) -> AsyncIterator[Bridge]:
    """Run a bridge; at the end it drains."""
    task = asyncio.create_task(bridge.run())
    ready = asyncio.create_task(bridge.ready.wait())
    await asyncio.wait((task, ready), return_when=asyncio.FIRST_COMPLETED)
    try:
        yield bridge
    finally:
        ready.cancel()
        bridge.stop()
        await task
        assert bridge.counters.balance() == []


def sender(port: int) -> AbstractAsyncContextManager[MqttClient]:
    return MqttClient(mqtt_settings(port, client_id="sender"))


def plan_topic(plan: str, event: str = FIRST) -> str:
    return f"emit/uxi/attendant/plan/{plan}/{event}"


def numbered(count: int, start: int = 0, plans: int = 7) -> list[Message]:
    return [
        Message(topic=plan_topic(f"plan-{i % plans}"), payload=b"%d" % i)
        for i in range(start, start + count)
    ]


async def records(log: FaultyLog, topic: str) -> list[tuple[bytes, bytes]]:
    found: list[tuple[bytes, bytes]] = []
    for partition in range(PARTITIONS):
        async for fetched in log.replay(topic, partition):
            found += [(key, value or b"") for key, value in unpack(fetched.data)]
    return found


async def signals(log: FaultyLog, topic: str = topics.SIGNALS_PLAN) -> dict[str, list[Signal]]:
    """The signals in the log by key, in their order."""
    found: dict[str, list[Signal]] = {}
    for key, value in await records(log, topic):
        found.setdefault(key.decode(), []).append(decode_signal(value))
    return found


async def letters(log: FaultyLog) -> list[DeadLetter]:
    return [decode_dead_letter(value) for _, value in await records(log, topics.DEAD_LETTER)]


async def numbers(log: FaultyLog) -> dict[str, list[int]]:
    return {key: [int(s.payload) for s in of] for key, of in (await signals(log)).items()}


def in_order(count: int, plans: int = 7) -> dict[str, list[int]]:
    return {f"plan-{p}": list(range(p, count, plans)) for p in range(plans)}


async def test_every_message_is_appended_once_and_in_order(
    log: FaultyLog, broker_port: int
) -> None:
    count = 3_000
    async with sender(broker_port) as client, running(new_bridge(log, broker_port)) as bridge:
        assert await client.publish(numbered(count)) == []
        await eventually(lambda: bridge.counters.acknowledged == count)
    assert await numbers(log) == in_order(count)
    assert bridge.counters.appended == bridge.counters.received == count
    assert not bridge.counters.refused
    assert bridge.counters.batches < count


async def test_a_signal_has_what_the_message_had(log: FaultyLog, broker_port: int) -> None:
    station = Message(topic="echo/ABS/EPS/station-3/allocate", payload=b"\xff{", qos=0)
    plan = Message(topic=plan_topic("p:1@x", LAST), payload=b"{}", correlation=b"corr-1")
    unclean = [b"x" * 129, b"tab\there", b"\xff", b""]
    others = [Message(topic=plan_topic("q"), payload=b"", correlation=c) for c in unclean]
    async with sender(broker_port) as client, running(new_bridge(log, broker_port)) as bridge:
        await client.publish([station, plan, *others])
        await eventually(lambda: bridge.counters.appended == 6)
    assert await signals(log, topics.SIGNALS_STATION) == {
        "station-3": [Signal("arm_allocate", NOW_MS, "", station.topic, b"\xff{")]
    }
    found = await signals(log)
    assert found["p:1@x"] == [Signal(LAST, NOW_MS, "corr-1", plan.topic, b"{}")]
    assert [signal.correlation for signal in found["q"]] == [""] * 4


async def test_what_cannot_be_routed_is_a_dead_letter(log: FaultyLog, broker_port: int) -> None:
    # A filter from an older table, which the broker still has in the session.
    async with MqttClient(mqtt_settings(broker_port)) as former:
        await former.subscribe(Subscription("emit/old/#"))
    large = b"x" * (PAYLOAD_BYTES_MAX + 1)
    sent = [
        Message(topic="emit/old/thing", payload=b"\x00old"),
        Message(topic=plan_topic("not clean"), payload=b"spaced"),
        Message(topic=plan_topic("x" * 65), payload=b"long"),
        Message(topic=plan_topic("plan-1"), payload=large),
        Message(topic=plan_topic("plan-1"), payload=large[:-1]),
    ]
    async with sender(broker_port) as client, running(new_bridge(log, broker_port)) as bridge:
        await client.publish(sent)
        await eventually(lambda: bridge.counters.acknowledged == 5)
    reasons = {"unknown_topic": 1, "bad_key": 2, "payload_too_large": 1}
    assert bridge.counters.refused == Counter(reasons)
    assert bridge.counters.appended == 1
    by_raw = {letter.raw: letter for letter in await letters(log)}
    assert set(by_raw) == {b"\x00old", b"spaced", b"long", large[:RAW_BYTES_MAX]}
    old = by_raw[b"\x00old"]
    assert old[:5] == ("unknown_topic", "emit/old/thing", -1, -1, NOW_MS)
    assert "'not clean'" in by_raw[b"spaced"].detail
    assert f"{len(large)} bytes" in by_raw[large[:RAW_BYTES_MAX]].detail
    assert [s.payload for s in (await signals(log))["plan-1"]] == [large[:-1]]


async def killed_bridge(port: int, directory: Path, where: str, publish: Callable[[], Any]) -> int:
    """Start a bridge, publish, and kill it where it stops; the records it had in its hands."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.integration.bridge_process"),
        *(str(port), str(directory), where),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    await publish()
    held = int(await process.stdout.readline())
    process.kill()
    await process.wait()
    return held


async def _session(port: int) -> None:
    """Make the bridge's session known to the broker, so that it keeps what is published."""
    async with MqttClient(mqtt_settings(port)) as client:
        await client.subscribe(*TABLE.subscriptions())


@pytest.mark.parametrize("where", ["before-append", "after-append"])
async def test_a_bridge_killed_with_messages_in_its_hands_loses_none(
    tmp_path: Path, broker_port: int, where: str
) -> None:
    count, directory = 90, tmp_path / "log"
    await _session(broker_port)

    async def publish() -> None:
        async with sender(broker_port) as client:
            await client.publish(numbered(count))

    held = await killed_bridge(broker_port, directory, where, publish)
    assert held > 0
    log = FaultyLog(directory, partitions=PARTITIONS)
    await log.open()
    before = await numbers(log)
    assert sum(map(len, before.values())) == (0 if where == "before-append" else held)
    async with running(new_bridge(log, broker_port)) as bridge:
        await eventually(lambda: bridge.counters.acknowledged == count)
    after = {
        key: values[len(before.get(key, ())) :] for key, values in (await numbers(log)).items()
    }
    # None had been acknowledged, so all of them came again, and nothing but them.
    assert after == in_order(count)
    await log.close()


async def test_nothing_is_acknowledged_before_the_log_has_it(
    log: FaultyLog, broker_port: int
) -> None:
    log.gate.clear()
    async with sender(broker_port) as client, running(new_bridge(log, broker_port)) as bridge:
        await client.publish(numbered(50))
        await eventually(lambda: log.attempts == 1)
        assert bridge.client.counters.acknowledged == 0
        log.gate.set()
        await eventually(lambda: bridge.client.counters.acknowledged == 50)


async def test_a_log_that_fails_is_asked_again_in_order(log: FaultyLog, broker_port: int) -> None:
    log.failures = 3
    async with (
        sender(broker_port) as client,
        running(new_bridge(log, broker_port, batch_records_max=20)) as bridge,
    ):
        await client.publish(numbered(200))
        await eventually(lambda: bridge.counters.acknowledged == 200)
    assert bridge.counters.append_failures == 3
    assert await numbers(log) == in_order(200)


async def test_what_a_log_takes_late_is_received_late(log: FaultyLog, broker_port: int) -> None:
    """Timers that came due while the log failed have fired: no record may lie before them."""
    now_ms = itertools.count(NOW_MS)
    log.failures = 2
    bridge = new_bridge(log, broker_port, clock_ms=lambda: next(now_ms))
    async with sender(broker_port) as client, running(bridge):
        await client.publish(numbered(1))
        await eventually(lambda: bridge.counters.acknowledged == 1)
    ((signal,),) = (await signals(log)).values()
    assert signal.received_ms == NOW_MS + log.attempts - 1 == NOW_MS + 2


@pytest.mark.mosquitto
async def test_memory_is_bounded_while_the_log_is_slow(
    log: FaultyLog, mosquitto: Mosquitto
) -> None:
    # The broker may send everything at once, so only our not reading holds it back.
    count, bound, batch, body = 5_000, 200, 100, b"x" * 2_000
    mqtt = mqtt_settings(mosquitto.port, inbox_messages_max=bound, receive_max=65_535)
    bridge = new_bridge(log, mqtt, batch_records_max=batch)
    log.gate.clear()
    async with sender(mosquitto.port) as client, running(bridge):
        await client.publish([Message(topic=plan_topic("plan-1"), payload=body)] * count)
        one_read = 256 * 1024 // len(body)
        assert 0 < bridge.client.counters.received < batch + bound + one_read
        assert bridge.client.counters.pauses == 1
        log.gate.set()
        await eventually(lambda: bridge.counters.acknowledged == count)


@pytest.mark.mosquitto
async def test_memory_is_bounded_while_the_log_cannot_write(
    tmp_path: Path, mosquitto: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody holds the real log's file, so that every commit waits and fails."""
    monkeypatch.setattr(sqlite_file, "BUSY_WAIT_S", 0.1)
    count, bound, batch, body = 5_000, 200, 100, "x" * 2_000
    log = FaultyLog(tmp_path / "held", partitions=PARTITIONS)
    await log.open()
    mqtt = mqtt_settings(mosquitto.port, inbox_messages_max=bound, receive_max=65_535)
    bridge = new_bridge(log, mqtt, batch_records_max=batch)
    messages = [
        Message(topic=plan_topic(f"plan-{i % 7}"), payload=f'[{i}, "{body}"]'.encode())
        for i in range(count)
    ]
    holder = sqlite3.connect(tmp_path / "held" / sqlite_file.FILE, isolation_level=None)
    try:
        async with sender(mosquitto.port) as client, running(bridge):
            holder.execute("BEGIN IMMEDIATE")
            await client.publish(messages)
            await eventually(lambda: bridge.counters.append_failures > 2)
            one_read = 256 * 1024 // len(body)
            assert 0 < bridge.client.counters.received < batch + bound + one_read
            assert bridge.counters.appended == 0
            holder.execute("ROLLBACK")
            await eventually(lambda: bridge.counters.acknowledged == count, 60.0)
    finally:
        holder.close()
    found = {
        plan: [json.loads(one.payload)[0] for one in of]
        for plan, of in (await signals(log)).items()
    }
    await log.close()
    assert found == in_order(count)


async def test_stop_drains(log: FaultyLog, broker_port: int) -> None:
    log.gate.clear()
    bridge = new_bridge(log, broker_port, batch_records_max=10)
    async with sender(broker_port) as client:
        async with running(bridge):
            await client.publish(numbered(40))
            await eventually(lambda: bridge.client.counters.received == 40)
            bridge.stop()
            await client.publish(numbered(40, start=40))
            log.gate.set()
        assert bridge.counters.acknowledged == bridge.counters.appended == 40
        assert await numbers(log) == in_order(40)
        async with running(new_bridge(log, broker_port)) as next_one:
            await eventually(lambda: next_one.counters.acknowledged == 40)
    assert await numbers(log) == in_order(80)


async def test_stop_does_not_wait_for_a_log_that_fails(log: FaultyLog, broker_port: int) -> None:
    log.failures = 1_000_000
    async with sender(broker_port) as client:
        async with running(new_bridge(log, broker_port)) as bridge:
            await client.publish(numbered(10))
            await eventually(lambda: bridge.counters.append_failures > 0)
        assert bridge.counters.acknowledged == 0
        log.failures = 0
        async with running(new_bridge(log, broker_port)) as next_one:
            await eventually(lambda: next_one.counters.acknowledged == 10)
    assert await numbers(log) == in_order(10)


async def test_stop_does_not_wait_for_an_absent_broker(log: FaultyLog) -> None:
    bridge = new_bridge(log, 9, connect_patience_s=3_600.0)
    task = asyncio.create_task(bridge.run())
    await asyncio.sleep(0.05)
    bridge.stop()
    await task
    assert not bridge.ready.is_set()


async def test_a_cut_between_append_and_acknowledgement_only_repeats(
    log: FaultyLog, broker_port: int
) -> None:
    async with (
        Proxy(broker_port) as proxy,
        sender(broker_port) as client,
        running(new_bridge(log, proxy.port)) as bridge,
    ):
        log.gate.clear()
        await client.publish(numbered(30))
        await eventually(lambda: bridge.client.counters.received == 30)
        proxy.cut()
        await eventually(lambda: bridge.client.counters.received == 60)
        log.gate.set()
        await eventually(lambda: bridge.counters.acknowledged == 30)
    # The batch under way when the cable was pulled is there twice, each time in order.
    for plan, values in (await numbers(log)).items():
        once = in_order(30)[plan]
        assert values[-len(once) :] == once
        assert values[: -len(once)] == once[: len(values) - len(once)]


@pytest.mark.mosquitto
async def test_shared_subscriptions_split_the_work(log: FaultyLog, mosquitto: Mosquitto) -> None:
    one, two = (
        new_bridge(log, mqtt_settings(mosquitto.port, client_id=name), shared_group="bridges")
        for name in ("one", "two")
    )
    async with sender(mosquitto.port) as client, running(one), running(two):
        await client.publish(numbered(400))
        await eventually(lambda: one.counters.acknowledged + two.counters.acknowledged == 400)
    assert one.counters.appended == two.counters.appended == 200
    found = await numbers(log)
    assert sorted(n for values in found.values() for n in values) == list(range(400))


@pytest.mark.mosquitto
async def test_a_broker_that_goes_and_comes_back(
    log: FaultyLog, start_mosquitto: MosquittoFactory
) -> None:
    broker = start_mosquitto(persistence=True)
    async with sender(broker.port) as client, running(new_bridge(log, broker.port)) as bridge:

        async def hundred(start: int) -> None:
            assert await client.publish(numbered(100, start=start)) == []
            await eventually(lambda: bridge.counters.acknowledged >= start + 100)

        def down_and_up(down: Callable[[], None]) -> None:
            down()
            broker.start()

        await hundred(0)
        down_and_up(broker.stop)
        await hundred(100)
        # Its session is now as the broker saved it last.
        down_and_up(broker.kill)
        await eventually(lambda: bridge.client.counters.connections == 3)
        await hundred(200)
    found = await numbers(log)
    assert {plan: sorted(set(values)) for plan, values in found.items()} == in_order(300)


async def test_what_is_published_while_the_bridge_is_away_waits(
    log: FaultyLog, broker_port: int
) -> None:
    async with sender(broker_port) as client:
        async with running(new_bridge(log, broker_port)):
            pass
        await client.publish(numbered(2_500))
        async with running(new_bridge(log, broker_port)) as bridge:
            await eventually(lambda: bridge.counters.acknowledged == 2_500)
    assert await numbers(log) == in_order(2_500)
