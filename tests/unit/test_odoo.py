"""What goes to Odoo: exact numbers, ids that no two records share, every row settled by itself."""

import asyncio
import json
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bss_stream import topics
from bss_stream._engine import unpack
from bss_stream.errors import LogError, NewerVersionError, OdooUnavailableError
from bss_stream.ledger_kinds import RULES, Money
from bss_stream.odoo import refusals
from bss_stream.odoo.billing import (
    Kind,
    Measures,
    Record,
    Service,
    UnmappableError,
    decimal_text,
    of_entry,
)
from bss_stream.odoo.client import OdooClient
from bss_stream.odoo.config import Odoo
from bss_stream.odoo.payments import Invoice, exact
from bss_stream.odoo.reconcile import sync_message
from bss_stream.odoo.refusals import Refusal
from bss_stream.odoo.upsert import TYPES, external_id, load, targets
from bss_stream.setup import load_setup

ZONE = ZoneInfo("Africa/Nairobi")
MEASURES = Measures(
    {"swap-count": Service("swaps", 0, ZONE), "electricity": Service("kWh", 3, ZONE)},
    {"KES": (2, ZONE), "XOF": (0, ZONE)},
)


def record(key: str, kind: Kind = Kind.USAGE) -> Record:
    return Record(kind, key, "p-1", {}, "source")


def entry(**fields: Any) -> bytes:
    given = {
        "v": 1,
        "entry_id": "plan-0-1-0",
        "plan_id": "p-1",
        "seq": 1,
        "kind": "quota_used",
        "event_at": "2026-11-24T21:30:00.5Z",
        "units": 1,
        "amount_minor": 0,
        "currency": "KES",
        "service_id": "swap-count",
    }
    return json.dumps({**given, **fields}).encode()


@given(st.integers(-(10**15) + 1, 10**15 - 1), st.integers(0, 3))
def test_a_float_gives_an_amount_back_exactly(units: int, digits: int) -> None:
    """Odoo reads the text as a float and writes the float's shortest decimal."""
    text = decimal_text(units, digits)
    assert Decimal(text).scaleb(digits) == units
    assert Decimal(repr(float(text))).scaleb(digits) == units
    if digits == 2:
        assert exact(Decimal(repr(float(text))), "KES", MEASURES) == text


def test_more_than_a_float_holds_is_refused() -> None:
    for units in (10**15, -(10**15)):
        with pytest.raises(UnmappableError, match="15 digits"):
            decimal_text(units, 2)


@given(st.text("aA.:@-_0", min_size=1, max_size=8), st.text("aA.:@-_0", min_size=1, max_size=8))
def test_no_two_records_share_an_external_id(one: str, other: str) -> None:
    mine, theirs = (external_id("m", record(key)) for key in (one, other))
    assert (mine == theirs) == (one == other)
    assert mine.count(".") == 1
    assert mine != external_id("m", record(one, Kind.PAYMENT))


def test_every_kind_is_billing_or_is_none() -> None:
    for kind, rule in RULES.items():
        found = of_entry(entry(kind=kind, units=3, amount_minor=705), "source", MEASURES)
        moves = rule.used or rule.quota or kind == "quota_shortfall"
        if rule.money is not Money.NONE and rule.ledger == "payment":
            assert found is not None
            assert found.kind is Kind.PAYMENT
            assert (found.values["amount"], found.values["money"]) == ("7.05", rule.money)
        elif moves:
            assert found is not None
            assert found.kind is Kind.USAGE
            assert found.values["used"] == str(3 * rule.used)
            assert found.values["granted"] == str(3 * rule.quota)
        else:
            assert found is None
        if found is not None:
            # Half past midnight in Nairobi.
            assert found.values["day"] == "2026-11-25"
            assert found.values["event_at"] == "2026-11-24 21:30:00"


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (b"{", "is no ledger entry"),
        (entry(seq="1"), "is no ledger entry"),
        (entry(v=0), "v is 0"),
        (entry(kind="unheard_of"), "kind unheard_of"),
        (entry(service_id="unheard-of"), "service unheard-of"),
        (entry(kind="deposit", currency="EUR", service_id=None), "currency EUR"),
        (entry(units=10**15), "15 digits"),
    ],
)
def test_what_has_no_place_in_odoo_is_said(value: bytes, fault: str) -> None:
    with pytest.raises(UnmappableError, match=fault):
        of_entry(value, "source", MEASURES)


def test_a_later_entry_stops_the_adapter() -> None:
    for value in (entry(v=2), b'{"v":2,"other":"fields"}'):
        with pytest.raises(NewerVersionError, match="upgrade"):
            of_entry(value, "source", MEASURES)


def test_every_field_that_can_be_configured_is_filled() -> None:
    made = {
        Kind.PAYMENT: of_entry(entry(kind="deposit"), "source", MEASURES),
        Kind.USAGE: of_entry(entry(), "source", MEASURES),
    }
    for kind, found in made.items():
        assert found is not None
        assert set(targets(Odoo())[kind].fields) == found.values.keys()
    assert set(targets(Odoo())[Kind.SUBSCRIPTION].fields) >= {"status", "period_end"}
    known = {name for to in targets(Odoo()).values() for name in to.fields}
    assert TYPES.keys() <= known


