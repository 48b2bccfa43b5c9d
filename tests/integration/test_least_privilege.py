"""The whole platform behind deploy/'s access lists: each role and each client under a user of its
own does its work, and nobody can do another's."""

import asyncio
import json
import re
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from bss_stream.mqtt.client import MqttClient
from bss_stream.mqtt.messages import Message, MqttSettings, Received, Subscription
from bss_stream.topic_table import load
from tests.eventually import eventually
from tests.integration.databases import query
from tests.platform_processes import PlatformProcess
from tests.servers.certificates import Certificates
from tests.servers.kafka import KafkaServer
from tests.servers.kafka_access import PASSWORDS, PREFIX
from tests.servers.mosquitto import Mosquitto, MosquittoFactory, password_file
from tests.servers.odoo import DATABASE, KEY, LOGIN, OdooServer, billing_models
from tests.unit.histories import rfc3339

ACL: Final = Path(__file__).parents[2] / "deploy" / "mosquitto" / "acl"
WAIT_S: Final = 30.0

RIDER, OTHER = "plan-nbi-1", "plan-nbi-2"
STATION, STAFFED = "station-nbi-003", "station-nbi-001"
FLEET = "fleet-nairobi-standard-4ah"
ROLES = {
    "process": "bss-processor",
    "bridge": "bss-bridge",
    "publish": "bss-publisher",
    "sink": "bss-sink",
    "query": "bss-queries",
    "odoo": "bss-odoo",
}
"""The user of each role, by its command."""
CLIENTS = (RIDER, OTHER, STATION, "arm", "odoo", "attendant-1", "operator")
EVERYTHING = ("emit/#", "echo/#", "cmd/#")

SYNCED = {
    "odoo_subscription_id": 4711,
    "odoo_invoice_id": 90001,
    "odoo_payment_state": "paid",
    "odoo_subscription_state": "in_progress",
    "odoo_currency_id": "KES",
    "odoo_amount_total": 8000,
    "template_id": "template-nairobi-basic",
    "customer_id": "cust-1",
}


def mqtt_password(user: str) -> str:
    return f"{user}-on-mqtt"


