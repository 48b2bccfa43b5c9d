"""`bss-stream model coverage`: what stories exercise of the models, counted by the engine."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import orjson
import pytest

from bss_stream import topic_table
from bss_stream.cli.coverage import Result
from bss_stream.cli.coverage import play as play_all
from bss_stream.coverage import Coverage, Share, report
from bss_stream.stories import Stage
from bss_stream.stories.times import rfc3339
from bss_stream.testing import Playground
from tests.scenarios import STORIES
from tests.unit.test_cli import cli

FOLDER = Path(__file__).parents[1] / "scenarios"
REQUIREMENTS = Path(__file__).parents[2] / "docs" / "asset-flow.md"


@pytest.fixture(name="few")
def few_stories(tmp_path: Path) -> Path:
    """The first steps of a rider, and nothing else."""
    shutil.copytree(FOLDER / "first_steps", tmp_path / "first_steps")
    return tmp_path


def counts(coverage: Coverage) -> dict[str, int]:
    """How often each signal of the packaged model's cycles was taken."""
    return {
        one.signal: count
        for one, count in coverage.transitions.items()
        if one.model == "bss-fsm-v1" and count
    }


def test_the_engine_counts_what_it_takes_and_keeps_counting_after_a_restart() -> None:
    stage = Stage(STORIES.load("first_steps/first_battery")).perform()
    assert counts(stage.play.coverage) == {
        "CONTRACT_SIGNED": 1,
        "DEPOSIT_PAID": 1,
        "DEPOSIT_CONFIRMED": 1,
        "BATTERY_ISSUED": 1,
    }
    again = Stage(STORIES.load("first_steps/first_battery"), restarts=True).perform()
    assert again.play.coverage == stage.play.coverage
    assert stage.play.coverage.endings["odoo_sync", "ok"] == 1
    assert stage.play.coverage.topics["emit/odo/subscription/plan/+/sync"] == 1


def test_what_a_refusal_takes_back_is_not_counted() -> None:
    """The deposit is paid in the message whose battery is refused: all or nothing."""
    play = Playground()
    contract = {
        "odoo_subscription_id": 4711,
        "odoo_payment_state": "not_paid",
        "odoo_subscription_state": "in_progress",
        "odoo_currency_id": "KES",
        "odoo_amount_total": 8000,
        "template_id": "template-nairobi-basic",
        "customer_id": "cust-mwangi",
    }
    handed_over = {
        "attendant_station": "station-nbi-001",
        "service_data": {"new_battery_id": "bat-007", "energy_transferred": 1},
        "payment_data": {
            "payment_amount": 8000,
            "payment_reference": "QGH7SK61WX",
            "payment_method": "MPESA",
            "payment_type": "DEPOSIT",
        },
    }
    for topic, data in (
        ("emit/odo/subscription/plan/plan-1/sync", contract),
        ("emit/uxi/attendant/plan/plan-1/payment_and_service", handed_over),
    ):
        sent = {"timestamp": rfc3339(play.now_ms), "plan_id": "plan-1", "correlation_id": topic}
        play.mqtt(topic, {**sent, "data": data})
    assert play.echoes[-1]["data"]["metadata"]["reason"] == "states_not_initialized"
    assert counts(play.coverage) == {"CONTRACT_SIGNED": 1}


def test_an_engine_without_signals_has_come_through_nothing() -> None:
    with Playground() as play:
        found = report(play.coverage, play.topic_table)
    assert found.models.keys() == {
        "bss-fsm-v1",
        "bss-fsm-asset-flow",
        "bss-fsm-asset-life",
        "bss-fsm-swap-session",
    }
    for model in found.models.values():
        assert model.transitions.exercised == 0
        assert len(model.transitions.missing) == model.transitions.all > 0
        assert model.states.all > model.states.exercised == 0
    assert found.below(0.1) == list(found.models)
    assert found.below(0) == []


def test_a_share_of_nothing_is_whole() -> None:
    assert Share(0, 0, []).percent == 100


def test_what_is_missing_is_listed_and_the_floor_decides(few: Path) -> None:
    done = cli("model", "coverage", str(few), "--json")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert (found["ok"], found["stories"], found["faults"]) == (False, 2, [])
    v1 = found["report"]["models"]["bss-fsm-v1"]
    assert v1["transitions"]["exercised"] == 4
    assert "payment: CURRENT on SUBSCRIPTION_EXPIRED to RENEWAL_DUE" in v1["transitions"]["missing"]
    assert "payment: DEPOSIT_DUE" not in v1["states"]["missing"]
    assert "service: BATTERY_LOST" in v1["states"]["missing"]
    assert "payment: CONTRACT_SIGNED" not in v1["signals"]["missing"]
    assert "quota_exhausted" in found["report"]["reasons"]["missing"]
    assert cli("model", "coverage", str(few), "--floor", "0").returncode == 0


