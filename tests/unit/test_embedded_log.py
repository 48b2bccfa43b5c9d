"""The embedded log's own promises: its file, its lock, group commit, and bounded growth."""

import asyncio
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from bss_stream import topics
from bss_stream._engine import unpack
from bss_stream.errors import FencedError, LogError
from bss_stream.log.embedded import EmbeddedLog, Policy
from bss_stream.log.groups import assign_ranges
from bss_stream.log.protocol import Log, TopicPartition
from bss_stream.log.sqlite_file import FILE, LOCK
from tests.eventually import eventually
from tests.logs import IN_VAIN_S, chunk, numbered, poll_until, replayed, values

PARTITIONS = 2
PLAN_0 = TopicPartition(topics.SIGNALS_PLAN, 0)

Opener = Callable[..., AbstractAsyncContextManager[EmbeddedLog]]


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now_ms = 1_000_000

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def opened(tmp_path: Path, clock: Clock) -> Opener:
    """Opens the test's log, with the test's clock."""

    @asynccontextmanager
    async def open_log(policy: Policy | None = None) -> AsyncIterator[EmbeddedLog]:
        log = EmbeddedLog(
            tmp_path / "log",
            partitions=PARTITIONS,
            durability="process",
            policy=policy,
            clock_ms=clock,
        )
        await log.open()
        try:
            yield log
        finally:
            await log.close()

    return open_log


async def put(log: Log, topic: str, *records: tuple[bytes, bytes | None]) -> None:
    """One append for each record, so one row for each."""
    appender = await log.appender()
    for record in records:
        await appender.append([chunk(topic, 0, record)])


def stored_rows(tmp_path: Path, topic: str) -> int:
    """How many rows a topic takes in the file."""
    connection = sqlite3.connect(tmp_path / "log" / FILE)
    query = "SELECT count(*) FROM chunk NATURAL JOIN stream WHERE topic = ?"
    (count,) = connection.execute(query, (topic,)).fetchone()
    connection.close()
    return int(count)


def test_it_is_a_log() -> None:
    log: Log = EmbeddedLog(Path("never-opened"), partitions=PARTITIONS)
    assert log.partitions == PARTITIONS


# The file and its lock


async def test_everything_is_there_after_a_reopening(opened: Opener) -> None:
    async with opened() as log:
        await put(log, topics.SIGNALS_PLAN, *numbered(0, 4))
        producer = await log.transactional_producer("shard")
        async with producer.transaction() as transaction:
            transaction.append([chunk(topics.OUTBOX, 1, *numbered(0, 2))])
            transaction.offsets("processor", {PLAN_0: 3})
    async with opened() as log:
        await put(log, topics.SIGNALS_PLAN, *numbered(4, 1))
        (fetched,) = await replayed(log, *PLAN_0)
        assert list(fetched.offsets) == [0, 1, 2, 3, 4]
        assert values(await replayed(log, topics.OUTBOX, 1)) == [b"0", b"1"]
        consumer = await log.consumer("processor", [topics.SIGNALS_PLAN])
        assert values(await poll_until(consumer, 2)) == [b"3", b"4"]
        # Epochs are kept too: the producer of the first opening is older than this one's.
        with pytest.raises(LogError, match="closed"):
            async with producer.transaction():
                pass


async def test_a_second_process_is_told_who_has_the_log(opened: Opener, tmp_path: Path) -> None:
    script = (
        "import asyncio, pathlib, sys\n"
        "from bss_stream.errors import LogError\n"
        "from bss_stream.log.embedded import EmbeddedLog\n"
        "try:\n"
        "    asyncio.run(EmbeddedLog(pathlib.Path(sys.argv[1]), partitions=2).open())\n"
        "except LogError as error:\n"
        "    sys.exit(str(error))\n"
    )
    async with opened():
        command = [sys.executable, "-c", script, str(tmp_path / "log")]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)
        assert done.returncode == 1
        assert str(tmp_path / "log" / LOCK) in done.stderr
        assert "stop that process" in done.stderr
        with pytest.raises(LogError, match=r"in use by process \d+"):
            async with opened():
                pass
    async with opened():
        pass


