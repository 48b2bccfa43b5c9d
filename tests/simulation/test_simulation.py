"""A few hundred seeds, that a seed is one story, and that the stories are bad enough."""

import os
import subprocess
import sys
from collections import Counter

import pytest

from tests.simulation.world import simulate

# A process that is killed closes nothing.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

SEEDS = 240
BLOCK = 20

DIGEST = "import sys; from tests.simulation.world import simulate; print(simulate({seed}).digest)"

CALAMITIES = {
    "kill",
    "freeze",
    "member thrown out",
    "MQTT connection cut",
    "broker down",
    "log down",
    "database down",
    "database: answer lost",
    "compaction",
    "transaction aborted",
    "commit: answer lost",
    "commit: request lost",
    "append: answer lost",
    "partition lags",
    "client publishes twice",
    "echo lost on its way",
    "ARM's answer lost",
    "ARM's answer slow",
    "ARM answers twice",
}


@pytest.mark.parametrize("first", range(0, SEEDS, BLOCK))
def test_whatever_goes_wrong_all_is_well_in_the_end(first: int) -> None:
    failed = {
        seed: outcome.faults
        for seed in range(first, first + BLOCK)
        if (outcome := simulate(seed)).faults
    }
    assert not failed, f"again: python -m tests.simulation --seeds 1 --first {min(failed)}"


@pytest.mark.parametrize("seed", [3, 7, 21])
def test_a_seed_is_one_story(seed: int) -> None:
    """In another process, with other hashes, after other seeds."""
    simulate(seed + 1)
    digests = {simulate(seed).digest, simulate(seed).digest}
    for hash_seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", DIGEST.format(seed=seed)],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(run.stdout.strip())
    assert len(digests) == 1
    assert digests != {simulate(seed + 1).digest}


def test_everything_goes_wrong_now_and_then() -> None:
    injected: Counter[str] = Counter()
    for seed in range(1_000, 1_040):
        injected += simulate(seed).injected
    assert injected.keys() >= CALAMITIES
