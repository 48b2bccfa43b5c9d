"""Payment states out of Odoo over real brokers, and the whole platform with an Odoo beside it."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from bss_stream import topics
from bss_stream.config import Config
from bss_stream.log.embedded import EmbeddedLog
from bss_stream.mqtt.client import MqttClient
from bss_stream.mqtt.messages import Subscription
from bss_stream.odoo.adapter import OdooAdapter
from bss_stream.odoo.billing import Measures
from bss_stream.odoo.from_config import make_adapter
from bss_stream.setup import load_setup
from bss_stream.testing import START_MS, Playground
from tests.eventually import eventually
from tests.integration.databases import query
from tests.integration.test_end_to_end import check, ride
from tests.integration.test_odoo import put_states
from tests.integration.test_queries import App, app_on, mqtt_settings
from tests.platform_processes import CLI, PlatformProcess, all_copied, audit, embedded_config
from tests.servers.odoo import DATABASE, KEY, LOGIN, Fault, OdooServer, Row, billing_models
from tests.servers.ports import free_port

WAIT_S = 60.0
STATUS = "emit/uxi/rider/plan/{}/payment_status"
SYNC = "emit/odo/subscription/plan/+/sync"
NOW = datetime.fromtimestamp(START_MS / 1000, UTC)
SETUP = load_setup()


@pytest.fixture
async def odoo() -> AsyncIterator[OdooServer]:
    async with OdooServer() as server:
        billing_models(server)
        server.now = lambda: NOW
        yield server


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[EmbeddedLog]:
    opened = EmbeddedLog(tmp_path / "log", partitions=4, durability="process")
    await opened.open()
    yield opened
    await opened.close()


def odoo_config(odoo: OdooServer, folder: Path, **settings: object) -> str:
    """The section of a configuration that names this Odoo."""
    (folder / "odoo-key").write_text(f"{KEY}\n")
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    return "\n".join(
        [
            "[odoo]",
            f'url = "{odoo.url}"',
            f'database = "{DATABASE}"',
            f'username = "{LOGIN}"',
            f'api_key_file = "{folder / "odoo-key"}"',
            "calls_per_s_max = 1000.0",
            *lines,
        ]
    )


@asynccontextmanager
async def adapting(
    log: EmbeddedLog, odoo: OdooServer, port: int, folder: Path, **settings: object
) -> AsyncIterator[OdooAdapter]:
    """The whole role, told to stop at the end."""
    file = folder / "odoo.toml"
    file.write_text(odoo_config(odoo, folder, **settings))
    config = Config.load(file, {})
    describe = Playground().engine.describe_state
    mqtt, measures = mqtt_settings(port, "odoo"), Measures.of(SETUP)
    adapter = make_adapter(config, log, mqtt, measures, describe, lambda: START_MS)
    task = asyncio.create_task(adapter.run())
    ready = asyncio.create_task(adapter.ready.wait())
    try:
        await asyncio.wait((task, ready), return_when=asyncio.FIRST_COMPLETED)
        yield adapter
    finally:
        ready.cancel()
        adapter.stop()
        async with asyncio.timeout(WAIT_S):
            await task
    assert adapter.counters.balance() == []


def invoice(odoo: OdooServer, plan_id: str, subscription: str, **values: Any) -> int:
    """An invoice that was paid an hour ago."""
    given = {
        "payment_state": "paid",
        "amount_total": 1500.5,
        "currency_id": [3, "KES"],
        "x_bss_plan_id": plan_id,
        "x_bss_subscription_id": subscription,
        "x_bss_subscription_state": "in_progress",
        "write_date": (NOW - timedelta(hours=1)).strftime("%Y-%m-%d %H:%M:%S"),
    }
    return odoo.add("account.move", **{**given, **values})


def paid_with(play: Playground, plan_id: str, number: int | None) -> None:
    """A plan whose first payment has come by MQTT, with the invoice's number or without one."""
    data = {
        "odoo_subscription_id": f"S-{plan_id}",
        "odoo_payment_state": "paid",
        "odoo_subscription_state": "in_progress",
        "odoo_currency_id": "KES",
        "odoo_amount_total": 1500.5,
        "template_id": "template-nairobi-basic",
        "customer_id": "cust-1",
    }
    body = {
        "timestamp": NOW.isoformat(),
        "plan_id": plan_id,
        "correlation_id": f"sync-{plan_id}",
        "data": data if number is None else {**data, "odoo_invoice_id": number},
    }
    play.mqtt(f"emit/odo/subscription/plan/{plan_id}/sync", body)


