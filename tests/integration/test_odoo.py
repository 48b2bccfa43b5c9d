"""Ledgers reach Odoo once each, whatever dies, hangs, answers nonsense or refuses on the way."""

import asyncio
import json
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from bss_stream import tls, topics
from bss_stream._engine import Engine, partition_for
from bss_stream.errors import BssStreamError, OdooAccessError
from bss_stream.log.embedded import EmbeddedLog
from bss_stream.log.kafka import KafkaLog
from bss_stream.log.protocol import Log
from bss_stream.odoo import refusals
from bss_stream.odoo.billing import Kind, Measures, Service
from bss_stream.odoo.client import Connection, OdooClient
from bss_stream.odoo.config import Odoo, Subscription
from bss_stream.odoo.counters import OdooCounters
from bss_stream.odoo.outbound import Outbound, OutboundSettings
from bss_stream.odoo.retry import Retrier
from bss_stream.odoo.upsert import Upserts
from bss_stream.setup import compile_setup, load_setup
from bss_stream.testing import START_MS, Playground
from bss_stream.validation import Secret
from tests.eventually import eventually
from tests.ledger_chain import PlanLedger, sealed, whole_plan
from tests.logs import chunk, kafka_options
from tests.rider_story import hand_over, paid_plan, send
from tests.servers.certificates import Certificates
from tests.servers.odoo import (
    DATABASE,
    KEY,
    LOGIN,
    Fault,
    OdooServer,
    Row,
    billing_models,
    refusing,
)

PARTITIONS = 4
WAIT_S = 60.0
QUICK = OutboundSettings("odoo", 40, 5.0, 0.01, 0.05)
NAIROBI = ZoneInfo("Africa/Nairobi")
MEASURES = Measures(
    {
        "swap-count": Service("swaps", 0, NAIROBI),
        "network": Service("visits", 0, NAIROBI),
        "electricity": Service("kWh", 3, NAIROBI),
    },
    {"KES": (2, NAIROBI)},
)
SETUP = load_setup()
COMPILED = compile_setup(SETUP)

SERIALIZATION = "could not serialize access due to concurrent update"


@pytest.fixture
async def odoo() -> AsyncIterator[OdooServer]:
    async with OdooServer() as server:
        billing_models(server)
        yield server


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[EmbeddedLog]:
    opened = EmbeddedLog(tmp_path / "log", partitions=PARTITIONS, durability="process")
    await opened.open()
    yield opened
    await opened.close()


def connection(odoo: OdooServer, **settings: Any) -> Connection:
    given = {"timeout_s": 30.0, "calls_per_s_max": 1_000.0, "key": Secret(KEY), **settings}
    return Connection(url=odoo.url, database=DATABASE, username=LOGIN, **given)


class Adapter:
    """The outbound half at work."""

    def __init__(
        self,
        log: Log,
        client: OdooClient,
        models: Odoo,
        settings: OutboundSettings,
        measures: Measures,
    ) -> None:
        self.counters = OdooCounters()
        describe = Engine(COMPILED, partitions=1).describe_state
        self.outbound = Outbound(
            *(log, Upserts(client, models), measures, describe, settings, self.counters),
            clock_ms=lambda: START_MS,
        )
        self.task = asyncio.create_task(self.outbound.run())

    async def until(self, holds: Callable[[], bool]) -> None:
        def holds_or_raises() -> bool:
            if self.task.done():
                self.task.result()
                raise AssertionError("the adapter has ended")
            return holds()

        await eventually(holds_or_raises, WAIT_S)


@asynccontextmanager
async def adapting(
    log: Log,
    odoo: OdooServer,
    *,
    models: Odoo | None = None,
    settings: OutboundSettings = QUICK,
    measures: Measures = MEASURES,
    **to: Any,
) -> AsyncIterator[Adapter]:
    """An adapter that is told to stop at the end, and has nothing left over then."""
    client = OdooClient(connection(odoo, **to))
    adapter = Adapter(log, client, models or Odoo(batch_records_max=40), settings, measures)
    try:
        yield adapter
        adapter.outbound.stop()
        async with asyncio.timeout(WAIT_S):
            await adapter.task
    finally:
        adapter.task.cancel()
        await asyncio.wait([adapter.task])
        await client.close()
    assert adapter.counters.balance() == []


