"""What all of the Kafka log's clients share: options, names, topics, and one kind of error.

aiokafka's exceptions end here: whatever it raises becomes a LogError that says what was tried.
"""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from aiokafka import errors  # type: ignore[import-untyped]
from aiokafka.admin import AIOKafkaAdminClient, NewTopic  # type: ignore[import-untyped]
from aiokafka.conn import (  # type: ignore[import-untyped]
    CloseReason,
    collect_hosts,
    create_conn,
)

from bss_stream import tls, topics
from bss_stream.errors import (
    RECORDS_GONE,
    FencedError,
    LogAccessError,
    LogError,
    OffsetOutOfRangeError,
)

# At DEBUG aiokafka logs every request whole, and one of them is the password of SASL PLAIN.
logging.getLogger("aiokafka.conn").addFilter(lambda record: record.levelno > logging.DEBUG)

REQUEST_TIMEOUT_MS: Final = 15_000
CREATE_TIMEOUT_S: Final = 60.0
METADATA_PAUSE_S: Final = 0.1
STOP_TIMEOUT_S: Final = 10.0
ACCESS_TIMEOUT_S: Final = 5.0

RECORD_BYTES_MAX: Final = 2 * 1024 * 1024
"""What the topics are made to take: a payload of 1 MiB fits, with its frame and key around it."""

CONSUMED_RETENTION_MS: Final = 7 * 24 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class KafkaOptions:
    """How to reach a Kafka cluster, and how its topics are made."""

    bootstrap_servers: str
    """host:port, several separated by commas."""

    security_protocol: str = "PLAINTEXT"
    """PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL."""

    sasl_mechanism: str = "PLAIN"
    sasl_username: str | None = None
    sasl_password: str | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = None
    """Needed with SSL and SASL_SSL."""

    replication_factor: int = 3
    min_insync_replicas: int = 2
    client_id: str = "bss-stream"
    """The start of every connection's client id."""

    session_timeout_ms: int = 10_000
    """A group gives a dead member's partitions to the others after this."""

    commit_timeout_ms: int = 10_000
    """A transaction that is not committed by then is given up, and its outcome left to the next
    owner of its id."""

    instance: str | None = None
    """Tells this process from the others of its groups, over restarts: given, they keep its
    partitions for it until session_timeout_ms is over."""

    cloudevents: bool = False
    """Whether records say as headers what event they are."""

    topic_prefix: str = ""
    """Put before every topic, group and transactional id: several logs on one cluster."""

    def client(self, role: str) -> dict[str, Any]:
        """The arguments that every aiokafka client takes."""
        return {
            "bootstrap_servers": self.bootstrap_servers,
            "client_id": f"{self.client_id}-{role}",
            "request_timeout_ms": REQUEST_TIMEOUT_MS,
            "security_protocol": self.security_protocol,
            "ssl_context": self.tls,
            "sasl_mechanism": self.sasl_mechanism,
            "sasl_plain_username": self.sasl_username,
            "sasl_plain_password": self.sasl_password,
        }

    def name(self, name: str) -> str:
        """A topic's, group's or transactional id's name on the cluster."""
        return self.topic_prefix + name


# aiokafka also lets out what its own checks raise: a broker that answers with a state it does not
# know ends in an AssertionError, an unusable option in a ValueError.
_RAISED: Final = (
    errors.KafkaError,
    errors.ConsumerStoppedError,
    errors.IllegalOperation,
    OSError,
    TimeoutError,
    AssertionError,
    ValueError,
)
_FENCED: Final = (errors.ProducerFenced, errors.InvalidProducerEpoch)

_WRONG_USER: Final = (
    errors.SaslAuthenticationFailed,
    errors.UnsupportedSaslMechanismError,
    errors.IllegalSaslStateError,
)
_NO_RIGHT: Final = (
    errors.TopicAuthorizationFailedError,
    errors.GroupAuthorizationFailedError,
    errors.ClusterAuthorizationFailedError,
    errors.TransactionalIdAuthorizationFailed,
)


def _refusal(error: BaseException) -> str | None:
    """What to do where Kafka refuses this client; None where time may mend it."""
    if isinstance(error, _WRONG_USER):
        return "check username, what password_file holds, and sasl_mechanism"
    if isinstance(error, _NO_RIGHT):
        return "the user lacks a right that this role needs (deploy/kafka/acls.sh grants them)"
    return tls.refusal(error)