def renewals(play: Playground) -> list[dict[str, Any]]:
    return [e for e in play.ledgers[topics.LEDGER_PAYMENT] if e["kind"] == "renewal"]


async def asked(app: App, plan_id: str = "p-1", **data: Any) -> dict[str, Any]:
    topic, echo = await app.ask(STATUS, data, plan_id=plan_id)
    assert topic == f"echo/abs/rider/plan/{plan_id}/payment_status"
    return echo


async def test_payment_states_are_told(
    log: EmbeddedLog, odoo: OdooServer, broker_port: int, tmp_path: Path
) -> None:
    with Playground() as play:
        first = invoice(odoo, "p-1", "S-p-1")
        paid_with(play, "p-1", first)
        await put_states(log, play)
    second = invoice(odoo, "p-1", "S-p-1", payment_state="not_paid", amount_total=0.1 + 0.2)
    invoice(odoo, "p-9", "S-p-9")
    async with (
        adapting(log, odoo, broker_port, tmp_path) as adapter,
        app_on(broker_port) as app,
    ):
        await eventually(lambda: bool(odoo.rows("x_bss_payment")), WAIT_S)
        echo = await asked(app)
        assert echo["success"] is True
        assert echo["metadata"]["as_of"] == NOW.isoformat(timespec="milliseconds").replace(
            "+00:00", "Z"
        )
        open_one, paid_one = echo["metadata"]["payments"]
        assert open_one == {
            "payment_id": f"odoo:S-p-1:invoice:{second}",
            "invoice_id": str(second),
            "payment_state": "not_paid",
            "amount": Decimal("0.30"),
            "currency": "KES",
            "applied": False,
        }
        assert paid_one["payment_state"] == "paid"
        assert paid_one["amount"] == Decimal("1500.50")
        assert paid_one["applied"] is True

        [only] = (await asked(app, payment_id=paid_one["payment_id"]))["metadata"]["payments"]
        assert only == paid_one
        for unknown in ("odoo:S-p-1:invoice:99999999999", "odoo:S-p-9:invoice:x", "QX1"):
            assert (await asked(app, payment_id=unknown))["metadata"]["payments"] == []
        assert (await asked(app, "p-none"))["metadata"]["payments"] == []

        refused = await asked(app, payment_id=b"a\\u0000b".decode("unicode_escape"))
        assert refused["metadata"]["reason"] == "bad_id"
        mismatch = await app.send(STATUS.format("p-2"), plan_id="p-1")
        await eventually(lambda: mismatch in app.echoes, WAIT_S)
        assert app.echoes[mismatch][1]["metadata"]["reason"] == "id_mismatch"

        # What one rider asks must not end the role, and an Odoo that is away delays the answer.
        odoo.faults.append(Fault("error", ("builtins.ValueError", "odd"), "search_read"))
        await app.send(STATUS)
        await eventually(lambda: adapter.counters.answers["unreadable"] == 1, WAIT_S)
        odoo.faults.append(Fault("die_before", None, "search_read"))
        waiting = asyncio.create_task(asked(app))
        await eventually(lambda: not odoo.faults, WAIT_S)
        await odoo.start()
        assert len((await waiting)["metadata"]["payments"]) == 2


