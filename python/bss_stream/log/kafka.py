"""The Kafka log: the log protocol on an Apache Kafka cluster, for any number of processes."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence

from bss_stream import topics
from bss_stream.errors import LogError
from bss_stream.log.kafka_client import KafkaOptions, ensure_topics
from bss_stream.log.kafka_consumer import KafkaConsumer
from bss_stream.log.kafka_follow import follow
from bss_stream.log.kafka_producer import KafkaAppender, KafkaTransactionalProducer
from bss_stream.log.kafka_replay import extent, replay
from bss_stream.log.protocol import (
    Extent,
    Fetched,
    Offsets,
    RebalanceListener,
    TopicPartition,
)

__all__ = ["KafkaLog", "KafkaOptions"]


class KafkaLog:
    """A log on a cluster; each of its readers and writers has connections of its own."""

    def __init__(self, options: KafkaOptions, *, partitions: int) -> None:
        self.partitions = partitions
        self._options = options

    async def open(self) -> None:
        """Create the topics that are missing.

        Raises LogError when no broker answers or a topic has another number of partitions.
        """
        await ensure_topics(self._options, self.partitions)

    async def appender(self) -> KafkaAppender:
        """An idempotent producer with acks=all. Raises LogError."""
        appender = KafkaAppender(self._options, self.partitions)
        await appender.open()
        return appender

    async def consumer(
        self, group: str, topics: Sequence[str], listener: RebalanceListener | None = None
    ) -> KafkaConsumer:
        """Join a group; partitions come with a later poll. Raises LogError."""
        consumer = KafkaConsumer(self._options, group, tuple(topics), listener)
        await consumer.open()
        return consumer

    async def transactional_producer(self, transactional_id: str) -> KafkaTransactionalProducer:
        """The writer of a shard; from here on an older one with this id is fenced."""
        producer = KafkaTransactionalProducer(self._options, self.partitions, transactional_id)
        await producer.open()
        return producer

    def replay(self, topic: str, partition: int, start: int = 0) -> AsyncIterator[Fetched]:
        """Every committed record from `start` to the partition's last stable offset of now."""
        return replay(self._options, self._part(topic, partition), start)

    async def extent(self, topic: str, partition: int) -> Extent:
        """Where a partition begins, and its last stable offset. Raises LogError."""
        return await extent(self._options, self._part(topic, partition))

    def follow(self, starts: Offsets) -> AsyncGenerator[Fetched, None]:
        """Committed records of these partitions from these offsets on, as they come."""
        return follow(self._options, {self._part(*part): start for part, start in starts.items()})

    def _part(self, topic: str, partition: int) -> TopicPartition:
        if topic not in topics.ALL or not 0 <= partition < self.partitions:
            raise LogError(
                f"the log has no {topic}/{partition}: expected partitions 0..{self.partitions - 1} "
                f"of {', '.join(topics.ALL)}"
            )
        return TopicPartition(topic, partition)

    async def close(self) -> None:
        """Nothing to let go: readers and writers are closed by those who opened them."""
