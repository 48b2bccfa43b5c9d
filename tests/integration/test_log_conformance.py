"""What every backend of the log must do: one suite over the embedded log, a real Kafka, and the
log of the simulation."""

import asyncio
import itertools
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from bss_stream import topics
from bss_stream._engine import unpack
from bss_stream.errors import FencedError, LogError, OffsetOutOfRangeError
from bss_stream.log.protocol import Consumer, Fetched, Log, TopicPartition, TransactionalProducer
from tests.integration.log_worker import SOURCE, TARGET
from tests.logs import (
    IN_VAIN_S,
    PARTITIONS,
    Backend,
    EmbeddedBackend,
    KafkaBackend,
    chunk,
    join,
    kafka_options,
    numbered,
    poll_until,
    replayed,
    settle,
    values,
)
from tests.simulation.backend import SimulatedBackend

PLAN_0 = TopicPartition(topics.SIGNALS_PLAN, 0)
PLAN_1 = TopicPartition(topics.SIGNALS_PLAN, 1)

_prefixes = itertools.count()


DURABLE = ("embedded", pytest.param("kafka", marks=pytest.mark.kafka))
"""Backends that another process can open, too."""


def make_backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    if request.param == "simulated":
        return SimulatedBackend()
    if request.param == "embedded":
        return EmbeddedBackend(tmp_path / "log")
    bootstrap = request.getfixturevalue("kafka")
    return KafkaBackend(kafka_options(bootstrap, f"conformance-{next(_prefixes)}"))


@pytest.fixture(params=["simulated", *DURABLE])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    return make_backend(request, tmp_path)


