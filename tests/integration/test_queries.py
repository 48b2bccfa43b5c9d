"""Riders' queries over real brokers and both databases: echoes, refusals, sharing, outages."""

import asyncio
import contextlib
import itertools
import json
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path
from typing import Any

import aiomqtt
import pytest

from bss_stream.client.echo import read_echo
from bss_stream.config import Config, EmbeddedLog, Log, Mqtt
from bss_stream.errors import MqttError, SinkError
from bss_stream.mqtt.client import MqttClient
from bss_stream.mqtt.messages import Message, MqttSettings, Subscription
from bss_stream.queries import Catalogue, Queries, QueriesSettings
from bss_stream.reports.fleet import fleet_report
from bss_stream.reports.network import Network
from bss_stream.roles import Platform
from bss_stream.sink.read_model import open_read_model
from bss_stream.testing import Playground
from tests.eventually import eventually
from tests.integration.databases import execute
from tests.read_model import SETUP, Copied
from tests.rider_story import SWAP, answer, bind, hand_over, paid_plan
from tests.servers.mosquitto import Mosquitto
from tests.servers.postgres import PostgresServer

WAIT_S = 60.0
HISTORY, BALANCE = "emit/uxi/rider/plan/{}/swap_history", "emit/uxi/rider/plan/{}/balance"
NEARBY = "emit/uxi/rider/stations/nearby"
CENTRE = {"lat": -1.2841, "lon": 36.8233}


@pytest.fixture
def play() -> Iterator[Playground]:
    """Two plans; one of them with a swap at the counter and one without anybody."""
    with Playground() as play:
        paid_plan(play)
        paid_plan(play, "p-2")
        hand_over(play, None, "bat-1", 0.75)
        answer(play, bind(play, "station-nbi-002"), "bat-2", 1.5)
        yield play


@pytest.fixture
def copied(play: Playground, ledger_url: str) -> Iterator[str]:
    """The url of a database that has the history."""
    with Copied(play, ledger_url) as copy:
        copy.take()
        yield ledger_url


def mqtt_settings(port: int, client_id: str) -> MqttSettings:
    return MqttSettings(
        host="127.0.0.1",
        port=port,
        client_id=client_id,
        clean_start=True,
        backoff_min_s=0.01,
        backoff_max_s=0.2,
    )


@asynccontextmanager
async def running(
    play: Playground, url: str, port: int, client_id: str = "queries", **settings: Any
) -> AsyncIterator[Queries]:
    """Queries at work, told to stop at the end."""
    queries = Queries(
        mqtt_settings(port, client_id),
        open_read_model(url),
        Catalogue.of(SETUP, play.engine.describe_state),
        QueriesSettings(**settings),
    )
    task = asyncio.create_task(queries.run())
    try:
        await asyncio.wait_for(queries.ready.wait(), WAIT_S)
        yield queries
    finally:
        queries.stop()
        await task
        assert queries.counters.balance() == []


class App:
    """A rider's app: asks, and finds its echo by the correlation id."""

    def __init__(self, client: MqttClient) -> None:
        self.client = client
        self.echoes: dict[str, tuple[str, dict[str, Any]]] = {}
        self.heard: Counter[str] = Counter()
        self._numbers = itertools.count(1)
        self._listening = asyncio.create_task(self._listen())

    async def ask(
        self,
        topic: str,
        data: dict[str, Any] | None = None,
        *,
        plan_id: str = "p-1",
        about: dict[str, str] | None = None,
    ) -> tuple[str, dict[str, Any]]:
        """The echo's topic and data."""
        correlation_id = await self.send(topic, data, plan_id=plan_id, about=about)
        await eventually(lambda: correlation_id in self.echoes, WAIT_S)
        return self.echoes[correlation_id]

    async def send(
        self,
        topic: str,
        data: dict[str, Any] | None = None,
        *,
        plan_id: str = "p-1",
        about: dict[str, str] | None = None,
    ) -> str:
        correlation_id = f"{self.client.settings.client_id}-{next(self._numbers)}"
        body = {
            "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "plan_id": plan_id,
            "correlation_id": correlation_id,
            "actor": {"type": "customer", "id": "cust-1"},
            "data": data or {},
            **(about or {}),
        }
        payload = json.dumps(body).encode()
        await self.client.publish([Message(topic=topic.format(plan_id), payload=payload)])
        return correlation_id

    async def _listen(self) -> None:
        async for batch in self.client.batches(100):
            self.client.ack(batch)
            for message in batch:
                echo = json.loads(message.payload, parse_float=Decimal)
                assert read_echo(message.payload).reason() == echo["data"]["metadata"]["reason"]
                self.heard[echo["correlation_id"]] += 1
                self.echoes[echo["correlation_id"]] = (message.topic, echo["data"])

    async def close(self) -> None:
        self.client.stop_intake()
        await self._listening


