"""Processors over both logs: whatever happens to them, the log holds what one engine would make."""

import asyncio
import contextlib
import itertools
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import orjson
import pytest

from bench.traffic import Arrival
from bss_stream import topics
from bss_stream._engine import partition_for
from bss_stream.checkpoint import CheckpointReader
from bss_stream.frames import OutboxKind, decode_outbox
from bss_stream.log.protocol import Log, TopicPartition, TransactionalProducer
from bss_stream.processor import Processor, ProcessorCounters, ProcessorSettings
from bss_stream.testing import START_MS
from tests.integration.held_log import HeldLog
from tests.integration.processing import (
    GROUP,
    SETUP,
    Clock,
    Lockstep,
    Running,
    append,
    arrival,
    running,
    shard_id,
    traffic,
)
from tests.logs import (
    IN_VAIN_S,
    PARTITIONS,
    Backend,
    EmbeddedBackend,
    KafkaBackend,
    chunk,
    join,
    kafka_options,
)
from tests.undisturbed import check_contents, is_internal, read_log, undisturbed

ALL_SHARDS = frozenset(range(PARTITIONS))
DAY_MS = 86_400_000

_prefixes = itertools.count()


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    if request.param == "embedded":
        return EmbeddedBackend(tmp_path / "log", keep_consumed_ms=DAY_MS)
    bootstrap = request.getfixturevalue("kafka")
    return KafkaBackend(kafka_options(bootstrap, f"processor-{next(_prefixes)}"))


@asynccontextmanager
async def opened(backend: Backend) -> AsyncIterator[Log]:
    log = backend.log()
    await log.open()
    try:
        yield log
    finally:
        await log.close()


@pytest.fixture
async def log(backend: Backend) -> AsyncIterator[Log]:
    async with opened(backend) as log:
        yield log


@pytest.fixture
async def twin(log: Log) -> AsyncIterator[Lockstep]:
    """A playground and the log side by side, on one clock."""
    appender = await log.appender()
    yield Lockstep(appender, Clock())
    await appender.close()


async def check_log(log: Log, *, now_ms: int = 0) -> None:
    """Everything in the log is what one undisturbed engine makes of the signals in it."""
    contents = await read_log(log)
    check_contents(contents, undisturbed(contents, SETUP, partitions=PARTITIONS, now_ms=now_ms))


async def check_external(log: Log, count: int) -> None:
    """So many records have come in from outside."""
    contents = await read_log(log)
    values = [record.value for topic in topics.SIGNALS for record in contents[topic]]
    assert sum(not is_internal(value) for value in values) == count


# The same as in process


