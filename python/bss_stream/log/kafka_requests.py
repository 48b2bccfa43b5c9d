"""Requests to a Kafka cluster, each to the broker in charge, until it has said yes or no for good.

aiokafka's client has the connections, the authentication, the metadata and the layouts of requests.
What its producer makes of them is not used: decision 0025 says why.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from aiokafka import errors  # type: ignore[import-untyped]
from aiokafka.client import (  # type: ignore[import-untyped]
    AIOKafkaClient,
    ConnectionGroup,
    CoordinationType,
)

from bss_stream.log.kafka_client import (
    STOP_TIMEOUT_S,
    KafkaOptions,
    hangs_up_at_once,
    quietly,
    within,
)

RETRY_MIN_S: Final = 0.001
"""A transaction's markers take a broker a few milliseconds, and the next one waits for them."""

RETRY_MAX_S: Final = 0.1
RETRY_GROWTH: Final = 1.5

FETCHES: Final = "fetches"
"""The name of those connections: aiokafka's client keeps one for each broker and name."""

_UNANSWERED: Final = (
    errors.KafkaConnectionError,
    errors.NodeNotReadyError,
    errors.RequestTimedOutError,
    errors.CorrelationIdError,
)
_MOVED_COORDINATOR: Final = (
    errors.NotCoordinatorError,
    errors.CoordinatorNotAvailableError,
)
_MOVED_LEADER: Final = (
    errors.NotLeaderForPartitionError,
    errors.LeaderNotAvailableError,
    errors.UnknownTopicOrPartitionError,
    errors.KafkaStorageError,
)
_PASSING: Final = (
    *_UNANSWERED,
    *_MOVED_COORDINATOR,
    *_MOVED_LEADER,
    errors.ConcurrentTransactions,
    errors.CoordinatorLoadInProgressError,
    # Also what Kafka 4 says while it cannot tell whether a transaction is open.
    errors.NotEnoughReplicasError,
    errors.NotEnoughReplicasAfterAppendError,
    errors.OperationNotAttempted,
)

Failure = BaseException | None
"""Why an attempt has to be made again, None if it need not be."""


def is_passing(failure: BaseException) -> bool:
    """Whether the same request may well succeed a moment later."""
    return isinstance(failure, _PASSING)


def failure_of(codes: Iterable[int]) -> Failure:
    """What the error codes of one answer come to. Raises what no repetition can mend."""
    passing: Failure = None
    for code in codes:
        kind = errors.for_code(code)
        if kind is errors.NoError:
            continue
        failure = kind()
        if not is_passing(failure):
            raise failure
        passing = failure
    return passing


class KafkaRequests:
    """One client's connections to a cluster. Every method may raise aiokafka's errors."""

    def __init__(self, options: KafkaOptions, role: str) -> None:
        self._options = options
        self._role = role
        self._client: Any = None
        self._coordinators: dict[tuple[int, str], int] = {}

    async def open(self, topics: Iterable[str]) -> None:
        """Connect, and learn who leads the topics' partitions.

        Has no end of its own where a broker answers and knows of none that is at work.
        """
        while not await self._knows_brokers():
            # A broker that was away for long is no member of its cluster for a moment.
            await self.close()
            await asyncio.sleep(RETRY_MAX_S)
        await self._client.set_topics([self._options.name(topic) for topic in topics])

    async def _knows_brokers(self) -> bool:
        # Made here: it belongs to the loop that is running.
        self._client = AIOKafkaClient(**self._options.client(self._role))
        hangs_up_at_once(self._client)
        await self._client.bootstrap()
        return bool(self._client.cluster.brokers())

    async def close(self) -> None:
        """Disconnect, whether or not a broker answers."""
        if self._client is not None:
            await within(STOP_TIMEOUT_S, quietly(self._client.close()))

    async def until_done(self, attempt: Callable[[], Awaitable[Failure]]) -> None:
        """Repeat an attempt until it leaves nothing to be done, with growing pauses."""
        pause_s = RETRY_MIN_S
        while (failure := await self._outcome(attempt)) is not None:
            await self._adapt(failure)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * RETRY_GROWTH, RETRY_MAX_S)

    async def _outcome(self, attempt: Callable[[], Awaitable[Failure]]) -> Failure:
        try:
            return await attempt()
        except _PASSING as failure:
            passing: Failure = failure
            return passing

    async def _adapt(self, failure: BaseException) -> None:
        if isinstance(failure, (*_UNANSWERED, *_MOVED_COORDINATOR)):
            self._coordinators.clear()
        if isinstance(failure, (*_UNANSWERED, *_MOVED_LEADER)):
            await self._client.force_metadata_update()

    @property
    def client(self) -> Any:
        """aiokafka's, once `open` has returned."""
        return self._client

    async def fetch(self, node: int, request: Any) -> Any:
        """The answer of a broker that may wait with it: on a connection of its own, since a broker
        answers a connection's requests one after the other."""
        return await self._client.send(node, request, group=FETCHES)

    async def ask_leader(self, node: int, request: Any) -> Any:
        """The answer of a broker that leads partitions."""
        return await self._client.send(node, request)

    def leader(self, part: Any) -> int:
        """The broker that leads a partition. Raises LeaderNotAvailableError."""
        leader: int | None = self._client.cluster.leader_for_partition(part)
        if leader is None or leader < 0:
            raise errors.LeaderNotAvailableError()
        return leader

    async def ask_any(self, request: Any) -> Any:
        """The answer of whichever broker."""
        return await self._client.send(self._client.get_random_node(), request)

    async def ask_transactions(self, transactional_id: str, request: Any) -> Any:
        """The answer of an id's transaction coordinator."""
        return await self._ask_coordinator(CoordinationType.TRANSACTION, transactional_id, request)

    async def ask_group(self, group: str, request: Any) -> Any:
        """The answer of a group's coordinator."""
        return await self._ask_coordinator(CoordinationType.GROUP, group, request)

    async def _ask_coordinator(self, kind: int, key: str, request: Any) -> Any:
        node = self._coordinators.get((kind, key))
        if node is None:
            node = await self._client.coordinator_lookup(kind, key)
            self._coordinators[kind, key] = node
        return await self._client.send(node, request, group=ConnectionGroup.COORDINATION)