@asynccontextmanager
async def app_on(port: int, client_id: str = "app") -> AsyncIterator[App]:
    async with MqttClient(mqtt_settings(port, client_id)) as client:
        await client.subscribe(Subscription("echo/#"))
        app = App(client)
        yield app
        await app.close()


async def test_each_query_is_answered_on_its_topic(
    play: Playground, copied: str, broker_port: int
) -> None:
    async with running(play, copied, broker_port) as queries, app_on(broker_port) as app:
        topic, history = await app.ask(HISTORY, {"limit": 1})
        assert topic == "echo/abs/rider/plan/p-1/swap_history"
        (swap,) = history["metadata"]["swaps"]
        assert (swap["battery_issued"], swap["energy_kwh"]) == ("bat-2", Decimal("1.5"))
        assert (swap["mode"], swap["location_id"]) == ("self_service", "station-nbi-002")
        before = history["metadata"]["next_before"]
        _, page = await app.ask(HISTORY, {"before": before})
        assert [one["battery_issued"] for one in page["metadata"]["swaps"]] == ["bat-1"]
        assert page["metadata"]["next_before"] is None

        topic, balance = await app.ask(BALANCE)
        assert topic == "echo/abs/rider/plan/p-1/balance"
        accounts = {one["service_id"]: one for one in balance["metadata"]["service_states"]}
        assert (accounts[SWAP]["used"], accounts[SWAP]["left"]) == (2, 28)
        _, other = await app.ask(BALANCE, plan_id="p-2")
        accounts = {one["service_id"]: one for one in other["metadata"]["service_states"]}
        assert (other["plan_id"], accounts[SWAP]["used"]) == ("p-2", 0)

        topic, nearby = await app.ask(NEARBY, CENTRE)
        assert topic == "echo/abs/rider/stations/nearby/app-5"
        first = nearby["metadata"]["stations"][0]
        assert (first["location_id"], first["distance_km"]) == ("station-nbi-001", 0)
        on_record = {one["fleet_id"]: one for one in play.station("station-nbi-001")["stock"]}
        for fleet in first["fleets"]:
            assert fleet["available"] == on_record[fleet["fleet_id"]]["current_stock"]

        newest = max(entry["recorded_at"] for entry in play.entries())
        for data in (history, page, balance, other, nearby):
            assert (data["success"], data["signals"]) == (True, [])
            assert data["metadata"]["as_of"] == newest
    assert queries.counters.answers == {"ok": 5}
    assert queries.client.counters.acknowledged == 5


async def test_reports_are_out_of_the_same_database(
    play: Playground, copied: str, broker_port: int
) -> None:
    async with running(play, copied, broker_port), app_on(broker_port) as app:
        at = {"location_id": "station-nbi-001"}
        topic, told = await app.ask("emit/uxi/operator/station/station-nbi-001/report", about=at)
        assert topic == "echo/abs/operator/station/station-nbi-001/report"
        assert (told["location_id"], told["metadata"]["readiness"]) == (at["location_id"], "READY")
        fleet = {"fleet_id": "fleet-nairobi-standard-4ah"}
        topic, told = await app.ask(
            f"emit/uxi/manager/fleet/{fleet['fleet_id']}/report", about=fleet
        )
        assert topic == f"echo/abs/manager/fleet/{fleet['fleet_id']}/report"
        assert told["metadata"]["lacking"] == 0
    network = Network.of(SETUP, play.engine.describe_state)
    market = network.market_of_fleet(fleet["fleet_id"])
    assert market is not None
    with contextlib.closing(open_read_model(copied)) as model, model.view() as view:
        report: Any = fleet_report(
            view, network, market, now_ms=play.now_ms, last=market.day(play.now_ms), days=30
        )
    assert report["lifecycle"]["cycles"] == report["finance"]["batteries_in_use"] == 2


