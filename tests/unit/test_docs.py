"""The documentation: what the program writes is up to date, what one is told to do works."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from bss_stream import config_reference, topics_reference
from bss_stream.testing import START_MS, Playground
from tests.servers.ports import free_port
from tests.unit.histories import rfc3339

ROOT: Final = Path(__file__).parents[2]
DOCS: Final = ROOT / "docs"
TUTORIAL_TIMEOUT_S: Final = 180
BLOCK: Final = r"^```{language}\n(.*?)^```$"

USED: Final = (
    "docs/tutorial",
    "python/bss_stream/models",
    "python/bss_stream/setup_data",
    "tests/scenarios",
)
"""What of the repository the tutorial's commands use."""


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page, those of lists left out."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(BLOCK.format(language=language), text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    ("page", "written"),
    [("configuration.md", config_reference), ("topics.md", topics_reference)],
)
def test_a_written_page_is_up_to_date(page: str, written: object) -> None:
    module = sys.modules[written.__name__]  # type: ignore[attr-defined]
    assert (DOCS / page).read_text(encoding="utf-8") == module.render(), (
        f"write it anew: python -m {module.__name__} > docs/{page}"
    )


def test_the_tutorial_s_commands_do_what_it_says(tmp_path: Path) -> None:
    for name in USED:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(ROOT / name)
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    command = bin_ / "bss-stream"
    code = "from bss_stream.cli import main; main()"
    command.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{code}' \"$@\"\n")
    command.chmod(0o755)
    commands = "\n".join(blocks("tutorial.md", "sh")).replace("18830", str(free_port()))
    assert commands.count("bss-stream") >= 7
    bash = shutil.which("bash")
    assert bash is not None
    done = subprocess.run(
        [bash, "-euo", "pipefail", "-c", commands],
        cwd=tmp_path,
        env=os.environ | {"PATH": f"{bin_}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=TUTORIAL_TIMEOUT_S,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "bss-fsm-trial is sound" in said
    assert "CURRENT --> FINAL_DUE : SUBSCRIPTION_EXPIRED / FINAL_PAYMENT_REQUIRED" in said
    assert re.search(r"1 stories: ", said), said


def test_the_tutorial_s_model_differs_from_the_first_as_it_says() -> None:
    def cycle(path: Path) -> dict[str, set[str]]:
        payment = json.loads(path.read_text(encoding="utf-8"))["cycles"]["payment"]
        return {
            "states": {one["name"] for one in payment["states"]},
            "transitions": {json.dumps(one) for one in payment["transitions"]},
        }

    first = cycle(ROOT / "python" / "bss_stream" / "models" / "bss-fsm-v1.json")
    trial = cycle(DOCS / "tutorial" / "bss-fsm-trial.json")
    assert first["states"] - trial["states"] == {"RENEWAL_DUE"}
    assert not trial["states"] - first["states"]
    added = [json.loads(one) for one in trial["transitions"] - first["transitions"]]
    told = [json.loads(block) for block in re.findall(r'\{"from".*\}', page("tutorial.md"))]
    assert all(one in added for one in told)
    assert {(one["from"], one["signal"]) for one in added} == {
        ("CURRENT", "SUBSCRIPTION_EXPIRED"),
        ("CURRENT", "QUOTA_EXHAUSTED"),
    }


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def test_the_examples_in_python_run() -> None:
    found = blocks("python.md", "python")
    assert found
    for code in found:
        exec(compile(code, "docs/python.md", "exec"), {})


def test_the_message_by_hand_is_taken() -> None:
    (shell,) = (one for one in blocks("quick-start.md", "sh") if "mosquitto_pub" in one)
    found = re.search(r"-t (\S+/sync) -m '(.*)'", shell, re.DOTALL)
    assert found
    body = re.sub(r"'\"\$\(date.*?\)\"'", rfc3339(START_MS), found[2])
    with Playground() as play:
        play.mqtt(found[1], body.encode())
        (echo,) = play.echoes
    assert echo["data"]["success"] is True
    assert echo["data"]["metadata"]["fsm_inputs_generated"]
