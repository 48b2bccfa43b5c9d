"""A `bss-stream` command that is expected to give up, run to its end."""

import subprocess
from pathlib import Path

from tests.platform_processes import CLI

GIVE_UP_S = 60
"""Longer than any patience with a server that is merely away."""


def gives_up(command: str, config: Path, *secrets: str) -> str:
    """What a role says that ends because of a fault: an error, no stack trace, none of `secrets`.

    Everything that it logs is looked at, too.
    """
    done = subprocess.run(
        [*CLI, command, "--config", str(config), "--verbose"],
        capture_output=True,
        text=True,
        timeout=GIVE_UP_S,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode in (1, 2), said
    assert "Traceback" not in said, said
    for secret in secrets:
        assert secret not in said
    return said
