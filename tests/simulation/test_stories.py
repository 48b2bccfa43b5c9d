"""What seeds have found, told without them."""

import asyncio
import dataclasses
from pathlib import Path

import pytest

from tests.simulation.log import LogServer
from tests.simulation.world import GROUPS, World


class Silence(World):
    """Nothing goes wrong but this: groups share out anew, and the log answers nobody meanwhile."""

    async def _go_wrong(self) -> None:
        self.chance.calm = True
        for _ in range(4):
            await asyncio.sleep(2.0)
            for group in self.server.groups.values():
                group.expel(group.seats[0])
            self.network.down = True
            await asyncio.sleep(4.0)
            self.network.down = False


class Restless(World):
    """Nothing goes wrong but this: processors are thrown out of their group again and again."""

    async def _go_wrong(self) -> None:
        self.chance.calm = True
        for _ in range(60):
            await asyncio.sleep(self.chance.random.uniform(0.1, 0.3))
            for seat in list(self.server.group(GROUPS["processor"]).seats):
                self.server.group(GROUPS["processor"]).expel(seat)


def check(world: World) -> None:
    """Nothing is wrong in the end."""
    try:
        assert world.run().faults == []
    finally:
        world.loop.dispose()


def test_no_role_ends_because_the_log_does_not_answer(tmp_path: Path) -> None:
    """Seed 1: the sink did, at the first question that the log left unanswered."""
    check(Silence(1, tmp_path))


@pytest.mark.parametrize("seed", [6, 9, 14])
def test_a_shard_may_be_lost_while_the_checkpoint_of_another_is_written(
    tmp_path: Path, seed: int
) -> None:
    """Seed 20298: the processor looked for the lost shard's producer, and that was its end."""
    world = Restless(seed, tmp_path)
    world.scenario = dataclasses.replace(
        world.scenario, partitions=4, bridges=1, checkpoint_every_s=0.05
    )
    world.server = LogServer(world.network, partitions=4)
    check(world)