@pytest.mark.parametrize("replay", [False, True])
async def test_paid_invoices_that_mqtt_has_missed(
    log: EmbeddedLog, odoo: OdooServer, broker_port: int, tmp_path: Path, replay: bool
) -> None:
    """The sync that was missed brings the payment, once, however often it is published."""
    with Playground() as play:
        paid_with(play, "p-1", invoice(odoo, "p-1", "S-p-1"))
        missed = invoice(odoo, "p-1", "S-p-1", amount_total=2000.25)
        # Its deposit came by a sync without an invoice: perhaps it was this one.
        paid_with(play, "p-2", None)
        invoice(odoo, "p-2", "S-p-2")
        invoice(odoo, "p-1", "S-p-1", payment_state="in_payment")
        invoice(odoo, "p-1", "S-p-1", write_date="2026-01-01 00:00:00")
        invoice(odoo, "p-1", "S-p-1", write_date=NOW.strftime("%Y-%m-%d %H:%M:%S"))
        if replay:
            invoice(odoo, "p-3", "no id")
        done = await put_states(log, play)
        assert renewals(play) == []
        async with MqttClient(mqtt_settings(broker_port, "bridge")) as bridge:
            await bridge.subscribe(Subscription(SYNC))
            async with adapting(
                *(log, odoo, broker_port, tmp_path),
                reconcile_interval_s=1,
                replay_missed=replay,
            ) as adapter:
                counters = adapter.counters
                await eventually(lambda: counters.rounds >= 2, WAIT_S)
                assert set(counters.invoices) == (
                    {"applied", "ambiguous", "replayed", "unusable"}
                    if replay
                    else {"applied", "ambiguous", "missed"}
                )
                if replay:
                    for _ in range(2):
                        [message] = await bridge.receive(1)
                        bridge.ack([message])
                        play.now_ms += 60_000
                        play.mqtt(message.topic, message.payload)
                    [renewal] = renewals(play)
                    assert renewal["payment_id"] == f"odoo:S-p-1:invoice:{missed}"
                    assert renewal["amount_minor"] == 200_025
                    await put_states(log, play, since=done)
                    # Once its record is in Odoo, nothing is missed any more.
                    await eventually(lambda: _applied(odoo, renewal["payment_id"]), WAIT_S)
                    rounds, replayed = counters.rounds, counters.invoices["replayed"]
                    await eventually(lambda: counters.rounds >= rounds + 3, WAIT_S)
                    assert counters.invoices["replayed"] <= replayed + 1
                else:
                    assert await bridge.receive(1, timeout_s=0.0) == []


def _applied(odoo: OdooServer, payment_id: str) -> bool:
    return any(row["x_payment_id"] == payment_id for row in odoo.rows("x_bss_payment"))


async def commanded(config: Path, *arguments: str) -> tuple[int, str]:
    """Exit code and output of `bss-stream odoo-refused`."""
    command = (*CLI, "odoo-refused", *arguments, "--config", str(config))
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


def suspicious(row: Row) -> str | None:
    """What an Odoo may say of a third of all usage."""
    return "Too much of it" if row["x_seq"] % 3 == 0 else None


async def test_odoo_has_what_the_ledgers_have_after_a_ride(tmp_path: Path) -> None:
    """The embedded platform under simulated riders and a kill, Odoo failing now and then and
    refusing some: to the last cent in the end."""
    async with OdooServer() as odoo:
        billing_models(odoo)
        fields = '{plan_id = "client_order_ref", status = "x_bss_status"}'
        config = embedded_config(tmp_path, port := free_port())
        config.write_text(
            config.read_text()
            + odoo_config(odoo, tmp_path, batch_records_max=500)
            + f'\n[odoo.subscription]\nkey = ""\nfields = {fields}\n'
        )
        for kind, value in (("status", 502), ("drop_after", None), ("drop_before", None)):
            odoo.faults.extend([Fault(kind, value)] * 2)
        async with PlatformProcess(config, "run") as platform:
            check(await ride(port, "o1", seconds=4, rate=40, plans=80), met=frozenset({"ok"}))
            odoo.models["x_bss_usage"].constraint = suspicious
            riding = asyncio.create_task(ride(port, "o2", seconds=2, rate=40, plans=40))
            await odoo.kill()
            await riding
            await odoo.start()
            await platform.kill()
            await platform.start()
            await all_copied(config)
            await all_in_odoo(odoo, Config.load(config).ledger_url().reveal())
            assert await platform.end() == 0, platform.log
        assert "counters do not add up" not in platform.log
        code, output = await audit(config)
        assert code == 0, output

        _, listed = await commanded(config, "list", "--json", "--limit", "10000")
        refused = [json.loads(line) for line in listed.splitlines()]
        assert {one["error"] for one in refused} == {"Too much of it"}
        _, table = await commanded(config, "list")
        assert f"of {len(refused)} refused records" in table
        code, output = await commanded(config, "retry")
        assert code == 1
        assert f"0 taken, {len(refused)} refused again" in output
        odoo.models["x_bss_usage"].constraint = None
        assert await commanded(config, "retry") == (
            0,
            f"{len(refused)} taken, 0 refused again\n",
        )

        url = Config.load(config).ledger_url().reveal()
        check_against_ledgers(odoo, url)
        plans = {plan_id for (plan_id,) in query(url, "SELECT plan_id FROM ledger_entries")}
        statuses = {row["client_order_ref"]: row["x_bss_status"] for row in odoo.rows("sale.order")}
        assert plans <= statuses.keys()
        assert "ACTIVE" in statuses.values()


