"""What only the Kafka log has to get right: its topics, open transactions, and lost brokers."""

import asyncio
import dataclasses
import itertools
import logging
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer  # type: ignore[import-untyped]
from aiokafka.admin import AIOKafkaAdminClient, NewTopic  # type: ignore[import-untyped]
from aiokafka.admin.config_resource import (  # type: ignore[import-untyped]
    ConfigResource,
    ConfigResourceType,
)
from aiokafka.structs import TopicPartition as KafkaPartition  # type: ignore[import-untyped]

from bss_stream import topics
from bss_stream.contract.asyncapi import FRAME
from bss_stream.errors import LogError
from bss_stream.log.kafka import KafkaLog, KafkaOptions
from bss_stream.log.protocol import Log, TopicPartition
from tests.logs import IN_VAIN_S, chunk, kafka_options, numbered, poll_until, replayed, values
from tests.servers.kafka import KafkaServer
from tests.servers.ports import free_port

pytestmark = pytest.mark.kafka

PARTITIONS = 2

_prefixes = itertools.count()


@pytest.fixture
def options(kafka: str) -> KafkaOptions:
    return kafka_options(kafka, f"kafka-log-{next(_prefixes)}")


@pytest.fixture
async def log(options: KafkaOptions) -> AsyncIterator[Log]:
    log: Log = KafkaLog(options, partitions=PARTITIONS)
    await log.open()
    yield log
    await log.close()


async def create(options: KafkaOptions, topic: str, partitions: int, **settings: str) -> None:
    """A topic that was there before the log."""
    admin = AIOKafkaAdminClient(bootstrap_servers=options.bootstrap_servers)
    await admin.start()
    configs = {name.replace("_", "."): value for name, value in settings.items()}
    await admin.create_topics([NewTopic(options.name(topic), partitions, 1, topic_configs=configs)])
    await admin.close()


async def test_states_are_compacted_and_ledgers_kept_for_good(
    log: Log, options: KafkaOptions
) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=options.bootstrap_servers)
    await admin.start()
    try:
        asked = [ConfigResource(ConfigResourceType.TOPIC, options.name(t)) for t in topics.ALL]
        (answer,) = await admin.describe_configs(asked)
    finally:
        await admin.close()
    found = {
        name.removeprefix(options.topic_prefix): {entry[0]: entry[1] for entry in entries}
        for _, _, _, name, entries in answer.resources
    }
    for topic in topics.ALL:
        compacted = topic in topics.STATES
        assert found[topic]["cleanup.policy"] == ("compact" if compacted else "delete")
        kept = topic in (*topics.LEDGERS, topics.DEAD_LETTER, topics.ODOO_REFUSED)
        assert (found[topic]["retention.ms"] == "-1") == kept


async def test_a_topic_with_other_partitions_is_named(options: KafkaOptions) -> None:
    await create(options, topics.OUTBOX, 3)
    log = KafkaLog(options, partitions=PARTITIONS)
    with pytest.raises(LogError, match=rf"needs 2 partitions.*{options.name(topics.OUTBOX)} has 3"):
        await log.open()


async def test_an_impossible_replication_is_refused_with_the_brokers_words(kafka: str) -> None:
    options = KafkaOptions(kafka, replication_factor=3, topic_prefix="replicated.")
    with pytest.raises(LogError, match=r"cannot create the topic .*replication factor"):
        await KafkaLog(options, partitions=1).open()


async def test_a_topic_that_is_made_anew_is_another_incarnation(
    log: Log, options: KafkaOptions
) -> None:
    """Its offsets begin anew, and may come to be what those of the old one were."""
    old = await log.extent(topics.STATE_PLAN, 0)
    assert await log.extent(topics.STATE_PLAN, 0) == old
    admin = AIOKafkaAdminClient(bootstrap_servers=options.bootstrap_servers)
    await admin.start()
    await admin.delete_topics([options.name(topics.STATE_PLAN)])
    async with asyncio.timeout(IN_VAIN_S):
        left = await admin.list_topics()
        while options.name(topics.STATE_PLAN) in left:
            await asyncio.sleep(0.05)
            left = await admin.list_topics()
    await admin.close()
    await log.open()
    assert (await log.extent(topics.STATE_PLAN, 0)).incarnation != old.incarnation