def histories(plans: int, uses: int = 6) -> list[PlanLedger]:
    made = [whole_plan(f"plan-{number:04}") for number in range(plans)]
    for plan in made:
        for amount in range(uses):
            plan.pay("electricity", 333 + amount, 70)
            plan.use("electricity", 17)
    return made


async def bring(log: Log, plans: Iterable[PlanLedger], *, first: int = 0) -> None:
    """The plans' entries from their `first` on, each plan's in order, as processors write them."""
    appender = await log.appender()
    placed: dict[tuple[str, int], list[tuple[bytes, bytes | None]]] = {}
    for plan in plans:
        key = plan.plan_id.encode()
        for topic, value in plan.entries[first:]:
            place = (topic, partition_for(key, log.partitions))
            placed.setdefault(place, []).append((key, value))
    for (topic, partition), records in placed.items():
        for at in range(0, len(records), 25):
            await appender.append([chunk(topic, partition, *records[at : at + 25])])
    await appender.close()


def entries(plans: Iterable[PlanLedger]) -> list[dict[str, Any]]:
    return [json.loads(value) for plan in plans for _, value in plan.entries]


MONEY = {"deposit": "received", "service_payment": "received", "refund": "returned"}
USED = {"quota_used": 1}
GRANTED = {"quota_granted": 1, "topup_applied": 1, "quota_expired": -1}


def billed(plans: Iterable[PlanLedger]) -> int:
    """How many entries are Odoo's business."""
    kinds = MONEY.keys() | USED.keys() | GRANTED.keys()
    return sum(entry["kind"] in kinds for entry in entries(plans))


def check_accounts(odoo: OdooServer, found: Sequence[dict[str, Any]]) -> None:
    """Each plan's money and units in Odoo are what the ledgers say, to the last cent and Wh."""
    money: Counter[tuple[str, str]] = Counter()
    units: Counter[tuple[str, str, str]] = Counter()
    for entry in found:
        plan_id, kind, service_id = entry["plan_id"], entry["kind"], entry["service_id"]
        if kind in MONEY:
            money[plan_id, MONEY[kind]] += entry["amount_minor"]
        units[plan_id, service_id or "", "used"] += USED.get(kind, 0) * entry["units"]
        units[plan_id, service_id or "", "granted"] += GRANTED.get(kind, 0) * entry["units"]
    in_odoo: Counter[tuple[str, str]] = Counter()
    for row in odoo.rows("x_bss_payment"):
        minor = exactly(row["x_amount"], 2)
        assert str(minor) == row["x_amount_minor"]
        in_odoo[row["x_plan_id"], row["x_money"]] += minor
    assert +in_odoo == +money
    metered: Counter[tuple[str, str, str]] = Counter()
    for row in odoo.rows("x_bss_usage"):
        digits = 3 if row["x_service_id"] == "electricity" else 0
        for what in ("used", "granted"):
            place = (row["x_plan_id"], row["x_service_id"], what)
            metered[place] += exactly(row[f"x_{what}"], digits)
    assert {k: v for k, v in metered.items() if v} == {k: v for k, v in units.items() if v}


def exactly(number: float, digits: int) -> int:
    """A float of Odoo's in smallest units; it must stand for a decimal of so many digits."""
    units = Decimal(repr(number or 0.0)).scaleb(digits)
    assert units == units.to_integral_value(), number
    return int(units)


async def settled(adapter: Adapter, plans: Sequence[PlanLedger]) -> None:
    total = sum(len(plan.entries) for plan in plans)
    await adapter.until(lambda: adapter.counters.records >= total)