async def test_another_process_replays_while_the_owner_writes(
    opened: Opener, tmp_path: Path
) -> None:
    script = (
        "import asyncio, pathlib, sys\n"
        "from bss_stream.log.embedded import EmbeddedLog\n"
        "async def main():\n"
        "    log = EmbeddedLog.read_only(pathlib.Path(sys.argv[1]))\n"
        "    await log.open()\n"
        "    async for fetched in log.replay('bss.ledger.payment', 0):\n"
        "        print(log.partitions, len(fetched.offsets), fetched.next_offset)\n"
        "    await log.close()\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "log")]
    async with opened() as log:
        await put(log, topics.LEDGER_PAYMENT, *numbered(0, 5))
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)
        assert (done.stdout, done.stderr) == ("2 5 5\n", "")
        await put(log, topics.LEDGER_PAYMENT, *numbered(5, 1))
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("2 6 6\n", "")


async def test_a_reader_needs_a_log_and_a_known_partition(opened: Opener, tmp_path: Path) -> None:
    missing = EmbeddedLog.read_only(tmp_path / "nowhere")
    with pytest.raises(LogError, match=r"nowhere.*check that it exists"):
        await missing.open()
    await missing.close()
    async with opened():
        pass
    reader = EmbeddedLog.read_only(tmp_path / "log")
    await reader.open()
    with pytest.raises(LogError, match=r"no bss\.outbox/2"):
        reader.replay(topics.OUTBOX, 2)
    await reader.close()


async def test_a_log_keeps_its_number_of_partitions(opened: Opener, tmp_path: Path) -> None:
    async with opened():
        pass
    other = EmbeddedLog(tmp_path / "log", partitions=8)
    with pytest.raises(LogError, match=r"has 2 partitions a topic and 8 were asked for"):
        await other.open()
    # The refused opening has let the lock go.
    async with opened():
        pass


async def test_a_damaged_file_is_named(opened: Opener, tmp_path: Path) -> None:
    async with opened():
        pass
    (tmp_path / "log" / FILE).write_bytes(b"no database" * 1000)
    with pytest.raises(LogError, match=rf"{FILE}.*restore it from a backup"):
        async with opened():
            pass


async def test_a_newer_layout_is_refused(opened: Opener, tmp_path: Path) -> None:
    async with opened():
        pass
    connection = sqlite3.connect(tmp_path / "log" / FILE)
    connection.execute("PRAGMA user_version = 7")
    connection.close()
    with pytest.raises(LogError, match="has layout 7, this program reads 1: upgrade bss_stream"):
        async with opened():
            pass


async def test_a_full_disk_fails_the_append_and_nothing_else(
    opened: Opener, tmp_path: Path
) -> None:
    async with opened() as log:
        await put(log, topics.OUTBOX, *numbered(0, 3))
        connection = log._store._connection
        assert connection is not None
        # SQLite's own limit gives the error that a full disk gives.
        connection.execute("PRAGMA max_page_count = 1")
        appender = await log.appender()
        with pytest.raises(LogError, match=rf"{FILE}.*the disk is full"):
            await appender.append([chunk(topics.OUTBOX, 0, (b"k", b"x" * 100_000))])
        connection.execute("PRAGMA max_page_count = 100000")
        await put(log, topics.OUTBOX, *numbered(3, 1))
        (fetched,) = await replayed(log, topics.OUTBOX, 0)
        assert list(fetched.offsets) == [0, 1, 2, 3]
        assert values([fetched]) == [b"0", b"1", b"2", b"3"]


async def test_a_closed_log_refuses_writes(opened: Opener) -> None:
    async with opened() as log:
        appender = await log.appender()
        consumer = await log.consumer("readers", [topics.OUTBOX])
    with pytest.raises(LogError, match="closed"):
        await appender.append([chunk(topics.OUTBOX, 0, (b"k", b"v"))])
    with pytest.raises(LogError, match="closed"):
        await consumer.poll(1, 0.0)


# Group commit


