"""Bad input over MQTT through the whole embedded platform: one dead letter with the raw bytes, an
echo to whoever can be told, and the plan goes on."""

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import aiomqtt
import pytest
import pytest_asyncio

from bss_stream import _engine, audit_states, topics
from bss_stream.audit import audit
from bss_stream.bridge import PAYLOAD_BYTES_MAX, RAW_BYTES_MAX
from bss_stream.config import Config, EmbeddedLog, Log, Mqtt
from bss_stream.frames import DeadLetter, decode_dead_letter, decode_signal
from bss_stream.mqtt.broker import EmbeddedBroker
from bss_stream.mqtt.client import MqttClient
from bss_stream.mqtt.messages import MqttSettings, Subscription
from bss_stream.roles import Platform
from bss_stream.sink.store import open_ledger_store
from tests.eventually import eventually
from tests.undisturbed import check_contents, read_log, undisturbed
from tests.unit.histories import rfc3339

pytestmark = pytest.mark.asyncio(loop_scope="module")

WAIT_S = 30.0
STATION = "station-nbi-001"
BIND = "emit/uxi/service/plan/{}/customer_binding"
BIND_ECHO = "echo/abs/service/plan/{}/customer_binding"
IDENTIFY = "emit/uxi/attendant/plan/{}/identify_customer"
IDENTIFY_ECHO = "echo/abs/attendant/plan/{}/identify_customer"
REPORT = "emit/uxi/attendant/plan/{}/payment_and_service"
REPORT_ECHO = "echo/abs/attendant/plan/{}/payment_and_service"
PAY = "emit/abs/bss/payment/{}/service_payment"
PAY_ECHO = "echo/abs/bss/payment/{}/service_payment"
SYNC = "emit/odo/subscription/plan/{}/sync"
SYNC_ECHO = "echo/odo/subscription/plan/{}/sync"

ECHO_PROPERTIES = [
    ("agent_type", "BSS_AGENT_V2"),
    ("response_type", "AGENT_CALCULATION_RESULT"),
    ("response_pattern", "echo"),
    ("platform_version", version("bss_stream")),
    ("application", "abs-platform"),
]

_numbers = itertools.count(1)


@dataclass
class App:
    """The platform, and a client of its broker that reads whatever is published."""

    platform: Platform
    client: aiomqtt.Client
    packets: list[aiomqtt.PublishPacket] = field(default_factory=list)

    async def read(self) -> None:
        """Take in packets until cancelled."""
        async for packet in self.client.messages():
            assert isinstance(packet, aiomqtt.PublishPacket)
            self.packets.append(packet)
            if packet.packet_id is not None:
                await self.client.puback(packet.packet_id)

    async def send(self, topic: str, payload: bytes, correlation: str) -> None:
        """Publish with QoS 1; returns once the broker has it."""
        await self.client.publish(
            topic,
            payload,
            qos=aiomqtt.QoS.AT_LEAST_ONCE,
            packet_id=next(self.client.packet_ids),
            correlation_data=correlation.encode(),
        )

    def echoes(self, topic: str, correlation: str) -> list[aiomqtt.PublishPacket]:
        """What has come to a topic in answer to a request."""
        wanted = correlation.encode()
        return [p for p in self.packets if (p.topic, p.correlation_data) == (topic, wanted)]

    async def echo(self, topic: str, correlation: str) -> aiomqtt.PublishPacket:
        """The answer to a request."""
        await eventually(lambda: bool(self.echoes(topic, correlation)), WAIT_S)
        return self.echoes(topic, correlation)[0]

    async def begin(self) -> str:
        """A new plan that is paid and has its quotas; its id."""
        plan = f"plan-{next(_numbers)}"
        await self.send(SYNC.format(plan), encoded(plan, "sync", **SYNCED), "sync")
        await self.echo(SYNC_ECHO.format(plan), "sync")
        topic = f"emit/uxi/service/plan/{plan}/initialize_states"
        await self.send(topic, encoded(plan, "init"), "init")
        await self.echo(f"echo/abs/service/plan/{plan}/initialize_states_result", "init")
        return plan

    async def goes_on(self, plan: str) -> None:
        """The next good signal of the plan is taken."""
        good = encoded(plan, "good", qr_code_data="qr", attendant_station=STATION)
        await self.send(IDENTIFY.format(plan), good, "good")
        echo = json.loads((await self.echo(IDENTIFY_ECHO.format(plan), "good")).payload or b"")
        assert echo["data"]["success"] is True
        assert echo["data"]["metadata"]["service_plan_data"]["servicePlanId"] == plan

    async def letters(self) -> list[tuple[str, DeadLetter]]:
        """All dead letters in the log, each with its key."""
        records = (await read_log(self.platform.log))[topics.DEAD_LETTER]
        return [(r.key.decode("utf-8", "replace"), decode_dead_letter(r.value)) for r in records]


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def encoded(plan: str, correlation: str, *, at_ms: int | None = None, **data: Any) -> bytes:
    """A request with these data, made now unless told otherwise."""
    envelope = {
        "timestamp": rfc3339(now_ms() if at_ms is None else at_ms),
        "plan_id": plan,
        "correlation_id": correlation,
        "actor": {"type": "attendant", "id": "att-1"},
        "data": data,
    }
    return json.dumps(envelope).encode()


