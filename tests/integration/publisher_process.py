"""A publisher in a process of its own, to be killed between publishing and committing.

`python -m tests.integration.publisher_process` with the broker's port and the log's directory. Once
the broker has taken a batch, it says how many messages, and waits for ever.
"""

import asyncio
import sys
from pathlib import Path

from bss_stream.log.embedded import EmbeddedLog
from bss_stream.log.protocol import Consumer
from bss_stream.publisher import Publisher, PublisherSettings
from tests.integration.bridge_process import PARTITIONS, mqtt_settings

GROUP = "publisher"


class _NeverCommits(Publisher):
    async def _commit(self, consumer: Consumer) -> None:
        print(self.counters.published, flush=True)
        await asyncio.Event().wait()


async def main(port: int, directory: Path) -> None:
    log = EmbeddedLog(directory, partitions=PARTITIONS, durability="process")
    await log.open()
    settings = PublisherSettings(group=GROUP)
    await _NeverCommits(log, mqtt_settings(port, client_id="publisher"), settings).run()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), Path(sys.argv[2])))
