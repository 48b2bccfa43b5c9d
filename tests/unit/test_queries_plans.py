"""Balance and swap history: what the ledgers tell of a plan is what the plan's state says."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given

from bss_stream.errors import ConfigError, FrameError
from bss_stream.queries.plans import balance, number, swap_history
from bss_stream.queries.wire import SEQ_MAX, Rejection, SwapHistory
from bss_stream.sink.sqlite import SqliteLedgerStore
from bss_stream.testing import START_MS, Playground
from tests.ledger_chain import PlanLedger, batch_of
from tests.read_model import Copied
from tests.rider_story import (
    ENERGY,
    HALF_DAY_MS,
    SWAP,
    answer,
    bind,
    hand_over,
    paid_plan,
    send,
)
from tests.unit.histories import Action, Player, histories, rfc3339, services

DIGITS = {"KES": 2, "XOF": 0}
INFINITE = {"KES": 100_000_000, "XOF": 10_000_000}


def decoded(metadata: dict[str, object] | Rejection) -> dict[str, Any]:
    """What a client reads, with its numbers exact."""
    assert isinstance(metadata, dict), metadata
    text = msgspec.json.encode(metadata)
    found: dict[str, Any] = msgspec.json.Decoder(dict[str, Any], float_hook=Decimal).decode(text)
    return found


@contextmanager
def copied(play: Playground) -> Iterator[Copied]:
    with (
        tempfile.TemporaryDirectory() as directory,
        Copied(play, f"sqlite:{directory}/ledger.db") as copy,
    ):
        yield copy


def balance_of(copy: Copied, plan_id: str) -> dict[str, Any]:
    with copy.model.view() as view:
        return decoded(balance(view, copy.catalogue, plan_id))


def swaps_of(copy: Copied, plan_id: str, limit: int = 100) -> list[dict[str, Any]]:
    """All swaps, page by page."""
    found: list[dict[str, Any]] = []
    before: int | None = SEQ_MAX
    while before is not None:
        with copy.model.view() as view:
            asked = SwapHistory(plan_id, limit, before)
            page = decoded(swap_history(view, copy.catalogue, asked))
        assert len(page["swaps"]) <= limit
        found += page["swaps"]
        before = page["next_before"]
    return found


def assert_balance_is_the_state_s(shown: dict[str, Any], plan: dict[str, Any]) -> None:
    by_id = {service["service_id"]: service for service in shown["service_states"]}
    for state in plan["services"]:
        wire = by_id.pop(state["service_id"], None)
        account = [state[name] for name in ("used", "held", "quota", "credit_minor")]
        if wire is None:
            # Nothing has been granted, so nothing has been entered.
            assert account in ([0, 0, 0, 0], [0, 0, "infinite", 0])
            continue
        unit = 10 ** services()[state["service_id"]]["unit_digits"]
        minor = 10 ** DIGITS[shown["currency"]]
        expected = [Decimal(state["used"]) / unit, Decimal(state["held"]) / unit]
        if state["quota"] == "infinite":
            expected += [INFINITE[shown["currency"]]] * 2
        else:
            left = max(state["quota"] - state["used"] - state["held"], 0)
            expected += [Decimal(state["quota"]) / unit, Decimal(left) / unit]
        expected.append(Decimal(state["credit_minor"]) / minor)
        assert [wire[name] for name in ("used", "held", "quota", "left", "credit")] == expected
    assert by_id == {}


@given(histories)
def test_the_balance_is_the_plan_s_state_at_every_point(history: list[Action]) -> None:
    player = Player()
    with copied(player.play) as copy:
        for action in history:
            player.act(action)
            for plan_id in copy.take():
                shown = balance_of(copy, plan_id)
                assert_balance_is_the_state_s(shown, player.play.plan(plan_id))


@given(histories)
def test_every_swap_is_listed_once_with_what_was_entered_for_it(history: list[Action]) -> None:
    play = Player().perform(history).play
    with copied(play) as copy:
        for plan_id in copy.take():
            mine = [entry for entry in play.entries() if entry["plan_id"] == plan_id]
            causes = {
                entry["source"] for entry in mine if entry["kind"] in ("quota_used", "late_issue")
            }
            found = swaps_of(copy, plan_id)
            assert swaps_of(copy, plan_id, limit=1) == swaps_of(copy, plan_id, limit=3) == found
            assert len(found) == len(causes)
            for field, kind, service, digits in (
                ("energy_kwh", "quota_used", "energy", 3),
                ("energy_beyond_quota_kwh", "quota_shortfall", "energy", 3),
            ):
                units = sum(
                    entry["units"]
                    for entry in mine
                    if entry["kind"] == kind
                    and services()[entry["service_id"]]["consumes"] == service
                )
                assert sum(swap.get(field, 0) for swap in found) == Decimal(units) / 10**digits
            charged = sum(e["amount_minor"] for e in mine if e["kind"] == "overage_charge")
            minor = 10 ** DIGITS[mine[0]["currency"]]
            assert sum(swap["overage"] for swap in found) == Decimal(charged) / minor
            issued = [swap["battery_issued"] for swap in found]
            entered = [e["asset_id"] for e in mine if "asset_id" in e and e["source"] in causes]
            assert set(issued) == set(entered)


@pytest.fixture
def play() -> Iterator[Playground]:
    with Playground() as play:
        paid_plan(play)
        yield play


def test_a_swap_tells_where_what_and_how(play: Playground) -> None:
    payment = {
        "service_id": ENERGY,
        "payment_amount": 50,
        "payment_reference": "receipt-1",
        "payment_method": "MPESA",
        "payment_type": "TOP_UP",
    }
    hand_over(play, None, "bat-1", 0)
    answer(play, bind(play, "station-nbi-002"), "bat-2", 1.5)
    hand_over(play, "bat-2", "bat-3", 2.25, payment_data=payment)
    with copied(play) as copy:
        copy.take()
        third, second, first = swaps_of(copy, "p-1")
    assert third == {
        "time": rfc3339(play.now_ms),
        "correlation_id": "c-5",
        "location_id": "station-nbi-001",
        "location_name": "Central Business District",
        "battery_issued": "bat-3",
        "battery_returned": "bat-2",
        "energy_kwh": Decimal("2.25"),
        "mode": "staffed",
        "overage": 0,
        "paid": 50,
        "currency": "KES",
    }
    assert (second["mode"], second["location_name"]) == ("self_service", "Westlands")
    assert (second["battery_issued"], second["battery_returned"]) == ("bat-2", "bat-1")
    assert (second["energy_kwh"], second["paid"]) == (Decimal("1.5"), 0)
    assert (first["mode"], first["battery_returned"], first["energy_kwh"]) == ("staffed", None, 0)


def test_a_battery_that_came_out_too_late_is_told_as_such(play: Playground) -> None:
    command = bind(play, "station-nbi-001")
    play.advance(60_000)
    answer(play, command, "bat-1", 1.0)
    with copied(play) as copy:
        copy.take()
        (swap,) = swaps_of(copy, "p-1")
    assert swap["late"] is True
    assert (swap["mode"], swap["battery_issued"]) == ("self_service", "bat-1")
    assert swap["energy_kwh"] == 1


def test_held_units_show_while_arm_is_asked(play: Playground) -> None:
    bind(play, "station-nbi-001")
    with copied(play) as copy:
        copy.take()
        shown = {s["service_id"]: s for s in balance_of(copy, "p-1")["service_states"]}
    assert (shown[SWAP]["held"], shown[SWAP]["left"], shown[SWAP]["quota"]) == (1, 29, 30)
    assert shown[ENERGY]["held"] > 0


def test_the_last_payment_is_the_newest_money_that_came_in(play: Playground) -> None:
    with copied(play) as copy:
        copy.take()
        assert balance_of(copy, "p-1")["last_payment"] == {
            "kind": "deposit",
            "amount": Decimal("1500.5"),
            "currency": "KES",
            "time": rfc3339(START_MS + HALF_DAY_MS),
            "payment_reference": "odoo:7:deposit",
            "service_id": None,
        }
        send(
            play,
            "emit/abs/bss/payment/p-1/service_payment",
            service_id=SWAP,
            payment_amount=120.25,
            payment_reference="receipt-9",
            payment_method="MPESA",
            payment_type="TOP_UP",
        )
        hand_over(play, None, "bat-1", 1)
        copy.take()
        paid = balance_of(copy, "p-1")["last_payment"]
    assert (paid["kind"], paid["amount"], paid["service_id"]) == (
        "service_payment",
        Decimal("120.25"),
        SWAP,
    )


def test_a_page_begins_where_the_last_one_ended(play: Playground) -> None:
    old = None
    for number_ in range(7):
        hand_over(play, old, f"bat-{number_ % 2}", 0.5)
        old = f"bat-{number_ % 2}"
    with copied(play) as copy:
        copy.take()
        whole = swaps_of(copy, "p-1")
        assert len(whole) == 7
        last_seq = max(entry["seq"] for entry in play.entries())
        for before in range(1, last_seq + 2):
            with copy.model.view() as view:
                asked = SwapHistory("p-1", 100, before)
                page = decoded(swap_history(view, copy.catalogue, asked))["swaps"]
            # Wherever it begins, a swap is told whole or not at all.
            assert page == whole[len(whole) - len(page) :]


def test_a_plan_without_swaps_has_an_empty_history_and_an_unknown_one_none(
    play: Playground,
) -> None:
    with copied(play) as copy:
        copy.take()
        assert swaps_of(copy, "p-1") == []
        with copy.model.view() as view:
            asked = SwapHistory("p-2", 20, SEQ_MAX)
            assert swap_history(view, copy.catalogue, asked) == Rejection("unknown_plan")
            assert balance(view, copy.catalogue, "p-2") == Rejection("unknown_plan")


def test_a_paid_plan_has_a_balance_before_its_services_have(tmp_path: Path) -> None:
    plan = PlanLedger("p-1")
    plan.deposit(150_000)
    with _ledger(tmp_path, plan) as copy:
        shown = balance_of(copy, "p-1")
    assert (shown["currency"], shown["service_states"]) == ("KES", [])
    assert shown["last_payment"]["amount"] == 1500


def test_what_the_set_up_does_not_explain_is_a_fault(tmp_path: Path) -> None:
    plan, foreign = PlanLedger("p-1"), PlanLedger("p-2", currency="ZZZ")
    plan.grant("service-of-yesterday", 1)
    foreign.deposit(1)
    with _ledger(tmp_path, plan, foreign) as copy:
        with pytest.raises(ConfigError, match="service-of-yesterday"):
            balance_of(copy, "p-1")
        with pytest.raises(ConfigError, match="ZZZ"):
            balance_of(copy, "p-2")


def test_an_entry_that_cannot_be_read_is_a_fault(tmp_path: Path) -> None:
    plan = PlanLedger("p-1")
    plan.grant(SWAP, 1)
    (row,) = plan.rows()
    with _ledger(tmp_path) as copy:
        store = SqliteLedgerStore(tmp_path / "ledger.db")
        store.write(batch_of([row._replace(entry="{}")]), {})
        store.close()
        with pytest.raises(FrameError, match="ledger entry"):
            balance_of(copy, "p-1")


@contextmanager
def _ledger(path: Path, *plans: PlanLedger) -> Iterator[Copied]:
    store = SqliteLedgerStore(path / "ledger.db")
    store.write(batch_of(row for plan in plans for row in plan.rows()), {})
    store.close()
    with Playground() as play, Copied(play, f"sqlite:{path / 'ledger.db'}") as copy:
        yield copy


@pytest.mark.parametrize(
    ("units", "digits", "text"),
    [
        (344_500, 3, b"344.5"),
        (0, 3, b"0"),
        (1, 3, b"0.001"),
        (-1_250, 3, b"-1.25"),
        (100, 0, b"100"),
        (12_000, 2, b"120"),
        (2**63 - 1, 3, b"9223372036854775.807"),
    ],
)
def test_numbers_are_exact_and_without_trailing_zeros(units: int, digits: int, text: bytes) -> None:
    assert bytes(number(units, digits)) == text
