"""Ledgers reach SQL once each, whatever crashes, repeats or contradicts itself on the way."""

import asyncio
import itertools
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from bss_stream import topics
from bss_stream._engine import pack, partition_for
from bss_stream.audit import audit, collect_states
from bss_stream.errors import OffsetOutOfRangeError
from bss_stream.log.embedded import EmbeddedLog
from bss_stream.log.kafka import KafkaLog
from bss_stream.log.protocol import Chunk, Log, TopicPartition
from bss_stream.simulate.config import FaultShares, SimulationConfig
from bss_stream.sink import (
    LedgerSink,
    LedgerStore,
    SinkSettings,
    StoreUnavailableError,
    open_ledger_store,
)
from bss_stream.sink.entry import EntryRow
from tests.eventually import eventually
from tests.integration.databases import query
from tests.ledger_chain import PlanLedger
from tests.logs import join, kafka_options
from tests.servers.postgres import PostgresServer
from tests.simulated_day import SimulatedDay

PARTITIONS = 4
WAIT_S = 60.0
QUICK = SinkSettings(poll_timeout_s=0.02, backoff_s_min=0.02, backoff_s_max=0.1)

_prefixes = itertools.count()

Record = tuple[str, bytes, bytes | None]
"""Topic, key and value."""


@pytest.fixture
def store(ledger_url: str) -> Iterator[LedgerStore]:
    """The database as an auditor sees it, beside the sink's own connection."""
    opened = open_ledger_store(ledger_url)
    opened.open()
    yield opened
    opened.close()


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[EmbeddedLog]:
    opened = EmbeddedLog(tmp_path / "log", partitions=PARTITIONS)
    await opened.open()
    yield opened
    await opened.close()


def histories(plans: int, uses: int) -> list[PlanLedger]:
    """Plans with 3 + `uses` entries each, in both ledgers."""
    made = [PlanLedger(f"plan-{number:04}") for number in range(plans)]
    for plan in made:
        plan.pay("swap-count", 1010, 100)
        plan.grant("swap-count", uses)
        for _ in range(uses):
            plan.use("swap-count", 1)
    return made


def records(plans: Iterable[PlanLedger]) -> list[Record]:
    return [
        (topic, plan.plan_id.encode(), value) for plan in plans for topic, value in plan.entries
    ]


def chunks(records: Iterable[Record], chunk_records: int) -> Iterator[Chunk]:
    """The chunks in which records go where the engine would put them."""
    streams: dict[TopicPartition, list[tuple[bytes, bytes | None]]] = {}
    for topic, key, value in records:
        where = TopicPartition(topic, partition_for(key, PARTITIONS))
        streams.setdefault(where, []).append((key, value))
    for where, keyed in streams.items():
        for at in range(0, len(keyed), chunk_records):
            part = keyed[at : at + chunk_records]
            yield Chunk(*where, len(part), pack(part))


async def append(log: Log, records: Iterable[Record], chunk_records: int = 500) -> None:
    appender = await log.appender()
    await appender.append(list(chunks(records, chunk_records)))
    await appender.close()


@asynccontextmanager
async def running(sink: LedgerSink) -> AsyncIterator[LedgerSink]:
    """A sink at work, drained and stopped at the end."""
    task = asyncio.create_task(sink.run())
    try:
        yield sink
    finally:
        sink.stop()
        await task
        assert sink.counters.balance() == []


async def drained(log: Log, url: str, settings: SinkSettings = QUICK) -> LedgerSink:
    """Run a sink until it has written what the log holds."""
    sink = LedgerSink(log, open_ledger_store(url), settings)
    async with running(sink):
        await eventually(lambda: sink.counters.batches > 0, WAIT_S)
    return sink


def stored(store: LedgerStore) -> list[EntryRow]:
    with store.snapshot() as snapshot:
        return list(snapshot.entries())


def expected(plans: Iterable[PlanLedger]) -> list[EntryRow]:
    return [row for plan in plans for row in plan.rows()]


