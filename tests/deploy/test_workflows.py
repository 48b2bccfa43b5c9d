"""The workflows by their linter, and the versions that they name."""

import tomllib

from tests.deploy.tools import ROOT, go_tool


def test_the_linter_finds_nothing() -> None:
    files = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    assert files
    done = go_tool("actionlint", "-no-color", *files)
    assert done.returncode == 0, done.stdout


def test_wheels_are_built_with_what_is_tested() -> None:
    text = (ROOT / ".github" / "workflows" / "wheels.yml").read_text(encoding="utf-8")
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    (maturin,) = (line for line in pinned.splitlines() if line.startswith("maturin=="))
    assert text.count(f"maturin-version: v{maturin.partition('==')[2]}") == 2
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (embedded,) = project["optional-dependencies"]["embedded"]
    assert f"'{embedded}'" in text