@pytest.mark.parametrize(("version", "api"), [(16, "jsonrpc"), (18, "jsonrpc"), (19, "json2")])
async def test_every_entry_about_billing_is_one_record(
    log: EmbeddedLog, version: int, api: str
) -> None:
    plans = histories(12)
    async with OdooServer(version=version) as odoo:
        billing_models(odoo)
        await bring(log, plans)
        async with adapting(log, odoo, api=api) as adapter:
            await settled(adapter, plans)
        check_accounts(odoo, entries(plans))
        rows = odoo.rows("x_bss_payment") + odoo.rows("x_bss_usage")
        assert len(rows) == billed(plans) == odoo.rows_loaded
        assert adapter.counters.written.total() == len(rows)
        assert adapter.counters.no_billing == sum(len(p.entries) for p in plans) - len(rows)


async def test_a_record_says_what_the_entry_says(log: EmbeddedLog, odoo: OdooServer) -> None:
    plan = PlanLedger("p.1_x@y")
    plan.add(
        *(topics.LEDGER_PAYMENT, "service_payment", "swap-count", 0, 123_456),
        payment_id="QX12",
    )
    plan.use("electricity", 1_040)
    await bring(log, [plan])
    async with adapting(log, odoo) as adapter:
        await settled(adapter, [plan])
    [paid] = odoo.rows("x_bss_payment")
    assert without_stamps(paid) == {
        "x_name": "p.1_x@y-1-0",
        "x_plan_id": "p.1_x@y",
        "x_seq": 1,
        "x_kind": "service_payment",
        "x_service_id": "swap-count",
        "x_payment_id": "QX12",
        "x_money": "received",
        "x_amount": 1234.56,
        "x_amount_minor": "123456",
        "x_currency": "KES",
        # 23:14 in Nairobi; the day is that of the market.
        "x_day": "2026-11-24",
        "x_event_at": "2026-11-24 20:14:01",
    }
    [used] = odoo.rows("x_bss_usage")
    assert (used["x_used"], used["x_granted"], used["x_unit"]) == (1.04, 0.0, "kWh")
    assert odoo.external_ids.keys() == {
        "bss_stream.payment_p_2E1_5Fx_40y-1-0",
        "bss_stream.usage_p_2E1_5Fx_40y-2-0",
    }


def without_stamps(row: Row) -> Row:
    return {name: value for name, value in row.items() if name.startswith("x_")}


SERIALIZATION_FAILURE = ("psycopg2.errors.SerializationFailure", SERIALIZATION)

PASSING = [
    Fault("status", 502),
    Fault("status", 500),
    Fault("status", 429),
    Fault("html"),
    Fault("drop_before"),
    Fault("drop_after"),
    Fault("error", SERIALIZATION_FAILURE),
    Fault("error", ("psycopg2.pool.PoolError", "The Connection Pool Is Full")),
]


@pytest.mark.parametrize("api", ["jsonrpc", "json2"])
@pytest.mark.parametrize("fault", PASSING, ids=lambda one: f"{one.kind}-{one.value}")
async def test_what_may_pass_is_tried_again(log: EmbeddedLog, fault: Fault, api: str) -> None:
    plans = histories(8)
    async with OdooServer(version=19) as odoo:
        billing_models(odoo)
        await bring(log, plans)
        odoo.faults.extend([fault, fault])
        async with adapting(log, odoo, api=api) as adapter:
            await settled(adapter, plans)
        check_accounts(odoo, entries(plans))
        assert adapter.counters.unavailable == 2
        assert adapter.counters.refused.total() == 0


async def test_a_conflict_in_a_row_is_no_refusal(log: EmbeddedLog, odoo: OdooServer) -> None:
    """Odoo tells of another transaction's lock as if the row were to blame."""
    plans = histories(3)
    await bring(log, plans)
    conflicts = iter(range(5))

    def constraint(row: Row) -> str | None:
        return SERIALIZATION if next(conflicts, None) is not None else None

    with refusing(odoo.models["x_bss_payment"], constraint):
        async with adapting(log, odoo) as adapter:
            await settled(adapter, plans)
    check_accounts(odoo, entries(plans))
    assert adapter.counters.refused.total() == 0
    assert adapter.counters.unavailable > 0


