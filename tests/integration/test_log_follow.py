"""A log followed from outside, on both backends: all that is committed from an offset on, once."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from bss_stream import topics
from bss_stream.errors import LogError
from bss_stream.log.embedded import EmbeddedLog
from bss_stream.log.kafka import KafkaLog
from bss_stream.log.protocol import FollowableLog, Log, TopicPartition
from tests.logs import (
    IN_VAIN_S,
    PARTITIONS,
    Backend,
    EmbeddedBackend,
    KafkaBackend,
    abort_records,
    chunk,
    kafka_options,
    numbered,
    values,
)

_prefixes = itertools.count()

Pair = tuple[Log, FollowableLog]


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    if request.param == "embedded":
        return EmbeddedBackend(tmp_path / "log")
    bootstrap = request.getfixturevalue("kafka")
    return KafkaBackend(kafka_options(bootstrap, f"follow-{next(_prefixes)}"))


@pytest.fixture
async def pair(backend: Backend) -> AsyncIterator[Pair]:
    """A log, and a look at it from outside."""
    log = backend.log()
    await log.open()
    outside: FollowableLog
    if isinstance(backend, EmbeddedBackend):
        outside = EmbeddedLog.read_only(backend.directory)
    else:
        assert isinstance(backend, KafkaBackend)
        outside = KafkaLog(backend.options, partitions=PARTITIONS)
    await outside.open()
    yield log, outside
    await outside.close()
    await log.close()


async def append(log: Log, topic: str, partition: int, first: int, count: int) -> None:
    appender = await log.appender()
    await appender.append([chunk(topic, partition, *numbered(first, count))])
    await appender.close()


async def test_what_comes_is_followed(pair: Pair) -> None:
    log, outside = pair
    parts = [
        TopicPartition(topic, partition)
        for topic in (topics.LEDGER_SERVICE, topics.OUTBOX)
        for partition in (0, 3)
    ]
    for part in parts:
        await append(log, *part, 0, 5)
    starts = {part: (await outside.extent(*part)).end for part in parts}
    assert set(starts.values()) == {5}
    starts[parts[0]] = 2  # One of them from before its end.
    wanted = {part: set(map(str, range(2 if part == parts[0] else 5, 12))) for part in parts}
    found: dict[TopicPartition, list[str]] = {part: [] for part in parts}
    async with asyncio.timeout(IN_VAIN_S), aclosing(outside.follow(starts)) as following:
        waiting = asyncio.ensure_future(anext(following))
        for part in parts:
            await append(log, *part, 5, 4)
            await abort_records(log, *part)
            await append(log, *part, 9, 3)
        while any(len(found[part]) < len(wanted[part]) for part in parts):
            fetched = await waiting
            assert len(fetched.offsets) == len(values([fetched]))
            assert fetched.next_offset > fetched.offsets[-1]
            texts = [value.decode() for value in values([fetched]) if value is not None]
            found[TopicPartition(fetched.topic, fetched.partition)] += texts
            waiting = asyncio.ensure_future(anext(following))
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    for part in parts:
        assert found[part] == sorted(wanted[part], key=int)


async def test_a_log_in_another_ones_place_is_no_longer_followed(tmp_path: Path) -> None:
    directory = tmp_path / "log"
    part = TopicPartition(topics.OUTBOX, 0)
    log = EmbeddedBackend(directory).log()
    await log.open()
    outside = EmbeddedLog.read_only(directory)
    await outside.open()
    async with asyncio.timeout(IN_VAIN_S), aclosing(outside.follow({part: 0})) as following:
        await append(log, *part, 0, 1)
        assert (await anext(following)).next_offset == 1
        await log.close()
        directory.rename(tmp_path / "old")
        with pytest.raises(LogError, match="has been replaced"):
            await anext(following)
    await outside.close()