async def test_a_broker_that_is_not_there_is_an_error() -> None:
    options = kafka_options(f"127.0.0.1:{free_port()}", "nobody")
    log = KafkaLog(options, partitions=1)
    for opening in (log.open, log.appender, lambda: log.consumer("g", [topics.OUTBOX])):
        with pytest.raises(LogError, match=options.bootstrap_servers.replace(".", r"\.")):
            await opening()
    with pytest.raises(LogError, match=r"replay bss\.outbox/0"):
        await replayed(log, topics.OUTBOX, 0)


async def test_records_of_an_open_transaction_are_held_back(
    log: Log, options: KafkaOptions
) -> None:
    producer = AIOKafkaProducer(
        bootstrap_servers=options.bootstrap_servers, transactional_id=options.name("raw")
    )
    await producer.start()
    consumer = await log.consumer("readers", [topics.OUTBOX])
    try:
        await producer.begin_transaction()
        for i in range(3):
            value = str(i).encode()
            await producer.send_and_wait(options.name(topics.OUTBOX), value, b"k", partition=0)
        assert await consumer.poll(10, 0.3) == []
        assert await replayed(log, topics.OUTBOX, 0) == []
        await producer.commit_transaction()
        assert values(await poll_until(consumer, 3)) == [b"0", b"1", b"2"]
    finally:
        await consumer.close()
        await producer.stop()


async def test_a_refused_batch_takes_its_transaction_along(options: KafkaOptions) -> None:
    """aiokafka by itself commits the rest of a transaction of which a batch was refused."""
    await create(options, topics.OUTBOX, PARTITIONS, max_message_bytes="1000")
    log = KafkaLog(options, partitions=PARTITIONS)
    await log.open()
    producer = await log.transactional_producer("shard")
    with pytest.raises(LogError, match=r"commit a transaction of shard.*Too ?Large|SizeTooLarge"):
        async with producer.transaction() as transaction:
            transaction.append([chunk(topics.LEDGER_PAYMENT, 0, *numbered(0, 3))])
            transaction.append([chunk(topics.OUTBOX, 0, (b"k", b"x" * 5000))])
    with pytest.raises(LogError, match="failed before"):
        async with producer.transaction() as transaction:
            transaction.append([chunk(topics.LEDGER_PAYMENT, 0, *numbered(3, 1))])
    await producer.close()
    again = await log.transactional_producer("shard")
    async with again.transaction() as transaction:
        transaction.append([chunk(topics.LEDGER_PAYMENT, 0, *numbered(7, 1))])
    await again.close()
    assert values(await replayed(log, topics.LEDGER_PAYMENT, 0)) == [b"7"]
    assert await replayed(log, topics.OUTBOX, 0) == []


async def test_an_appender_goes_on_after_a_refused_batch(options: KafkaOptions) -> None:
    """The sequence numbers that the refused batch took must not block the partition."""
    await create(options, topics.OUTBOX, PARTITIONS, max_message_bytes="1000")
    log = KafkaLog(options, partitions=PARTITIONS)
    await log.open()
    appender = await log.appender()
    await appender.append([chunk(topics.OUTBOX, 0, *numbered(0, 2))])
    with pytest.raises(LogError, match=r"append to bss\.outbox/0"):
        await appender.append([chunk(topics.OUTBOX, 0, (b"k", b"x" * 5000))])
    await appender.append([chunk(topics.OUTBOX, 0, *numbered(2, 2))])
    await appender.close()
    assert values(await replayed(log, topics.OUTBOX, 0)) == [b"0", b"1", b"2", b"3"]