async def test_what_is_too_large_goes_in_parts(log: EmbeddedLog, odoo: OdooServer) -> None:
    plans = histories(6)
    await bring(log, plans)
    odoo.faults.append(Fault("too_large", 3))
    async with adapting(log, odoo) as adapter:
        await settled(adapter, plans)
    check_accounts(odoo, entries(plans))
    assert adapter.counters.refused.total() == 0


async def test_a_server_that_hangs_is_asked_again(log: EmbeddedLog, odoo: OdooServer) -> None:
    plans = histories(4)
    await bring(log, plans)
    odoo.faults.append(Fault("hang"))
    async with adapting(log, odoo, timeout_s=0.3) as adapter:
        await settled(adapter, plans)
        assert adapter.counters.unavailable >= 1
    check_accounts(odoo, entries(plans))


@pytest.mark.parametrize("when", ["die_before", "die_after"])
async def test_a_server_that_dies_in_the_midst_of_a_batch(
    log: EmbeddedLog, odoo: OdooServer, when: str
) -> None:
    """What was committed before it could answer is written again, over itself."""
    plans = histories(12)
    await bring(log, plans)
    async with adapting(log, odoo) as adapter:
        await adapter.until(lambda: adapter.counters.batches >= 2)
        odoo.faults.append(Fault(when))
        away = adapter.counters.unavailable
        await adapter.until(lambda: adapter.counters.unavailable >= away + 2)
        await odoo.start()
        await settled(adapter, plans)
    check_accounts(odoo, entries(plans))


async def test_nothing_is_read_ahead_while_odoo_is_away(log: EmbeddedLog, odoo: OdooServer) -> None:
    plans = histories(12)
    await bring(log, plans)
    async with adapting(log, odoo) as adapter:
        await settled(adapter, plans)
        await odoo.kill()
        more = histories(12, uses=12)
        for plan, longer in zip(plans, more, strict=True):
            assert longer.entries[: len(plan.entries)] == plan.entries
        before = len(plans[0].entries)
        await bring(log, more, first=before)
        await adapter.until(lambda: adapter.counters.unavailable >= 3)
        assert adapter.counters.records == sum(len(plan.entries) for plan in plans)
        await odoo.start()
        await settled(adapter, more)
    check_accounts(odoo, entries(more))


async def test_a_stopped_adapter_goes_on_where_odoo_had_accepted(
    log: EmbeddedLog, odoo: OdooServer
) -> None:
    plans = histories(20)
    await bring(log, plans)
    seen = 0
    for _ in range(3):
        hasty = QUICK._replace(drain_timeout_s=0.0)
        async with adapting(log, odoo, settings=hasty) as adapter:
            await adapter.until(lambda: adapter.counters.batches >= 2)
        seen += adapter.counters.records
    assert seen < sum(len(plan.entries) for plan in plans)
    await odoo.kill()
    async with adapting(log, odoo, settings=QUICK._replace(drain_timeout_s=0.1)) as adapter:
        await adapter.until(lambda: adapter.counters.unavailable >= 2)
    assert adapter.counters.records == 0
    await odoo.start()
    async with adapting(log, odoo) as adapter:
        await adapter.until(
            lambda: adapter.counters.records + seen >= sum(len(plan.entries) for plan in plans)
        )
    check_accounts(odoo, entries(plans))


async def test_what_was_given_up_at_a_stop_comes_again(log: EmbeddedLog, odoo: OdooServer) -> None:
    """A batch that hangs is given up, and nothing behind it is committed over it."""
    plans = [PlanLedger()]
    for amount in range(600):
        plans[0].deposit(amount)
    await bring(log, plans)
    for _ in range(2):
        odoo.faults.append(Fault("hang"))
        async with adapting(log, odoo, settings=QUICK._replace(drain_timeout_s=0.5)) as adapter:
            await adapter.until(lambda: not odoo.faults)
    async with adapting(log, odoo) as adapter:
        await adapter.until(lambda: in_odoo(odoo) >= billed(plans))
    check_accounts(odoo, entries(plans))
    assert in_odoo(odoo) == billed(plans)


