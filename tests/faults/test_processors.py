"""Processors of one group on a real Kafka that come, go, freeze and are slow."""

import asyncio
import itertools
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from bss_stream import topics
from bss_stream.errors import OffsetOutOfRangeError
from bss_stream.log.protocol import Log
from tests.faults.processed import finish_and_check
from tests.faults.slow_log import SlowLog
from tests.integration.processing import GROUP, Running, append, running, traffic
from tests.logs import IN_VAIN_S, PARTITIONS, KafkaBackend, kafka_options
from tests.undisturbed import read_log

pytestmark = pytest.mark.kafka

ALL_SHARDS = frozenset(range(PARTITIONS))

SLOW_S = 3.0
"""Longer than the session time-out of a group's members."""

TRIES = 5
"""How often a processor is frozen, if need be, to catch it in a transaction."""

_prefixes = itertools.count()


@pytest.fixture
def backend(kafka: str) -> KafkaBackend:
    return KafkaBackend(kafka_options(kafka, f"fault-{next(_prefixes)}"))


@pytest.fixture
async def log(backend: KafkaBackend) -> AsyncIterator[Log]:
    log = backend.log()
    await log.open()
    yield log
    await log.close()


class Zombie:
    """A processor in a process of its own, to be frozen; what it logs goes into a file."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process = process
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    async def records_done(self, more: int) -> None:
        """Wait until it has taken so many records more; it tells so before it commits them."""
        assert self._process.stdout is not None
        async with asyncio.timeout(IN_VAIN_S):
            first = None
            while True:
                line = await self._process.stdout.readline()
                assert line, self.log
                first = int(line) if first is None else first
                if int(line) >= first + more:
                    return

    def freeze(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)


@asynccontextmanager
async def in_a_process(backend: KafkaBackend, file: Path) -> AsyncIterator[Zombie]:
    """A processor in a process, killed at the end."""
    with file.open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.integration.processor_process", backend.description()),
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
        )
    try:
        yield Zombie(process, file)
    finally:
        process.kill()
        await process.wait()


async def test_a_zombie_is_fenced_and_applies_nothing(
    backend: KafkaBackend, log: Log, tmp_path: Path
) -> None:
    """Frozen in a transaction past its session's end, and woken when others have its shards."""
    arrivals = traffic(plans=60, requests=1_200, seed=21)
    loading = asyncio.create_task(append(log, arrivals, at_once=5))
    async with in_a_process(backend, tmp_path / "zombie.log") as zombie:
        for _ in range(TRIES):
            await zombie.records_done(20)
            zombie.freeze()
            async with running(log, lambda: 0, batch_records_max=10) as heir:
                await heir.until(lambda: heir.processor.shards == ALL_SHARDS)
                done = heir.processor.counters.records
                await heir.until(lambda: heir.processor.counters.records > done)  # noqa: B023
                zombie.thaw()
                await heir.until(lambda: 0 < len(heir.processor.shards) < PARTITIONS)
            if "another owner has taken over" in zombie.log:
                break
        assert "another owner has taken over" in zombie.log
        await loading
    await finish_and_check(log, arrivals, tmp_path)


async def test_ten_processors_that_join_within_a_second(log: Log, tmp_path: Path) -> None:
    """Four get a shard each, six stand by; when all leave but one, that one has everything."""
    arrivals = traffic(plans=40, requests=600, seed=22)
    loading = asyncio.create_task(append(log, arrivals, at_once=2))
    async with running(log, lambda: 0, batch_records_max=10) as first:
        await first.until(lambda: first.processor.counters.records > 10)
        async with AsyncExitStack() as stack:
            others = await asyncio.gather(
                *(stack.enter_async_context(running(log, lambda: 0)) for _ in range(9))
            )
            members = [first, *others]

            def shared_out() -> bool:
                shares = [member.processor.shards for member in members]
                return sorted(map(len, shares)) == [0] * 6 + [1] * 4 and (
                    frozenset().union(*shares) == ALL_SHARDS
                )

            await first.until(shared_out)
        await first.until(lambda: first.processor.shards == ALL_SHARDS)
        assert sum(member.processor.counters.rejoined for member in members) == 0
        await loading
    await finish_and_check(log, arrivals, tmp_path)


