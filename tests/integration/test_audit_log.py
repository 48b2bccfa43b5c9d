"""The balance of a log: clean over real traffic, and wrong when anything is taken away or added."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from bss_stream import topics
from bss_stream._engine import unpack
from bss_stream.audit import LogBalance, balance_log
from bss_stream.dead_letters import Filter, Rules, replay
from bss_stream.frames import REPLAY, Signal, encode_signal
from bss_stream.log.embedded import EmbeddedLog
from bss_stream.log.protocol import Fetched, Log
from bss_stream.processor import Ending
from tests.integration.processing import TABLE, Clock, append, running, traffic
from tests.logs import PARTITIONS, chunk

REQUESTS = 400


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[EmbeddedLog]:
    log = EmbeddedLog(tmp_path / "log", partitions=PARTITIONS, durability="process")
    await log.open()
    yield log
    await log.close()


async def worked_through(log: Log) -> LogBalance:
    """A log with good and bad traffic that a processor has come to the end of; its balance."""
    arrivals = traffic(plans=40, requests=REQUESTS, seed=9)
    await append(log, arrivals)
    # Whatever ARM has not answered is given up by then.
    clock = Clock(max(arrival.received_ms for arrival in arrivals) + 3_600_000)
    async with running(log, clock, drain=True) as at_work:
        await at_work.until(lambda: at_work.processor.counters.records > len(arrivals))
        while (await balance_log(log)).unanswered:
            await at_work.ticked(clock)
    counters = at_work.processor.counters
    assert counters.balance() == []
    balance = await balance_log(log, at_rest=True)
    assert (balance.faults, balance.ok) == ([], True)
    assert balance.signals == len(arrivals)
    assert counters.records == balance.signals + balance.internal
    # Some letters are records of what has been applied all the same.
    assert balance.dead_letters["processor"] >= counters.endings[Ending.DEAD_LETTERED] > 0
    assert balance.answered == balance.requests > REQUESTS // 2
    assert balance.entries > REQUESTS // 2
    return balance


class Changed:
    """A log as it would be with other records."""

    def __init__(self, log: Log, change: Callable[[str, Fetched], Fetched | None]) -> None:
        self.partitions = log.partitions
        self._log = log
        self._change = change

    async def open(self) -> None:
        await self._log.open()

    async def close(self) -> None:
        await self._log.close()

    async def replay(self, topic: str, partition: int, start: int = 0) -> AsyncIterator[Fetched]:
        async for fetched in self._log.replay(topic, partition, start):
            changed = self._change(topic, fetched)
            if changed is not None:
                yield changed


async def test_what_has_come_to_its_end_adds_up(log: EmbeddedLog) -> None:
    balance = await worked_through(log)
    balance.check_copied(balance.entries)
    assert balance.ok
    balance.check_copied(balance.entries - 1)
    assert not balance.ok


@pytest.mark.parametrize(
    ("taken", "fault"),
    [
        (topics.OUTBOX, "has no answer"),
        (topics.SIGNALS_PLAN, "it has a dead letter, and is not there"),
    ],
)
async def test_what_is_taken_away_is_missed(log: EmbeddedLog, taken: str, fault: str) -> None:
    await worked_through(log)

    def without(topic: str, fetched: Fetched) -> Fetched | None:
        if topic != taken:
            return fetched
        # All but the first record of a partition: what follows is lost.
        first = chunk(topic, fetched.partition, *unpack(fetched.data)[:1])
        return fetched._replace(offsets=fetched.offsets[:1], data=bytes(first.data), next_offset=1)

    balance = await balance_log(Changed(log, without), drained=True)
    assert not balance.ok
    assert any(fault in line for line in balance.faults), balance.faults


async def test_a_letter_that_is_there_twice_is_one_too_many(log: EmbeddedLog) -> None:
    await worked_through(log)

    def doubled(topic: str, fetched: Fetched) -> Fetched:
        if topic != topics.DEAD_LETTER:
            return fetched
        offsets = [*fetched.offsets, *(fetched.next_offset + o for o in fetched.offsets)]
        return fetched._replace(offsets=offsets, data=fetched.data * 2)

    balance = await balance_log(Changed(log, doubled), drained=True)
    assert all("it has 2 dead letters" in line for line in balance.faults)
    assert balance.faults


async def test_what_is_not_processed_yet_is_a_fault_only_at_rest(log: EmbeddedLog) -> None:
    await append(log, traffic(plans=5, requests=20, seed=1))
    running_on = await balance_log(log)
    assert running_on.ok
    assert running_on.unanswered == running_on.requests > 0
    assert not (await balance_log(log, drained=True)).ok


async def test_replays_and_their_records(log: EmbeddedLog) -> None:
    await worked_through(log)
    clock = Clock()
    rules = Rules(table=TABLE, now_ms=clock.now_ms, age_ms_max=10**12, dedupe_window_ms=0)
    await replay(log, "replay", Filter(), rules, limit=3, note="", clock_ms=clock)
    async with running(log, clock, drain=True):
        pass
    balance = await balance_log(log, drained=True)
    assert (balance.replays, balance.faults) == (3, [])
    forged = Signal("odoo_sync", clock.now_ms, "", f"{REPLAY}emit/x", b"{}")
    appender = await log.appender()
    await appender.append([chunk(topics.SIGNALS_STATION, 0, (b"s", encode_signal(forged)))])
    await appender.close()
    balance = await balance_log(log, drained=True)
    assert balance.faults == [
        f"{topics.SIGNALS_STATION}: 1 signals are replays and no record says so"
    ]