def test_the_packaged_markets_have_units() -> None:
    measures = Measures.of(load_setup())
    service = measures.service("service-electricity-nairobi")
    assert (service.unit, service.digits) == ("kWh", 3)
    assert measures.currency("XOF")[0] == 0


class Loads(OdooClient):
    """Answers `load` by a rule; `odd` rows are refused, and named if Odoo would name them."""

    def __init__(self, odd: set[str], *, named: bool, shown_max: int) -> None:
        self.odd, self.named, self.shown_max = odd, named, shown_max
        self.loaded: list[str] = []
        self.calls = 0

    async def call(self, model: str, method: str, *, ids: Any = None, **arguments: Any) -> Any:
        self.calls += 1
        rows = [row[0] for row in arguments["data"]]
        errors = [
            {"type": "error", "message": f"{row} is odd"} | ({"record": at} if self.named else {})
            for at, row in enumerate(rows)
            if row in self.odd
        ][: self.shown_max]
        if errors:
            return {"ids": False, "messages": [{"type": "warning", "message": "w"}, *errors]}
        self.loaded += rows
        return {"ids": list(range(1, len(rows) + 1)), "messages": [], "nextrow": 0}


@given(
    st.integers(1, 40).flatmap(
        lambda size: st.tuples(st.just(size), st.sets(st.integers(0, size - 1)))
    ),
    st.booleans(),
    st.integers(1, 10),
)
def test_every_row_is_in_or_refused_by_itself(
    case: tuple[int, set[int]], named: bool, shown_max: int
) -> None:
    size, odd = case
    client = Loads({str(at) for at in odd}, named=named, shown_max=shown_max)
    refused = asyncio.run(load(client, "m", ["id"], [[str(at)] for at in range(size)]))
    assert refused == {at: f"{at} is odd" for at in odd}
    assert sorted(map(int, client.loaded)) == sorted(set(range(size)) - odd)
    assert client.calls <= 2 * size + 1


def test_another_transaction_s_lock_is_no_row_s_fault() -> None:
    class Locked(Loads):
        async def call(self, model: str, method: str, *, ids: Any = None, **arguments: Any) -> Any:
            message = "could not serialize access due to concurrent update"
            return {"ids": False, "messages": [{"type": "error", "message": message, "record": 0}]}

    with pytest.raises(OdooUnavailableError, match="could not serialize"):
        asyncio.run(load(Locked(set(), named=True, shown_max=1), "m", ["id"], [["1"]]))


REFUSAL = (
    b'{"v":1,"at_ms":5,"kind":"usage","key":"plan-0-1-0","plan_id":"p-1",'
    b'"source":"bss.ledger.service/0/7","values":{"units":"1"},"error":"odd"}'
)
"""As version 1 has written it."""


def test_a_refusal_keeps_its_bytes() -> None:
    found = refusals.decode(REFUSAL)
    assert found.record == Record(
        Kind.USAGE, "plan-0-1-0", "p-1", {"units": "1"}, "bss.ledger.service/0/7"
    )
    [chunk] = refusals.chunks([Refusal.of(found.record, "odd", 5)], 1)
    assert unpack(bytes(chunk.data)) == [(b"p-1", REFUSAL)]
    assert chunk[:3] == (topics.ODOO_REFUSED, 0, 1)
    with pytest.raises(NewerVersionError, match="refusal of Odoo of version 2"):
        refusals.decode(REFUSAL.replace(b'"v":1', b'"v":2'))
    with pytest.raises(LogError, match="is no refusal"):
        refusals.decode(b"{}")


def invoice(**fields: Any) -> Invoice:
    given = Invoice(7, "7", "p-1", "S00012", "in_progress", "paid", Decimal("1500.5"), "KES")
    return given._replace(**fields)


def test_a_sync_carries_the_invoice_s_payment_id_and_exact_amount() -> None:
    message = sync_message(invoice(), MEASURES, 0)
    assert message.topic == "emit/odo/subscription/plan/p-1/sync"
    body = json.loads(message.payload, parse_float=str)
    assert body["data"] == {
        "action": "SYNC_ODOO_SUBSCRIPTION",
        "odoo_subscription_id": "S00012",
        "odoo_invoice_id": "7",
        "odoo_payment_state": "paid",
        "odoo_subscription_state": "in_progress",
        "odoo_currency_id": "KES",
        "odoo_amount_total": "1500.50",
    }
    assert invoice().payment_id == "odoo:S00012:invoice:7"
    assert sync_message(invoice(), MEASURES, 0) == message


@pytest.mark.parametrize(
    "fields",
    [
        {"plan_id": "a/b"},
        {"id": "INV/2026/0001"},
        {"subscription_id": ""},
        {"amount": Decimal("0.005")},
        {"currency": "EUR"},
    ],
)
def test_what_no_sync_can_say_is_not_published(fields: dict[str, Any]) -> None:
    with pytest.raises(UnmappableError):
        sync_message(invoice(**fields), MEASURES, 0)
