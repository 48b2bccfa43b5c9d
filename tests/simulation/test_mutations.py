"""Roles that break a promise, each in one place: the simulation has to catch every one of them."""

import contextlib
import dataclasses
from collections.abc import Iterable, Sequence

import pytest

from bss_stream.bridge import Bridge, BridgeSettings
from bss_stream.log.protocol import Appender, Chunk, Fetched, TopicPartition
from bss_stream.mqtt.client import MqttClient
from bss_stream.mqtt.messages import SESSION_WEEK_S, MqttSettings, Received
from bss_stream.processor import Processor
from bss_stream.publisher import Publisher, PublisherSettings
from bss_stream.shard_state import Restored
from bss_stream.sink.entry import decode_fetched
from bss_stream.sink.loop import LedgerSink, SinkSettings
from bss_stream.sink.store import StoreUnavailableError
from tests.simulation.clients import wall_ms
from tests.simulation.world import GROUPS, SETUP, TABLE, Role, Roles, Store, World, simulate

CAUGHT_WITHIN = 60
"""Seeds: far more than any of them has needed."""

# A process that is killed closes nothing.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


class EagerClient(MqttClient):
    """Acknowledges what it has received, whoever has it."""

    def on_received(self, messages: list[Received]) -> None:
        super().on_received(messages)
        self.ack(messages)


class BridgeAcknowledgesBeforeTheAppend(Roles):
    def bridge(self, world: World, number: int) -> Role:
        mqtt = MqttSettings(
            host="broker", client_id=f"bridge-{number}", session_expiry_s=SESSION_WEEK_S
        )
        shared = "bridges" if world.scenario.bridges > 1 else None
        settings = BridgeSettings(batch_records_max=20, shared_group=shared)
        bridge = Bridge(self.log(world), mqtt, TABLE, settings, clock_ms=wall_ms)
        bridge.client = EagerClient(mqtt)
        return bridge


class _OffsetsApart(Processor):
    async def _commit_shard(
        self, shard: int, chunks: Sequence[Chunk], offsets: dict[TopicPartition, int]
    ) -> None:
        await super()._commit_shard(shard, chunks, {})
        await super()._commit_shard(shard, [], offsets)


class ProcessorCommitsOffsetsOutsideTheTransaction(Roles):
    def processor(self, world: World, number: int) -> Role:
        settings = self.processor_settings(world, number)
        return _OffsetsApart(self.log(world), SETUP, settings, clock_ms=wall_ms)


class ProcessorFencesNobody(Roles):
    def processor(self, world: World, number: int) -> Role:
        settings = dataclasses.replace(
            self.processor_settings(world, number),
            transactional_id=(f"processor-{number}" + "-{}").format,
        )
        return Processor(self.log(world), SETUP, settings, clock_ms=wall_ms)


class _Forgetful(Processor):
    async def _restore_shard(self, shard: int) -> None:
        self._restored[shard] = Restored()


class ProcessorRestoresNothing(Roles):
    def processor(self, world: World, number: int) -> Role:
        settings = self.processor_settings(world, number)
        return _Forgetful(self.log(world), SETUP, settings, clock_ms=wall_ms)


class _Hasty(Publisher):
    async def _publish(self, appender: Appender, fetched: Sequence[Fetched]) -> bool:
        self._offsets.update({TopicPartition(f.topic, f.partition): f.next_offset for f in fetched})
        assert self._consumer is not None
        await self._commit(self._consumer)
        return await super()._publish(appender, fetched)


class PublisherCommitsBeforeItPublishes(Roles):
    def publisher(self, world: World, number: int) -> Role:
        settings = PublisherSettings(group=GROUPS["publisher"], batch_records_max=20)
        mqtt = MqttSettings(host="broker", client_id=f"publisher-{number}")
        return _Hasty(self.log(world), mqtt, settings, clock_ms=wall_ms)


class _Careless(LedgerSink):
    async def _write(self, fetched: list[Fetched]) -> None:
        batch = decode_fetched(fetched)
        offsets = {TopicPartition(part.topic, part.partition): part.next_offset for part in fetched}
        with contextlib.suppress(StoreUnavailableError):
            self._store.write(batch, offsets)


class SinkDoesNotTryAgain(Roles):
    def sink(self, world: World, number: int) -> Role:
        store = Store(world.database, world)
        return _Careless(self.log(world), store, SinkSettings(group=GROUPS["sink"]))


MUTATIONS: Iterable[type[Roles]] = (
    BridgeAcknowledgesBeforeTheAppend,
    ProcessorCommitsOffsetsOutsideTheTransaction,
    ProcessorFencesNobody,
    ProcessorRestoresNothing,
    PublisherCommitsBeforeItPublishes,
    SinkDoesNotTryAgain,
)


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_broken_promise_is_caught(mutation: type[Roles]) -> None:
    for seed in range(CAUGHT_WITHIN):
        if faults := simulate(seed, mutation()).faults:
            print(f"caught by seed {seed}: {faults[0][:300]}")
            return
    pytest.fail(f"{CAUGHT_WITHIN} seeds have not caught it")