async def test_a_later_state_stops_the_adapter(log: EmbeddedLog, odoo: OdooServer) -> None:
    with Playground() as play:
        paid_plan(play)
    appender = await log.appender()
    state = next(one for one in play.produced if one.topic == topics.STATE_PLAN)
    later = b"\xff" + state.value[1:]
    await appender.append([chunk(state.topic, state.partition, (state.key, later))])
    await appender.close()
    with pytest.raises(BssStreamError, match="upgrade"):
        async with adapting(log, odoo) as adapter:
            await adapter.until(lambda: False)
    assert await refusals.standing(log) == ([], 0)


def odd(row: Row) -> str | None:
    return "This one is odd" if row["x_seq"] % 2 else None


async def test_half_a_batch_is_refused_and_kept(log: EmbeddedLog, odoo: OdooServer) -> None:
    """The other half is in; what is refused is listed with Odoo's words and can be tried again."""
    plans = histories(10)
    await bring(log, plans)
    with refusing(odoo.models["x_bss_usage"], odd):
        async with adapting(log, odoo) as adapter:
            await settled(adapter, plans)
    usage = [e for e in entries(plans) if e["kind"] in USED.keys() | GRANTED.keys()]
    found = {row["x_name"] for row in odoo.rows("x_bss_usage")}
    assert found == {entry["entry_id"] for entry in usage if entry["seq"] % 2 == 0}
    refused = {entry["entry_id"] for entry in usage} - found
    assert adapter.counters.refused == {"usage": len(refused)}
    listed, total = await refusals.standing(log)
    assert {one.key for one in listed} == refused
    assert total == len(refused)
    assert {(one.kind, one.error) for one in listed} == {(Kind.USAGE, "This one is odd")}

    with refusing(odoo.models["x_bss_usage"], lambda row: odd(row) if row["x_seq"] > 9 else None):
        first = await retried(log, odoo)
    assert first.taken > 0
    assert len(first.refused) == len(refused) - first.taken
    assert {one.values["seq"] for one in first.refused} == {
        str(one["seq"]) for one in usage if one["seq"] > 9 and one["seq"] % 2
    }
    again = await retried(log, odoo)
    assert (again.taken, again.refused) == (len(first.refused), [])
    assert await refusals.standing(log) == ([], 0)
    check_accounts(odoo, entries(plans))


async def retried(log: Log, odoo: OdooServer) -> Any:
    client = OdooClient(connection(odoo))
    describe = Engine(COMPILED, partitions=1).describe_state
    try:
        upserts = Upserts(client, Odoo())
        return await Retrier(log, upserts, MEASURES, describe, clock_ms=lambda: START_MS).run()
    finally:
        await client.close()


async def test_what_cannot_be_said_is_refused_by_ourselves(
    log: EmbeddedLog, odoo: OdooServer
) -> None:
    plan = PlanLedger("plan-1")
    plan.deposit(10**15)
    plan.use("unheard-of", 1)
    plan.use("swap-count", 1)
    value, _ = sealed({"v": 1, "nonsense": True})
    plan.entries.append((topics.LEDGER_SERVICE, value))
    await bring(log, [plan])
    async with adapting(log, odoo) as adapter:
        await settled(adapter, [plan])
    assert adapter.counters.refused == {"payment": 1, "usage": 2}
    listed, _ = await refusals.standing(log)
    [deposit, *_] = sorted(one.error for one in listed)
    assert deposit.startswith("1000000000000000: Odoo's numbers hold 15 digits")
    wider = Measures({"unheard-of": Service("swaps", 0, NAIROBI)}, {"KES": (2, NAIROBI)})
    client = OdooClient(connection(odoo))
    describe = Engine(COMPILED, partitions=1).describe_state
    upserts = Upserts(client, Odoo())
    outcome = await Retrier(log, upserts, wider, describe, clock_ms=lambda: START_MS).run()
    await client.close()
    assert (outcome.taken, len(outcome.refused)) == (1, 2)


async def ended(log: Log, odoo: OdooServer, **to: Any) -> str:
    """What an adapter says that ends by itself."""
    with pytest.raises(OdooAccessError) as refused:
        async with adapting(log, odoo, **to) as adapter:
            await adapter.until(lambda: False)
    return str(refused.value)