async def all_in_odoo(odoo: OdooServer, url: str) -> None:
    """Wait until Odoo has every payment, and all usage that is not suspicious."""
    ((payments, usage),) = query(
        url,
        f"SELECT sum(kind IN {PAYMENTS}), sum(kind IN {USED} OR kind IN {GRANTED} "
        f"OR kind = 'quota_shortfall') - sum((kind IN {USED} OR kind IN {GRANTED} "
        "OR kind = 'quota_shortfall') AND seq % 3 = 0) FROM ledger_entries",
    )

    def found() -> tuple[int, int]:
        unsuspicious = sum(suspicious(row) is None for row in odoo.rows("x_bss_usage"))
        return len(odoo.rows("x_bss_payment")), unsuspicious

    await eventually(lambda: found() == (payments, usage), WAIT_S)


RECEIVED = (
    "('deposit', 'renewal', 'renewal_payment', 'service_payment', 'final_payment', 'settlement', "
    "'reversal')"
)


PAYMENTS = f"{RECEIVED[:-1]}, 'refund', 'overage_charge', 'renewal_from_credit')"
USED = "('quota_used', 'late_issue')"
GRANTED = "('quota_granted', 'topup_applied', 'quota_adjusted', 'quota_expired')"


def check_against_ledgers(odoo: OdooServer, url: str) -> None:
    """Paid, granted and used of every plan."""
    digits = {"KES": 2, "XOF": 0}
    paid = {
        (plan_id, currency): amount
        for plan_id, currency, amount in query(
            url,
            "SELECT plan_id, currency, sum(amount_minor) FROM ledger_entries "
            f"WHERE kind IN {RECEIVED} GROUP BY plan_id, currency",
        )
    }
    in_odoo: Counter[tuple[str, str]] = Counter()
    for row in odoo.rows("x_bss_payment"):
        if row["x_money"] == "received":
            minor = Decimal(repr(row["x_amount"] or 0.0)).scaleb(digits[row["x_currency"]])
            assert str(int(minor)) == row["x_amount_minor"]
            in_odoo[row["x_plan_id"], row["x_currency"]] += int(minor)
    assert in_odoo == paid
    assert len(paid) > 50

    units: dict[tuple[str, str, str], int] = {}
    for what, kinds in (("used", USED), ("granted", GRANTED)):
        for plan_id, service_id, total in query(
            url,
            "SELECT plan_id, service_id, sum(CASE kind WHEN 'quota_expired' THEN -units "
            f"ELSE units END) FROM ledger_entries WHERE kind IN {kinds} "
            "GROUP BY plan_id, service_id",
        ):
            units[plan_id, service_id, what] = int(total)
    metered: Counter[tuple[str, str, str]] = Counter()
    for row in odoo.rows("x_bss_usage"):
        scale = 3 if row["x_unit"] == "kWh" else 0
        for what in ("used", "granted"):
            number = Decimal(repr(row[f"x_{what}"] or 0.0)).scaleb(scale)
            assert number == number.to_integral_value()
            metered[row["x_plan_id"], row["x_service_id"], what] += int(number)
    assert {k: v for k, v in metered.items() if v} == {k: v for k, v in units.items() if v}
    assert sum(v for (_, _, what), v in units.items() if what == "used") > 100


async def test_an_odoo_that_lets_nobody_in_ends_the_adapter_alone(tmp_path: Path) -> None:
    async with OdooServer() as odoo:
        billing_models(odoo)
        odoo.key = "another"
        port = free_port()
        config = embedded_config(tmp_path, port)
        config.write_text(config.read_text() + odoo_config(odoo, tmp_path))
        async with PlatformProcess(config, "run") as platform:
            said = "the odoo adapter has ended, and the other roles go on"
            await eventually(lambda: said in platform.log, WAIT_S)
            check(await ride(port, "n1", seconds=4, rate=40, plans=60), met=frozenset({"ok"}))
            assert await platform.end() == 0, platform.log
        assert KEY not in platform.log
        code, output = await audit(config)
        assert code == 0, output