SYNCED: dict[str, Any] = {
    "odoo_subscription_id": 1,
    "odoo_payment_state": "paid",
    "odoo_subscription_state": "in_progress",
    "odoo_currency_id": "KES",
    "odoo_amount_total": 8000,
    "template_id": "template-nairobi-basic",
    "customer_id": "cust-1",
}
PAYMENT: dict[str, Any] = {
    "service_id": "service-swap-count-nairobi",
    "payment_reference": "QGH7SK6403",
    "payment_method": "MPESA",
    "payment_type": "TOP_UP",
}


def bind(plan: str, at_ms: int | None = None, **data: Any) -> bytes:
    """A rider's request at a station, by default a good one."""
    data.setdefault("location_id", STATION)
    return encoded(plan, "bad", at_ms=at_ms, **data)


def report(plan: str, **service: Any) -> bytes:
    """An attendant's report of a first issue."""
    given = {"new_battery_id": "bat-1", "energy_transferred": 1.5, **service}
    return encoded(plan, "bad", attendant_station=STATION, service_data=given)


def nested(plan: str, depth: int) -> bytes:
    """A request with an unknown field, so that arrays and objects nest so deep."""
    arrays = depth - 1
    return bind(plan)[:-1] + b', "x": ' + b"[" * arrays + b"]" * arrays + b"}"


Case = tuple[str, str, Callable[[str], bytes], str]
"""Topic and echo topic with a place for the plan, the payload for a plan, the reason."""

CASES: dict[str, Case] = {
    "not JSON": (BIND, BIND_ECHO, lambda p: b"swap please", "malformed_json"),
    "nothing": (BIND, BIND_ECHO, lambda p: b"", "malformed_json"),
    "truncated": (BIND, BIND_ECHO, lambda p: bind(p)[:-20], "malformed_json"),
    "invalid UTF-8": (
        BIND,
        BIND_ECHO,
        lambda p: bind(p).replace(STATION.encode(), b"st\xff\xfe"),
        "invalid_utf8",
    ),
    "over 64 KiB": (BIND, BIND_ECHO, lambda p: bind(p).ljust(65_537), "payload_too_large"),
    "nested over 32": (BIND, BIND_ECHO, lambda p: nested(p, 33), "nesting_too_deep"),
    "nested without end": (BIND, BIND_ECHO, lambda p: b'{"x":' + b"[" * 60_000, "nesting_too_deep"),
    "a list": (IDENTIFY, IDENTIFY_ECHO, lambda p: b"[1, 2]", "wrong_type"),
    "a station that is a number": (BIND, BIND_ECHO, lambda p: bind(p, location_id=7), "wrong_type"),
    "energy that is a text": (
        REPORT,
        REPORT_ECHO,
        lambda p: report(p, energy_transferred="much"),
        "wrong_type",
    ),
    "negative energy": (
        REPORT,
        REPORT_ECHO,
        lambda p: report(p, energy_transferred=-1),
        "number_out_of_range",
    ),
    "more money than there is": (
        PAY,
        PAY_ECHO,
        lambda p: encoded(p, "bad", payment_amount=1e20, **PAYMENT),
        "number_out_of_range",
    ),
    "an hour ahead": (
        BIND,
        BIND_ECHO,
        lambda p: bind(p, at_ms=now_ms() + 3_600_000),
        "timestamp_skew",
    ),
    "two days ago": (
        BIND,
        BIND_ECHO,
        lambda p: bind(p, at_ms=now_ms() - 172_800_000),
        "timestamp_skew",
    ),
    "another plan inside": (BIND, BIND_ECHO, lambda p: bind(p + "0"), "id_mismatch"),
    "no station": (BIND, BIND_ECHO, lambda p: bind(p, location_id=None), "missing_field"),
    "an unknown station": (
        BIND,
        BIND_ECHO,
        lambda p: bind(p, location_id="station-of-the-moon"),
        "unknown_location",
    ),
    "an unknown template": (
        SYNC,
        SYNC_ECHO,
        lambda p: encoded(p + "-new", "bad", **{**SYNCED, "template_id": "template-x"}),
        "unknown_template",
    ),
    "an unknown plan": (BIND, BIND_ECHO, lambda p: bind(p + "-new"), "unknown_plan"),
}