@pytest.mark.parametrize(("version", "api"), [(17, "jsonrpc"), (19, "json2")])
async def test_a_key_that_is_refused_ends_the_role(
    log: EmbeddedLog, version: int, api: str
) -> None:
    async with OdooServer(version=version) as odoo:
        billing_models(odoo)
        said = await ended(log, odoo, api=api, key=Secret("wrong-in-the-clear"))
        assert "key" in said
        assert "in-the-clear" not in said
        # Withdrawn while the adapter is at work.
        plans = histories(4)
        with pytest.raises(OdooAccessError) as refused:
            async with adapting(log, odoo, api=api) as adapter:
                await adapter.until(lambda: adapter.counters.batches == 0)
                odoo.key = "another"
                await bring(log, plans)
                await adapter.until(lambda: False)
        assert KEY not in str(refused.value)
        assert odoo.rows("x_bss_payment") == []


FINAL = [
    (Fault("status", 401, "*"), "does not let this client in"),
    (Fault("status", 301, "*"), "check odoo.url"),
    (Fault("error", ("odoo.exceptions.AccessDenied", "Access Denied"), "*"), "refuses this user"),
    (
        Fault("error", ("psycopg2.OperationalError", 'database "billing" does not exist'), "*"),
        "check odoo.database",
    ),
]


@pytest.mark.parametrize(("fault", "said"), FINAL, ids=lambda one: str(one)[:40])
async def test_what_no_attempt_mends_ends_the_role(
    log: EmbeddedLog, odoo: OdooServer, fault: Fault, said: str
) -> None:
    odoo.faults.append(fault)
    assert said in await ended(log, odoo)


async def test_odoo_is_trusted_by_its_certificate(
    log: EmbeddedLog, certificates: Certificates
) -> None:
    shown = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    shown.load_cert_chain(certificates.server.cert, certificates.server.key)
    plans = histories(2)
    await bring(log, plans)
    async with OdooServer(tls=shown) as odoo:
        billing_models(odoo)
        context = tls.client_context("$.odoo", str(certificates.ca), None, None)
        async with adapting(log, odoo, tls=context) as adapter:
            await settled(adapter, plans)
        check_accounts(odoo, entries(plans))
        stranger = tls.client_context("$.odoo", None, None, None)
        assert "signed by nobody who is trusted here" in await ended(log, odoo, tls=stranger)


async def test_what_odoo_lacks_is_named(log: EmbeddedLog, odoo: OdooServer) -> None:
    del odoo.models["x_bss_usage"]
    del odoo.models["sale.order"].fields["x_bss_status"]
    odoo.models["x_bss_payment"].fields["x_amount"].type = "integer"
    odoo.models["x_bss_payment"].rights = frozenset(("read",))
    said = await ended(log, odoo)
    for fault in (
        "odoo.usage.model: x_bss_usage",
        "odoo.subscription.fields.status: sale.order.x_bss_status is not there",
        "odoo.payment.fields.amount: x_bss_payment.x_amount is of type integer, expected float",
        "odoo.payment.model: the user may not create x_bss_payment",
    ):
        assert fault in said
    with pytest.raises(OdooAccessError, match=r"check odoo\.url, odoo\.api"):
        async with adapting(log, odoo, api="json2") as adapter:
            await adapter.until(lambda: False)


async def put_states(log: Log, play: Playground, *, since: int = 0) -> int:
    """What a playground has written to the plans' changelog and the ledgers; how much in all."""
    appender = await log.appender()
    for record in play.produced[since:]:
        if record.topic in (topics.STATE_PLAN, *topics.LEDGERS):
            value = (record.key, record.value)
            await appender.append([chunk(record.topic, record.partition, value)])
    await appender.close()
    return len(play.produced)