def body(plan: str, correlation: str, data: Mapping[str, Any], **more: Any) -> bytes:
    envelope = {
        "timestamp": rfc3339(time.time_ns() // 1_000_000),
        "plan_id": plan,
        "correlation_id": correlation,
        "actor": {"type": "customer", "id": "somebody"},
        "data": data,
    }
    return json.dumps(envelope | more).encode()


class Client:
    """Somebody outside the platform, who listens to all that the broker lets it hear."""

    def __init__(self, user: str, mqtt: MqttClient) -> None:
        self.user = user
        self.mqtt = mqtt
        self.heard: list[Received] = []

    async def listen(self) -> None:
        async for batch in self.mqtt.batches(100):
            self.heard += batch
            self.mqtt.ack(batch)

    async def may(self, topic: str, payload: bytes) -> bool:
        """Publish; whether the broker took it."""
        refusals = await self.mqtt.publish(
            [
                Message(
                    topic=topic,
                    payload=payload,
                    correlation=json.loads(payload)["correlation_id"].encode(),
                )
            ]
        )
        assert all("NOT_AUTHORIZED" in refusal.reason for refusal in refusals), refusals
        return not refusals

    async def hears(self, topic: str, correlation: str) -> dict[str, Any]:
        """The message on a topic that belongs to a request."""

        def found() -> list[Received]:
            wanted = correlation.encode()
            return [m for m in self.heard if m.topic == topic and wanted in m.payload]

        await eventually(lambda: bool(found()), WAIT_S)
        message: dict[str, Any] = json.loads(found()[0].payload)
        return message

    async def echo(self, topic: str, correlation: str) -> dict[str, Any]:
        """The data of an echo that says that all went well."""
        data: dict[str, Any] = (await self.hears(topic, correlation))["data"]
        assert data["success"] is True, data
        return data


@pytest.fixture
def broker(
    tmp_path: Path, certificates: Certificates, start_mosquitto: MosquittoFactory
) -> Mosquitto:
    """Mosquitto with deploy/'s ACL, over TLS, with a password for each user."""
    users = {user: mqtt_password(user) for user in (*ROLES.values(), *CLIENTS)}
    shown = certificates.server
    return start_mosquitto(
        lines=[
            f"certfile {shown.cert}",
            f"keyfile {shown.key}",
            "allow_anonymous false",
            f"password_file {password_file(tmp_path / 'users', users)}",
            f"acl_file {ACL}",
        ]
    )


@asynccontextmanager
async def client(broker: Mosquitto, certificates: Certificates, user: str) -> AsyncIterator[Client]:
    settings = MqttSettings(
        host="127.0.0.1",
        port=broker.port,
        client_id=f"client-{user}",
        username=user,
        password=mqtt_password(user),
        tls=ssl.create_default_context(cafile=str(certificates.ca)),
    )
    async with MqttClient(settings) as mqtt:
        someone = Client(user, mqtt)
        await mqtt.subscribe(*(Subscription(name) for name in EVERYTHING))
        listening = asyncio.create_task(someone.listen())
        try:
            yield someone
        finally:
            listening.cancel()
            await asyncio.wait([listening])


def role_config(
    folder: Path,
    command: str,
    kafka: KafkaServer,
    broker: Mosquitto,
    certificates: Certificates,
    dsn: str,
    odoo: OdooServer,
) -> Path:
    """The configuration of one role, with its own secrets alone."""
    user = ROLES[command]
    secrets = {"mqtt": mqtt_password(user), "kafka": PASSWORDS.get(user, "none"), "dsn": dsn}
    secrets["key"] = KEY
    home = folder / command
    home.mkdir()
    for name, secret in secrets.items():
        (home / name).write_text(secret)
    file = home / "bss.toml"
    file.write_text(
        f"""
data_dir = "{home}"
[log]
backend = "kafka"
[log.kafka]
bootstrap_servers = ["127.0.0.1:{kafka.ports["SASL"]}"]
security_protocol = "SASL_SSL"
username = "{user}"
password_file = "{home / "kafka"}"
ca_file = "{certificates.ca}"
replication_factor = 1
min_insync_replicas = 1
topic_prefix = "{PREFIX}"
[mqtt]
embedded = false
port = {broker.port}
username = "{user}"
password_file = "{home / "mqtt"}"
shared_group = "bridges"
[mqtt.tls]
enabled = true
ca_file = "{certificates.ca}"
[sink]
backend = "postgres"
dsn_file = "{home / "dsn"}"
[odoo]
url = "{odoo.url}"
database = "{DATABASE}"
username = "{LOGIN}"
api_key_file = "{home / "key"}"
"""
    )
    return file


@pytest.mark.kafka
@pytest.mark.mosquitto
@pytest.mark.postgres
async def test_everybody_does_their_own_work_and_nobody_another_s(
    tmp_path: Path,
    kafka_access: KafkaServer,
    broker: Mosquitto,
    certificates: Certificates,
    postgres: str,
) -> None:
    odoo = OdooServer()
    billing_models(odoo)
    processes = {
        command: PlatformProcess(
            role_config(tmp_path, command, kafka_access, broker, certificates, postgres, odoo),
            command,
            verbose=True,
        )
        for command in ROLES
    }
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(odoo)
        # The processor makes the topics, the sink the tables.
        for process in processes.values():
            await stack.enter_async_context(process)
        clients = {
            user: await stack.enter_async_context(client(broker, certificates, user))
            for user in CLIENTS
        }
        await _story(clients)
        await _trespasses(clients)
        await _impostors(broker, certificates, stack)
        entries = "SELECT count(*) FROM ledger_entries WHERE kind = 'quota_used'"
        await eventually(lambda: query(postgres, entries) == [(4,)], WAIT_S)
        # There is no order for the plan: what Odoo does not take the adapter writes to the log.
        await eventually(lambda: "Odoo refuses" in processes["odoo"].log, WAIT_S)
        await eventually(lambda: len(odoo.rows("x_bss_payment")) >= 2, WAIT_S)
        codes = await asyncio.gather(*(process.end() for process in processes.values()))
        said = "\n".join(process.log for process in processes.values())
        assert set(codes) == {0}, said
        for secret in (KEY, *PASSWORDS.values(), *map(mqtt_password, ROLES.values())):
            assert secret not in said


async def _story(clients: Mapping[str, Client]) -> None:
    """A plan is paid, taken into use and swapped, with a question and a tap at the door."""
    rider, arm, odoo = clients[RIDER], clients["arm"], clients["odoo"]
    attendant, station = clients["attendant-1"], clients[STATION]

    stock = body(RIDER, "stock-1", {}, fleet_id=FLEET, available=7)
    assert await arm.may(f"emit/arm/station/{STATION}/stock", stock)
    assert await odoo.may(f"emit/odo/subscription/plan/{RIDER}/sync", body(RIDER, "sync-1", SYNCED))
    await odoo.echo(f"echo/odo/subscription/plan/{RIDER}/sync", "sync-1")
    initialize = f"emit/uxi/service/plan/{RIDER}/initialize_states"
    assert await rider.may(initialize, body(RIDER, "init-1", {}))
    await rider.echo(f"echo/abs/service/plan/{RIDER}/initialize_states_result", "init-1")

    scanned = {"qr_code_data": "cust-1", "attendant_station": STAFFED}
    identify = f"plan/{RIDER}/identify_customer"
    assert await attendant.may(f"emit/uxi/attendant/{identify}", body(RIDER, "id-1", scanned))
    await attendant.echo(f"echo/abs/attendant/{identify}", "id-1")
    issued = {"new_battery_id": "bat-1", "energy_transferred": 2.5, "service_duration": 40}
    report = f"plan/{RIDER}/payment_and_service"
    done = body(RIDER, "issue-1", {"attendant_station": STAFFED, "service_data": issued})
    assert await attendant.may(f"emit/uxi/attendant/{report}", done)
    await attendant.echo(f"echo/abs/attendant/{report}", "issue-1")

    binding = f"service/plan/{RIDER}/customer_binding"
    asked = body(RIDER, "bind-1", {"location_id": STATION})
    assert await rider.may(f"emit/uxi/{binding}", asked)
    command = await arm.hears(f"cmd/ABS/EPS/{STATION}/allocate", "bind-1")
    answer = {"asset_id": "bat-2", "status": "issued", "energy_transferred": 2.0}
    answer |= {name: command[name] for name in ("fleet_id", "returned_asset_id")}
    answered = body(RIDER, "bind-1", {}, **answer)
    assert await arm.may(f"echo/ABS/EPS/{STATION}/allocate", answered)
    await rider.echo(f"echo/abs/{binding}", "bind-1")

    tapped = body(RIDER, "tap-1", {"location_id": STATION})
    assert await station.may(f"emit/arm/station/{STATION}/tap", tapped)
    await rider.hears(f"echo/abs/{binding}", "tap-1")
    paid = {"service_id": "service-electricity-nairobi", "payment_amount": 100}
    paid |= {"payment_reference": "receipt-1", "payment_type": "TOP_UP", "payment_method": "MPESA"}
    payment = f"abs/bss/payment/{RIDER}/service_payment"
    assert await odoo.may(f"emit/{payment}", body(RIDER, "pay-1", {"payment_data": paid}))
    await odoo.hears(f"echo/{payment}", "pay-1")

    assert await rider.may(f"emit/uxi/rider/plan/{RIDER}/balance", body(RIDER, "ask-1", {}))
    await rider.hears(f"echo/abs/rider/plan/{RIDER}/balance", "ask-1")
    assert await rider.may(f"emit/uxi/rider/plan/{RIDER}/payment_status", body(RIDER, "ask-2", {}))
    await rider.echo(f"echo/abs/rider/plan/{RIDER}/payment_status", "ask-2")
    # The app names a nearby query by its plan: nobody else hears where it asked.
    here = body(RIDER, RIDER, {"lat": -1.28, "lon": 36.82})
    assert await rider.may("emit/uxi/rider/stations/nearby", here)
    await rider.echo(f"echo/abs/rider/stations/nearby/{RIDER}", RIDER)
    await clients["operator"].hears(f"emit/ABS/BSS/{RIDER}/service_access", RIDER)
    await _operate(clients["operator"], station)


async def _operate(operator: Client, station: Client) -> None:
    """The station's equipment fails, its operator closes it and asks how it stands."""
    faulty = body(RIDER, "equipment-1", {}, location_id=STATION, status="FAULT")
    assert await station.may(f"emit/arm/station/{STATION}/equipment", faulty)
    readiness = f"emit/abs/bss/station/{STATION}/readiness"
    assert (await operator.hears(readiness, "equipment_fault"))["readiness"] == "NOT_READY"
    own = f"operator/station/{STATION}"
    close = body(RIDER, "close-1", {"action": "CLOSE"})
    assert await operator.may(f"emit/uxi/{own}/readiness", close)
    await operator.echo(f"echo/abs/{own}/readiness", "close-1")
    asked = body(RIDER, "report-1", {}, location_id=STATION)
    assert await operator.may(f"emit/uxi/{own}/report", asked)
    await operator.echo(f"echo/abs/{own}/report", "report-1")


async def _trespasses(clients: Mapping[str, Client]) -> None:
    """What is refused, by the broker or by the platform."""
    other, rider = clients[OTHER], clients[RIDER]
    stolen = body(RIDER, "stolen-1", {"location_id": STATION})
    forbidden = {
        OTHER: (
            f"emit/uxi/service/plan/{RIDER}/customer_binding",
            f"emit/uxi/service/plan/{RIDER}/report_lost",
            f"emit/uxi/rider/plan/{RIDER}/balance",
            f"emit/odo/subscription/plan/{OTHER}/sync",
            f"emit/abs/bss/payment/{OTHER}/service_payment",
            f"emit/uxi/attendant/plan/{OTHER}/payment_and_service",
            f"emit/arm/station/{STATION}/tap",
            f"emit/uxi/operator/station/{STATION}/readiness",
            f"emit/uxi/manager/fleet/{FLEET}/report",
            f"echo/ABS/EPS/{STATION}/allocate",
            f"echo/abs/service/plan/{RIDER}/customer_binding",
            f"cmd/ABS/EPS/{STATION}/allocate",
        ),
        STATION: (
            f"emit/arm/station/{STAFFED}/tap",
            f"emit/arm/station/{STAFFED}/equipment",
            f"emit/arm/station/{STATION}/stock",
            f"emit/uxi/operator/station/{STATION}/readiness",
            f"emit/uxi/service/plan/{RIDER}/customer_binding",
        ),
        "arm": (f"emit/odo/subscription/plan/{RIDER}/sync", f"cmd/ABS/EPS/{STATION}/allocate"),
        "odoo": (f"echo/ABS/EPS/{STATION}/allocate", f"emit/arm/station/{STATION}/stock"),
        "attendant-1": (
            f"emit/uxi/service/plan/{RIDER}/customer_binding",
            f"emit/abs/bss/payment/{RIDER}/service_payment",
        ),
        "operator": (f"emit/abs/bss/plan/{RIDER}/notification",),
    }
    for user, topics in forbidden.items():
        for topic in topics:
            assert not await clients[user].may(topic, stolen), f"{user} on {topic}"

    # On a topic of its own a rider can name another plan only to be refused.
    own = f"service/plan/{OTHER}/customer_binding"
    assert await other.may(f"emit/uxi/{own}", stolen)
    data = (await other.hears(f"echo/abs/{own}", "stolen-1"))["data"]
    assert (data["success"], data["metadata"]["reason"]) == (False, "id_mismatch")
    assert not [m for m in rider.heard if b"stolen-1" in m.payload]

    # Everybody had subscribed to everything.
    assert all(f"/{OTHER}/" in message.topic for message in other.heard)
    assert all(RIDER in message.topic for message in rider.heard)
    assert clients[STATION].heard == []
    assert {m.topic.split("/")[1] for m in clients["arm"].heard} == {"ABS"}


async def _impostors(broker: Mosquitto, certificates: Certificates, stack: AsyncExitStack) -> None:
    """A role's user can do that role's work alone."""
    forbidden = {
        "bss-bridge": (f"echo/abs/service/plan/{RIDER}/customer_binding", "cmd/ABS/EPS/x/allocate"),
        "bss-publisher": (
            f"emit/uxi/service/plan/{RIDER}/customer_binding",
            f"echo/ABS/EPS/{STATION}/allocate",
            f"echo/abs/rider/plan/{RIDER}/balance",
        ),
        "bss-queries": (
            f"echo/abs/service/plan/{RIDER}/customer_binding",
            f"echo/abs/rider/plan/{RIDER}/payment_status",
        ),
        "bss-odoo": (
            f"echo/abs/rider/plan/{RIDER}/balance",
            f"emit/abs/bss/payment/{RIDER}/service_payment",
        ),
    }
    for user, topics in forbidden.items():
        impostor = await stack.enter_async_context(client(broker, certificates, user))
        for topic in topics:
            assert not await impostor.may(topic, body(RIDER, "impostor-1", {})), topic


def section(user: str) -> set[str]:
    """What the access list grants a user."""
    return set(ACL.read_text().split(f"user {user}\n")[1].split("\n\n")[0].splitlines())


def test_the_bridge_may_read_what_the_topic_table_names_and_nothing_else() -> None:
    assert section("bss-bridge") == {f"topic read {filter}" for filter in load().filters}


def test_the_publisher_may_write_what_the_topic_table_names_and_echoes() -> None:
    sent = {re.sub(r"{\w+}", "+", one.topic) for one in load().sent}
    granted = section("bss-publisher")
    assert granted >= {f"topic write {filter}" for filter in sent}
    others = granted - {f"topic write {filter}" for filter in sent}
    assert {line.split("/")[0] for line in others} == {"topic write echo"}
