"""A sink in a process of its own, to be killed: copies a log's ledgers in small transactions."""

import asyncio
import sys
from pathlib import Path

from bss_stream.log.embedded import EmbeddedLog
from bss_stream.sink import LedgerSink, SinkSettings, open_ledger_store


async def copy(directory: Path, partitions: int, url: str) -> None:
    log = EmbeddedLog(directory, partitions=partitions)
    await log.open()
    await LedgerSink(log, open_ledger_store(url), SinkSettings(records_max=1)).run()


if __name__ == "__main__":
    asyncio.run(copy(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
