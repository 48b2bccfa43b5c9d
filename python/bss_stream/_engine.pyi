"""The compiled engine binding (rust/python); every fault of a caller is a ValueError."""

from collections.abc import Sequence
from typing import Self, final

__all__ = [
    "Census",
    "Coverage",
    "Engine",
    "Output",
    "OutputChunk",
    "Router",
    "byte_after",
    "check_model",
    "clean_trace",
    "echo_topics",
    "events",
    "first_received_ms",
    "fundamental_signals",
    "last_received_ms",
    "measure",
    "pack",
    "partition_for",
    "read_batches",
    "reason_signals",
    "reasons",
    "sequence_after",
    "topic_names",
    "traced",
    "unpack",
    "write_batches",
]

def pack(records: Sequence[tuple[bytes, bytes | None]]) -> bytes:
    """Pack keyed records into one chunk; a value of None is a tombstone."""

def unpack(data: bytes | memoryview) -> list[tuple[bytes, bytes | None]]:
    """The records of a chunk, in order. Raises ValueError where the layout breaks."""

def measure(data: bytes | memoryview) -> tuple[int, int]:
    """How many records a chunk has, and the bytes of the largest one's key and value together.

    Raises ValueError where the layout breaks.
    """

def byte_after(data: bytes | memoryview, records: int) -> int:
    """Where the records behind a chunk's first ones begin; its length if there are no more.

    Raises ValueError where the layout breaks.
    """

def write_batches(
    data: bytes | memoryview,
    *,
    producer: tuple[int, int],
    base_sequence: int,
    transactional: bool,
    timestamp_ms: int,
    bytes_max: int,
    events: tuple[str, str] | None = None,
) -> list[tuple[int, bytes]]:
    """A chunk's records as Kafka record batches, in order: each one's records and bytes.

    A batch has at most `bytes_max` bytes, or one record. `producer` is its id and epoch; the
    first record gets `base_sequence`. With `events`, a CloudEvents source and what the types
    begin with, every record has CloudEvents headers. Raises ValueError where the chunk's layout
    breaks.
    """

def sequence_after(base_sequence: int, records: int) -> int:
    """The sequence number behind so many records; it comes round to 0."""

def read_batches(
    data: bytes, aborted: Sequence[tuple[int, int]], from_offset: int
) -> tuple[list[int], bytes, int]:
    """The records of a Kafka response for one partition, from an offset on.

    `aborted` has the producer id and first offset of each transaction that was not committed.
    Returns one offset a record, the chunk, and the offset at which reading goes on. Raises
    ValueError for a damaged or compressed batch.
    """

def partition_for(key: bytes, partitions: int) -> int:
    """The partition of a key, as Kafka's default partitioner places it."""

def last_received_ms(data: bytes) -> int | None:
    """When the last signal of a chunk was received, in epoch ms; None if it has no frame."""

def first_received_ms(data: bytes) -> int | None:
    """When the first signal of a chunk was received, in epoch ms; None if it has no frame."""

def traced(data: bytes) -> list[tuple[int, str, str, str]]:
    """The signals of a chunk that have a trace: place, event, correlation id, trace."""

def clean_trace(trace: str) -> str:
    """A text if it is a W3C traceparent of version 00, else an empty one."""

def check_model(file: str, data: bytes) -> str:
    """Compile a plan model and return its id. ValueError has one line a fault."""

def events() -> list[tuple[str, str]]:
    """Every event that entities take: the kind of entity, the event's name."""

def reasons() -> list[tuple[str, str, str | None, bool]]:
    """Every reason: code, message, what can be done, whether it makes a dead letter."""

def reason_signals() -> list[tuple[str, str]]:
    """Every reason's code and the signal by which clients know it."""

def echo_topics() -> list[tuple[str, str]]:
    """Where the answers to events go: the event, the topic with its entity's id in braces."""

def fundamental_signals() -> tuple[list[str], list[str]]:
    """What a plan's machines are called, and the signals that they see."""

def topic_names() -> list[str]:
    """The topics of the log that the engine reads and writes."""

@final
class Router:
    """The compiled topic table."""

    def __new__(cls, rows: Sequence[tuple[str, str, str, str | None, str | None]]) -> Self:
        """Compile rows: filter, event, entity, and the name of the topic's segment or of the
        payload's field that has the key. Raises ValueError for one without a key."""

    def route(self, topic: str, payload: bytes) -> tuple[int, str, str, str | None] | None:
        """Place of the row, event, topic of the log and key of a message; None if no row
        matches."""

    def pack(
        self,
        messages: Sequence[tuple[str, bytes, bytes | None, str | None]],
        partitions: int,
        received_ms: int,
        payload_bytes_max: int,
    ) -> tuple[list[tuple[str, int, int, bytes]], list[tuple[int, str, str | None]]]:
        """Messages (topic, payload, correlation data, trace) as chunks of signal records (topic,
        partition, records, data), and those that are none (position, reason, key). A trace that
        is no traceparent is left behind."""

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

    @property
    def dead_letters(self) -> dict[str, int]:
        """How many dead letters were made, by reason code."""

    @property
    def stock_signals(self) -> dict[str, int]:
        """How often the operator was told of a stock, by signal."""

    @property
    def timers_fired(self) -> int: ...

@final
class Census:
    """What a shard holds now."""

    @property
    def entities(self) -> list[int]:
        """Plans, stations and assets."""

    @property
    def timers_armed(self) -> int: ...
    @property
    def holds_open(self) -> int:
        """Swaps that hold quota and await the asset manager."""

    @property
    def allocations_open(self) -> int:
        """Allocations that stations have asked for and that are not answered."""

    @property
    def stock(self) -> list[tuple[str, str, int, int]]:
        """Station, fleet, batteries in stock, and how many of them are promised."""

@final
class Coverage:
    """What a shard has come through, each with how often."""

    @property
    def transitions(self) -> list[tuple[str, str, str, str, str, int]]:
        """Every transition of every model: model, cycle, state, signal, next state, count."""

    @property
    def compression(self) -> list[tuple[str, int, str, str, int]]:
        """Every row of every compression table: model, row, external event, cycle, count."""

    @property
    def endings(self) -> list[tuple[str | None, str, int]]:
        """Every ending that came up: event (None if it was unknown), reason, count."""

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

    def snapshot(
        self, partition: int, state_topic: str, first: int, bytes_max: int
    ) -> tuple[int, bytes, int | None]:
        """A page of a shard's states, as `restore` takes them, from an entity's number on.

        Returns how many, the chunk, and the number to go on with, None behind the last. Entities
        keep their numbers while the shard is open.
        """

    def applied_offset(self, partition: int, topic: str) -> int | None:
        """The last offset applied of a signals topic."""

    def next_due_ms(self, partition: int) -> int | None:
        """When the shard's next timer is due, in epoch milliseconds."""

    def entities(self, partition: int) -> list[int]:
        """How many plans, stations and assets the shard has."""

    def census(self, partition: int) -> Census:
        """What the shard holds now."""

    def coverage(self, partition: int) -> Coverage:
        """What the shard has come through since it was opened, or since the last reload."""

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
