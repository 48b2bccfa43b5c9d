"""More than the platform can take: it waits with the broker, and memory stays where it was."""

from pathlib import Path

import pytest

from tests.faults.overload import MIB, overload

SECONDS = 5.0
MEMORY_MAX = 512 * MIB
"""All roles in one process, interpreter and libraries and all; docs/bounds.md has what may wait."""


@pytest.mark.mosquitto
async def test_twice_as_much_as_it_can_take(tmp_path: Path) -> None:
    outcome = await overload(tmp_path, SECONDS)
    assert outcome.ok, outcome
    assert outcome.memory_max < MEMORY_MAX, outcome