async def test_requests_of_one_commit_do_not_share_their_failures(opened: Opener) -> None:
    async with opened() as log:
        appender = await log.appender()
        zombie = await log.transactional_producer("shard")
        owners = [zombie]

        async def take_over() -> None:
            owners[0] = await log.transactional_producer("shard")

        async def write(producer_of: int, value: bytes) -> None:
            producer = zombie if producer_of == 0 else owners[0]
            async with producer.transaction() as transaction:
                transaction.append([chunk(topics.OUTBOX, 0, (b"k", value))])

        # All of them are submitted before the writer thread can have finished a commit.
        outcomes = await asyncio.gather(
            *(appender.append([chunk(topics.OUTBOX, 0, (b"a", b"%d" % i))]) for i in range(5)),
            take_over(),
            write(0, b"zombie"),
            *(appender.append([chunk(topics.OUTBOX, 0, (b"a", b"%d" % i))]) for i in range(5, 9)),
            return_exceptions=True,
        )
        failures = [outcome for outcome in outcomes if outcome is not None]
        assert [type(failure) for failure in failures] == [FencedError]
        await write(1, b"owner")
        expected = [b"%d" % i for i in range(9)] + [b"owner"]
        assert values(await replayed(log, topics.OUTBOX, 0)) == expected


async def test_many_writers_share_commits(opened: Opener) -> None:
    async with opened() as log:
        appender = await log.appender()
        producers = [await log.transactional_producer(f"shard-{i}") for i in range(4)]

        async def append(first: int) -> None:
            await appender.append([chunk(topics.SIGNALS_PLAN, 0, *numbered(first, 2))])

        async def transact(i: int, round_: int) -> None:
            async with producers[i].transaction() as transaction:
                transaction.append([chunk(topics.OUTBOX, 0, (b"%d" % i, b"%d" % round_))])
                transaction.offsets(f"group-{i}", {PLAN_0: round_})

        for round_ in range(20):
            await asyncio.gather(
                *(append(round_ * 100 + i * 2) for i in range(50)),
                *(transact(i, round_) for i in range(4)),
            )
        signals = await replayed(log, *PLAN_0)
        assert values(signals) == [b"%d" % i for i in range(2000)]
        outputs = [rec for one in await replayed(log, topics.OUTBOX, 0) for rec in unpack(one.data)]
        for i in range(4):
            mine = [value for key, value in outputs if key == b"%d" % i]
            assert mine == [b"%d" % round_ for round_ in range(20)]


async def test_a_loop_that_is_never_idle_does_not_starve_the_writer(opened: Opener) -> None:
    """Without the loop's giving way these appends take minutes (log/giveway.py)."""
    async with opened() as log:
        appender = await log.appender()
        finished = False

        async def never_idle() -> None:
            while not finished:
                sum(range(20_000))
                await asyncio.sleep(0)

        busy = asyncio.create_task(never_idle())
        async with asyncio.timeout(IN_VAIN_S):
            for i in range(1000):
                await appender.append([chunk(topics.OUTBOX, 0, *numbered(i, 1))])
        finished = True
        await busy
        assert len(values(await replayed(log, topics.OUTBOX, 0))) == 1000


