"""The compiled engine binding (rust/python)."""

from collections.abc import Sequence

def pack(records: Sequence[tuple[bytes, bytes | None]]) -> bytes:
    """Pack keyed records into one chunk; a value of None is a tombstone."""

def unpack(data: bytes) -> list[tuple[bytes, bytes | None]]:
    """The records of a chunk, in order. Raises ValueError where the layout breaks."""

def partition_for(key: bytes, partitions: int) -> int:
    """The partition of a key, as Kafka's default partitioner places it."""
