"""What seeds have found, told without them."""

import asyncio
from pathlib import Path

from tests.simulation.world import World


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


def test_no_role_ends_because_the_log_does_not_answer(tmp_path: Path) -> None:
    """Seed 1: the sink did, at the first question that the log left unanswered."""
    world = Silence(1, tmp_path)
    try:
        assert world.run().faults == []
    finally:
        world.loop.dispose()
