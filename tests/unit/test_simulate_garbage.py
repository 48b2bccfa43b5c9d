"""Every kind of garbage is refused by the engine, for the reason that is expected of it."""

from random import Random

import pytest

from bss_stream.simulate.config import NO_FAULTS, SimulationConfig
from bss_stream.simulate.garbage import KINDS, REASONS, Garbage, spoil
from tests.engine_platform import EnginePlatform
from tests.simulated_day import SETUP, SimulatedDay


@pytest.fixture(scope="module")
def platform() -> EnginePlatform:
    """A platform on which one plan rides."""
    day = SimulatedDay(SimulationConfig(plans=1, rate=1, run_id="g", faults=NO_FAULTS))
    day.run(2)
    assert day.platform.play.setup == SETUP
    return day.platform


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("garbage", KINDS)
def test_garbage_is_refused_and_changes_nothing(
    platform: EnginePlatform, garbage: Garbage, seed: int
) -> None:
    plan = "plan-g-0000001"
    before = platform.play.plan(plan)
    spoiled = spoil(
        garbage,
        plan_id=plan,
        station="station-nbi-001",
        correlation=f"garbage-{garbage}-{seed}",
        wall_ms=platform.play.now_ms,
        random=Random(seed),
    )
    platform.play.dead_letters.clear()
    platform.handle(*spoiled, b"", platform.play.now_ms)
    assert [letter.reason in REASONS[garbage] for letter in platform.play.dead_letters] == [True]
    assert platform.play.plan(plan) == before
