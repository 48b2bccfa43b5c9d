"""Who gets in at a real Kafka by SASL or certificate over TLS, and what the others are told."""

import asyncio
import logging
from contextlib import aclosing
from pathlib import Path

import pytest

from bss_stream import topics
from bss_stream._engine import pack
from bss_stream.config import Config
from bss_stream.console.watch import FOLLOWED
from bss_stream.errors import LogAccessError
from bss_stream.log.protocol import Chunk, TopicPartition
from bss_stream.roles import make_log, readable_log
from tests.integration.command import gives_up
from tests.logs import join
from tests.servers.certificates import Certificate, Certificates
from tests.servers.kafka import KafkaServer
from tests.servers.kafka_access import LISTENERS, PASSWORDS, PLAIN_PASSWORD, PREFIX

pytestmark = pytest.mark.kafka

WRONG_PASSWORD = "hunter3-in-the-clear"
USER = "bss-processor"


def configuration(
    folder: Path,
    server: KafkaServer,
    listener: str,
    *,
    ca: Path,
    host: str = "127.0.0.1",
    user: str = USER,
    password: str = PASSWORDS[USER],
    mechanism: str = "SCRAM-SHA-512",
    shows: Certificate | None = None,
) -> Path:
    """A configuration of a role on Kafka."""
    lines = [
        "[log]",
        'backend = "kafka"',
        "[log.kafka]",
        f'bootstrap_servers = ["{host}:{server.ports[listener]}"]',
        f'security_protocol = "{LISTENERS[listener]}"',
        "replication_factor = 1",
        "min_insync_replicas = 1",
        f'topic_prefix = "{PREFIX}"',
        f'ca_file = "{ca}"',
    ]
    if LISTENERS[listener] == "SASL_SSL":
        secret = folder / "kafka-password"
        secret.write_text(f"{password}\n")
        lines += [f'username = "{user}"', f'password_file = "{secret}"']
        lines += [f'sasl_mechanism = "{mechanism}"']
    if shows is not None:
        lines += [f'cert_file = "{shows.cert}"', f'key_file = "{shows.key}"']
    file = folder / "bss.toml"
    file.write_text("\n".join(lines))
    return file


async def exchange(config: Path) -> None:
    """Write a record in a transaction and read it as a member of a group."""
    log = make_log(Config.load(config, {}))
    await log.open()
    producer = await log.transactional_producer("bss-0")
    async with producer.transaction() as transaction:
        transaction.append([Chunk(topics.SIGNALS_PLAN, 0, 1, pack([(b"p", b"v")]))])
    await producer.close()
    consumer = await log.consumer("bss-processor", topics.SIGNALS)
    await join(consumer)
    await consumer.close()
    await log.close()


async def test_scram_over_tls(
    tmp_path: Path, kafka_access: KafkaServer, certificates: Certificates
) -> None:
    await exchange(configuration(tmp_path, kafka_access, "SASL", ca=certificates.ca))


async def test_a_console_reads_and_replays_and_does_no_more(
    tmp_path: Path, kafka_access: KafkaServer, certificates: Certificates
) -> None:
    first = make_log(
        Config.load(configuration(tmp_path, kafka_access, "SASL", ca=certificates.ca), {})
    )
    await first.open()  # The processor makes the topics.
    config = Config.load(
        configuration(
            tmp_path,
            kafka_access,
            "SASL",
            ca=certificates.ca,
            user="bss-console",
            password=PASSWORDS["bss-console"],
        ),
        {},
    )
    record = pack([(b"p", b"v")])
    async with readable_log(config) as log:
        starts = {
            TopicPartition(topic, 0): (await log.extent(topic, 0)).end
            for topic in (*FOLLOWED, topics.STATE_PLAN)
        }
        assert [one async for one in log.replay(topics.STATE_PLAN, 0)] == []
        writer = make_log(config)
        producer = await writer.transactional_producer(config.replay_id)
        async with producer.transaction() as transaction:
            for topic in (*topics.SIGNALS, topics.DEAD_LETTER):
                transaction.append([Chunk(topic, 0, 1, record)])
        with pytest.raises(LogAccessError):
            async with producer.transaction() as transaction:
                transaction.append([Chunk(topics.LEDGER_PAYMENT, 0, 1, record)])
        await producer.close()
        with pytest.raises(LogAccessError):
            await writer.transactional_producer(config.transactional_id(0))
        seen = set()
        async with asyncio.timeout(60), aclosing(log.follow(starts)) as following:
            async for fetched in following:
                seen.add(fetched.topic)
                if seen == {*topics.SIGNALS, topics.DEAD_LETTER}:
                    break