async def test_bad_requests_are_told_why(play: Playground, copied: str, broker_port: int) -> None:
    async with running(play, copied, broker_port) as queries, app_on(broker_port) as app:
        for topic, data, plan_id, reason in (
            (BALANCE, None, "p-3", "unknown_plan"),
            (HISTORY, None, "p-3", "unknown_plan"),
            (BALANCE.format("p-2"), None, "p-1", "id_mismatch"),
            (HISTORY, {"limit": 101}, "p-1", "number_out_of_range"),
            (HISTORY, {"before": "x"}, "p-1", "wrong_type"),
            (NEARBY, {"lat": 1}, "p-1", "missing_field"),
            (NEARBY, {**CENTRE, "fleet_id": "fleet-x"}, "p-1", "unknown_value"),
            (BALANCE, {"x": "y" * 70_000}, "p-1", "payload_too_large"),
        ):
            _, told = await app.ask(topic, data, plan_id=plan_id)
            assert (told["success"], told["metadata"]["reason"]) == (False, reason)
            assert told["metadata"]["message"]
        for topic, payload in (
            (BALANCE.format("p-1"), b"[" * 50_000),
            (BALANCE.format("p 1"), b"{}"),
            (NEARBY, b"\xff"),
        ):
            message = Message(topic=topic, payload=payload, correlation=b"by-property")
            await app.client.publish([message])
        await eventually(lambda: queries.counters.answers.total() == 11, WAIT_S)
        await eventually(lambda: app.heard["by-property"] == 2, WAIT_S)
        assert (await app.ask(BALANCE))[1]["success"]
    assert queries.counters.answers["no_query"] == 1
    assert queries.counters.answers["invalid_utf8"] == 1


@pytest.mark.mosquitto
async def test_echoes_have_the_contract_s_properties(
    play: Playground, copied: str, mosquitto: Mosquitto
) -> None:
    async with (
        running(play, copied, mosquitto.port),
        aiomqtt.Client(hostname="127.0.0.1", port=mosquitto.port) as listener,
        app_on(mosquitto.port) as app,
    ):
        await listener.subscribe("echo/#", max_qos=aiomqtt.QoS.AT_LEAST_ONCE)
        await app.ask(NEARBY, CENTRE)
        packet = await anext(aiter(listener.messages()))
        assert isinstance(packet, aiomqtt.PublishPacket)
        assert packet.correlation_data == b"app-1"
        assert packet.message_expiry_interval == 300
        assert packet.qos is aiomqtt.QoS.AT_LEAST_ONCE
        assert not packet.retain
        assert packet.user_properties == [
            ("agent_type", "BSS_AGENT_V2"),
            ("response_type", "AGENT_CALCULATION_RESULT"),
            ("response_pattern", "echo"),
            ("platform_version", version("bss_stream")),
            ("application", "abs-platform"),
        ]


async def test_more_requests_than_a_broker_sends_ahead(
    play: Playground, copied: str, broker_port: int
) -> None:
    async with running(play, copied, broker_port) as queries, app_on(broker_port) as app:
        asked = [asyncio.create_task(app.ask(BALANCE)) for _ in range(700)]
        await asyncio.gather(*asked)
    assert queries.counters.answers == {"ok": 700}
    assert set(app.heard.values()) == {1}


async def test_told_to_stop_it_answers_what_has_come_in(
    play: Playground, copied: str, broker_port: int
) -> None:
    async with app_on(broker_port) as app:
        async with running(play, copied, broker_port, batch_requests_max=1) as queries:
            sent = [await app.send(BALANCE) for _ in range(30)]
            await eventually(lambda: queries.client.counters.received == 30, WAIT_S)
        await eventually(lambda: set(sent) <= app.echoes.keys(), WAIT_S)


