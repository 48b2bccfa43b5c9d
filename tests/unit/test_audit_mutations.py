"""A valid history audits clean, and no single change to it goes unnoticed."""

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bss_stream.sink.entry import EntryRow
from tests.ledger_chain import PlanLedger, history, sealed
from tests.unit.ledgers import Ledgers

SERVICES = ("swap-count", "electricity", "network")

steps = st.lists(
    st.tuples(st.integers(0, 8), st.sampled_from(SERVICES), st.integers(0, 5000)),
    min_size=1,
    max_size=12,
)
plans = st.builds(history, st.builds(PlanLedger), steps)


@given(plans)
@settings(max_examples=60, deadline=None)
def test_a_valid_history_is_clean(plan: PlanLedger) -> None:
    with TemporaryDirectory() as directory:
        ledgers = Ledgers(Path(directory), plan)
        report = ledgers.audit(plan.state())
        ledgers.store.close()
    assert report.differences == []
    assert report.ok
    assert (report.entries, report.states, report.plans) == (len(plan.entries), 1, 1)
    assert (report.behind, report.ahead) == (0, 0)


# One mutation each: it changes the database or the state it is given.

Mutation = Callable[[Ledgers, dict[str, Any], st.DataObject, PlanLedger], None]


def change_a_column(
    ledgers: Ledgers, state: dict[str, Any], data: st.DataObject, plan: PlanLedger
) -> None:
    row = data.draw(st.sampled_from(plan.rows()))
    column = data.draw(st.sampled_from([name for name in EntryRow._fields if name != "entry"]))
    value = getattr(row, column)
    changed: str | int
    if column == "ledger":
        changed = {"payment": "service", "service": "payment"}[value]
    elif isinstance(value, int):
        changed = value + data.draw(st.sampled_from([1000, -1000]))
    else:
        changed = data.draw(st.sampled_from([f"{value}x", "other"]))
    ledgers.execute(
        f"UPDATE ledger_entries SET {column} = ? WHERE entry_id = ?", changed, row.entry_id
    )


def change_a_character(
    ledgers: Ledgers, state: dict[str, Any], data: st.DataObject, plan: PlanLedger
) -> None:
    row = data.draw(st.sampled_from(plan.rows()))
    at = data.draw(st.integers(0, len(row.entry) - 1))
    by = data.draw(st.characters(codec="utf-8", exclude_characters=row.entry[at] + "\0"))
    changed = row.entry[:at] + by + row.entry[at + 1 :]
    ledgers.execute("UPDATE ledger_entries SET entry = ? WHERE entry_id = ?", changed, row.entry_id)


def remove_an_entry(
    ledgers: Ledgers, state: dict[str, Any], data: st.DataObject, plan: PlanLedger
) -> None:
    row = data.draw(st.sampled_from(plan.rows()))
    ledgers.execute("DELETE FROM ledger_entries WHERE entry_id = ?", row.entry_id)


def repeat_an_entry(
    ledgers: Ledgers, state: dict[str, Any], data: st.DataObject, plan: PlanLedger
) -> None:
    row = data.draw(st.sampled_from(plan.rows()))
    repeated = json.loads(row.entry)
    del repeated["hash"]
    repeated["entry_id"] += "-again"
    repeated["seq"] = len(plan.entries) + 1
    value, _ = sealed(repeated)
    ledgers.write(
        row._replace(entry_id=repeated["entry_id"], seq=repeated["seq"], entry=value.decode())
    )


def swap_two_entries(
    ledgers: Ledgers, state: dict[str, Any], data: st.DataObject, plan: PlanLedger
) -> None:
    rows = plan.rows()
    one = data.draw(st.sampled_from(rows))
    ledgers.execute("UPDATE ledger_entries SET seq = -1 WHERE seq = ?", one.seq)
    # With a plan of one entry, it is the move itself that has to be found.
    other = next((row for row in rows if row.seq != one.seq), None)
    if other is not None:
        ledgers.execute("UPDATE ledger_entries SET seq = ? WHERE seq = ?", one.seq, other.seq)
        ledgers.execute("UPDATE ledger_entries SET seq = ? WHERE seq = -1", other.seq)


def forge_an_entry(
    ledgers: Ledgers, state: dict[str, Any], data: st.DataObject, plan: PlanLedger
) -> None:
    """Change what an entry says and seal the rest of the chain anew, columns and all."""
    index = data.draw(st.integers(0, len(plan.entries) - 1))
    prev = json.loads(plan.entries[index][1])["prev"]
    forged = PlanLedger(plan.plan_id, plan.currency)
    forged.entries = plan.entries[:index]
    for topic, value in plan.entries[index:]:
        entry = json.loads(value)
        del entry["hash"]
        if len(forged.entries) == index:
            entry["amount_minor"] += 1
            entry["detail"] = "forged"
        entry["prev"] = prev
        sealed_value, prev = sealed(entry)
        forged.entries.append((topic, sealed_value))
    ledgers.execute("DELETE FROM ledger_entries")
    ledgers.write(*forged.rows())


def change_the_state(
    ledgers: Ledgers, state: dict[str, Any], data: st.DataObject, plan: PlanLedger
) -> None:
    if state["services"] and data.draw(st.booleans()):
        service = data.draw(st.sampled_from(state["services"]))
        name = data.draw(st.sampled_from(sorted(service)))
        if name == "quota":
            service[name] = 7 if service[name] == "infinite" else "infinite"
        else:
            service[name] += "x" if name == "service_id" else 1
        return
    name = data.draw(st.sampled_from(["ledger_seq", "ledger_hash", "services"]))
    if name == "ledger_seq":
        state[name] += data.draw(st.sampled_from([1, -1]))
    elif name == "ledger_hash":
        state[name] = state[name][1:] + ("1" if state[name][0] == "0" else "0")
    else:
        state[name].append({"service_id": "more", "used": 1, "held": 0, "quota": 0})
        state[name][-1]["credit_minor"] = 0


@pytest.mark.parametrize(
    "mutate",
    [
        change_a_column,
        change_a_character,
        remove_an_entry,
        repeat_an_entry,
        swap_two_entries,
        forge_an_entry,
        change_the_state,
    ],
)
@given(plan=plans, data=st.data())
@settings(max_examples=60, deadline=None)
def test_no_single_change_goes_unnoticed(
    mutate: Mutation, plan: PlanLedger, data: st.DataObject
) -> None:
    with TemporaryDirectory() as directory:
        ledgers, state = Ledgers(Path(directory), plan), plan.state()
        mutate(ledgers, state, data, plan)
        report = ledgers.audit(state)
        ledgers.store.close()
    assert not report.ok
    assert report.differences_total >= len(report.differences) > 0