async def test_large_chunks_go_out_in_several_batches_in_order(log: Log) -> None:
    records = [(b"k", b"%06d" % i + b"x" * 300) for i in range(5000)]
    appender = await log.appender()
    await appender.append([chunk(topics.SIGNALS_PLAN, 0, *records)])
    await appender.close()
    producer = await log.transactional_producer("shard")
    async with producer.transaction() as transaction:
        transaction.append([chunk(topics.OUTBOX, 0, *records)])
    await producer.close()
    for topic in (topics.SIGNALS_PLAN, topics.OUTBOX):
        assert values(await replayed(log, topic, 0)) == [value for _, value in records]


async def test_records_say_what_event_they_are(options: KafkaOptions) -> None:
    """Any reader of CloudEvents can tell, and ours reads what it would have read without."""
    log = KafkaLog(dataclasses.replace(options, cloudevents=True), partitions=PARTITIONS)
    await log.open()
    entry = b'{"v":1,"entry_id":"plan-1-7-0","plan_id":"p-1","seq":1,"kind":"deposit"}'
    letter = b"1\tmissing_field\tbss.signals.plan\t1\t7\t0\tplan_id\n{}"
    produced = {topics.LEDGER_PAYMENT: entry, topics.DEAD_LETTER: letter, topics.STATE_PLAN: b"\1"}
    producer = await log.transactional_producer("shard")
    async with producer.transaction() as transaction:
        transaction.append([chunk(topic, 1, (b"p-1", one)) for topic, one in produced.items()])
    await producer.close()
    for topic, value in produced.items():
        assert values(await replayed(log, topic, 1)) == [value]
    headers = {topic: await headers_of(options, topic) for topic in produced}
    for topic, found in headers.items():
        assert found["ce_specversion"] == "1.0"
        assert found["ce_source"] == f"/{options.name(topic)}/1"
        assert datetime.fromisoformat(found["ce_time"]).tzinfo is not None
    assert headers[topics.LEDGER_PAYMENT]["ce_id"] == "plan-1-7-0"
    assert {
        topic: (found["ce_type"], found["content-type"]) for topic, found in headers.items()
    } == {
        topics.LEDGER_PAYMENT: ("bss.ledger.payment.deposit", "application/json"),
        topics.DEAD_LETTER: ("bss.dead-letter.missing_field", FRAME),
        topics.STATE_PLAN: ("bss.state.plan", "application/octet-stream"),
    }
    await log.close()