def test_a_terminal_of_80_columns_shows_every_model(few: Path) -> None:
    done = cli("model", "coverage", str(few))
    assert done.returncode == 1
    [line] = [line for line in done.stdout.splitlines() if line.startswith("bss-fsm-v1")]
    assert line.split()[-6:] == ["4/25", "16", "%", "4/18", "22", "%"]
    assert "not exercised: bss-fsm-swap-session, states: session: ISSUED" in done.stdout


def test_a_story_that_goes_otherwise_is_a_fault_whatever_the_floor(few: Path) -> None:
    file = few / "first_steps" / "paid_plan.toml"
    file.write_text(file.read_text(encoding="utf-8").replace('"CURRENT"', '"COMPLETE"'))
    done = cli("model", "coverage", str(few), "--floor", "0")
    assert done.returncode == 1
    assert "first_steps/paid_plan, step 1: Odoo reports the subscription" in done.stdout


def test_wrong_use(tmp_path: Path) -> None:
    assert cli("model", "coverage").returncode == 2
    assert cli("model", "coverage", str(tmp_path / "none")).returncode == 2
    done = cli("model", "coverage", str(tmp_path))
    assert done.returncode == 2
    assert "has no story files" in done.stderr


@pytest.fixture(name="all_of_them", scope="module")
def every_story() -> Result:
    return play_all(STORIES, topic_table.load(), floor_percent=100)


def test_the_stories_exercise_every_transition_of_every_model(all_of_them: Result) -> None:
    assert all_of_them.ok
    assert len(all_of_them.report.models) == 4
    for model in all_of_them.report.models.values():
        assert model.transitions.missing == []
        assert model.states.missing == []
        assert model.signals.missing == []


def test_and_all_else_that_a_message_can_reach(all_of_them: Result) -> None:
    """What cannot be reached stands in docs/asset-flow.md, with the reason."""
    found = all_of_them.report
    assert found.topics.missing == []
    assert found.events.missing == []
    assert found.reasons.missing == ["unknown_event"]
    missing = [row for model in found.models.values() for row in model.compression.missing]
    externals = [re.sub(r".*: (\w+) to .*", r"\1", row) for row in missing]
    assert externals == ["ASSET_IDS_RESOLVED", "BINDING_ESTABLISHED"] * 2


@pytest.mark.parametrize(
    ("silent", "external"),
    [
        (["SERVICE_ACTIVATED"], "ASSET_IDS_RESOLVED"),
        (["SERVICE_ACTIVATED", "ASSET_IDS_RESOLVED"], "BINDING_ESTABLISHED"),
    ],
)
def test_a_model_may_leave_it_to_the_check_in_to_confirm_the_deposit(
    silent: list[str], external: str
) -> None:
    story = STORIES.load("self_service/first_issue_asked")
    setup: dict[str, Any] = orjson.loads(story.setup)
    [model] = [one for one in setup["models"] if one["model"] == "bss-fsm-v1"]
    for row in model["compression"]:
        if row["cycle"] == "service" and row["external"] in silent:
            row["signals"] = []
    story.setup = orjson.dumps(setup)
    play = Stage(story).perform().play
    [count] = [
        count
        for row, count in play.coverage.compression.items()
        if (row.model, row.external) == ("bss-fsm-v1", external)
    ]
    assert count == 1
    assert play.plan("plan-nbi-1")["service_state"] == "WAIT_BATTERY_ISSUE"


def test_the_requirements_name_stories_and_rules_that_there_are() -> None:
    text = REQUIREMENTS.read_text(encoding="utf-8")
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| ")]
    named = {story for row in rows for story in re.findall(r"`(\w+/\w+)`", row[3])}
    assert len(named) > 60
    assert named <= set(STORIES.names)
    engine = Path(__file__).parents[2] / "rust" / "engine" / "src" / "swap"
    functions = 0
    for row in rows:
        source = ""
        for name in re.findall(r"`([\w/.:-]+)`", row[2]):
            if name.endswith(".rs"):
                source = (engine / name).read_text(encoding="utf-8")
            elif source:
                functions += 1
                assert f"fn {name.rpartition(':')[2]}(" in source, row[2]
    assert functions > 40
