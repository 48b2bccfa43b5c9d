"""The tools that read deployment files as their users' machines do."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.servers.requirement import missing

ROOT: Final = Path(__file__).parents[2]
TIMEOUT_S: Final = 600
"""The first call builds the tools, which takes a minute or more."""

COMPOSE: Final = "github.com/compose-spec/compose-go/v2/cmd"


def go_tool(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a tool at the version that deploy/check/go.mod names, in the project's directory."""
    go = shutil.which("go")
    if go is None:
        missing(name, "install Go, which builds it")
    built = _run(go, "-C", ROOT / "deploy" / "check", "tool", "-n", name)
    assert built.returncode == 0, built.stderr
    return _run(built.stdout.strip(), *arguments)


def python_tool(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a tool that the extra `deploy` installs beside this Python."""
    binary = shutil.which(name, path=str(Path(sys.executable).parent))
    if binary is None:
        missing(name, "pip install -c constraints.txt -e '.[deploy]'")
    return _run(binary, *arguments)


def _run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*map(str, command)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