@pytest.fixture(params=DURABLE)
def durable(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    return make_backend(request, tmp_path)


@pytest.fixture
async def log(backend: Backend) -> AsyncIterator[Log]:
    log = backend.log()
    await log.open()
    yield log
    await log.close()


async def fill(log: Log, *, records: int = 10, topic: str = topics.SIGNALS_PLAN) -> None:
    """Consecutive numbers to partition 0 of a topic, in chunks of one and of several records."""
    appender = await log.appender()
    written = 0
    for size in itertools.cycle((3, 1, 4)):
        if written >= records:
            break
        count = min(size, records - written)
        await appender.append([chunk(topic, 0, *numbered(written, count))])
        written += count
    await appender.close()


def numbers(first: int, end: int) -> list[bytes]:
    """The values of the records that `fill` writes."""
    return [str(i).encode() for i in range(first, end)]


class Heard:
    """A listener that keeps what it was told, by all members of a test in one list."""

    def __init__(self, member: str, told: list[tuple[str, str, list[TopicPartition]]]) -> None:
        self._member = member
        self._told = told

    async def on_revoked(self, partitions: Sequence[TopicPartition]) -> None:
        self._told.append((self._member, "revoked", sorted(partitions)))
        await asyncio.sleep(0)
        self._told.append((self._member, "let go", sorted(partitions)))

    async def on_assigned(self, partitions: Sequence[TopicPartition]) -> None:
        self._told.append((self._member, "assigned", sorted(partitions)))


# Appending and reading


async def test_records_keep_the_order_of_the_appends(log: Log) -> None:
    appender = await log.appender()
    async with asyncio.TaskGroup() as group:
        for first in range(0, 60, 3):
            part = first % 2
            chunks = [chunk(topics.SIGNALS_PLAN, part, *numbered(first, 3, key=b"k%d" % part))]
            group.create_task(appender.append(chunks))
    await appender.close()
    consumer = await log.consumer("readers", topics.SIGNALS)
    found = await poll_until(consumer, 60)
    for part in (0, 1):
        mine = [one for one in found if one.partition == part]
        expected = [b"%d" % i for first in range(part * 3, 60, 6) for i in range(first, first + 3)]
        assert values(mine) == expected
        assert values(await replayed(log, topics.SIGNALS_PLAN, part)) == expected
    await consumer.close()


async def test_keys_values_and_tombstones_come_back_as_they_were(log: Log) -> None:
    records = [(b"\x00\xff", b"\t\n\x00"), (b"k", None), (b"k", b"")]
    appender = await log.appender()
    await appender.append([chunk(topics.STATE_PLAN, 2, *records)])
    await appender.close()
    (fetched,) = await replayed(log, topics.STATE_PLAN, 2)
    assert unpack(fetched.data) == records
    assert list(fetched.offsets) == [0, 1, 2]
    assert fetched.next_offset == 3


async def test_a_record_of_more_than_a_mebibyte_goes_through(log: Log) -> None:
    big = random.Random(5).randbytes(1024 * 1024 + 512)
    appender = await log.appender()
    await appender.append([chunk(topics.SIGNALS_PLAN, 0, (b"a", b"small"), (b"b", big))])
    await appender.close()
    consumer = await log.consumer("readers", [topics.SIGNALS_PLAN])
    assert values(await poll_until(consumer, 2)) == [b"small", big]
    producer = await log.transactional_producer("shard")
    async with producer.transaction() as transaction:
        transaction.append([chunk(topics.OUTBOX, 0, *[(b"b", big)] * 3)])
    await producer.close()
    assert values(await replayed(log, topics.OUTBOX, 0)) == [big] * 3
    await consumer.close()


async def test_a_waiting_poll_returns_on_an_append(log: Log) -> None:
    consumer = await log.consumer("readers", [topics.SIGNALS_PLAN])
    await join(consumer)
    poll = asyncio.create_task(consumer.poll(10, 3600.0))
    assert not (await asyncio.wait([poll], timeout=0.3))[0]
    await fill(log, records=1)
    async with asyncio.timeout(IN_VAIN_S):
        assert values(await poll) == [b"0"]
    await consumer.close()


async def test_poll_gives_about_as_many_records_as_asked_for(log: Log) -> None:
    await fill(log, records=64)
    consumer = await log.consumer("readers", [topics.SIGNALS_PLAN])
    found: list[Fetched] = []
    while sum(len(one.offsets) for one in found) < 64:
        polled = await consumer.poll(5, 5.0)
        # Whole chunks of at most four records.
        assert 0 < sum(len(one.offsets) for one in polled) < 5 + 4
        found += polled
    assert values(found) == numbers(0, 64)
    await consumer.close()


async def test_a_log_refuses_what_it_cannot_hold(log: Log) -> None:
    appender = await log.appender()
    with pytest.raises(LogError, match=r"bss\.outbox/0.*at least 1"):
        await appender.append([chunk(topics.OUTBOX, 0)])
    with pytest.raises(LogError, match=rf"partition.* 0\.\.{PARTITIONS - 1}"):
        await appender.append([chunk(topics.OUTBOX, PARTITIONS, (b"k", b"v"))])
    await appender.append([chunk(topics.OUTBOX, 0, (b"k", b"v"))])
    await appender.close()
    assert values(await replayed(log, topics.OUTBOX, 0)) == [b"v"]


async def test_empty_partitions_are_waited_for_and_replayed_as_nothing(log: Log) -> None:
    consumer = await log.consumer("readers", topics.SIGNALS)
    parts = await join(consumer)
    assert await consumer.poll(10, 0.2) == []
    assert await consumer.lag() == dict.fromkeys(parts, 0)
    assert await replayed(log, topics.STATE_PLAN, 3) == []
    await consumer.close()


# Transactions


async def test_a_transaction_is_visible_as_a_whole_after_its_end(log: Log) -> None:
    await fill(log, records=4)
    targets = [(topics.LEDGER_PAYMENT, 1), (topics.OUTBOX, 0), (topics.STATE_PLAN, 3)]
    producer = await log.transactional_producer("shard")
    async with producer.transaction() as transaction:
        for topic, part in targets:
            transaction.append([chunk(topic, part, *numbered(0, 2))])
        transaction.append([chunk(*targets[0], *numbered(2, 2))])
        transaction.offsets("processor", {PLAN_0: 3})
        for topic, part in targets:
            assert await replayed(log, topic, part) == []
    assert values(await replayed(log, *targets[0])) == numbers(0, 4)
    assert values(await replayed(log, *targets[1])) == numbers(0, 2)
    assert values(await replayed(log, *targets[2])) == numbers(0, 2)
    # The inputs' offset went with the outputs.
    await settle(log, "shard")
    consumer = await log.consumer("processor", [topics.SIGNALS_PLAN])
    assert values(await poll_until(consumer, 1)) == [b"3"]
    await consumer.close()
    await producer.close()


async def test_an_aborted_transaction_leaves_nothing(log: Log) -> None:
    await fill(log, records=4)
    producer = await log.transactional_producer("shard")
    with pytest.raises(ZeroDivisionError):
        async with producer.transaction() as transaction:
            transaction.append([chunk(topics.OUTBOX, 0, *numbered(0, 5))])
            transaction.offsets("processor", {PLAN_0: 4})
            raise ZeroDivisionError
    async with producer.transaction() as transaction:
        transaction.append([chunk(topics.OUTBOX, 0, (b"k", b"after"))])
    await producer.close()
    assert values(await replayed(log, topics.OUTBOX, 0)) == [b"after"]
    consumer = await log.consumer("processor", [topics.SIGNALS_PLAN])
    assert values(await poll_until(consumer, 4)) == numbers(0, 4)
    await consumer.close()


async def test_readers_pass_over_aborted_records(log: Log, backend: Backend) -> None:
    await fill(log, records=2)
    await backend.abort_records(log, topics.SIGNALS_PLAN, 0)
    appender = await log.appender()
    await appender.append([chunk(topics.SIGNALS_PLAN, 0, (b"k", b"after"))])
    await appender.close()
    consumer = await log.consumer("readers", [topics.SIGNALS_PLAN])
    assert values(await poll_until(consumer, 3)) == [b"0", b"1", b"after"]
    await consumer.close()


async def test_transactions_of_one_producer_keep_their_order(log: Log) -> None:
    producer = await log.transactional_producer("shard")
    for i in range(5):
        async with producer.transaction() as transaction:
            transaction.append([chunk(topics.OUTBOX, 0, *numbered(i * 3, 3))])
    await producer.close()
    assert values(await replayed(log, topics.OUTBOX, 0)) == numbers(0, 15)


async def test_a_second_producer_of_an_id_fences_the_first(log: Log) -> None:
    await fill(log, records=2)
    first = await log.transactional_producer("shard")
    with pytest.raises(FencedError):
        async with first.transaction() as transaction:
            transaction.append([chunk(topics.OUTBOX, 0, (b"k", b"zombie"))])
            transaction.offsets("processor", {PLAN_0: 2})
            second = await log.transactional_producer("shard")
    with pytest.raises(FencedError):
        async with first.transaction() as transaction:
            transaction.append([chunk(topics.OUTBOX, 0, (b"k", b"zombie again"))])
    async with second.transaction() as transaction:
        transaction.append([chunk(topics.OUTBOX, 0, (b"k", b"owner"))])
    assert values(await replayed(log, topics.OUTBOX, 0)) == [b"owner"]
    consumer = await log.consumer("processor", [topics.SIGNALS_PLAN])
    assert values(await poll_until(consumer, 2)) == numbers(0, 2)
    for one in (consumer, first, second):
        await one.close()


async def test_a_transaction_is_used_only_while_it_is_open(log: Log) -> None:
    producer = await log.transactional_producer("shard")
    async with producer.transaction() as transaction:
        with pytest.raises(LogError, match="in a transaction"):
            async with producer.transaction():
                pytest.fail("entered a second transaction")
    with pytest.raises(LogError, match="ended"):
        transaction.append([chunk(topics.OUTBOX, 0, (b"k", b"late"))])
    with pytest.raises(LogError, match="ended"):
        transaction.offsets("processor", {PLAN_0: 1})
    await producer.close()
    with pytest.raises(LogError, match="closed"):
        async with producer.transaction():
            pytest.fail("entered a transaction of a closed producer")
    assert await replayed(log, topics.OUTBOX, 0) == []


async def test_a_cancelled_commit_is_over_when_it_has_been_cancelled(log: Log) -> None:
    producer = await log.transactional_producer("shard")
    committed = 0
    for attempt in range(8):

        async def write(attempt: int = attempt) -> None:
            async with producer.transaction() as transaction:
                transaction.append([chunk(topics.OUTBOX, 0, (b"k", b"%d" % attempt))])
                transaction.append([chunk(topics.LEDGER_SERVICE, 0, (b"k", b"%d" % attempt))])

        task = asyncio.create_task(write())
        for _ in range(attempt):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        committed += not task.cancelled()
        outputs = values(await replayed(log, topics.OUTBOX, 0))
        assert outputs == values(await replayed(log, topics.LEDGER_SERVICE, 0))
        assert committed <= len(outputs) <= attempt + 1
        # Its outcome does not change any more.
        await asyncio.sleep(0.02)
        assert values(await replayed(log, topics.OUTBOX, 0)) == outputs
    await producer.close()


# Offsets


async def test_a_group_goes_on_where_it_committed(log: Log) -> None:
    await fill(log, records=10)
    consumer = await log.consumer("readers", [topics.SIGNALS_PLAN])
    await poll_until(consumer, 10)
    # Within a chunk: the records before it are left out.
    await consumer.commit({PLAN_0: 5})
    await consumer.close()
    again = await log.consumer("readers", [topics.SIGNALS_PLAN])
    found = await poll_until(again, 5)
    assert values(found) == numbers(5, 10)
    assert [offset for one in found for offset in one.offsets] == [5, 6, 7, 8, 9]
    other = await log.consumer("others", [topics.SIGNALS_PLAN])
    assert values(await poll_until(other, 10)) == numbers(0, 10)
    await again.close()
    await other.close()


async def test_a_consumer_reads_on_from_where_it_seeks(log: Log) -> None:
    await fill(log, records=10)
    consumer = await log.consumer("readers", [topics.SIGNALS_PLAN])
    await poll_until(consumer, 10)
    await consumer.seek({PLAN_0: 2})
    assert values(await poll_until(consumer, 8)) == numbers(2, 10)
    with pytest.raises(LogError, match=r"bss\.outbox/0.*does not own"):
        await consumer.seek({TopicPartition(topics.OUTBOX, 0): 0})
    with pytest.raises(LogError, match=r"bss\.outbox/0.*does not own"):
        await consumer.commit({TopicPartition(topics.OUTBOX, 0): 0})
    await consumer.close()


async def test_lag_is_what_is_left_to_read(log: Log) -> None:
    await fill(log, records=10)
    consumer = await log.consumer("readers", topics.SIGNALS)
    parts = await join(consumer)
    await consumer.seek({PLAN_0: 4})
    lag = await consumer.lag()
    assert lag == dict.fromkeys(parts, 0) | {PLAN_0: 6}
    await poll_until(consumer, 6)
    assert await consumer.lag() == dict.fromkeys(parts, 0)
    await consumer.close()


async def test_what_is_committed_counts_as_lag_at_once(log: Log) -> None:
    """Also while Kafka still writes the markers that make it readable."""
    consumer = await log.consumer("readers", topics.SIGNALS)
    parts = await join(consumer)
    producer = await log.transactional_producer("shard")
    for _ in range(5):
        async with producer.transaction() as transaction:
            transaction.append([chunk(*part, *numbered(0, 50)) for part in sorted(parts)])
        lag = await consumer.lag()
        assert lag.keys() == parts
        assert min(lag.values()) >= 50
        await poll_until(consumer, 50 * len(parts))
    await producer.close()
    async with asyncio.timeout(IN_VAIN_S):
        while any((await consumer.lag()).values()):
            assert await consumer.poll(10, 0.1) == []
    await consumer.close()


async def test_an_offset_below_the_start_of_the_log_is_an_error(log: Log, backend: Backend) -> None:
    await fill(log, records=10)
    consumer = await log.consumer("readers", [topics.SIGNALS_PLAN])
    await poll_until(consumer, 10)
    await consumer.commit({PLAN_0: 10})
    await backend.trim(log, *PLAN_0, 8)
    (kept,) = await replayed(log, *PLAN_0)
    assert 0 < kept.offsets[0] <= 9
    assert values([kept]) == numbers(kept.offsets[0], 10)
    await consumer.commit({PLAN_0: 1})
    await consumer.close()
    again = await log.consumer("readers", [topics.SIGNALS_PLAN])
    what = r"readers is to read .*bss\.signals\.plan/0 at offset 1 and the log"
    with pytest.raises(OffsetOutOfRangeError, match=what):
        await poll_until(again, 1)
    await again.close()
    fresh = await log.consumer("newcomers", [topics.SIGNALS_PLAN])
    if isinstance(backend, KafkaBackend):
        # Kafka forgets the offsets of a group long without members: it may be one of those.
        with pytest.raises(
            OffsetOutOfRangeError, match=r"newcomers has no offsets.*set its offset"
        ):
            await poll_until(fresh, 1)
    else:
        assert values(await poll_until(fresh, 1))[0] == b"%d" % kept.offsets[0]
    await fresh.close()


# Replay


async def test_a_replay_stops_behind_aborted_records_and_markers(
    log: Log, backend: Backend
) -> None:
    producer = await log.transactional_producer("shard")
    async with producer.transaction() as transaction:
        transaction.append([chunk(topics.STATE_PLAN, 0, *numbered(0, 3))])
    await producer.close()
    assert values(await replayed(log, topics.STATE_PLAN, 0)) == numbers(0, 3)
    await backend.abort_records(log, topics.STATE_PLAN, 0)
    await backend.abort_records(log, topics.STATE_PLAN, 1)
    assert values(await replayed(log, topics.STATE_PLAN, 0)) == numbers(0, 3)
    assert await replayed(log, topics.STATE_PLAN, 1) == []


async def test_a_replay_ends_where_the_log_ended_when_it_began(log: Log) -> None:
    await fill(log, records=20, topic=topics.STATE_PLAN)
    replay = log.replay(topics.STATE_PLAN, 0)
    found = [await anext(replay)]
    await fill(log, records=5, topic=topics.STATE_PLAN)
    found += [fetched async for fetched in replay]
    assert values(found) == numbers(0, 20)


async def test_a_replay_starts_where_it_is_told_to(log: Log) -> None:
    appender = await log.appender()
    for first in range(0, 12, 4):
        await appender.append([chunk(topics.STATE_PLAN, 0, *numbered(first, 4))])
    await appender.close()
    extent = await log.extent(topics.STATE_PLAN, 0)
    assert (extent.start, extent.end) == (0, 12)
    for start in (0, 5, 8, 11, 12, 100):
        found = [fetched async for fetched in log.replay(topics.STATE_PLAN, 0, start)]
        assert values(found) == [str(n).encode() for n in range(start, 12)]
        assert [o for one in found for o in one.offsets] == list(range(start, 12))


async def test_a_replay_that_is_left_off_can_be_closed(log: Log) -> None:
    await fill(log, records=20, topic=topics.STATE_PLAN)
    replay = log.replay(topics.STATE_PLAN, 0)
    await anext(replay)
    await replay.aclose()  # type: ignore[attr-defined]
    assert values(await replayed(log, topics.STATE_PLAN, 0)) == numbers(0, 20)


# Groups


async def share_out(*members: Consumer, topics_read: int) -> None:
    """Poll until the members own all partitions, shared out evenly."""
    share = topics_read * PARTITIONS // len(members)
    async with asyncio.timeout(IN_VAIN_S):
        while any(len(member.assignment()) != share for member in members):
            await asyncio.gather(*(member.poll(1, 0.1) for member in members))


async def test_members_share_equal_partitions_of_all_topics(log: Log) -> None:
    first = await log.consumer("processor", topics.SIGNALS)
    second = await log.consumer("processor", topics.SIGNALS)
    await share_out(first, second, topics_read=3)
    numbers_of = []
    for member in (first, second):
        by_topic = [
            {part for topic, part in member.assignment() if topic == name}
            for name in topics.SIGNALS
        ]
        assert by_topic[0] == by_topic[1] == by_topic[2]
        numbers_of.append(by_topic[0])
    assert numbers_of[0] | numbers_of[1] == set(range(PARTITIONS))
    assert not numbers_of[0] & numbers_of[1]
    await first.close()
    await second.close()


async def test_partitions_move_at_a_join_and_at_a_leave(log: Log) -> None:
    told: list[tuple[str, str, list[TopicPartition]]] = []
    everything = [TopicPartition(topics.SIGNALS_PLAN, part) for part in range(PARTITIONS)]
    first = await log.consumer("readers", [topics.SIGNALS_PLAN], Heard("first", told))
    await share_out(first, topics_read=1)
    assert told == [("first", "assigned", everything)]
    told.clear()

    second = await log.consumer("readers", [topics.SIGNALS_PLAN], Heard("second", told))
    await share_out(first, second, topics_read=1)
    # All have let go before anybody wins.
    assert told[:2] == [("first", "revoked", everything), ("first", "let go", everything)]
    won = {member: parts for member, what, parts in told if what == "assigned"}
    assert sorted(won["first"] + won["second"]) == everything
    assert won["first"] == sorted(first.assignment())
    told.clear()

    await first.close()
    assert told[:2] == [("first", "revoked", won["first"]), ("first", "let go", won["first"])]
    await share_out(second, topics_read=1)
    assert ("second", "let go", won["second"]) in told
    assert told[-1] == ("second", "assigned", everything)
    await second.close()


async def test_a_member_commits_while_it_lets_go(log: Log) -> None:
    await fill(log, records=10)

    class Committing:
        consumer: Consumer

        async def on_revoked(self, partitions: Sequence[TopicPartition]) -> None:
            await self.consumer.commit({PLAN_0: 7})

        async def on_assigned(self, partitions: Sequence[TopicPartition]) -> None:
            pass

    listener = Committing()
    listener.consumer = await log.consumer("readers", [topics.SIGNALS_PLAN], listener)
    await poll_until(listener.consumer, 10)
    await listener.consumer.close()
    other = await log.consumer("readers", [topics.SIGNALS_PLAN])
    assert values(await poll_until(other, 3)) == numbers(7, 10)
    await other.close()


async def test_offsets_that_change_while_a_member_takes_over_are_seen(log: Log) -> None:
    """A former owner's transaction may end as late as in the new owner's `on_assigned`."""
    await fill(log, records=10)
    former = await log.transactional_producer("shard")

    class TakingOver:
        async def on_revoked(self, partitions: Sequence[TopicPartition]) -> None:
            pass

        async def on_assigned(self, partitions: Sequence[TopicPartition]) -> None:
            await asyncio.sleep(0.1)
            async with former.transaction() as transaction:
                transaction.append([chunk(topics.OUTBOX, 0, *numbered(0, 6))])
                transaction.offsets("processor", {PLAN_0: 6})
            await (await log.transactional_producer("shard")).close()

    consumer = await log.consumer("processor", [topics.SIGNALS_PLAN], TakingOver())
    assert values(await poll_until(consumer, 4)) == numbers(6, 10)
    await consumer.close()
    await former.close()


async def test_a_listener_may_seek(log: Log) -> None:
    await fill(log, records=10)

    class Seeking:
        consumer: Consumer

        async def on_revoked(self, partitions: Sequence[TopicPartition]) -> None:
            pass

        async def on_assigned(self, partitions: Sequence[TopicPartition]) -> None:
            await self.consumer.seek({PLAN_0: 8})

    listener = Seeking()
    listener.consumer = await log.consumer("readers", [topics.SIGNALS_PLAN], listener)
    assert values(await poll_until(listener.consumer, 2)) == numbers(8, 10)
    await listener.consumer.close()


async def test_a_listener_that_fails_fails_the_poll(log: Log) -> None:
    class Failing:
        async def on_revoked(self, partitions: Sequence[TopicPartition]) -> None:
            raise ConnectionResetError("while letting go")

        async def on_assigned(self, partitions: Sequence[TopicPartition]) -> None:
            raise ConnectionRefusedError("while taking over")

    consumer = await log.consumer("readers", [topics.SIGNALS_PLAN], Failing())
    with pytest.raises(ConnectionRefusedError, match="while taking over"):
        await join(consumer)
        await consumer.poll(1, 5.0)
    with pytest.raises(ConnectionResetError, match="while letting go"):
        await consumer.close()
    with pytest.raises(LogError, match="closed"):
        other = await log.consumer("readers", [topics.SIGNALS_PLAN])
        await other.close()
        await other.poll(1, 0.1)


# Crashes


def run_worker(backend: Backend, mode: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.integration.log_worker", backend.description(), mode]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def kill_after(worker: subprocess.Popen[str], transactions: int, rest_s: float) -> dict[int, int]:
    """Kill -9 some time after so many transactions; where the worker started, by partition."""
    assert worker.stdout is not None
    starts: dict[int, int] = {}
    for line in worker.stdout:
        word, *parts = line.split()
        if word == "start":
            starts[int(parts[0])] = int(parts[1])
        transactions -= word == "done"
        if transactions == 0:
            break
    try:
        worker.wait(rest_s)
    except subprocess.TimeoutExpired:
        worker.kill()
    lines = worker.stdout.read().split("\n")
    worker.wait()
    worker.stdout.close()
    for line in lines:
        if line.startswith("start"):
            _, part, offset = line.split()
            starts[int(part)] = int(offset)
    return starts


async def copied(backend: Backend) -> dict[int, list[int]]:
    """The outputs of each partition, once what a killed worker left has been settled."""
    log = backend.log()
    await log.open()
    producers: list[TransactionalProducer] = []
    outputs = {}
    for part in (0, 1):
        producers.append(await log.transactional_producer(f"copier-{part}"))
        outputs[part] = [int(value or b"") for value in values(await replayed(log, TARGET, part))]
    for producer in producers:
        await producer.close()
    await log.close()
    return outputs


async def test_kill_9_loses_nothing_and_copies_nothing_twice(durable: Backend) -> None:
    chance = random.Random(20)
    records = 12_000
    log = durable.log()
    await log.open()
    appender = await log.appender()
    for part in (0, 1):
        chunks = [chunk(SOURCE, part, *numbered(i, 3)) for i in range(0, records, 3)]
        await appender.append(chunks)
    await appender.close()
    await log.close()

    outputs: dict[int, list[int]] = {0: [], 1: []}
    for _ in range(4):
        worker = run_worker(durable, "until killed")
        starts = await asyncio.to_thread(
            kill_after, worker, chance.randint(1, 12), chance.random() * 0.05
        )
        for part, start in starts.items():
            assert start == len(outputs[part])
        outputs = await copied(durable)
        for copies in outputs.values():
            assert copies == list(range(len(copies)))
    assert 0 < len(outputs[0]) + len(outputs[1]) < 2 * records

    worker = run_worker(durable, "once")
    await asyncio.to_thread(worker.communicate)
    assert worker.returncode == 0
    assert await copied(durable) == {0: list(range(records)), 1: list(range(records))}
