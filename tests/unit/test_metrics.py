"""Metrics: every counter has one, the page has them all, and files name none that is not there."""

import dataclasses
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest

from bss_stream.bridge import BridgeCounters
from bss_stream.counters import BATCHES, Distribution, RoleCounters, Sample
from bss_stream.observe import metrics
from bss_stream.odoo.counters import OdooCounters
from bss_stream.processor import ProcessorCounters
from bss_stream.publisher import PublisherCounters
from bss_stream.queries.loop import QueriesCounters
from bss_stream.roles import ROLES, Role
from bss_stream.sink.loop import SinkCounters
from tests.servers.requirement import missing

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboard.json"

COUNTERS: dict[Role, type[RoleCounters]] = {
    "bridge": BridgeCounters,
    "processor": ProcessorCounters,
    "publisher": PublisherCounters,
    "sink": SinkCounters,
    "queries": QueriesCounters,
    "odoo": OdooCounters,
}


def test_the_page_is_made_of_the_metrics() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    assert page == metrics.render(), "python -m bss_stream.observe.metrics > docs/metrics.md"


@pytest.mark.parametrize("role", ROLES)
def test_every_field_of_a_role_is_a_metric_of_its_kind(role: Role) -> None:
    made = COUNTERS[role]()
    fields = [field.name for field in dataclasses.fields(made)]  # type: ignore[arg-type]
    assert list(metrics.COUNTED[role]) and set(metrics.COUNTED[role]) == set(fields)
    for name in fields:
        metric, value = metrics.COUNTED[role][name], getattr(made, name)
        assert (metric.kind == "histogram") == isinstance(value, Distribution), name
        assert bool(metric.labels) == isinstance(value, Counter), name
        assert metric.name.startswith(f"bss_{role}_"), name


def test_names_follow_the_conventions() -> None:
    every = list(metrics.every())
    assert len({metric.name for metric in every}) == len(every)
    for metric in every:
        assert re.fullmatch(r"bss(_[a-z]+)+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert metric.help.endswith(".")
        if metric.kind == "histogram":
            assert metric.name.endswith(("_seconds", "_messages", "_records", "_requests"))


def test_a_distribution_counts_each_value_once() -> None:
    distribution = Distribution(BATCHES)
    for value, times in ((1, 3), (2, 1), (3, 1), (10_001, 2), (-5, 1)):
        distribution.observe(value, times)
    counts = zip(BATCHES, distribution.counts, strict=False)
    assert [(bound, count) for bound, count in counts if count] == [(1, 4), (2, 1), (5, 1)]
    assert distribution.counts[-1] == 2
    assert distribution.total == 3 + 2 + 3 + 20_002
    counters = BridgeCounters()
    counters.append_s.observe(0.1)
    assert [name for name, _ in counters.distributions()] == ["append_s", "batch_messages"]
    assert Sample("append_s", "", 1) not in counters.values()
    assert str(counters) == "nothing"


# The files of Prometheus and Grafana.


def named(text: str) -> set[str]:
    """Metrics that a text names, without the suffixes of histograms."""
    return {
        re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"\bbss_[a-z_]+\b", text)
    }


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = orjson.loads(DASHBOARD.read_bytes())["panels"]
    return [panel for panel in found if panel["type"] != "row"]


def expressions() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


@pytest.mark.parametrize("file", ["alerts.yml", "alerts_test.yml"])
def test_alerts_name_metrics_that_exist(file: str) -> None:
    text = (PROMETHEUS / file).read_text()
    assert named(text) and named(text) <= {metric.name for metric in metrics.every()}


def test_the_dashboard_names_metrics_that_exist() -> None:
    known = {metric.name for metric in metrics.every()}
    for expression in expressions():
        assert named(expression) <= known, expression
        assert named(expression) or "process_" in expression
    panel_ids = [panel["id"] for panel in panels()]
    assert len(set(panel_ids)) == len(panel_ids)
    for panel in panels():
        assert panel["datasource"]["uid"] == "${datasource}", panel["title"]


def test_every_alert_is_tested_and_explained() -> None:
    alerts = re.findall(r"- alert: (\w+)", (PROMETHEUS / "alerts.yml").read_text())
    tested = re.findall(r"alertname: (\w+)", (PROMETHEUS / "alerts_test.yml").read_text())
    page = (ROOT / "docs" / "observability.md").read_text()
    assert alerts and set(alerts) == set(tested)
    for alert in alerts:
        assert f"`{alert}`" in page


def promtool(*arguments: str) -> str:
    """What promtool says; fails if it finds a fault."""
    found = shutil.which("promtool")
    if found is None:
        missing("Prometheus", "no `promtool` on PATH")
    done = subprocess.run([found, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_finds_no_fault_in_rules_and_expressions(tmp_path: Path) -> None:
    promtool("check", "config", str(PROMETHEUS / "prometheus.yml"))
    promtool("test", "rules", str(PROMETHEUS / "alerts_test.yml"))
    shown = [
        expression.replace("$__rate_interval", "5m").replace("$instance", ".*")
        for expression in expressions()
    ]
    rules = [{"record": f"shown:{at}", "expr": one} for at, one in enumerate(shown)]
    file = tmp_path / "dashboard.yml"
    # JSON is YAML.
    file.write_bytes(orjson.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", str(file))