async def test_a_plans_life_is_followed(log: EmbeddedLog, odoo: OdooServer) -> None:
    order = odoo.add("sale.order", name="S00001", client_order_ref="p-1")
    row = odoo.models["sale.order"].rows
    measures = Measures.of(SETUP)
    with Playground() as play:
        paid_plan(play)
        paid_plan(play, "p-2")
        done = await put_states(log, play)
        async with adapting(log, odoo, measures=measures) as adapter:
            await adapter.until(lambda: row[order]["x_bss_payment_state"] == "CURRENT")
            assert row[order]["x_bss_status"] == "ACTIVE"
            assert row[order]["x_bss_service_state"] == "WAIT_BATTERY_ISSUE"
            assert row[order]["x_bss_period_end"]
            hand_over(play, None, "bat-1", 0.75)
            done = await put_states(log, play, since=done)
            await adapter.until(lambda: row[order]["x_bss_service_state"] == "BATTERY_ISSUED")
            loads = odoo.calls["write"] + odoo.calls["load"]
            hand_over(play, "bat-1", "bat-2", 0.75)
            unchanged = adapter.counters.unchanged
            done = await put_states(log, play, since=done)
            await adapter.until(lambda: adapter.counters.unchanged > unchanged)
            play.advance(40 * 24 * 3_600_000)
            done = await put_states(log, play, since=done)
            await adapter.until(lambda: row[order]["x_bss_status"] == "SUSPENDED")
            assert row[order]["x_bss_payment_state"] == "RENEWAL_DUE"
            assert loads < odoo.calls["write"] + odoo.calls["load"]
    # The other plan has no order: that is kept, once a change of its life.
    listed, _ = await refusals.standing(log)
    assert {(one.kind, one.plan_id) for one in listed} == {(Kind.SUBSCRIPTION, "p-2")}
    assert "0 records of sale.order have client_order_ref = p-2" in listed[0].error
    late = odoo.add("sale.order", name="S00002", client_order_ref="p-2")
    assert (await retried(log, odoo)).taken == 1
    assert row[late]["x_bss_status"] == "SUSPENDED"


async def test_subscriptions_of_our_own(log: EmbeddedLog, odoo: OdooServer) -> None:
    odoo.model("x_bss_plan", **odoo.models["sale.order"].fields)
    fields: Any = {"plan_id": "name", "status": "x_bss_status"}
    models = Odoo(subscription=Subscription(model="x_bss_plan", key="", fields=fields))
    with Playground() as play:
        paid_plan(play)
        send(play, "emit/uxi/service/plan/p-1/initialize_states")
        await put_states(log, play)
        async with adapting(log, odoo, models=models, measures=Measures.of(SETUP)) as adapter:
            await adapter.until(lambda: bool(odoo.rows("x_bss_plan")))
    [row] = odoo.rows("x_bss_plan")
    assert (row["name"], row["x_bss_status"]) == ("p-1", "ACTIVE")
    assert ("x_bss_plan", row["id"]) == odoo.external_ids["bss_stream.subscription_p-1"]


def in_odoo(odoo: OdooServer) -> int:
    return len(odoo.rows("x_bss_usage")) + len(odoo.rows("x_bss_payment"))


@pytest.mark.kafka
async def test_adapters_on_kafka_share_the_plans(
    kafka: str, odoo: OdooServer, tmp_path: Path
) -> None:
    """One comes and leaves while entries come in; each entry is one record all the same."""
    plans = histories(400, uses=2)
    prefix = f"odoo-{tmp_path.name}"
    logs = [KafkaLog(kafka_options(kafka, prefix), partitions=PARTITIONS) for _ in range(3)]
    for one in logs:
        await one.open()
    brought = 0
    try:
        async with adapting(logs[1], odoo) as first, adapting(logs[2], odoo) as second:
            while not (first.counters.batches and second.counters.batches):
                await bring(logs[0], plans[brought : brought + 1])
                brought += 1
            second.outbound.stop()
            await bring(logs[0], plans[brought : brought + 9])
            plans = plans[: brought + 9]
            await first.until(lambda: in_odoo(odoo) >= billed(plans))
        check_accounts(odoo, entries(plans))
        assert in_odoo(odoo) == billed(plans)
    finally:
        for one in logs:
            await one.close()
