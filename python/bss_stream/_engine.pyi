"""The compiled engine binding (rust/python); every fault of a caller is a ValueError."""

from collections.abc import Sequence
from typing import Self, final

__all__ = [
    "Engine",
    "Output",
    "OutputChunk",
    "check_model",
    "last_received_ms",
    "pack",
    "partition_for",
    "reasons",
    "topic_names",
    "unpack",
]

def pack(records: Sequence[tuple[bytes, bytes | None]]) -> bytes:
    """Pack keyed records into one chunk; a value of None is a tombstone."""

def unpack(data: bytes | memoryview) -> list[tuple[bytes, bytes | None]]:
    """The records of a chunk, in order. Raises ValueError where the layout breaks."""

def partition_for(key: bytes, partitions: int) -> int:
    """The partition of a key, as Kafka's default partitioner places it."""

def last_received_ms(data: bytes) -> int | None:
    """When the last signal of a chunk was received, in epoch ms; None if it has no frame."""

def check_model(file: str, data: bytes) -> str:
    """Compile a plan model and return its id. ValueError has one line a fault."""

def reasons() -> list[tuple[str, str, str | None, bool]]:
    """Every reason: code, message, what can be done, whether it makes a dead letter."""

def topic_names() -> list[str]:
    """The topics of the log that the engine reads and writes."""

@final
class OutputChunk:
    """Records for one partition of one topic."""

    @property
    def topic(self) -> str: ...
    @property
    def shard(self) -> int:
        """The shard in whose transaction the chunk must be produced."""

    @property
    def partition(self) -> int: ...
    @property
    def records(self) -> int: ...
    @property
    def data(self) -> memoryview:
        """The packed records: the engine's own bytes, not a copy; read-only."""

@final
class Output:
    """What one call to `Engine.process` gives."""

    @property
    def chunks(self) -> list[OutputChunk]:
        """In order of shard, topic and partition."""

    @property
    def outcomes(self) -> dict[str, int]:
        """How often records ended for each reason code."""

@final
class Engine:
    """The decision engine: shards by partition. Calls from several threads take turns."""

    def __new__(cls, setup: bytes, *, partitions: int, threads: int = 1) -> Self: ...
    def open_shard(self, partition: int) -> None:
        """Open an empty shard."""

    def drop_shard(self, partition: int) -> None:
        """Forget a shard, if it is open."""

    def restore(self, partition: int, state_topic: str, data: bytes) -> int:
        """Take in a chunk of changelog records, an entity's newest last; return how many."""

    def applied_offset(self, partition: int, topic: str) -> int | None:
        """The last offset applied of a signals topic."""

    def next_due_ms(self, partition: int) -> int | None:
        """When the shard's next timer is due, in epoch milliseconds."""

    def entities(self, partition: int) -> list[int]:
        """How many plans, stations and assets the shard has."""

    def reload(self, setup: bytes) -> None:
        """Take another set-up; open shards are read again under it, or nothing changes."""

    def process(
        self,
        inputs: Sequence[tuple[str, int, Sequence[int], bytes]],
        now_ms: int,
        *,
        tick: Sequence[int] = ...,
    ) -> Output:
        """Apply records in order, then fire the timers due by `now_ms`.

        An input is (signals topic, partition, one offset a record, chunk). Timers fire in the
        partitions of the inputs and in those of `tick`. `now_ms` must not lie beyond the receipt
        of a record that is not applied yet. The GIL is released meanwhile.
        """

    def describe_state(self, state_topic: str, key: bytes, value: bytes) -> bytes:
        """An entity's changelog value as JSON."""