async def headers_of(options: KafkaOptions, topic: str) -> dict[str, str]:
    """Those of the first record of partition 1."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=options.bootstrap_servers,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
    )
    await consumer.start()
    try:
        consumer.assign([KafkaPartition(options.name(topic), 1)])
        async with asyncio.timeout(IN_VAIN_S):
            record = await consumer.getone()
    finally:
        await consumer.stop()
    return {name: value.decode() for name, value in record.headers}


class Told:
    """A listener that counts."""

    def __init__(self) -> None:
        self.revoked = 0
        self.assigned = 0

    async def on_revoked(self, partitions: Sequence[TopicPartition]) -> None:
        self.revoked += 1

    async def on_assigned(self, partitions: Sequence[TopicPartition]) -> None:
        self.assigned += 1


async def test_a_member_that_names_its_instance_restarts_without_a_rebalance(
    log: Log, options: KafkaOptions
) -> None:
    """The others keep what they have, and it finds again what it had."""
    # Longer than the restart takes.
    options = dataclasses.replace(options, session_timeout_ms=20_000)
    logs = [
        KafkaLog(dataclasses.replace(options, instance=name), partitions=PARTITIONS)
        for name in ("one", "two")
    ]
    told = Told()
    staying = await logs[0].consumer("readers", [topics.OUTBOX], told)
    leaving = await logs[1].consumer("readers", [topics.OUTBOX])
    async with asyncio.timeout(IN_VAIN_S):
        while not (staying.assignment() and leaving.assignment()):
            await asyncio.gather(staying.poll(1, 0.1), leaving.poll(1, 0.1))
    had, before = leaving.assignment(), (told.revoked, told.assigned)
    await leaving.close()
    back = await logs[1].consumer("readers", [topics.OUTBOX])
    async with asyncio.timeout(IN_VAIN_S):
        while not back.assignment():
            await asyncio.gather(staying.poll(1, 0.1), back.poll(1, 0.1))
    for _ in range(15):
        # Past a heartbeat, by which the one that stayed would learn of a rebalance.
        await staying.poll(1, 0.1)
    assert back.assignment() == had
    assert (told.revoked, told.assigned) == before
    await back.close()
    await staying.close()


async def test_a_commit_into_a_broker_that_hangs_is_given_up_in_time(tmp_path: Path) -> None:
    """A rebalance waits no longer than that; who takes the id next settles the outcome."""
    server = await asyncio.to_thread(KafkaServer, tmp_path)
    await asyncio.to_thread(server.start)
    options = dataclasses.replace(kafka_options(server.bootstrap, "hung"), commit_timeout_ms=500)
    try:
        log = KafkaLog(options, partitions=PARTITIONS)
        await log.open()
        producer = await log.transactional_producer("shard")
        async with producer.transaction() as transaction:
            transaction.append([chunk(topics.OUTBOX, 0, *numbered(0, 1))])
        server.freeze()
        with pytest.raises(LogError, match="no answer from Kafka in time"):
            async with producer.transaction() as transaction:
                transaction.append([chunk(topics.OUTBOX, 0, *numbered(1, 1))])
        await producer.close()
        server.thaw()
        again = await log.transactional_producer("shard")
        async with again.transaction() as transaction:
            transaction.append([chunk(topics.OUTBOX, 0, *numbered(2, 1))])
        await again.close()
        assert values(await replayed(log, topics.OUTBOX, 0)) == [b"0", b"2"]
    finally:
        server.thaw()
        await asyncio.to_thread(server.kill)


async def test_a_broker_that_is_killed_and_started_again_loses_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    server = await asyncio.to_thread(KafkaServer, tmp_path)
    await asyncio.to_thread(server.start)
    try:
        log = KafkaLog(kafka_options(server.bootstrap, "killed"), partitions=PARTITIONS)
        await log.open()
        appender = await log.appender()
        producer = await log.transactional_producer("shard")
        consumer = await log.consumer("readers", [topics.SIGNALS_PLAN])
        acknowledged: list[int] = []
        stop = asyncio.Event()

        async def append() -> None:
            for i in itertools.count():
                if stop.is_set():
                    return
                await appender.append([chunk(topics.SIGNALS_PLAN, 0, *numbered(i, 1))])
                acknowledged.append(i)

        async def transact() -> None:
            nonlocal producer
            for i in itertools.count():
                if stop.is_set():
                    return
                try:
                    async with producer.transaction() as transaction:
                        transaction.append([chunk(topics.OUTBOX, 0, *numbered(i, 1))])
                        transaction.append([chunk(topics.LEDGER_PAYMENT, 1, *numbered(i, 1))])
                except LogError:
                    # Its outcome is unknown: what counts is that it is whole.
                    await producer.close()
                    producer = await log.transactional_producer("shard")

        async with asyncio.TaskGroup() as group:
            group.create_task(append())
            group.create_task(transact())
            before = await poll_until(consumer, 20)
            await asyncio.to_thread(server.restart)
            found = before + await poll_until(
                consumer, len(acknowledged) + 20 - len(values(before))
            )
            stop.set()
        await producer.close()
        await (await log.transactional_producer("shard")).close()
        # Idempotence: what was acknowledged is there, in order and once, across the crash.
        expected = [str(i).encode() for i in acknowledged]
        assert values(await replayed(log, topics.SIGNALS_PLAN, 0)) == expected
        # The group may have been formed anew, and then it begins anew: nothing was committed.
        read = {offset for one in found for offset in one.offsets}
        assert read == set(range(len(read)))
        assert values(found) == [expected[offset] for one in found for offset in one.offsets]
        outputs = values(await replayed(log, topics.OUTBOX, 0))
        assert outputs == values(await replayed(log, topics.LEDGER_PAYMENT, 1))
        assert len(outputs) == len(set(outputs)) > 0
        await consumer.close()
        await appender.close()
    finally:
        await asyncio.to_thread(server.kill)
