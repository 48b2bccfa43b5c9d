"""A processor in a process of its own, to be killed: says after every few records how many it has.

`python -m tests.integration.processor_process` with the description of a backend (tests.logs), and
a directory for checkpoints, which it then writes all the time.
"""

import asyncio
import sys
from pathlib import Path

from bss_stream.processor import Processor, ProcessorSettings
from tests.integration.processing import GROUP, SETUP, TICK_S, shard_id
from tests.logs import described


async def main(description: str, checkpoints: Path | None = None) -> None:
    log = described(description).log()
    await log.open()
    settings = ProcessorSettings(
        group=GROUP,
        transactional_id=shard_id,
        batch_records_max=10,
        tick_interval_s=TICK_S,
        checkpoint_directory=checkpoints,
        checkpoint_interval_s=0.001,
    )
    # A clock at 0: only records move time on.
    processor = Processor(log, SETUP, settings, clock_ms=lambda: 0)
    task = asyncio.create_task(processor.run())
    told = -1
    while not task.done():
        if processor.counters.records > told:
            told = processor.counters.records
            print(told, flush=True)
        await asyncio.sleep(0.001)
    await task


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], *map(Path, sys.argv[2:])))