async def test_every_entry_arrives_with_its_columns_and_bytes(
    log: EmbeddedLog, ledger_url: str, store: LedgerStore
) -> None:
    plans = histories(20, 5)
    await append(log, records(plans))
    sink = await drained(log, ledger_url)
    assert stored(store) == expected(plans)
    assert (sink.counters.entries, sink.counters.duplicates) == (160, 0)
    report = audit(store, [(plan.plan_id, plan.state()) for plan in plans], drained=True)
    assert report.differences == []
    assert report.ok


async def test_offsets_of_the_database_win_over_those_of_the_group(
    log: EmbeddedLog, ledger_url: str, store: LedgerStore
) -> None:
    """A group that claims too much loses nothing; one that claims nothing repeats nothing."""
    plans = histories(8, 3)
    await append(log, records(plans))
    consumer = await log.consumer(QUICK.group, topics.LEDGERS)
    ends: dict[TopicPartition, int] = {}
    while sum(ends.values()) < 48:
        for part in await consumer.poll(1000, 1):
            ends[TopicPartition(part.topic, part.partition)] = part.next_offset
    await consumer.commit(ends)
    await consumer.close()
    await drained(log, ledger_url)
    assert stored(store) == expected(plans)
    assert store.offsets() == ends

    more = [PlanLedger("plan-more")]
    more[0].deposit(10)
    await append(log, records(more))
    sink = await drained(log, ledger_url, QUICK._replace(group="another"))
    assert (sink.counters.entries, sink.counters.duplicates) == (1, 0)
    assert stored(store) == expected([*plans, *more])


async def test_an_impossible_offset_of_the_group_does_no_harm(
    log: EmbeddedLog, ledger_url: str, store: LedgerStore
) -> None:
    plans = histories(8, 3)
    await append(log, records(plans))
    consumer = await log.consumer(QUICK.group, topics.LEDGERS)
    await consumer.commit(dict.fromkeys(await join(consumer), 1_000_000))
    await consumer.close()
    await drained(log, ledger_url)
    assert stored(store) == expected(plans)


async def test_the_group_follows_for_lag_monitors(log: EmbeddedLog, ledger_url: str) -> None:
    await append(log, records(histories(8, 3)))
    await drained(log, ledger_url)
    consumer = await log.consumer(QUICK.group, topics.LEDGERS)
    while len(consumer.assignment()) < 2 * PARTITIONS:
        assert await consumer.poll(1000, 0.01) == []
    assert set((await consumer.lag()).values()) == {0}
    await consumer.close()


async def test_a_database_ahead_of_the_log_is_a_fault(
    log: EmbeddedLog, ledger_url: str, tmp_path: Path
) -> None:
    """A log that was made anew under an old database would lose its first entries in silence."""
    await append(log, records(histories(8, 3)))
    await drained(log, ledger_url)
    fresh = EmbeddedLog(tmp_path / "fresh", partitions=PARTITIONS)
    await fresh.open()
    with pytest.raises(OffsetOutOfRangeError):
        await LedgerSink(fresh, open_ledger_store(ledger_url), QUICK).run()
    await fresh.close()


async def test_sinks_that_come_and_go_share_the_work(
    log: EmbeddedLog, ledger_url: str, store: LedgerStore
) -> None:
    plans = histories(60, 7)
    whole = records(plans)
    sinks = [LedgerSink(log, open_ledger_store(ledger_url), QUICK) for _ in range(3)]
    async with running(sinks[0]):
        await append(log, whole[:200], 5)
        async with running(sinks[1]):
            await append(log, whole[200:300], 5)
        async with running(sinks[2]):
            await append(log, whole[300:], 5)
            await eventually(lambda: len(stored(store)) == len(whole), WAIT_S)
    assert stored(store) == expected(plans)
    assert all(not sink.counters.rejects for sink in sinks)