async def test_a_certificate_instead_of_a_password(
    tmp_path: Path, kafka_access: KafkaServer, certificates: Certificates
) -> None:
    """Its common name is the user, who has this user's rights."""
    shown = certificates.client(USER)
    await exchange(configuration(tmp_path, kafka_access, "MUTUAL", ca=certificates.ca, shows=shown))


async def test_the_password_in_one_message_over_tls(
    tmp_path: Path,
    kafka_access: KafkaServer,
    certificates: Certificates,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """SASL PLAIN gets in, as one who has no rights; whatever is logged, it is not the password."""
    caplog.set_level(logging.DEBUG)
    config = configuration(
        tmp_path,
        kafka_access,
        "SASL",
        ca=certificates.ca,
        user="plain",
        password=PLAIN_PASSWORD,
        mechanism="PLAIN",
    )
    log = make_log(Config.load(config, {}))
    assert PLAIN_PASSWORD not in repr(log) + repr(vars(log))
    with pytest.raises(LogAccessError, match=r"the user lacks a right .*acls\.sh") as caught:
        await log.open()
    assert PLAIN_PASSWORD not in str(caught.value)
    assert PLAIN_PASSWORD not in caplog.text


async def test_a_wrong_password_is_given_up_at_once(
    tmp_path: Path, kafka_access: KafkaServer, certificates: Certificates
) -> None:
    config = configuration(
        tmp_path, kafka_access, "SASL", ca=certificates.ca, password=WRONG_PASSWORD
    )
    said = await asyncio.to_thread(gives_up, "process", config, WRONG_PASSWORD)
    assert "check username, what password_file holds, and sasl_mechanism" in said


async def test_a_client_s_certificate_is_asked_for_and_looked_at(
    tmp_path: Path, kafka_access: KafkaServer, certificates: Certificates
) -> None:
    config = configuration(tmp_path, kafka_access, "MUTUAL", ca=certificates.ca)
    said = await asyncio.to_thread(gives_up, "process", config)
    assert "or that it shows none: set cert_file and key_file" in said
    unknown = certificates.stranger.issue("kafka-client")
    config = configuration(tmp_path, kafka_access, "MUTUAL", ca=certificates.ca, shows=unknown)
    said = await asyncio.to_thread(gives_up, "process", config)
    assert "the server does not accept this client's certificate" in said


@pytest.mark.parametrize(
    ("listener", "host", "trusted", "told"),
    [
        ("SASL", "127.0.0.1", "stranger", "signed by nobody who is trusted here"),
        ("ELSEWHERE", "localhost", "authority", "certificate is for another name"),
        ("ELSEWHERE", "127.0.0.1", "authority", "certificate is for another address"),
        ("EXPIRED", "127.0.0.1", "authority", "certificate has expired: renew it on the server"),
    ],
)
async def test_a_server_that_cannot_prove_itself_is_given_up_at_once(
    tmp_path: Path,
    kafka_access: KafkaServer,
    certificates: Certificates,
    listener: str,
    host: str,
    trusted: str,
    told: str,
) -> None:
    ca = getattr(certificates, trusted).ca
    config = configuration(tmp_path, kafka_access, listener, host=host, ca=ca)
    assert told in await asyncio.to_thread(gives_up, "process", config, PASSWORDS[USER])


async def test_what_a_role_may_not_do_is_final(
    tmp_path: Path, kafka_access: KafkaServer, certificates: Certificates
) -> None:
    """A publisher that would be a bridge or a processor: no attempt mends that, so it ends."""
    config = configuration(tmp_path, kafka_access, "SASL", ca=certificates.ca)
    # It makes the topics.
    await make_log(Config.load(config, {})).open()
    config = configuration(
        tmp_path,
        kafka_access,
        "SASL",
        ca=certificates.ca,
        user="bss-publisher",
        password=PASSWORDS["bss-publisher"],
    )
    log = make_log(Config.load(config, {}))
    appender = await log.appender()
    with pytest.raises(LogAccessError, match="lacks a right"):
        await appender.append([Chunk(topics.SIGNALS_PLAN, 0, 1, pack([(b"p", b"v")]))])
    await appender.close()
    with pytest.raises(LogAccessError, match="lacks a right"):
        await log.transactional_producer("bss-0")
    consumer = await log.consumer("bss-processor", topics.SIGNALS)
    with pytest.raises(LogAccessError, match="lacks a right"):
        await join(consumer)
    await consumer.close()