def config_file(directory: Path, port: int, url: str) -> Path:
    file = directory / "bss.toml"
    if url.startswith("sqlite:"):
        sink = f'backend = "sqlite"\npath = "{url.removeprefix("sqlite:")}"'
    else:
        sink = f'backend = "postgres"\ndsn = "{url}"'
    mqtt = f"embedded = false\nport = {port}"
    file.write_text(f'data_dir = "{directory / "data"}"\n[mqtt]\n{mqtt}\n[sink]\n{sink}')
    return file


@asynccontextmanager
async def process(config: Path, instance: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Queries in a process that is ready; killed at the end if it still runs."""
    command = (sys.executable, "-m", "tests.integration.queries_process", config, instance)
    pipe = asyncio.subprocess.PIPE
    started = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    try:
        assert started.stdout is not None
        assert await asyncio.wait_for(started.stdout.readline(), WAIT_S) == b"ready\n"
        yield started
    finally:
        if started.returncode is None:
            started.kill()
        await started.communicate()


async def drained(process: asyncio.subprocess.Process) -> int:
    """Have a process drain; how many requests it has answered."""
    said, _ = await asyncio.wait_for(process.communicate(b""), WAIT_S)
    assert process.returncode == 0
    return int(said)


@pytest.mark.mosquitto
async def test_processes_share_the_requests(
    copied: str, mosquitto: Mosquitto, tmp_path: Path
) -> None:
    config = config_file(tmp_path, mosquitto.port, copied)
    async with (
        app_on(mosquitto.port) as app,
        process(config, "0") as first,
        process(config, "1") as second,
    ):
        for _ in range(40):
            await app.ask(BALANCE)
        answered = (await drained(first), await drained(second))
    assert sum(answered) == 40
    assert min(answered) > 0
    assert set(app.heard.values()) == {1}
    # They touch no log: nothing of one has been made.
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.mosquitto
async def test_a_killed_process_leaves_its_share_to_the_others(
    copied: str, mosquitto: Mosquitto, tmp_path: Path
) -> None:
    config = config_file(tmp_path, mosquitto.port, copied)
    async with (
        app_on(mosquitto.port) as app,
        process(config, "0") as first,
        process(config, "1") as second,
    ):
        for _ in range(4):
            await app.ask(BALANCE)
        first.kill()
        await first.wait()
        # Until the broker has noticed, a request may still go to the dead: clients ask again.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                await app.ask(HISTORY)
        for _ in range(20):
            await app.ask(HISTORY)
        assert await drained(second) >= 20
    assert first.returncode == -signal.SIGKILL


@pytest.mark.postgres
async def test_a_database_that_is_away_only_delays_the_echoes(
    play: Playground, postgres: str, postgres_server: PostgresServer, broker_port: int
) -> None:
    with Copied(play, postgres) as copy:
        copy.take()
    async with running(play, postgres, broker_port) as queries, app_on(broker_port) as app:
        await app.ask(BALANCE)
        postgres_server.kill()
        asked = [asyncio.create_task(app.ask(BALANCE)) for _ in range(150)]
        await eventually(lambda: queries.counters.unavailable > 1, WAIT_S)
        assert queries.counters.answers == {"ok": 1}
        postgres_server.start()
        await asyncio.gather(*asked)
    assert queries.counters.answers == {"ok": 151}


@pytest.mark.postgres
async def test_told_to_stop_without_a_database_it_stops(
    play: Playground, postgres: str, postgres_server: PostgresServer, broker_port: int
) -> None:
    async with app_on(broker_port) as app:
        postgres_server.kill()
        async with running(play, postgres, broker_port) as queries:
            await app.send(BALANCE)
            await eventually(lambda: queries.counters.unavailable > 0, WAIT_S)
        assert app.echoes == {}
    postgres_server.start()


async def test_a_database_that_the_sink_has_yet_to_make_is_waited_for(
    play: Playground, ledger_url: str, broker_port: int
) -> None:
    async with running(play, ledger_url, broker_port) as queries, app_on(broker_port) as app:
        asked = asyncio.create_task(app.ask(BALANCE))
        await eventually(lambda: queries.counters.unavailable > 1, WAIT_S)
        with Copied(play, ledger_url) as copy:
            copy.take()
            assert (await asked)[1]["success"]


async def test_queries_cannot_write(copied: str) -> None:
    model = open_read_model(copied)
    with pytest.raises(SinkError, match=r"read-?only"), model.view() as view:
        view._query("DELETE FROM ledger_entries", ())
    model.close()
    with Playground() as play, Copied(play, copied) as copy, copy.model.view() as view:
        assert view.has_plan("p-1")


async def test_a_schema_from_a_later_program_ends_the_role(
    play: Playground, copied: str, broker_port: int
) -> None:
    execute(copied, "INSERT INTO sink_migrations VALUES (3, 0)")
    with pytest.raises(SinkError, match="version 3"):
        async with running(play, copied, broker_port) as queries, app_on(broker_port) as app:
            await app.send(BALANCE)
            await eventually(lambda: queries.counters.received > 0, WAIT_S)


async def test_one_unreadable_plan_stops_no_other(
    play: Playground, copied: str, broker_port: int
) -> None:
    execute(copied, "UPDATE ledger_entries SET entry = '{}' WHERE plan_id = 'p-2'")
    async with running(play, copied, broker_port) as queries, app_on(broker_port) as app:
        await app.send(BALANCE, plan_id="p-2")
        assert (await app.ask(BALANCE))[1]["success"]
    assert queries.counters.answers == {"unreadable": 1, "ok": 1}


async def test_another_set_up_is_taken_at_once(
    play: Playground, copied: str, broker_port: int
) -> None:
    async with running(play, copied, broker_port) as queries, app_on(broker_port) as app:
        _, before = await app.ask(NEARBY, CENTRE)
        queries.reload(Catalogue({}, {}, {}, [], Network((), play.engine.describe_state)))
        _, after = await app.ask(NEARBY, CENTRE)
    assert (len(before["metadata"]["stations"]) > 5, after["metadata"]["stations"]) == (True, [])


async def test_a_broker_that_is_not_there_is_an_error(play: Playground, copied: str) -> None:
    queries = Queries(
        mqtt_settings(1, "queries"),
        open_read_model(copied),
        Catalogue.of(SETUP, play.engine.describe_state),
        QueriesSettings(connect_patience_s=0.0),
    )
    with pytest.raises(MqttError, match=r"127\.0\.0\.1:1"):
        await queries.run()


async def test_a_view_is_one_moment(play: Playground, ledger_url: str) -> None:
    with Copied(play, ledger_url) as copy:
        copy.take()
        with copy.model.view() as view:
            before = view.recorded_at_ms(), view.accounts("p-1")
            hand_over(play, "bat-2", "bat-3", 1)
            copy.take()
            assert (view.recorded_at_ms(), view.accounts("p-1")) == before
        with copy.model.view() as view:
            assert view.accounts("p-1") != before[1]


async def test_the_platform_answers_out_of_what_it_has_just_decided(tmp_path: Path) -> None:
    config = Config(
        data_dir=str(tmp_path),
        mqtt=Mqtt(port=0),
        log=Log(embedded=EmbeddedLog(durability="process")),
    )
    async with Platform(config) as platform:
        assert platform.broker is not None
        async with app_on(platform.broker.port) as app:
            data = {
                "odoo_subscription_id": 7,
                "odoo_payment_state": "paid",
                "odoo_subscription_state": "in_progress",
                "odoo_currency_id": "KES",
                "odoo_amount_total": 1500,
                "template_id": "template-nairobi-basic",
                "customer_id": "cust-1",
            }
            assert (await app.ask("emit/odo/subscription/plan/{}/sync", data))[1]["success"]
            told: dict[str, Any] = {"success": False}
            async with asyncio.timeout(WAIT_S):
                while not told["success"]:
                    # The sink is a moment behind the echo.
                    _, told = await app.ask(BALANCE)
            assert told["metadata"]["last_payment"]["amount"] == 1500
            await platform.reload()
            assert (await app.ask(NEARBY, CENTRE))[1]["metadata"]["stations"]
        await platform.drain()
