"""Many seeds on all cores: `python -m tests.simulation --seeds 10000`."""

import argparse
import logging
import os
import sys
import time
from collections import Counter
from multiprocessing import Pool
from typing import Final

from tests.simulation.invariants import Outcome
from tests.simulation.world import simulate

CHUNK: Final = 8
CHUNKS_PER_PROCESS: Final = 20
"""A process of its own is given up after so many: what killed roles held on to stays in memory."""
TOLD_EVERY: Final = 100
SHOWN_MAX: Final = 3
"""Faults told of each seed that fails."""


def main() -> int:
    """Simulate; 1 if a seed has failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1_000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--verbose", action="store_true", help="what the roles log, for one seed")
    arguments = parser.parse_args()
    # A crashed role's complaints are what is wanted here.
    logging.basicConfig(level=logging.DEBUG if arguments.verbose else logging.CRITICAL + 1)
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    started_s = time.perf_counter()
    failed = 0
    injected: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    # In worker processes that are forked, so that they log as this one does.
    with Pool(arguments.processes, maxtasksperchild=CHUNKS_PER_PROCESS) as pool:
        for seed, outcome in zip(seeds, pool.imap(simulate, seeds, CHUNK), strict=True):
            injected.update(outcome.injected)
            totals.update(
                messages=outcome.requests,
                transactions=outcome.transactions,
                callbacks=outcome.steps,
                simulated_s=round(outcome.simulated_s),
            )
            if outcome.faults:
                failed += 1
                _tell(seed, outcome)
            if (seed - arguments.first + 1) % TOLD_EVERY == 0:
                done = f"{seed - arguments.first + 1} of {len(seeds)} seeds, {failed} failed"
                print(done, file=sys.stderr, flush=True)
    taken_s = time.perf_counter() - started_s
    print(f"\n{len(seeds)} seeds in {taken_s:.1f} s, {len(seeds) / taken_s:.1f} a second; ", end="")
    print(", ".join(f"{count:,} {name}" for name, count in totals.items()))
    for name, count in sorted(injected.items()):
        print(f"  {count:9,}  {name}")
    print(f"{failed} of {len(seeds)} seeds failed")
    return 1 if failed else 0


def _tell(seed: int, outcome: Outcome) -> None:
    print(f"seed {seed} failed (again: python -m tests.simulation --seeds 1 --first {seed})")
    for fault in outcome.faults[:SHOWN_MAX]:
        print(f"  {fault}")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