NOT_YET = ("an unknown template", "an unknown plan")
"""Cases of a plan that does not exist, named after one that does."""


@asynccontextmanager
async def in_the_field(platform: Platform, broker: EmbeddedBroker | None) -> AsyncIterator[App]:
    assert broker is not None
    host, port = broker.host, broker.port
    async with aiomqtt.Client(hostname=host, port=port, keep_alive=30) as client:
        app = App(platform, client)
        reading = asyncio.create_task(app.read())
        for pattern in ("echo/abs/#", "echo/odo/#", "cmd/#"):
            await client.subscribe(pattern, max_qos=aiomqtt.QoS.AT_LEAST_ONCE)
        yield app
        reading.cancel()
        await asyncio.wait([reading])


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def app(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[App]:
    """One platform for all cases; after the last one its ledgers are whole."""
    config = Config(
        data_dir=str(tmp_path_factory.mktemp("bad-input")),
        log=Log(embedded=EmbeddedLog(durability="process")),
        mqtt=Mqtt(port=0),
    )
    async with Platform(config) as platform:
        async with in_the_field(platform, platform.broker) as app:
            yield app
        await platform.drain()
        contents = await read_log(platform.log)
        check_contents(
            contents, undisturbed(contents, platform.setup, partitions=config.partitions)
        )
        engine = _engine.Engine(platform.setup, partitions=config.partitions)
        store = open_ledger_store(config.ledger_url().reveal())
        store.open()
        with await audit_states.collect_states(platform.log, engine.describe_state) as states:
            found = audit(store, states, drained=True)
        store.close()
        assert found.ok, found.differences


@pytest.mark.parametrize(
    ("topic", "echo_topic", "payload", "reason"), CASES.values(), ids=CASES.keys()
)
async def test_bad_input_is_kept_told_and_survived(
    app: App,
    topic: str,
    echo_topic: str,
    payload: Callable[[str], bytes],
    reason: str,
    request: pytest.FixtureRequest,
) -> None:
    plan = await app.begin()
    about = f"{plan}-new" if any(name in request.node.name for name in NOT_YET) else plan
    bad = payload(plan)
    await app.send(topic.format(about), bad, "bad")

    packet = await app.echo(echo_topic.format(about), "bad")
    # rumqttd counts the time that it has had the message.
    assert packet.message_expiry_interval in range(200, 301)
    assert packet.user_properties == ECHO_PROPERTIES
    echo = json.loads(packet.payload or b"")
    assert (echo["plan_id"], echo["correlation_id"]) == (about, "bad")
    assert echo["actor"] == {"type": "agent", "id": "bss-agent-v2"}
    assert (echo["data"]["plan_id"], echo["data"]["success"]) == (about, False)
    assert echo["data"]["signals"] == [
        "SECURITY_ALERT" if reason == "id_mismatch" else "VALIDATION_FAILED"
    ]
    assert echo["data"]["metadata"]["reason"] == reason
    assert echo["data"]["metadata"]["message"]

    await app.goes_on(plan)
    [letter] = [letter for key, letter in await app.letters() if key == about]
    kept = decode_signal(letter.raw)
    assert (letter.reason, kept.payload, kept.source) == (reason, bad, topic.format(about))
    assert (kept.correlation, letter.source_topic) == ("bad", topics.SIGNALS_PLAN)
    assert len(app.echoes(echo_topic.format(about), "bad")) == 1


async def test_input_at_the_limits_is_taken(app: App) -> None:
    large, deep = await app.begin(), await app.begin()
    await app.send(BIND.format(large), bind(large).ljust(65_536), "bad")
    await app.send(BIND.format(deep), nested(deep, 32), "bad")
    # The station asks ARM in both plans' names.
    await eventually(lambda: bool(commands(app, large) and commands(app, deep)), WAIT_S)
    assert not {large, deep}.intersection(key for key, _ in await app.letters())


STOCK = b'{"fleet_id":"fleet-nairobi-standard-4ah","available":-1}'


def commands(app: App, plan: str) -> list[bytes]:
    """Orders to ARM for a plan."""
    named = f'"plan_id":"{plan}"'.encode()
    orders = [p for p in app.packets if p.topic == f"cmd/ABS/EPS/{STATION}/allocate"]
    return [p.payload or b"" for p in orders if named in (p.payload or b"")]


@pytest.mark.parametrize(
    ("plan", "payload", "reason"),
    [
        ("not clean", b"{}", "bad_key"),
        ("x" * 65, b"{}", "bad_key"),
        ("plan-large", b"x" * (PAYLOAD_BYTES_MAX + 1), "payload_too_large"),
    ],
    ids=["an unclean key", "a long key", "more than a record holds"],
)
async def test_what_cannot_be_routed_is_kept_and_told_nobody(
    app: App, plan: str, payload: bytes, reason: str
) -> None:
    topic = IDENTIFY.format(plan)
    other = await app.begin()
    await app.send(topic, payload, "lost")
    await app.goes_on(other)
    [letter] = [letter for _, letter in await app.letters() if letter.source_topic == topic]
    assert (letter.reason, letter.raw) == (reason, payload[:RAW_BYTES_MAX])
    assert (letter.partition, letter.offset) == (-1, -1)
    assert app.echoes(IDENTIFY_ECHO.format(plan), "lost") == []


async def test_an_unknown_event_is_kept_and_told_nobody(tmp_path: Path) -> None:
    """The broker still has a filter of an older topic table in the bridge's session."""
    topic = "emit/uxi/attendant/plan/plan-1/dance"
    async with EmbeddedBroker() as broker:
        former = MqttSettings(
            host=broker.host, port=broker.port, client_id="bss-bridge-0", session_expiry_s=600
        )
        async with MqttClient(former) as client:
            await client.subscribe(Subscription("emit/uxi/attendant/plan/+/dance"))
        config = Config(data_dir=str(tmp_path), mqtt=Mqtt(embedded=False, port=broker.port))
        async with Platform(config) as platform, in_the_field(platform, broker) as app:
            await app.send(topic, b"\x00\xffdance", "lost")
            await app.goes_on(await app.begin())
            [(_, letter)] = await app.letters()
            assert letter[:4] == ("unknown_topic", topic, -1, -1)
            assert letter.raw == b"\x00\xffdance"
            assert [p for p in app.packets if p.correlation_data == b"lost"] == []


@pytest.mark.parametrize(
    ("topic", "payload", "reason"),
    [
        ("echo/ABS/EPS/{}/allocate", b"issued!", "malformed_json"),
        ("echo/ABS/EPS/{}/allocate", b'{"status":"issued","asset_id":7}', "wrong_type"),
        ("emit/arm/station/{}/stock", STOCK, "number_out_of_range"),
    ],
    ids=["not JSON", "a battery that is a number", "less than no battery"],
)
async def test_what_stations_get_wrong_is_kept_and_told_nobody(
    app: App, topic: str, payload: bytes, reason: str
) -> None:
    sent = topic.format(STATION)
    known = len([key for key, _ in await app.letters() if key == STATION])
    await app.send(sent, payload, "arm")
    # The station goes on: it passes the next rider's request to ARM.
    plan = await app.begin()
    await app.send(BIND.format(plan), bind(plan), "bad")
    await eventually(lambda: bool(commands(app, plan)), WAIT_S)
    letters = [letter for key, letter in await app.letters() if key == STATION]
    assert len(letters) == known + 1
    assert (letters[-1].reason, decode_signal(letters[-1].raw).payload) == (reason, payload)
    assert [p for p in app.packets if p.correlation_data == b"arm"] == []
