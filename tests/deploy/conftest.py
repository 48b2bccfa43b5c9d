"""What the tests of docker-compose.yml read."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.tools import COMPOSE, ROOT, go_tool


@pytest.fixture(scope="session")
def model() -> dict[str, Any]:
    """The file as Compose understands it; the loader refuses what its schema does not allow."""
    done = go_tool(COMPOSE, "--format", "json", ROOT / "docker-compose.yml")
    assert done.returncode == 0, done.stderr
    read: dict[str, Any] = json.loads(done.stdout)
    return read


@pytest.fixture(scope="session")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The secrets, as the script makes them."""
    directory = tmp_path_factory.mktemp("compose") / "secrets"
    script = ROOT / "deploy" / "compose" / "make_secrets.py"
    subprocess.run([sys.executable, script, directory], check=True)
    return directory