@pytest.mark.parametrize("restarts", [0, 2], ids=["at once", "with restarts"])
async def test_the_log_gets_what_a_playground_gives(
    backend: Backend, log: Log, twin: Lockstep, restarts: int
) -> None:
    """Byte for byte, also by a processor that goes on from the states of its predecessor."""
    arrivals = traffic(plans=12, requests=80, seed=4)
    ends = [len(arrivals) * (n + 1) // (restarts + 1) for n in range(restarts + 1)]
    for start, end in itertools.pairwise((0, *ends)):
        async with running(log, twin.clock, done=twin.done) as at_work:
            await twin.bring(arrivals[start:end], at_work)
            if end == len(arrivals):
                # Nobody pays on: the periods end, and grace after them.
                for days in (8, 31, 60):
                    await twin.advance(twin.play.now_ms + days * DAY_MS, at_work)
    assert twin.done == twin.play.outcomes
    assert {
        "ok",
        "duplicate",
        "in_progress",
        "quota_exhausted",
        "malformed_json",
    } <= twin.done.keys()
    contents = await read_log(log)
    check_contents(contents, twin.replayed(contents).produced)
    if isinstance(backend, EmbeddedBackend):
        # Without markers its offsets are the playground's own.
        check_contents(contents, twin.play.produced)


# Owners that come and go


async def test_two_processors_split_the_shards_and_one_takes_over(log: Log) -> None:
    arrivals = traffic(plans=40, requests=260, seed=2)
    third = len(arrivals) // 3
    async with running(log, lambda: 0, drain=True) as one:
        await append(log, arrivals[:third])
        await one.until(lambda: one.processor.shards == ALL_SHARDS)
        loading = asyncio.create_task(append(log, arrivals[third : 2 * third], at_once=5))
        async with running(log, lambda: 0) as two:

            def split() -> bool:
                shares = one.processor.shards, two.processor.shards
                return all(shares) and shares[0] | shares[1] == ALL_SHARDS

            await two.until(split)
            assert not one.processor.shards & two.processor.shards
            await loading
            await append(log, arrivals[2 * third :])
            await two.until(lambda: two.processor.counters.records > 20)
        await one.until(lambda: one.processor.shards == ALL_SHARDS)
    assert one.processor.counters.rejoined == two.processor.counters.rejoined == 0
    await check_external(log, len(arrivals))
    await check_log(log)


@asynccontextmanager
async def in_a_process(
    backend: Backend, checkpoints: Path | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A processor in a process, killed at the end."""
    where = [] if checkpoints is None else [str(checkpoints)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.integration.processor_process", backend.description()),
        *where,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        process.kill()
        await process.wait()


async def records_done(process: asyncio.subprocess.Process, wanted: int) -> None:
    """Read what a process says until it has taken so many records."""
    assert process.stdout is not None
    async with asyncio.timeout(IN_VAIN_S):
        while True:
            line = await process.stdout.readline()
            assert line, "the processor has ended"
            if int(line) >= wanted:
                return


async def test_nothing_is_lost_or_applied_twice_when_processors_are_killed(
    backend: Backend, tmp_path: Path
) -> None:
    """kill -9 in mid-work and while checkpoints are written, three times, then a last processor
    finishes."""
    checkpoints = tmp_path / "checkpoints"
    arrivals = traffic(plans=40, requests=260, seed=3)
    async with opened(backend) as log:
        await append(log, arrivals)
    random = Random(4)
    for wanted in (random.randrange(10, 60), random.randrange(60, 120), 1):
        async with in_a_process(backend, checkpoints) as process:
            await records_done(process, wanted)
    async with opened(backend) as log:
        async with running(log, lambda: 0, drain=True, checkpoint_directory=checkpoints) as last:
            await last.until(lambda: last.processor.counters.restored > 0)
        await check_external(log, len(arrivals))
        await check_log(log)


@pytest.mark.kafka
async def test_another_member_takes_over_from_one_that_is_killed(kafka: str) -> None:
    backend = KafkaBackend(kafka_options(kafka, f"processor-{next(_prefixes)}"))
    arrivals = traffic(plans=40, requests=260, seed=5)
    half = len(arrivals) // 2
    async with opened(backend) as log, running(log, lambda: 0, drain=True) as survivor:
        await append(log, arrivals[:half])
        await survivor.until(lambda: survivor.processor.shards == ALL_SHARDS)
        async with in_a_process(backend) as process:
            await survivor.until(lambda: 0 < len(survivor.processor.shards) < PARTITIONS)
            loading = asyncio.create_task(append(log, arrivals[half:], at_once=5))
            await records_done(process, 10)
        await loading
        await survivor.until(lambda: survivor.processor.shards == ALL_SHARDS)
    async with opened(backend) as log:
        await check_external(log, len(arrivals))
        await check_log(log)


async def test_a_fenced_processor_drops_its_shards(log: Log) -> None:
    """What it had computed goes nowhere; it joins again and does it anew."""
    arrivals = traffic(plans=40, requests=60, seed=6)
    half = len(arrivals) // 2
    held = HeldLog(log)
    async with running(held, lambda: 0, drain=True) as fenced:
        await append(log, arrivals[:half])
        await fenced.until(lambda: fenced.processor.counters.records >= half)
        held.joining.clear()
        usurpers = [await log.transactional_producer(shard_id(p)) for p in range(PARTITIONS)]
        await append(log, arrivals[half:])
        await fenced.until(lambda: fenced.processor.counters.rejoined > 0)
        assert fenced.processor.shards == frozenset()
        before = await read_log(log)
        for usurper in usurpers:
            await usurper.close()
        held.joining.set()
        await fenced.until(lambda: fenced.processor.shards == ALL_SHARDS)
    assert len((await read_log(log))[topics.STATE_PLAN]) > len(before[topics.STATE_PLAN])
    await check_external(log, len(arrivals))
    await check_log(log)


async def test_a_shard_that_is_being_given_up_is_not_restored(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a lost shard's producer is closed, no other lost one looks as if it were owned."""
    looks: list[dict[int, float]] = []
    make = log.transactional_producer

    async def watched(transactional_id: str) -> TransactionalProducer:
        producer = await make(transactional_id)
        close = producer.close

        async def look_and_close() -> None:
            looks.append(processor.restoring())
            await close()

        monkeypatch.setattr(producer, "close", look_and_close)
        return producer

    monkeypatch.setattr(log, "transactional_producer", watched)
    settings = ProcessorSettings(group=GROUP, transactional_id=shard_id)
    processor = Processor(log, SETUP, settings)
    parts = [TopicPartition(topic, p) for topic in topics.SIGNALS for p in range(PARTITIONS)]
    await processor.on_assigned(parts)
    assert set(processor.restoring()) == ALL_SHARDS
    await processor.on_revoked(parts)
    assert looks == [{}] * PARTITIONS


# Time

PLAN = "plan-0000000"
STATION = "station-nbi-001"
FLEET = "fleet-nairobi-standard-4ah"
TEMPLATE = "template-nairobi-basic"


def request(correlation_id: str, data: dict[str, Any], plan: str = PLAN) -> dict[str, Any]:
    return {
        "timestamp": "2026-11-24T06:00:00Z",
        "plan_id": plan,
        "correlation_id": correlation_id,
        "data": data,
    }


async def begin(twin: Lockstep, at_work: Running, plan: str = PLAN) -> None:
    """Odoo tells of a plan that is paid."""
    data = {
        "odoo_subscription_id": 1,
        "odoo_payment_state": "paid",
        "odoo_subscription_state": "in_progress",
        "odoo_currency_id": "KES",
        "odoo_amount_total": 8000,
        "template_id": TEMPLATE,
        "customer_id": "cust-1",
    }
    body = request(f"sync-{plan}", data, plan)
    await twin.mqtt(f"emit/odo/subscription/plan/{plan}/sync", body, at_work)


async def initialize(twin: Lockstep, at_work: Running, plan: str = PLAN) -> None:
    body = request(f"init-{plan}", {}, plan)
    await twin.mqtt(f"emit/uxi/service/plan/{plan}/initialize_states", body, at_work)


async def ask_for_a_battery(twin: Lockstep, at_work: Running) -> None:
    """A rider asks a self-service station, which asks ARM."""
    await begin(twin, at_work)
    await initialize(twin, at_work)
    bind = request("bind", {"location_id": STATION, "fleet_id": FLEET})
    await twin.mqtt(f"emit/uxi/service/plan/{PLAN}/customer_binding", bind, at_work)


def answer(received_ms: int) -> Arrival:
    """ARM has issued a battery."""
    body = {
        "correlation_id": "bind",
        "plan_id": PLAN,
        "fleet_id": FLEET,
        "status": "issued",
        "asset_id": "bat-1",
        "energy_transferred": 1.5,
    }
    return arrival(f"echo/ABS/EPS/{STATION}/allocate", body, received_ms)


def stock(received_ms: int) -> Arrival:
    body = {"fleet_id": FLEET, "available": 7}
    return arrival(f"emit/arm/station/{STATION}/stock", body, received_ms)


async def attempts(log: Log) -> list[int]:
    """The numbers of the tries in the orders to ARM."""
    messages = [decode_outbox(record.value) for record in (await read_log(log))[topics.OUTBOX]]
    return [orjson.loads(m.payload)["attempt"] for m in messages if m.kind is OutboxKind.CMD]


async def kinds(log: Log) -> list[str]:
    """The kinds of the entries in the service ledger."""
    records = (await read_log(log))[topics.LEDGER_SERVICE]
    return [orjson.loads(record.value)["kind"] for record in records]


async def test_timers_fire_by_the_clock_once_all_is_read(log: Log, twin: Lockstep) -> None:
    async with running(log, twin.clock, done=twin.done) as at_work:
        await ask_for_a_battery(twin, at_work)
        assert await attempts(log) == [1]
        await twin.advance(START_MS + 10_000, at_work)
        assert await attempts(log) == [1, 2]
    # A timer is state, and outlives who has set it.
    async with running(log, twin.clock, done=twin.done) as at_work:
        await twin.advance(START_MS + 20_000, at_work)
    assert twin.play.echoes[-1]["data"]["metadata"]["reason"] == "allocation_timed_out"
    assert (await kinds(log))[-2:] == ["quota_released", "quota_released"]
    contents = await read_log(log)
    check_contents(contents, twin.replayed(contents).produced)


async def test_timers_do_not_fire_before_it_is_known_what_waits(log: Log, twin: Lockstep) -> None:
    """The answer has come in time and lies in the log; the clock is far ahead already."""
    async with running(log, twin.clock) as at_work:
        await ask_for_a_battery(twin, at_work)
    await append(log, [answer(START_MS + 5_000)])
    twin.clock.now_ms = START_MS + 60_000
    held = HeldLog(log)
    held.reading.clear()
    async with running(held, twin.clock, drain=True) as late:
        await late.until(lambda: late.processor.shards == ALL_SHARDS)
        await late.ticked(twin.clock)
        held.reading.set()
    assert await attempts(log) == [1]
    assert "late_issue" not in await kinds(log)
    await check_log(log, now_ms=twin.clock.now_ms)


async def test_timers_do_not_overtake_the_backlog_of_another_shard(
    log: Log, twin: Lockstep
) -> None:
    """The plan's shard has nothing to read; the station's comes to the answer only later."""
    assert partition_for(PLAN.encode(), PARTITIONS) != partition_for(STATION.encode(), PARTITIONS)
    async with running(log, twin.clock) as at_work:
        await ask_for_a_battery(twin, at_work)
    backlog = [*(stock(START_MS + 1_000 + n) for n in range(15)), answer(START_MS + 5_000)]
    await append(log, backlog, at_once=1)
    twin.clock.now_ms = START_MS + 60_000
    async with running(
        log, twin.clock, drain=True, batch_records_max=1, tick_interval_s=0.001
    ) as late:
        await late.until(lambda: late.processor.counters.records > 0)
    assert twin.clock.looked_at > 3
    assert await attempts(log) == [1]
    assert "late_issue" not in await kinds(log)
    await check_log(log, now_ms=twin.clock.now_ms)


async def test_what_came_due_while_no_processor_ran_fires_once_at_the_start(
    log: Log, twin: Lockstep
) -> None:
    """A hold, its retry, periods and grace: in order, and not again at the next start."""
    async with running(log, twin.clock, done=twin.done) as at_work:
        await ask_for_a_battery(twin, at_work)
        for n in range(1, 6):
            await begin(twin, at_work, f"plan-{n}")
            await initialize(twin, at_work, f"plan-{n}")
    assert "quota_released" not in await kinds(log)
    twin.pass_time(START_MS + 100 * DAY_MS)
    for _ in range(2):
        async with running(log, twin.clock, done=twin.done) as at_work:
            await at_work.until(lambda: at_work.processor.shards == ALL_SHARDS)
            await at_work.ticked(twin.clock)
            await twin.caught_up(at_work)
        contents = await read_log(log)
        check_contents(contents, twin.replayed(contents).produced)
    assert (await kinds(log)).count("quota_released") == 2
    assert twin.done == twin.play.outcomes


# Checkpoints


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


def files(directory: Path) -> list[Path]:
    return sorted(directory.iterdir())


async def some_work(log: Log, arrivals: Sequence[Arrival], **settings: Any) -> ProcessorCounters:
    """Have a new processor take these arrivals; returns what it has counted."""
    await append(log, arrivals)
    async with running(log, lambda: 0, drain=True, **settings) as at_work:
        await at_work.until(lambda: at_work.processor.shards == ALL_SHARDS)
    return at_work.processor.counters


@pytest.mark.kafka
async def test_a_checkpoint_and_the_rest_of_the_changelog_give_the_state(
    kafka: str, checkpoints: Path
) -> None:
    """Also an old checkpoint, and one that is damaged or of another log is passed over."""
    backend = KafkaBackend(kafka_options(kafka, f"processor-{next(_prefixes)}"))
    arrivals = traffic(plans=40, requests=260, seed=8)
    parts = [arrivals[n::6] for n in range(6)]
    kept = {"checkpoint_directory": checkpoints}
    async with opened(backend) as log:
        first = await some_work(log, parts[0], **kept)
        assert (first.checkpoints, first.from_checkpoints) == (PARTITIONS, 0)
        old = {path: path.read_bytes() for path in files(checkpoints)}
        assert len(old) == PARTITIONS

        second = await some_work(log, parts[1], **kept)
        assert 0 < second.from_checkpoints == second.restored
        await some_work(log, parts[2])
        for path, content in old.items():
            path.write_bytes(content)
        third = await some_work(log, parts[3], **kept)
        assert 0 < third.from_checkpoints < third.restored

        for n, path in enumerate(files(checkpoints)):
            whole = path.read_bytes()
            path.write_bytes([whole[:-1], b"", whole[: len(whole) // 2], whole[::-1]][n])
        fourth = await some_work(log, parts[4], **kept)
        assert (fourth.from_checkpoints, fourth.checkpoints) == (0, PARTITIONS)
        await check_external(log, sum(map(len, parts[:5])))
        await check_log(log)

    other = KafkaBackend(kafka_options(kafka, f"processor-{next(_prefixes)}"))
    async with opened(other) as log:
        foreign = await some_work(log, parts[5], **kept)
        assert foreign.from_checkpoints == 0
        await check_log(log)


@pytest.mark.kafka
async def test_an_owner_that_was_replaced_claims_nothing_of_the_new_one(
    kafka: str, checkpoints: Path
) -> None:
    """It may find out late, and write a checkpoint before: of what it has itself."""
    backend = KafkaBackend(kafka_options(kafka, f"processor-{next(_prefixes)}"))
    arrivals = traffic(plans=40, requests=60, seed=9)
    async with opened(backend) as log:
        await some_work(log, arrivals)
        async with running(log, lambda: 0, checkpoint_directory=checkpoints) as replaced:
            await replaced.until(lambda: replaced.processor.shards == ALL_SHARDS)
            records = {shard: [(b"plan-of-the-new-owner", b"?")] for shard in range(PARTITIONS)}
            for shard in range(PARTITIONS):
                usurper = await log.transactional_producer(shard_id(shard))
                async with usurper.transaction() as transaction:
                    transaction.append([chunk(topics.STATE_PLAN, shard, *records[shard])])
                await usurper.close()
        for shard in range(PARTITIONS):
            extent = await log.extent(topics.STATE_PLAN, shard)
            path = checkpoints / f"shard-{shard}.checkpoint"
            with contextlib.closing(CheckpointReader(path)) as reader:
                plans, *_ = reader.header.changelogs
            assert plans.end <= extent.end - 1 - len(records[shard])


# Changes and ends


def with_template(setup: bytes, *, energy_wh: int, keep: bool) -> bytes:
    """The set-up with a new version of the template, beside the old one or in its place."""
    document = orjson.loads(setup)
    for market in document["markets"]:
        for old in [t for t in market["templates"] if t["template_id"] == TEMPLATE]:
            new = orjson.loads(orjson.dumps(old))
            new["version"] += 1
            for service in new["services"]:
                if service["service_id"] == "service-electricity-nairobi":
                    service["initial_quota"] = {"units": energy_wh}
            market["templates"] += [new]
            if not keep:
                market["templates"].remove(old)
    return orjson.dumps(document)


def quotas(twin: Lockstep, plan: str) -> dict[str, Any]:
    return {s["service_id"]: s["quota"] for s in twin.play.plan(plan)["services"]}


async def test_a_reload_keeps_what_running_plans_have_signed(log: Log, twin: Lockstep) -> None:
    newer = with_template(SETUP, energy_wh=120_000, keep=True)
    async with running(log, twin.clock, done=twin.done) as at_work:
        await begin(twin, at_work, "plan-old")
        await twin.reload(newer, at_work)
        await begin(twin, at_work, "plan-new")
        await initialize(twin, at_work, "plan-old")
    # Also for whoever knows only the newer set-up.
    async with running(log, twin.clock, setup=newer, done=twin.done) as at_work:
        await initialize(twin, at_work, "plan-new")
        with pytest.raises(ValueError, match=TEMPLATE):
            await at_work.processor.reload(with_template(SETUP, energy_wh=1, keep=False))
        await ask_for_a_battery(twin, at_work)
    assert quotas(twin, "plan-old")["service-electricity-nairobi"] == 90_000
    assert quotas(twin, "plan-new")["service-electricity-nairobi"] == 120_000
    contents = await read_log(log)
    check_contents(contents, twin.replayed(contents).produced)


async def test_a_drained_processor_leaves_nothing_behind(log: Log) -> None:
    """Told to drain before it has so much as joined the group."""
    arrivals = traffic(plans=40, requests=260, seed=7)
    await append(log, arrivals)
    async with running(log, lambda: 0, drain=True, batch_records_max=100) as drained:
        pass
    assert drained.processor.counters.records > len(arrivals)
    await check_external(log, len(arrivals))
    await check_log(log)
    consumer = await log.consumer(GROUP, topics.SIGNALS)
    await join(consumer)
    async with asyncio.timeout(IN_VAIN_S):
        while any((await consumer.lag()).values()):
            assert await consumer.poll(1_000, 0.1) == []
    await consumer.close()
