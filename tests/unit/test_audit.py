"""The audit says exactly what is wrong, and tells late from lost."""

import json
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bss_stream import topics
from bss_stream.audit import AuditReport, Difference, LiveStates, audit
from bss_stream.errors import FrameError
from bss_stream.ledger_kinds import RULES
from bss_stream.sink.entry import EntryRow
from tests.ledger_chain import PRICE_MINOR, WHOLE_PLAN, PlanLedger, sealed, whole_plan
from tests.unit.ledgers import Ledgers


@pytest.fixture
def ledgers(tmp_path: Path) -> Iterator[Callable[..., Ledgers]]:
    opened: list[Ledgers] = []

    def make(*plans: PlanLedger) -> Ledgers:
        opened.append(Ledgers(tmp_path, *plans))
        return opened[-1]

    yield make
    for each in opened:
        each.store.close()


def fields(report: AuditReport) -> set[str]:
    return {difference.field for difference in report.differences}


START = {"used": 4, "held": 2, "quota": 30, "credit_minor": 500}
EFFECTS: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "quota_granted": ({"units": 3}, {"quota": 33}),
    "quota_held": ({"units": 3}, {"held": 5}),
    "quota_released": ({"units": 2}, {"held": 0}),
    "quota_used": ({"units": 1, "held_units": 2}, {"used": 5, "held": 0}),
    "quota_expired": ({"units": 20}, {"quota": 6, "used": 0}),
    "quota_adjusted": ({"units": -3, "amount_minor": -75}, {"quota": 27, "credit_minor": 575}),
    "quota_shortfall": ({"units": 3}, {}),
    "late_issue": ({"units": 1}, {"used": 5}),
    "asset_returned": ({}, {}),
    "asset_lost": ({}, {}),
    "asset_found": ({}, {}),
    "asset_replaced": ({}, {}),
    "asset_settled": ({}, {}),
    "activity_reported": ({}, {}),
    "topup_applied": ({"units": 3, "amount_minor": 75}, {"quota": 33, "credit_minor": 425}),
    "contract_signed": ({"template_id": "t-1", "template_version": 2}, {}),
    "deposit": ({"amount_minor": 75}, {}),
    "renewal": ({"amount_minor": 75}, {}),
    "renewal_payment": ({"amount_minor": 75}, {}),
    "renewal_from_credit": ({"amount_minor": 75}, {}),
    "service_payment": ({"amount_minor": 75}, {"credit_minor": 575}),
    "overage_charge": ({"units": 1, "amount_minor": 75}, {}),
    "final_payment": ({"amount_minor": 75}, {}),
    "settlement": ({"amount_minor": 75}, {}),
    "refund": ({"amount_minor": 75}, {"credit_minor": 425}),
    "reversal": ({"amount_minor": -75}, {"credit_minor": 425}),
}


def started(plan_id: str) -> PlanLedger:
    """A plan whose swap-count account is START."""
    plan = PlanLedger(plan_id)
    plan.grant("swap-count", 30)
    plan.use("swap-count", 4)
    plan.hold("swap-count", 2)
    paid = {"credit_minor": 500}
    plan.add(topics.LEDGER_PAYMENT, "service_payment", "swap-count", 0, 500, paid)
    assert plan.accounts["swap-count"] == START
    return plan


def topic_of(kind: str) -> str:
    return topics.LEDGER_PAYMENT if RULES[kind].ledger == "payment" else topics.LEDGER_SERVICE


def test_every_kind_has_its_effect_written_down_here() -> None:
    assert EFFECTS.keys() == RULES.keys()


@pytest.mark.parametrize("kind", EFFECTS)
def test_a_kind_has_its_effect_and_no_other(kind: str, ledgers: Callable[..., Ledgers]) -> None:
    numbers, after = EFFECTS[kind]
    plan, wrong = started("plan-1"), started("plan-2")
    fields_of = {"units": 0, "amount_minor": 0, **numbers}
    plan.add(topic_of(kind), kind, "swap-count", after=after, **fields_of)
    wrong.add(topic_of(kind), kind, "swap-count", after={**after, "used": 99}, **fields_of)
    signed = {name: value for name, value in numbers.items() if name.startswith("template")}
    report = ledgers(plan, wrong).audit(plan.state() | signed, wrong.state() | signed)
    used = {**START, **after}["used"]
    assert report.differences == [Difference("plan-2", "plan-2-5-0", "after.used", used, 99)]


