"""The image: its Dockerfile by the linter, and what it installs against what the tests use."""

import fnmatch
import re
import tomllib
from pathlib import Path
from typing import Final

import pytest

from tests.deploy.tools import ROOT, python_tool

IMAGE: Final = ROOT / "deploy" / "image"
LOCKED: Final = re.compile(r"^([a-z0-9._-]+)==(\S+)", re.MULTILINE)
COPIED: Final = re.compile(r"^COPY (?!--from)(.+) \S+$", re.MULTILINE)


def names(text: str) -> dict[str, str]:
    """Distribution and version of each line, as pip compares names."""
    found = LOCKED.findall(text.lower())
    return {re.sub(r"[-_.]+", "-", name): version for name, version in found}


def dockerfile() -> str:
    return (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_the_linter_finds_nothing() -> None:
    done = python_tool("hadolint", "Dockerfile")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", ["requirements.txt", "build-requirements.txt"])
def test_the_image_installs_what_the_project_is_tested_with(file: str) -> None:
    text = (IMAGE / file).read_text(encoding="utf-8")
    tested = names((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    locked = names(text)
    assert locked
    assert locked == {name: tested[name] for name in locked}, "write it anew: deploy/image/lock.sh"
    assert all("--hash=sha256:" in part for part in re.split(r"\n(?=\w)", text)[1:])


def test_the_lock_has_every_dependency_of_the_image() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    script = (IMAGE / "lock.sh").read_text(encoding="utf-8")
    extras = re.findall(r"--extra (\w+)", script)
    wanted = [*project["dependencies"]]
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    locked = names((IMAGE / "requirements.txt").read_text(encoding="utf-8"))
    for line in wanted:
        if "win32'" in line and "!=" not in line:
            continue
        name = re.split(r"[\[<>=!; ]", line, maxsplit=1)[0].lower().replace("_", "-")
        assert name in locked, "write it anew: deploy/image/lock.sh"


def test_the_build_s_files_are_not_kept_from_it() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    kept = [line.removeprefix("!") for line in lines if line.startswith("!")]
    copied = [name for group in COPIED.findall(dockerfile()) for name in group.split()]
    assert len(copied) >= 8
    for name in copied:
        assert (ROOT / name).exists() or list(ROOT.glob(name)), name
        assert any(name == one or fnmatch.fnmatch(name, one) for one in kept), name


def test_the_image_is_of_its_version_and_nobody_is_root() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text = dockerfile()
    assert f"ARG VERSION={project['version']}" in text
    assert re.search(r"^USER 10001:10001$", text, re.MULTILINE)
    runtime = text.rpartition("\nFROM ")[2]
    assert "apt-get" not in runtime
    assert "pip install" not in runtime


def test_the_compiler_is_not_older_than_the_crates_allow() -> None:
    cargo = tomllib.loads(Path(ROOT / "Cargo.toml").read_text(encoding="utf-8"))
    least = cargo["workspace"]["package"]["rust-version"]
    found = re.search(r"^ARG RUST=(\d+)\.(\d+)\.\d+", dockerfile(), re.MULTILINE)
    assert found
    assert (int(found[1]), int(found[2])) >= tuple(map(int, least.split(".")))