def as_log_error(doing: str, error: BaseException) -> LogError:
    """What an exception of aiokafka means. `doing` continues "cannot"."""
    what = f"cannot {doing}: {str(error) or type(error).__name__}"
    if isinstance(error, _FENCED):
        return FencedError(f"{what}; another owner has taken over, drop the shard")
    if isinstance(error, errors.OffsetOutOfRangeError):
        return OffsetOutOfRangeError(f"{what}: {RECORDS_GONE}")
    if isinstance(error, TimeoutError):
        return LogError(f"cannot {doing}: no answer from Kafka in time")
    advice = _refusal(error)
    return LogError(what) if advice is None else LogAccessError(f"{what}; {advice}")


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Raise what aiokafka raises as LogError, FencedError or OffsetOutOfRangeError."""
    try:
        yield
    except LogError:
        raise
    except _RAISED as error:
        raise as_log_error(doing, error) from error


@asynccontextmanager
async def connecting(options: KafkaOptions, doing: str) -> AsyncIterator[None]:
    """As `translated`, for what connects first: raises LogAccessError where no broker lets us in.

    aiokafka logs why it could not connect and raises something else.
    """
    try:
        with translated(doing):
            yield
    except LogError as error:
        if isinstance(error.__cause__, errors.KafkaConnectionError):
            refused = await _refused_by(options)
            if refused is not None:
                raise LogAccessError(f"cannot {doing}: {refused}") from error
        raise


async def _refused_by(options: KafkaOptions) -> str | None:
    """Why a bootstrap server refuses this client; None if one lets it in, or none refuses."""
    found = None
    arguments = options.client("access")
    for host, port, _ in collect_hosts(arguments.pop("bootstrap_servers")):
        try:
            async with asyncio.timeout(ACCESS_TIMEOUT_S):
                connection = await create_conn(host, port, **arguments)
        except _RAISED as error:
            advice = _refusal(error)
            if advice is not None:
                found = f"{host}:{port}: {str(error) or type(error).__name__}; {advice}"
        else:
            connection.close()
            return None
    return found


def hangs_up_at_once(client: Any) -> None:
    """Have an aiokafka client close its TLS connections without waiting for Kafka's good-bye.

    Kafka sends none, and uvloop would wait 30 s for it. By the time a client closes, all that it
    has asked for is answered or given up.
    """
    close = client.close

    async def close_at_once() -> None:
        for connection in list(client._conns.values()):
            writer = connection._writer
            if writer is not None and writer.get_extra_info("ssl_object") is not None:
                connection.close(reason=CloseReason.SHUTDOWN)
                writer.transport.abort()
        await close()

    client.close = close_at_once


async def within(timeout_s: float, work: Awaitable[object]) -> bool:
    """Whether the work was done in time; it is cancelled otherwise."""
    try:
        async with asyncio.timeout(timeout_s):
            await work
    except TimeoutError:
        return False
    return True


async def quietly(closing: Awaitable[object]) -> None:
    """Close what may be broken: whoever used it has been told already."""
    await asyncio.gather(closing, return_exceptions=True)


async def ensure_topics(options: KafkaOptions, partitions: int) -> None:
    """Create the topics that are missing and wait for their leaders.

    Raises LogError naming every topic with another number of partitions.
    """
    if options.min_insync_replicas > options.replication_factor:
        raise LogError(
            f"min_insync_replicas is {options.min_insync_replicas} with a replication_factor of "
            f"{options.replication_factor}: no write would ever succeed, expected at most that"
        )
    async with connecting(options, f"prepare the topics on {options.bootstrap_servers}"):
        admin = AIOKafkaAdminClient(**options.client("admin"))
        hangs_up_at_once(admin._client)
        try:
            async with asyncio.timeout(CREATE_TIMEOUT_S):
                await admin.start()
                present = await _partitions(admin, options)
                missing = [topic for topic in topics.ALL if topic not in present]
                if missing:
                    await _create(admin, options, missing, partitions)
                while len(present) < len(topics.ALL):
                    await asyncio.sleep(METADATA_PAUSE_S)
                    present = await _partitions(admin, options)
        finally:
            await admin.close()
    wrong = [
        f"{options.name(topic)} has {count}"
        for topic, count in present.items()
        if count != partitions
    ]
    if wrong:
        raise LogError(
            f"every topic needs {partitions} partitions, but {', '.join(wrong)}: set partitions "
            "to what the topics have, or use another topic_prefix"
        )


async def _partitions(admin: Any, options: KafkaOptions) -> dict[str, int]:
    """How many partitions each topic has, of those whose partitions all have a leader."""
    names = {options.name(topic): topic for topic in topics.ALL}
    found = {}
    for topic in await admin.describe_topics(list(names)):
        leaders = [part["leader"] for part in topic["partitions"]]
        if topic["error_code"] == 0 and leaders and min(leaders) >= 0:
            found[names[topic["topic"]]] = len(leaders)
        elif topic["error_code"] not in (0, *_NOT_YET):
            raise errors.for_code(topic["error_code"])(topic["topic"])
    return found


_NOT_YET: Final = (
    errors.UnknownTopicOrPartitionError.errno,
    errors.LeaderNotAvailableError.errno,
)


async def _create(
    admin: Any, options: KafkaOptions, missing: Sequence[str], partitions: int
) -> None:
    wanted = [
        NewTopic(
            name=options.name(topic),
            num_partitions=partitions,
            replication_factor=options.replication_factor,
            topic_configs=_configuration(topic, options),
        )
        for topic in missing
    ]
    answer = await admin.create_topics(wanted)
    for topic, code, *message in answer.topic_errors:
        if code not in (0, errors.TopicAlreadyExistsError.errno):
            said = next(filter(None, message), errors.for_code(code).__name__)
            raise LogError(f"cannot create the topic {topic}: {said}")


def _configuration(topic: str, options: KafkaOptions) -> Mapping[str, str]:
    settings = {
        "min.insync.replicas": str(options.min_insync_replicas),
        "max.message.bytes": str(RECORD_BYTES_MAX),
    }
    if topic in topics.STATES:
        return settings | {"cleanup.policy": "compact"}
    consumed = topic in topics.SIGNALS or topic == topics.OUTBOX
    # Ledgers and dead letters are the record of what happened and are kept for good.
    return settings | {"retention.ms": str(CONSUMED_RETENTION_MS if consumed else -1)}