def test_a_plan_has_a_credit_of_its_own(ledgers: Callable[..., Ledgers]) -> None:
    plan = PlanLedger("plan-1")
    paid, returned = (topics.LEDGER_PAYMENT, "renewal_payment"), (topics.LEDGER_PAYMENT, "refund")
    plan.add(*paid, amount_minor=700, payment_id="ahead")
    plan.add(*paid, amount_minor=500, payment_id="ahead-2")
    plan.add(topics.LEDGER_PAYMENT, "renewal_from_credit", amount_minor=450)
    plan.add(*returned, amount_minor=50, payment_id="ahead-2")
    # What goes back of an invoice is not out of the credit.
    plan.add(*returned, amount_minor=80, payment_id="odoo:1:invoice:1")
    plan.add(topics.LEDGER_PAYMENT, "reversal", amount_minor=-900, payment_id="ahead")
    written = ledgers(plan)
    report = written.audit({**plan.state(), "credit_minor": -200})
    assert report.differences == []
    assert report.money["KES"].credit == -200
    report = written.audit(plan.state())
    assert report.differences == [Difference("plan-1", None, "plan.credit_minor", -200, 0)]


def test_what_was_signed_is_what_the_plan_has(ledgers: Callable[..., Ledgers]) -> None:
    plan, twice = PlanLedger("plan-1"), PlanLedger("plan-2")
    signed = (topics.LEDGER_PAYMENT, "contract_signed")
    plan.add(*signed, template_id="t-1", template_version=2)
    for _ in range(2):
        twice.add(*signed, template_id="t-1", template_version=2)
    other = {**plan.state(), "template_id": "t-1", "template_version": 3}
    same = {**twice.state(), "template_id": "t-1", "template_version": 2}
    report = ledgers(plan, twice).audit(other, same)
    assert report.differences == [
        Difference("plan-1", None, "template_version", 2, 3),
        Difference("plan-2", "plan-2-2-0", "kind", "no second contract_signed", "contract_signed"),
    ]


def test_units_and_money_of_a_kind_are_not_negative(ledgers: Callable[..., Ledgers]) -> None:
    plan = started("plan-1")
    plan.add(topics.LEDGER_SERVICE, "quota_granted", "swap-count", -3, after={"quota": 27})
    report = ledgers(plan).audit(plan.state())
    assert report.differences == [Difference("plan-1", "plan-1-5-0", "units", 3, -3)]


def test_a_cycle_that_ends_past_its_quota_leaves_none(ledgers: Callable[..., Ledgers]) -> None:
    plan = started("plan-1")
    plan.use("swap-count", 40)
    plan.expire("swap-count")
    assert plan.accounts["swap-count"]["quota"] == 0
    assert ledgers(plan).audit(plan.state()).differences == []


def test_not_every_first_entry_may_find_no_limit(ledgers: Callable[..., Ledgers]) -> None:
    plan = PlanLedger()
    plan.grant_unlimited("network")
    plan.use("network", 3)
    plan.accounts["swap-count"] = {"used": 0, "held": 0, "quota": "infinite", "credit_minor": 0}
    plan.hold("swap-count", 1)
    plan.accounts["untouched"] = {"used": 0, "held": 0, "quota": "infinite", "credit_minor": 0}
    report = ledgers(plan).audit(plan.state())
    assert report.differences == [
        Difference("plan-1", "plan-1-3-0", "before.quota", 0, "infinite"),
    ]


def test_held_units_never_go_below_zero(ledgers: Callable[..., Ledgers]) -> None:
    plan = started("plan-1")
    plan.add(topics.LEDGER_SERVICE, "quota_released", "swap-count", 3, after={"held": -1})
    report = ledgers(plan).audit(plan.state())
    assert report.differences == [Difference("plan-1", "plan-1-5-0", "after.held", "0 or more", -1)]


def test_an_account_may_not_change_between_entries(ledgers: Callable[..., Ledgers]) -> None:
    plan = started("plan-1")
    plan.accounts["swap-count"] = {**START, "quota": 40}
    plan.grant("swap-count", 1)
    report = ledgers(plan).audit(plan.state())
    assert report.differences == [Difference("plan-1", "plan-1-5-0", "before.quota", 30, 40)]


