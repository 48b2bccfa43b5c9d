"""The command line: what it prints, and its exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bss_stream.setup import packaged_models

MODEL = packaged_models() / "bss-fsm-v1.json"


def cli(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `bss-stream` as a user does."""
    return subprocess.run(
        [sys.executable, "-c", "from bss_stream.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=60,
        check=False,
    )


def test_version() -> None:
    done = cli("--version")
    assert (done.returncode, done.stdout.strip()) == (0, "0.1.0")


@pytest.mark.parametrize("arguments", [(), ("nonsense",), ("demo", "--rate", "many"), ("model",)])
def test_wrong_use_exits_2(arguments: tuple[str, ...]) -> None:
    assert cli(*arguments).returncode == 2


def test_a_sound_model_passes() -> None:
    done = cli("model", "check", str(MODEL))
    assert done.returncode == 0
    assert "bss-fsm-v1 is sound" in done.stdout


def test_a_faulty_model_is_named_with_file_and_path(tmp_path: Path) -> None:
    model = json.loads(MODEL.read_bytes())
    model["cycles"]["service"]["transitions"][3]["to"] = "MARS"
    file = tmp_path / "bad.json"
    file.write_text(json.dumps(model))
    done = cli("model", "check", str(file))
    assert done.returncode == 1
    place = "bad.json: cycles.service.transitions[3].to: state"
    assert place in done.stderr.replace("\n", "")
    assert '"MARS" is unknown' in done.stderr.replace("\n", "")


@pytest.mark.parametrize(
    ("style", "first"), [("mermaid", "%% payment cycle"), ("plantuml", "@startuml")]
)
def test_diagrams_show_every_transition(style: str, first: str) -> None:
    done = cli("model", "diagram", "bss-fsm-asset-flow", "--format", style)
    assert done.returncode == 0
    assert done.stdout.startswith(first)
    model = json.loads((packaged_models() / "bss-fsm-asset-flow.json").read_bytes())
    for cycle in model["cycles"].values():
        for row in cycle["transitions"]:
            assert f"{row['from']} --> {row['to']} : {row['signal']}" in done.stdout


def test_an_unknown_model_is_wrong_use() -> None:
    assert cli("model", "diagram", "no-such-model").returncode == 2


def test_the_default_configuration_is_sound(tmp_path: Path) -> None:
    done = cli("config", "check", cwd=tmp_path)
    assert done.returncode == 0
    assert "Kenya_Nairobi, Togo_Lome" in done.stdout


def test_a_faulty_configuration_is_named_with_file_and_path(tmp_path: Path) -> None:
    file = tmp_path / "bss.toml"
    file.write_text("partitions = 0\n[bridge]\nlinger_ms = 'soon'\n")
    done = cli("config", "check", "--config", str(file))
    assert done.returncode == 1
    assert "bss.toml: $.partitions: 0" in done.stderr.replace("\n", "")
    assert "$.bridge.linger_ms" in done.stderr


@pytest.mark.parametrize("role", ["bridge", "process", "publish", "sink"])
def test_a_role_alone_refuses_the_embedded_log(role: str, tmp_path: Path) -> None:
    done = cli(role, cwd=tmp_path)
    assert done.returncode == 2
    assert "$.log.backend" in done.stderr


def test_queries_alone_need_a_broker_and_no_log(tmp_path: Path) -> None:
    done = cli("query", cwd=tmp_path)
    assert done.returncode == 2
    assert "$.mqtt.embedded" in done.stderr
    assert "$.log.backend" not in done.stderr


def test_an_audit_without_a_log_says_so(tmp_path: Path) -> None:
    done = cli("audit", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip()
    assert "Traceback" not in done.stderr


def test_the_contract_is_printed_or_written(tmp_path: Path) -> None:
    printed = cli("contract", "asyncapi", "--format", "json")
    assert printed.returncode == 0
    assert json.loads(printed.stdout)["asyncapi"] == "3.0.0"
    file = tmp_path / "asyncapi.yaml"
    assert cli("contract", "asyncapi", str(file)).returncode == 0
    assert file.read_text(encoding="utf-8").startswith('asyncapi: "3.0.0"\n')
    written = cli("contract", "schema", str(tmp_path / "schemas"))
    assert written.returncode == 0
    swap = tmp_path / "schemas" / "request" / "customer_binding.json"
    assert json.loads(swap.read_text(encoding="utf-8"))["title"] == "request/customer_binding"