async def test_a_consumer_that_fell_behind_gets_everything_in_order(opened: Opener) -> None:
    async with opened() as log:
        consumer = await log.consumer("readers", [topics.SIGNALS_PLAN])
        appender = await log.appender()
        big = b"x" * 400_000
        # More than is kept in memory for it, and more than one read of the file gives.
        for i in range(40):
            records = [(b"%d" % i, big), (b"%d" % i, b"last")]
            await appender.append([chunk(topics.SIGNALS_PLAN, 0, *records)])
        found = await poll_until(consumer, 80)
        keys = [key for one in found for key, _ in unpack(one.data)]
        assert keys == [b"%d" % (i // 2) for i in range(80)]
        assert [offset for one in found for offset in one.offsets] == list(range(80))
        await put(log, topics.SIGNALS_PLAN, (b"k", b"caught up"))
        assert values(await poll_until(consumer, 1)) == [b"caught up"]


# Compaction


EAGER = Policy(keep_consumed_ms=1000, compact_records_min=1)


async def test_compaction_keeps_the_newest_record_of_each_key(
    opened: Opener, tmp_path: Path
) -> None:
    async with opened(EAGER) as log:
        await put(
            log,
            topics.STATE_PLAN,
            (b"a", b"1"),
            (b"b", b"1"),
            (b"gone", b"1"),
            (b"a", b"2"),
            (b"gone", None),
            (b"b", b"2"),
            (b"a", b"3"),
        )
        await log.tidy()
        (fetched,) = await replayed(log, topics.STATE_PLAN, 0)
        # The last row stays as it is, whatever it holds: it is where the partition ends.
        assert list(zip(fetched.offsets, unpack(fetched.data), strict=True)) == [
            (3, (b"a", b"2")),
            (5, (b"b", b"2")),
            (6, (b"a", b"3")),
        ]
        assert fetched.next_offset == 7
        assert stored_rows(tmp_path, topics.STATE_PLAN) == 2
        await put(log, topics.STATE_PLAN, (b"c", b"1"), (b"d", b"1"))
        await log.tidy()
        (fetched,) = await replayed(log, topics.STATE_PLAN, 0)
        assert list(zip(fetched.offsets, unpack(fetched.data), strict=True)) == [
            (5, (b"b", b"2")),
            (6, (b"a", b"3")),
            (7, (b"c", b"1")),
            (8, (b"d", b"1")),
        ]


async def test_compaction_waits_until_it_is_worth_it(opened: Opener, tmp_path: Path) -> None:
    async with opened(Policy(compact_records_min=10)) as log:
        await put(log, topics.STATE_PLAN, *numbered(0, 10))
        await log.tidy()
        assert stored_rows(tmp_path, topics.STATE_PLAN) == 10
        await put(log, topics.STATE_PLAN, *numbered(10, 1))
        await log.tidy()
        # All that were ten have become one; the newest stays by itself.
        assert stored_rows(tmp_path, topics.STATE_PLAN) == 2


async def test_compaction_of_many_records_goes_in_steps(opened: Opener) -> None:
    async with opened(EAGER) as log:
        appender = await log.appender()
        newest: dict[bytes, bytes] = {}
        for round_ in range(30):
            records = [(b"%d" % (i % 701), b"%d-%d" % (round_, i)) for i in range(round_, 1200, 3)]
            newest.update(records)
            await appender.append([chunk(topics.STATE_PLAN, 0, *records)])
            if round_ % 10 == 9:
                await log.tidy()
        found = await replayed(log, topics.STATE_PLAN, 0)
        assert dict(rec for one in found for rec in unpack(one.data)) == newest
        offsets = [offset for one in found for offset in one.offsets]
        assert offsets == sorted(set(offsets))
        # All but the newest row is down to one record a key.
        assert len(offsets) <= len(newest) + 400


async def test_a_replay_sees_one_state_of_a_log_that_is_compacted_meanwhile(opened: Opener) -> None:
    big = b"x" * 5_000_000
    async with opened(EAGER) as log:
        await put(log, topics.STATE_PLAN, (b"a", big), (b"b", big), (b"c", big))
        replay = log.replay(topics.STATE_PLAN, 0)
        first = await anext(replay)
        assert list(first.offsets) == [0, 1]
        await put(log, topics.STATE_PLAN, (b"a", b"2"), (b"c", None), (b"d", b"1"))
        await log.tidy()
        assert [list(one.offsets) for one in await replayed(log, topics.STATE_PLAN, 0)] == [
            [1, 3, 5]
        ]
        assert [list(one.offsets) async for one in replay] == [[2]]


async def test_only_states_are_compacted(opened: Opener) -> None:
    async with opened(EAGER) as log:
        for topic in (topics.LEDGER_PAYMENT, topics.LEDGER_SERVICE, topics.DEAD_LETTER):
            await put(log, topic, *numbered(0, 9))
        await log.tidy()
        for topic in (topics.LEDGER_PAYMENT, topics.LEDGER_SERVICE, topics.DEAD_LETTER):
            assert values(await replayed(log, topic, 0)) == [b"%d" % i for i in range(9)]


# Retention


async def test_what_every_group_has_consumed_is_trimmed_once_it_is_old(
    opened: Opener, clock: Clock
) -> None:
    async with opened(EAGER) as log:
        slow = await log.consumer("slow", [topics.SIGNALS_PLAN])
        fast = await log.consumer("fast", [topics.SIGNALS_PLAN])
        await put(log, topics.SIGNALS_PLAN, *numbered(0, 10))
        await poll_until(slow, 10)
        await poll_until(fast, 10)
        await fast.commit({PLAN_0: 10})
        await slow.commit({PLAN_0: 4})
        await log.tidy()
        assert len(values(await replayed(log, *PLAN_0))) == 10
        clock.now_ms += 1001
        await log.tidy()
        (fetched,) = await replayed(log, *PLAN_0)
        assert list(fetched.offsets) == [4, 5, 6, 7, 8, 9]
        await slow.commit({PLAN_0: 10})
        await log.tidy()
        # The newest row stays: it is where the partition ends.
        (fetched,) = await replayed(log, *PLAN_0)
        assert list(fetched.offsets) == [9]
    async with opened(EAGER) as log:
        await put(log, topics.SIGNALS_PLAN, *numbered(10, 1))
        (fetched,) = await replayed(log, *PLAN_0)
        assert list(fetched.offsets) == [9, 10]


async def test_what_a_group_has_never_committed_is_not_trimmed(
    opened: Opener, clock: Clock
) -> None:
    async with opened(EAGER) as log:
        await log.consumer("never commits", [topics.SIGNALS_PLAN])
        await put(log, topics.SIGNALS_PLAN, *numbered(0, 5))
        await put(log, topics.OUTBOX, *numbered(0, 5))
        clock.now_ms += 1_000_000
        await log.tidy()
        assert len(values(await replayed(log, *PLAN_0))) == 5
        # Nobody has read the outbox yet: somebody will.
        assert len(values(await replayed(log, topics.OUTBOX, 0))) == 5


async def test_ledgers_and_dead_letters_are_never_trimmed(opened: Opener, clock: Clock) -> None:
    kept = (*topics.LEDGERS, topics.DEAD_LETTER)
    async with opened(EAGER) as log:
        consumer = await log.consumer("sink", kept)
        for topic in kept:
            await put(log, topic, *numbered(0, 3))
        await poll_until(consumer, 9)
        await consumer.commit({TopicPartition(topic, 0): 3 for topic in kept})
        clock.now_ms += 1_000_000
        await log.tidy()
        for topic in kept:
            assert values(await replayed(log, topic, 0)) == [b"0", b"1", b"2"]


async def test_the_writer_tidies_on_its_own(opened: Opener, clock: Clock, tmp_path: Path) -> None:
    async with opened(EAGER) as log:
        await put(log, topics.STATE_PLAN, *numbered(0, 50))
        await eventually(lambda: stored_rows(tmp_path, topics.STATE_PLAN) <= 2)
        assert values(await replayed(log, topics.STATE_PLAN, 0))[-1] == b"49"


async def test_a_copy_of_the_file_is_a_log(opened: Opener, tmp_path: Path) -> None:
    """A cold backup is a copy of the directory."""
    async with opened() as log:
        await put(log, topics.LEDGER_PAYMENT, *numbered(0, 3))
    shutil.copytree(tmp_path / "log", tmp_path / "copy")
    copy = EmbeddedLog.read_only(tmp_path / "copy")
    await copy.open()
    found = [fetched async for fetched in copy.replay(topics.LEDGER_PAYMENT, 0)]
    assert values(found) == [b"0", b"1", b"2"]
    await copy.close()


# Assignment


@pytest.mark.parametrize(
    ("members", "partitions", "expected"),
    [
        (1, 3, [[0, 1, 2]]),
        (2, 3, [[0, 1], [2]]),
        (3, 8, [[0, 1, 2], [3, 4, 5], [6, 7]]),
        (3, 2, [[0], [1], []]),
    ],
)
def test_ranges_are_contiguous_and_equal_over_topics(
    members: int, partitions: int, expected: list[list[int]]
) -> None:
    shares = assign_ranges([topics.SIGNALS] * members, partitions)
    for share, numbers in zip(shares, expected, strict=True):
        for topic in topics.SIGNALS:
            assert [part for name, part in share if name == topic] == numbers


def test_members_with_different_topics_share_only_what_they_read() -> None:
    shares = assign_ranges([[topics.OUTBOX], topics.LEDGERS, [topics.OUTBOX]], 2)
    assert shares[0] == [TopicPartition(topics.OUTBOX, 0)]
    assert shares[2] == [TopicPartition(topics.OUTBOX, 1)]
    assert len(shares[1]) == 4