def test_credit_out_of_nowhere_is_found(ledgers: Callable[..., Ledgers]) -> None:
    plan = PlanLedger()
    plan.accounts["swap-count"] = {**START, "used": 0, "held": 0, "quota": 0}
    plan.grant("swap-count", 1)
    report = ledgers(plan).audit(plan.state())
    assert report.differences == [
        Difference("plan-1", "plan-1-1-0", "before.credit_minor", 0, 500),
        Difference("plan-1", None, "credit_minor", 0, 500),
    ]


def test_an_unknown_kind_and_a_second_currency_are_found(ledgers: Callable[..., Ledgers]) -> None:
    plan = started("plan-1")
    plan.add(topics.LEDGER_SERVICE, "quota_gifted", "swap-count", 1, after={"quota": 31})
    plan.use("swap-count", 1)
    plan.currency = "XOF"
    plan.deposit(10)
    report = ledgers(plan).audit(plan.state())
    assert report.differences == [
        Difference("plan-1", "plan-1-5-0", "kind", "a kind of the ledgers", "quota_gifted"),
        Difference("plan-1", "plan-1-7-0", "currency", "KES", "XOF"),
    ]


def test_a_plan_entry_moves_no_account(ledgers: Callable[..., Ledgers]) -> None:
    plan = PlanLedger()
    plan.add(topics.LEDGER_PAYMENT, "deposit", None, 0, 10, {"credit_minor": 10})
    report = ledgers(plan).audit(plan.state())
    assert report.differences == [Difference("plan-1", "plan-1-1-0", "after.credit_minor", 0, 10)]


def test_plans_sort_by_bytes_in_ledgers_and_states(ledgers: Callable[..., Ledgers]) -> None:
    plans = [whole_plan(name) for name in ("plan-a", "Plan-b", "plan_c", "plan-é", "plan-𝄞", "p")]
    report = ledgers(*plans).audit(*(plan.state() for plan in plans))
    assert report.differences == []
    assert (report.plans, report.states) == (6, 6)


def test_without_states_the_ledgers_alone_are_checked(ledgers: Callable[..., Ledgers]) -> None:
    opened = ledgers(whole_plan())
    assert audit(opened.store, None, drained=True).ok
    opened.execute("UPDATE ledger_entries SET units = units + 1 WHERE seq = 2")
    assert fields(audit(opened.store, None)) == {"units"}


def test_totals_by_kind_and_currency(ledgers: Callable[..., Ledgers]) -> None:
    other = PlanLedger("plan-2", "XOF")
    other.pay("swap-count", 300, PRICE_MINOR)
    report = ledgers(whole_plan(), other).audit(whole_plan().state(), other.state())
    assert report.ok
    granted = report.kinds["quota_granted", "KES"]
    assert (granted.entries, granted.units, granted.amount_minor) == (3, 60, 0)
    kes, xof = report.money["KES"], report.money["XOF"]
    assert (kes.received, kes.granted, kes.returned, kes.credit) == (5040, 1000, 40, 0)
    assert (xof.received, xof.granted, xof.returned, xof.credit) == (300, 250, 0, 50)


# Behind, ahead, or wrong.


def test_a_state_that_sql_has_not_reached_is_behind(ledgers: Callable[..., Ledgers]) -> None:
    plan = whole_plan()
    opened = ledgers()
    opened.write(*plan.rows()[:-2])
    report = opened.audit(plan.state(), drained=False)
    assert (report.ok, report.behind, report.ahead) == (True, 1, 0)
    report = opened.audit(plan.state(), drained=True)
    last = len(plan.entries)
    assert report.differences == [Difference("plan-1", None, "ledger_seq", last - 2, last)]


def test_an_older_state_is_compared_where_it_stands(ledgers: Callable[..., Ledgers]) -> None:
    plan = PlanLedger()
    plan.grant("swap-count", 30)
    older = plan.state()
    plan.use("swap-count", 1)
    opened = ledgers(plan)
    report = opened.audit(older, drained=False)
    assert (report.ok, report.behind, report.ahead) == (True, 0, 1)
    assert fields(opened.audit(older, drained=True)) == {"ledger_seq"}
    older["services"][0]["quota"] = 31
    report = opened.audit(older, drained=False)
    assert report.differences == [Difference("plan-1", None, "swap-count.quota", 30, 31)]