async def test_contradictions_are_kept_and_reported(
    log: EmbeddedLog, ledger_url: str, store: LedgerStore
) -> None:
    plan, other = histories(1, 3)[0], PlanLedger("plan-0000")
    other.deposit(10)  # has the id and seq of the plan's first entry
    topic, value = plan.entries[1]
    renamed = value.replace(b'"plan-0000-2-0"', b'"plan-0000-2-9"')
    key = plan.plan_id.encode()
    again = [(topic, key, value), (topic, key, renamed), *records([other])]
    await append(log, [*records([plan]), *again])
    sink = await drained(log, ledger_url)
    assert stored(store) == plan.rows()
    assert sink.counters.duplicates == 1
    assert sink.counters.rejects == {"seq_conflict": 1, "entry_id_conflict": 1}
    report = audit(store, [(plan.plan_id, plan.state())], drained=True)
    assert report.differences == []
    assert report.rejects == {"entry_id_conflict": 1, "seq_conflict": 1}
    assert not report.ok


def changed(value: bytes, old: bytes, new: bytes) -> bytes:
    assert old in value
    return value.replace(old, new, 1)


async def test_what_is_no_entry_is_kept_with_its_bytes_and_stops_nothing(
    log: EmbeddedLog, ledger_url: str, store: LedgerStore
) -> None:
    plan = histories(1, 30)[0]
    key, value = plan.plan_id.encode(), plan.entries[1][1]
    bad: list[tuple[bytes | None, str]] = [
        (None, "no value"),
        (b"", "truncated"),
        (b"\xff\x00\xfe", "utf-8"),
        (b"[" * 100_000, "object"),
        (b'{"x":' + b"[" * 100_000, "recursion"),
        (changed(value, b'"v":1', b'"v":0'), "v is 0"),
        (changed(value, b'"seq":2', b'"seq":0'), "seq"),
        (changed(value, b'"units":10', b'"units":10.5'), "units"),
        (changed(value, b'"units":10', b'"units":9223372036854775808'), "units"),
        (changed(value, b'"kind"', b'"kin"'), "kind"),
        (changed(value, b'123Z"', b'123"'), "event_at"),
        (changed(value, b"signal-2", b"signal\\u0000"), "U+0000"),
        (changed(value, b'"plan_id":"plan-0000"', b'"plan_id":"plan-9999"'), "plan-9999"),
    ]
    mixed = records([plan])
    for at, (raw, _) in enumerate(bad):
        mixed.insert(2 * at, (topics.LEDGER_SERVICE, key, raw))
    await append(log, mixed)
    sink = await drained(log, ledger_url)
    assert stored(store) == plan.rows()
    assert sink.counters.rejects == {"undecodable": len(bad) - 1, "key_mismatch": 1}
    rejects = query(ledger_url, 'SELECT error, raw, record_key FROM sink_rejects ORDER BY "offset"')
    assert [row[1] for row in rejects] == [raw for raw, _ in bad]
    for (error, _, record_key), (_, named) in zip(rejects, bad, strict=True):
        assert named in error.lower() or named in error
        assert record_key == key


async def test_a_stopped_sink_writes_what_the_log_holds(
    log: EmbeddedLog, ledger_url: str, store: LedgerStore
) -> None:
    plans = histories(40, 7)
    sink = LedgerSink(log, open_ledger_store(ledger_url), QUICK._replace(records_max=1))
    async with running(sink):
        await append(log, records(plans[:1]))
        await eventually(lambda: sink.counters.batches > 0, WAIT_S)
        await append(log, records(plans[1:]), 5)
    assert stored(store) == expected(plans)


async def test_each_station_has_its_newest_state(
    log: EmbeddedLog, ledger_url: str, store: LedgerStore
) -> None:
    stations = [b"station-1", b"station-2", b"station-3"]
    states: list[Record] = [
        (topics.STATE_STATION, key, b"%d" % number) for number in range(40) for key in stations
    ]
    await append(log, [*states, (topics.STATE_STATION, stations[1], None)], 7)
    await append(log, [(topics.STATE_STATION, b"no id", b"x")])
    await drained(log, ledger_url, QUICK._replace(records_max=1))
    await append(log, [(topics.STATE_STATION, stations[2], b"40")])
    sink = await drained(log, ledger_url, QUICK._replace(group="another"))
    found = query(ledger_url, "SELECT location_id, state FROM station_states ORDER BY 1")
    assert found == [("station-1", b"39"), ("station-2", None), ("station-3", b"40")]
    assert (sink.counters.stations, sink.counters.rejects) == (1, {})
    rejects = query(ledger_url, "SELECT topic, reason, record_key, raw FROM sink_rejects")
    assert rejects == [(topics.STATE_STATION, "undecodable", b"no id", b"x")]


