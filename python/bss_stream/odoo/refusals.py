"""What Odoo has refused for good, kept on the log: its own words, and the record to try again."""

from collections.abc import Iterable
from typing import Final

import msgspec

from bss_stream import topics
from bss_stream._engine import pack, partition_for, unpack
from bss_stream.errors import LogError, NewerVersionError
from bss_stream.log.protocol import Chunk, ReadableLog
from bss_stream.odoo.billing import Kind, Record

VERSION: Final = 1
LISTED_MAX: Final = 10_000
"""The newest; a longer list is a mapping that is wrong, and trying again lists the rest."""


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """One record that Odoo did not take, or took at last."""

    v: int = VERSION
    at_ms: int
    kind: Kind
    key: str
    plan_id: str
    source: str
    values: dict[str, str]
    """By our names; a subscription's are overtaken by its plan's next change."""
    error: str
    """Empty once Odoo has taken it."""

    @classmethod
    def of(cls, record: Record, error: str, at_ms: int) -> "Refusal":
        """What became of a record at a time."""
        kind, key, plan_id, values, source = record
        return cls(
            at_ms=at_ms,
            kind=kind,
            key=key,
            plan_id=plan_id,
            source=source,
            values=dict(values),
            error=error,
        )

    @property
    def record(self) -> Record:
        """What to write."""
        return Record(self.kind, self.key, self.plan_id, self.values, self.source)


_decoder: Final = msgspec.json.Decoder(Refusal)


class _Versioned(msgspec.Struct, frozen=True):
    v: int


def chunks(refusals: Iterable[Refusal], partitions: int) -> list[Chunk]:
    """Records for the log, in order within a plan."""
    placed: dict[int, list[tuple[bytes, bytes | None]]] = {}
    for refusal in refusals:
        key = refusal.plan_id.encode()
        record = (key, msgspec.json.encode(refusal))
        placed.setdefault(partition_for(key, partitions), []).append(record)
    return [
        Chunk(topics.ODOO_REFUSED, partition, len(records), pack(records))
        for partition, records in placed.items()
    ]


async def standing(log: ReadableLog) -> tuple[list[Refusal], int]:
    """The newest that Odoo has not taken since, the oldest of them first, and how many there are.

    Raises LogError, NewerVersionError.
    """
    found: dict[tuple[Kind, str], Refusal] = {}
    total = 0
    for partition in range(log.partitions):
        mine: dict[tuple[Kind, str], Refusal] = {}
        async for fetched in log.replay(topics.ODOO_REFUSED, partition):
            for _, value in unpack(fetched.data):
                refusal = decode(value or b"")
                mine.pop((refusal.kind, refusal.key), None)
                if refusal.error:
                    mine[refusal.kind, refusal.key] = refusal
        total += len(mine)
        found |= mine
        newest = sorted(found.values(), key=lambda one: one.at_ms)[-LISTED_MAX:]
        found = {(one.kind, one.key): one for one in newest}
    return list(found.values()), total


def decode(value: bytes) -> Refusal:
    """A refusal's record. Raises LogError for what is none, NewerVersionError."""
    try:
        version = msgspec.json.decode(value, type=_Versioned).v
        if version > VERSION:
            raise NewerVersionError("refusal of Odoo", version, VERSION)
        return _decoder.decode(value)
    except (ValueError, RecursionError) as error:
        raise LogError(f"{topics.ODOO_REFUSED}: a record is no refusal: {error}") from error