def test_a_state_before_the_first_entry_is_compared(ledgers: Callable[..., Ledgers]) -> None:
    opened = ledgers(whole_plan("plan-2"))
    fresh = PlanLedger("plan-1").state()
    fresh["services"] = [{"service_id": "network", "used": 0, "held": 0, "quota": "infinite"}]
    fresh["services"][0]["credit_minor"] = 0
    assert opened.audit(fresh, whole_plan("plan-2").state()).ok
    fresh["services"][0]["used"] = 1
    fresh["ledger_hash"] = "1" + fresh["ledger_hash"][1:]
    report = opened.audit(fresh, whole_plan("plan-2").state())
    assert fields(report) == {"network.used", "ledger_hash"}


def test_a_state_may_not_name_another_plan_or_a_service_twice(
    ledgers: Callable[..., Ledgers],
) -> None:
    opened, state = ledgers(whole_plan()), whole_plan().state()
    state["services"].append(state["services"][0])
    state["plan_id"] = "plan-9"
    report = audit(opened.store, [("plan-1", state)], drained=True)
    assert report.differences == [
        Difference("plan-1", None, "plan_id", "plan-1", "plan-9"),
        Difference("plan-1", None, "services", 3, 4),
    ]


def test_a_state_below_the_start_is_never_just_old(ledgers: Callable[..., Ledgers]) -> None:
    state = {**whole_plan().state(), "ledger_seq": -1}
    report = ledgers(whole_plan()).audit(state, drained=False)
    assert fields(report) == {"ledger_seq"}


def test_states_of_plans_without_entries_stand_between_the_others(
    ledgers: Callable[..., Ledgers],
) -> None:
    plans = [whole_plan("plan-2"), whole_plan("plan-4")]
    states = [PlanLedger(f"plan-{number}").state() for number in (1, 3, 5, 6)]
    report = ledgers(*plans).audit(*states, *(plan.state() for plan in plans))
    assert report.ok
    assert (report.plans, report.states, report.ahead) == (6, 6, 0)


def test_an_entry_sealed_anew_breaks_the_link_to_the_next(ledgers: Callable[..., Ledgers]) -> None:
    plan = whole_plan()
    entry = json.loads(plan.entries[4][1])
    found = entry.pop("hash")
    value, expected = sealed({**entry, "detail": "forged"})
    opened = ledgers(plan)
    opened.execute("UPDATE ledger_entries SET entry = ? WHERE seq = 5", value.decode())
    report = opened.audit(plan.state())
    assert report.differences == [Difference("plan-1", "plan-1-6-0", "prev", expected, found)]


def test_an_entry_before_the_first_is_found(ledgers: Callable[..., Ledgers]) -> None:
    plan = PlanLedger()
    plan.grant("swap-count", 30)
    early = PlanLedger()
    early.deposit(0)
    entry = json.loads(early.entries[0][1])
    del entry["hash"]
    value, early_hash = sealed({**entry, "entry_id": "early", "seq": 0})
    opened = ledgers(plan)
    row = early.rows()[0]._replace(entry_id="early", seq=0, entry=value.decode())
    opened.write(row)
    report = opened.audit(plan.state())
    assert report.differences == [
        Difference("plan-1", "early", "seq", 1, 0),
        Difference("plan-1", "plan-1-1-0", "prev", early_hash, "0" * 64),
    ]


@pytest.mark.parametrize("column", sorted(set(EntryRow._fields) - {"entry", "ledger", "plan_id"}))
def test_a_column_that_is_not_its_entry_s_is_found(
    column: str, ledgers: Callable[..., Ledgers]
) -> None:
    opened = ledgers(whole_plan())
    last = whole_plan().rows()[-1]
    expected = getattr(last, column)
    found = expected + 1 if isinstance(expected, int) else "other"
    opened.execute(f"UPDATE ledger_entries SET {column} = ? WHERE seq = ?", found, last.seq)
    report = opened.audit(drained=False)
    assert (
        Difference(
            "plan-1", "other" if column == "entry_id" else last.entry_id, *(column, expected, found)
        )
        in report.differences
    )


def test_a_service_that_the_state_lacks_is_found(ledgers: Callable[..., Ledgers]) -> None:
    state = whole_plan().state()
    del state["services"][0]
    report = ledgers(whole_plan()).audit(state)
    assert report.differences == [Difference("plan-1", None, "swap-count", "an account", "none")]


def test_a_plan_without_state_is_ahead(ledgers: Callable[..., Ledgers]) -> None:
    opened = ledgers(whole_plan())
    report = opened.audit(drained=False)
    assert (report.ok, report.ahead) == (True, 1)
    assert fields(opened.audit(drained=True)) == {"state"}