def killed_at(kill_at: int, log: Path, url: str) -> int:
    """Run a sink in a process, kill it once the database has `kill_at` entries; how many then."""
    command = [sys.executable, "-m", "tests.integration.sink_process"]
    process = subprocess.Popen([*command, str(log), str(PARTITIONS), url])
    try:
        count = 0
        while count < kill_at:
            assert process.poll() is None
            ((count,),) = query(url, "SELECT count(*) FROM ledger_entries")
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL
    return count


async def test_a_killed_sink_goes_on_where_the_database_is(
    tmp_path: Path, ledger_url: str, store: LedgerStore
) -> None:
    """kill -9 between and within transactions: every entry once, offsets and rows agreeing."""
    plans = histories(300, 17)
    whole = expected(plans)
    log = EmbeddedLog(tmp_path / "log", partitions=PARTITIONS)
    await log.open()
    await append(log, records(plans), 4)
    await log.close()
    for kill_at in (1, 400, 1300):
        assert await asyncio.to_thread(killed_at, kill_at, tmp_path / "log", ledger_url) < len(
            whole
        )
    log = EmbeddedLog(tmp_path / "log", partitions=PARTITIONS)
    await log.open()
    sink = await drained(log, ledger_url)
    await log.close()
    assert 0 < sink.counters.entries < len(whole)
    assert (sink.counters.duplicates, sink.counters.rejects) == (0, {})
    assert stored(store) == whole
    states = [(plan.plan_id, plan.state()) for plan in plans]
    assert audit(store, states, drained=True).ok


@pytest.mark.postgres
async def test_a_database_that_dies_is_waited_for(
    log: EmbeddedLog, postgres: str, postgres_server: PostgresServer
) -> None:
    plans = histories(200, 7)
    whole = records(plans)
    store = open_ledger_store(postgres)
    sink = LedgerSink(log, open_ledger_store(postgres), QUICK._replace(records_max=1))
    async with running(sink):
        await append(log, whole[:1000], 5)
        await eventually(lambda: 0 < sink.counters.entries < 1000, WAIT_S)
        postgres_server.kill()
        await append(log, whole[1000:], 5)
        await eventually(lambda: sink.counters.unavailable > 1, WAIT_S)
        # Another member comes and goes meanwhile, so partitions are assigned without a database.
        other = await log.consumer(QUICK.group, topics.LEDGERS)
        await join(other)
        await other.close()
        postgres_server.start()
        await eventually(
            lambda: sink.counters.entries + sink.counters.duplicates >= len(whole), WAIT_S
        )
    assert stored(store) == expected(plans)
    assert sink.counters.rejects == {}
    # A commit whose answer was lost with the server is repeated, and found to be there.
    assert sink.counters.entries + sink.counters.duplicates == len(whole)
    store.close()


@pytest.mark.postgres
async def test_a_sink_without_its_database_stops_with_an_error(
    log: EmbeddedLog, postgres: str, postgres_server: PostgresServer
) -> None:
    plans = histories(4, 3)
    sink = LedgerSink(log, open_ledger_store(postgres), QUICK._replace(drain_timeout_s=0.1))
    postgres_server.kill()
    task = asyncio.create_task(sink.run())
    await append(log, records(plans))
    await eventually(lambda: sink.counters.unavailable > 1, WAIT_S)
    sink.stop()
    with pytest.raises(StoreUnavailableError, match=r"127\.0\.0\.1"):
        await task
    postgres_server.start()
    await drained(log, postgres)
    store = open_ledger_store(postgres)
    assert stored(store) == expected(plans)
    store.close()


