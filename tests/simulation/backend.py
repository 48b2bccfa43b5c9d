"""The simulated log as a backend of the conformance suite: instant, without faults."""

from dataclasses import dataclass, field

from bss_stream.log.protocol import Log, TopicPartition
from tests.logs import PARTITIONS, abort_records
from tests.simulation.log import LogServer, SimulatedLog
from tests.simulation.network import Network


@dataclass
class SimulatedBackend:
    """A log that lives as long as this object."""

    server: LogServer = field(
        default_factory=lambda: LogServer(Network(), partitions=PARTITIONS, markers=False)
    )

    def log(self) -> Log:
        return SimulatedLog(self.server)

    def description(self) -> str:
        raise NotImplementedError("no other process can open it")

    async def abort_records(self, log: Log, topic: str, partition: int) -> None:
        await abort_records(log, topic, partition)

    async def trim(self, log: Log, topic: str, partition: int, start: int) -> None:
        self.server.trim(TopicPartition(topic, partition), start)
