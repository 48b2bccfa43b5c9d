"""A bridge in a process of its own, to be killed: `python -m tests.integration.bridge_process`.

Arguments: the broker's port, the log's directory, and where to stop for ever, having said so:
`before-append` or `after-append`. The bridge gets no further than that.
"""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from bss_stream import topic_table
from bss_stream.bridge import Bridge, BridgeSettings
from bss_stream.log.embedded import EmbeddedAppender, EmbeddedLog
from bss_stream.log.protocol import Chunk
from bss_stream.mqtt.messages import MqttSettings

PARTITIONS = 4
CLIENT_ID = "bridge"


def mqtt_settings(
    port: int,
    *,
    client_id: str = CLIENT_ID,
    receive_max: int = 2_000,
    inbox_messages_max: int = 8_192,
) -> MqttSettings:
    """How the clients of these tests connect; the bridge always as the same one."""
    return MqttSettings(
        host="127.0.0.1",
        port=port,
        client_id=client_id,
        session_expiry_s=600,
        backoff_min_s=0.01,
        backoff_max_s=0.2,
        receive_max=receive_max,
        inbox_messages_max=inbox_messages_max,
    )


class _StoppingAppender(EmbeddedAppender):
    where = ""

    async def append(self, chunks: Sequence[Chunk]) -> None:
        if self.where == "after-append":
            await super().append(chunks)
        print(sum(chunk.records for chunk in chunks), flush=True)
        await asyncio.Event().wait()


class _StoppingLog(EmbeddedLog):
    async def appender(self) -> EmbeddedAppender:
        return _StoppingAppender(self._store)


async def main(port: int, directory: Path, where: str) -> None:
    _StoppingAppender.where = where
    log = _StoppingLog(directory, partitions=PARTITIONS)
    await log.open()
    await Bridge(log, mqtt_settings(port), topic_table.load(), BridgeSettings()).run()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