@pytest.mark.kafka
async def test_kafka_s_transactions_arrive_once_whatever_the_group_says(
    kafka: str, ledger_url: str, store: LedgerStore
) -> None:
    """Markers and aborted entries leave gaps between offsets, and the group claims too much."""
    log = KafkaLog(kafka_options(kafka, f"sink-{next(_prefixes)}"), partitions=PARTITIONS)
    await log.open()
    plans = histories(30, 5)
    producer = await log.transactional_producer("ledgers")
    for plan in plans:
        with suppress(InterruptedError):
            async with producer.transaction() as transaction:
                transaction.append(list(chunks(records([plan]), 3)))
                raise InterruptedError
        async with producer.transaction() as transaction:
            transaction.append(list(chunks(records([plan]), 3)))
    consumer = await log.consumer(QUICK.group, topics.LEDGERS)
    await consumer.commit(dict.fromkeys(await join(consumer), 40))
    await consumer.close()
    sink = await drained(log, ledger_url)
    assert stored(store) == expected(plans)
    more = [PlanLedger("plan-more")]
    more[0].deposit(10)
    async with producer.transaction() as transaction:
        transaction.append(list(chunks(records(more), 1)))
    sink = await drained(log, ledger_url, QUICK._replace(group="another"))
    assert (sink.counters.entries, sink.counters.duplicates) == (1, 0)
    await producer.close()
    await log.close()


@pytest.mark.kafka
async def test_a_sink_that_is_stopped_before_it_has_joined_writes_what_the_log_holds(
    kafka: str, ledger_url: str, store: LedgerStore
) -> None:
    log = KafkaLog(kafka_options(kafka, f"sink-{next(_prefixes)}"), partitions=PARTITIONS)
    await log.open()
    plans = histories(30, 5)
    await append(log, records(plans))
    patient = QUICK._replace(drain_timeout_s=WAIT_S)
    async with running(LedgerSink(log, open_ledger_store(ledger_url), patient)):
        pass
    assert stored(store) == expected(plans)
    await log.close()


async def test_the_engine_s_own_ledgers_audit_clean(log: EmbeddedLog, ledger_url: str) -> None:
    """A day of swaps, refusals and repeats: entries from SQL, states from the changelog."""
    faults = FaultShares(exhausted_quota=0.1, empty_stock=0.1, duplicate=0.1)
    config = SimulationConfig(plans=20, rate=20.0, joining_rate=1000.0, faults=faults)
    day = SimulatedDay(config)
    day.run(10)
    day.drain()
    play = day.platform.play
    kept = (*topics.LEDGERS, topics.STATE_PLAN)
    await append(
        log, ((topic, key, value) for topic, _, key, value in play.produced if topic in kept)
    )
    await drained(log, ledger_url)
    store = open_ledger_store(ledger_url)
    with await collect_states(log, play.engine.describe_state) as states:
        report = audit(store, states, drained=True)
    assert report.differences == []
    assert (report.plans, report.states, report.rejects) == (20, 20, {})
    assert report.entries > 200
    store.close()


async def test_live_states_are_the_last_of_each_plan(log: EmbeddedLog, ledger_url: str) -> None:
    plans = histories(12, 2)
    states = [
        (topics.STATE_PLAN, p.plan_id.encode(), json.dumps(p.state()).encode()) for p in plans
    ]
    stale = [(topic, key, b"{}") for topic, key, _ in states]
    gone: list[Record] = [(topics.STATE_PLAN, b"gone", b"{}"), (topics.STATE_PLAN, b"gone", None)]
    await append(log, [*records(plans), *stale, *gone, *states])
    await drained(log, ledger_url)
    store = open_ledger_store(ledger_url)
    with await collect_states(log, lambda topic, key, value: value) as live:
        assert [plan_id for plan_id, _ in live] == [plan.plan_id for plan in plans]
        report = audit(store, live, drained=True)
    assert report.ok
    assert (report.plans, report.states) == (12, 12)
    store.close()