def test_a_gap_that_one_ledger_may_still_fill_is_behind(ledgers: Callable[..., Ledgers]) -> None:
    plan = PlanLedger()
    plan.deposit(100)
    plan.grant("swap-count", 30)
    plan.pay("swap-count", 300, PRICE_MINOR)
    plan.use("swap-count", 1)
    opened = ledgers()
    rows = plan.rows()
    # The payment ledger has arrived up to seq 1, the service ledger whole.
    opened.write(*(row for row in rows if row.ledger == "service" or row.seq == 1))
    report = opened.audit(plan.state(), drained=False)
    assert (report.ok, report.behind) == (True, 1)
    assert opened.audit(plan.state()).differences == [
        Difference("plan-1", "plan-1-4-0", "seq", 3, 4)
    ]


def test_a_gap_that_both_ledgers_have_passed_is_a_difference(
    ledgers: Callable[..., Ledgers],
) -> None:
    plan = started("plan-1")
    plan.grant("swap-count", 1)
    opened = ledgers(plan)
    opened.execute("DELETE FROM ledger_entries WHERE seq = 2")
    report = opened.audit(plan.state(), drained=False)
    assert report.differences == [Difference("plan-1", "plan-1-3-0", "seq", 2, 3)]


def test_a_plan_whose_entries_are_all_gone_is_found(ledgers: Callable[..., Ledgers]) -> None:
    plans = [whole_plan("plan-1"), whole_plan("plan-2")]
    opened = ledgers(*plans)
    opened.execute("DELETE FROM ledger_entries WHERE plan_id = 'plan-2'")
    report = opened.audit(*(plan.state() for plan in plans))
    assert report.differences == [
        Difference("plan-2", None, "ledger_seq", 0, len(plans[1].entries))
    ]


@pytest.mark.parametrize("state", [{}, {"plan_id": "plan-1", "ledger_seq": "12"}])
def test_a_state_of_another_form_is_a_difference(
    state: dict[str, Any], ledgers: Callable[..., Ledgers]
) -> None:
    opened = ledgers(whole_plan())
    report = audit(opened.store, [("plan-1", state)])
    assert fields(report) == {"state"}
    assert (report.behind, report.ahead) == (0, 0)


def test_rejects_of_the_sink_are_reported(ledgers: Callable[..., Ledgers]) -> None:
    opened = ledgers(whole_plan())
    opened.execute(
        "INSERT INTO sink_rejects VALUES (?, 0, 7, 'entry_id_conflict', 'why', x'', x'')",
        topics.LEDGER_SERVICE,
    )
    report = opened.audit(whole_plan().state())
    assert report.differences == []
    assert report.rejects == {"entry_id_conflict": 1}
    assert not report.ok


def test_only_so_many_differences_are_listed(ledgers: Callable[..., Ledgers]) -> None:
    opened = ledgers(whole_plan())
    opened.execute("UPDATE ledger_entries SET units = units + 1")
    report = audit(opened.store, None, differences_max=3)
    assert (len(report.differences), report.differences_total) == (3, len(WHOLE_PLAN) + 1)


def test_a_report_shows_its_tables_without_markup(ledgers: Callable[..., Ledgers]) -> None:
    plan = whole_plan("plan-[bold]")
    opened = ledgers(plan)
    opened.execute("UPDATE ledger_entries SET currency = 'XOF' WHERE seq = 2")
    console = Console(width=200, record=True, file=StringIO())
    console.print(opened.audit(plan.state()))
    text = console.export_text()
    assert "Ledgers NOT CONSISTENT: 13 entries of 1 plans, 1 live states" in text
    assert "Differences (1 of 1)" in text
    assert "plan-[bold]" in text
    assert "5040" in text


def describe(topic: str, key: bytes, value: bytes) -> bytes:
    assert topic == topics.STATE_PLAN
    return value


def test_the_last_state_of_a_key_counts_and_a_removed_one_does_not() -> None:
    with LiveStates(describe) as states:
        states.apply([(b"b", b'{"n":1}'), (b"a", b'{"n":1}'), (b"c", b'{"n":1}')])
        states.apply([(b"a", b'{"n":2}'), (b"c", None), (b"d", None)])
        assert list(states) == [("a", {"n": 2}), ("b", {"n": 1})]


def test_a_state_that_cannot_be_described_names_its_key() -> None:
    with LiveStates(describe) as states:
        states.apply([(b"plan-1", b"{")])
        with pytest.raises(FrameError, match="plan-1"):
            list(states)
