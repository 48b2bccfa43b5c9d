"""What a log should hold: its own signals once more, in order, without a crash or a rebalance.

The engine's output is a function of the records and their offsets, so all that processors have
written, whatever happened to them meanwhile, must be what one engine makes of the same signals.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from bss_stream import _engine, topics
from bss_stream.frames import decode_dead_letter
from bss_stream.log.protocol import ReadableLog
from bss_stream.testing import Produced

_SHOWN = 3


class LogRecord(NamedTuple):
    """One record where it stands in a partition."""

    partition: int
    offset: int
    key: bytes
    value: bytes


Contents = Mapping[str, Sequence[LogRecord]]
"""The records of every topic, in order within a partition."""


async def read_log(log: ReadableLog) -> dict[str, list[LogRecord]]:
    """Everything that an open log holds."""
    return {
        topic: [
            LogRecord(partition, offset, key, value or b"")
            for partition in range(log.partitions)
            async for fetched in log.replay(topic, partition)
            for offset, (key, value) in zip(
                fetched.offsets, _engine.unpack(fetched.data), strict=True
            )
        ]
        for topic in topics.ALL
    }


def undisturbed(
    contents: Contents, setup: bytes, *, partitions: int, now_ms: int = 0
) -> list[Produced]:
    """What one engine makes of a log's signals; timers fire up to `now_ms` at the end.

    Entities share nothing but records, so each topic can be applied as a whole.
    """
    engine = _engine.Engine(setup, partitions=partitions)
    for partition in range(partitions):
        engine.open_shard(partition)
    inputs = []
    for topic in topics.SIGNALS:
        for partition in range(partitions):
            own = [record for record in contents[topic] if record.partition == partition]
            data = _engine.pack([(record.key, record.value) for record in own])
            inputs.append((topic, partition, [record.offset for record in own], data))
    output = [engine.process(inputs, 0), engine.process([], now_ms, tick=range(partitions))]
    return [
        Produced(chunk.topic, chunk.partition, key, value or b"")
        for part in output
        for chunk in part.chunks
        for key, value in _engine.unpack(chunk.data)
    ]


def check_contents(contents: Contents, expected: Iterable[Produced]) -> None:
    """Fail unless a log holds exactly the expected records, key by key.

    External signals aside, of which the log is the only witness, and the states between the last
    ones, which depend on the size of batches.
    """
    found = (
        Produced(topic, record.partition, record.key, record.value)
        for topic, records in contents.items()
        for record in records
    )
    has, should = _by_key(found), _by_key(expected)
    wrong = [key for key in sorted(has.keys() | should.keys()) if has.get(key) != should.get(key)]
    if wrong:
        shown = "\n".join(_difference(key, should.get(key), has.get(key)) for key in wrong[:_SHOWN])
        raise AssertionError(f"{len(wrong)} keys are not as they should be:\n{shown}")


def _by_key(records: Iterable[Produced]) -> dict[tuple[str, bytes], list[bytes]]:
    grouped: dict[tuple[str, bytes], list[bytes]] = {}
    for topic, partition, key, value in records:
        if topic in topics.SIGNALS and not is_internal(value):
            continue
        if topic == topics.DEAD_LETTER and not _is_engine_s(value):
            continue
        of_key = grouped.setdefault((f"{topic}/{partition}", key), [])
        if topic in topics.STATES:
            of_key.clear()
        of_key.append(value)
    for (topic, _), values in grouped.items():
        # Several entities write under one key here, and nothing orders them.
        if topic.startswith((*topics.SIGNALS, topics.DEAD_LETTER)):
            values.sort()
    return grouped


def is_internal(value: bytes) -> bool:
    """Whether an entity has sent a signal record; clients' frames name their MQTT topic."""
    header = value.partition(b"\n")[0].split(b"\t")
    return header[0] == b"1" and header[-1] == b"engine"


def _is_engine_s(value: bytes) -> bool:
    return decode_dead_letter(value).source_topic in topics.SIGNALS


def _difference(key: tuple[str, bytes], should: list[bytes] | None, has: list[bytes] | None) -> str:
    expected, found = should or [], has or []
    at = next(
        (i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b),
        min(len(expected), len(found)),
    )
    return (
        f"{key[0]} {key[1]!r}: expected {len(expected)} records and found {len(found)}; "
        f"at {at} expected {expected[at : at + 1]} and found {found[at : at + 1]}"
    )