async def test_a_rebalance_during_a_restore(log: Log, tmp_path: Path) -> None:
    """A second member joins while the first one restores, for longer than a session lasts."""
    arrivals = traffic(plans=40, requests=260, seed=23)
    half = len(arrivals) // 2
    await append(log, arrivals[:half])
    async with running(log, lambda: 0, drain=True):
        pass
    await append(log, arrivals[half:])
    slow = SlowLog(log)
    slow.restoring.clear()
    async with running(slow, lambda: 0) as first:
        await first.until(lambda: slow.waiting > 0)
        async with running(log, lambda: 0) as second:
            await asyncio.sleep(SLOW_S)
            slow.restoring.set()

            def split() -> bool:
                shares = first.processor.shards, second.processor.shards
                return all(shares) and shares[0] | shares[1] == ALL_SHARDS

            await second.until(split)
            # And one more while the first restores once more what the second gives back.
            slow.restoring.clear()
            waiting = slow.waiting
        await first.until(lambda: slow.waiting > waiting)
        async with running(log, lambda: 0) as third:
            slow.restoring.set()
            await third.until(lambda: len(third.processor.shards) == PARTITIONS // 2)
    await finish_and_check(log, arrivals, tmp_path)


async def test_a_slow_revoke_is_no_livelock(log: Log, tmp_path: Path) -> None:
    """A transaction under way takes longer than a session lasts; members come and go meanwhile."""
    arrivals = traffic(plans=40, requests=260, seed=24)
    await append(log, arrivals)
    slow = SlowLog(log, commit_pause_s=SLOW_S)
    async with running(slow, lambda: 0, batch_records_max=40) as first:
        await first.until(lambda: first.processor.counters.records > 0)
        for _ in range(2):
            async with running(log, lambda: 0, batch_records_max=1) as other:
                await other.until(lambda: len(other.processor.shards) > 0)
                await other.until(lambda: other.processor.counters.records > 0)
        await first.until(lambda: first.processor.shards == ALL_SHARDS)
        assert first.processor.counters.rejoined == 0
        assert first.processor.counters.transactions > 0
    await finish_and_check(log, arrivals, tmp_path)


# Kafka forgets the offsets of a group long without members, and then it is as good as a new one.
@pytest.mark.parametrize("group", [GROUP, "forgotten"])
async def test_retention_that_overruns_a_stopped_processor_stops_it_loudly(
    backend: KafkaBackend, log: Log, group: str
) -> None:
    """It names the group and the topic and what to do; what is left is not skipped to."""
    arrivals = traffic(plans=40, requests=260, seed=25)
    third = len(arrivals) // 3
    await append(log, arrivals[:third])
    async with running(log, lambda: 0, drain=True):
        pass
    await append(log, arrivals[third:])
    before = await read_log(log)
    signals = [record for record in before[topics.SIGNALS_PLAN] if record.partition == 1]
    await backend.trim(log, topics.SIGNALS_PLAN, 1, signals[-1].offset)
    with pytest.raises(OffsetOutOfRangeError, match=rf"{group}.*(set its |reset-)offset") as told:
        async with running(log, lambda: 0, group=group) as at_work:
            await stopped(at_work)
    assert "bss.signals.plan" in str(told.value)
    after = await read_log(log)
    for topic in topics.LEDGERS:
        # Other shards may have gone on; this one has not.
        mine = [record for record in after[topic] if record.partition == 1]
        assert mine == [record for record in before[topic] if record.partition == 1]


async def stopped(at_work: Running) -> None:
    """Wait until a processor has ended by itself."""
    async with asyncio.timeout(IN_VAIN_S):
        await asyncio.wait([at_work.task])
