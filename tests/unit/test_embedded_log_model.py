"""The embedded log against a model of lists and dictionaries: any order of operations agrees."""

import asyncio
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bss_stream import topics
from bss_stream._engine import unpack
from bss_stream.errors import FencedError
from bss_stream.log.embedded import EmbeddedLog, Policy
from bss_stream.log.protocol import Consumer, TopicPartition, TransactionalProducer
from tests.eventually import eventually
from tests.logs import Record, chunk, replayed

PARTITIONS = 2
GROUP = "group"
READ = (topics.SIGNALS_PLAN, topics.OUTBOX)
WRITTEN = (topics.SIGNALS_PLAN, topics.OUTBOX, topics.STATE_PLAN, topics.LEDGER_PAYMENT)

T = TypeVar("T")

parts = st.builds(TopicPartition, st.sampled_from(WRITTEN), st.integers(0, PARTITIONS - 1))
read_parts = st.builds(TopicPartition, st.sampled_from(READ), st.integers(0, PARTITIONS - 1))
records = st.lists(
    st.tuples(st.sampled_from([b"a", b"b", b"c"]), st.none() | st.binary(max_size=3)),
    min_size=1,
    max_size=5,
)
writes = st.lists(st.tuples(parts, records), min_size=1, max_size=4)


class EmbeddedLogMachine(RuleBasedStateMachine):
    """One group with one member, and one shard's producer with its fenced predecessors."""

    def __init__(self) -> None:
        super().__init__()
        self._runner = asyncio.Runner()
        self._directory = tempfile.TemporaryDirectory()
        self._model: dict[TopicPartition, list[Record]] = {
            TopicPartition(topic, part): [] for topic in WRITTEN for part in range(PARTITIONS)
        }
        self._committed = {
            TopicPartition(topic, part): 0 for topic in READ for part in range(PARTITIONS)
        }
        self._positions = dict(self._committed)
        self._fenced: list[TransactionalProducer] = []
        self._run(self._open())

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    async def _open(self) -> None:
        self._log = EmbeddedLog(
            Path(self._directory.name),
            partitions=PARTITIONS,
            durability="process",
            policy=Policy(keep_consumed_ms=-1000, compact_records_min=3),
        )
        await self._log.open()
        self._fenced.clear()
        self._producer = await self._log.transactional_producer("shard")
        await self._join()

    async def _join(self) -> None:
        self._consumer: Consumer = await self._log.consumer(GROUP, READ)
        await eventually(lambda: bool(self._consumer.assignment()))
        self._positions = dict(self._committed)

    def teardown(self) -> None:
        self._run(self._log.close())
        self._runner.close()
        self._directory.cleanup()

    def _append_to_model(self, written: list[tuple[TopicPartition, list[Record]]]) -> None:
        for part, some in written:
            self._model[part] += some

    @rule(written=writes)
    def append(self, written: list[tuple[TopicPartition, list[Record]]]) -> None:
        async def append() -> None:
            appender = await self._log.appender()
            await appender.append([chunk(*part, *some) for part, some in written])

        self._run(append())
        self._append_to_model(written)

    @rule(
        written=writes, commit=st.booleans(), offsets=st.dictionaries(read_parts, st.floats(0, 1))
    )
    def transact(
        self,
        written: list[tuple[TopicPartition, list[Record]]],
        commit: bool,
        offsets: dict[TopicPartition, float],
    ) -> None:
        wanted = {part: self._between(part, share) for part, share in offsets.items()}

        async def transact() -> None:
            async with self._producer.transaction() as transaction:
                transaction.append([chunk(*part, *some) for part, some in written])
                transaction.offsets(GROUP, wanted)
                if not commit:
                    raise InterruptedError

        if commit:
            self._run(transact())
            self._append_to_model(written)
            self._committed |= wanted
        else:
            with pytest.raises(InterruptedError):
                self._run(transact())

    def _between(self, part: TopicPartition, share: float) -> int:
        """An offset at or above the committed one: what lies below may have been trimmed."""
        first, end = self._committed[part], len(self._model[part])
        return first + int(share * (end - first))

    @rule()
    def take_over(self) -> None:
        self._fenced.append(self._producer)
        self._producer = self._run(self._log.transactional_producer("shard"))

    @precondition(lambda self: self._fenced)
    @rule(written=writes)
    def write_as_a_zombie(self, written: list[tuple[TopicPartition, list[Record]]]) -> None:
        async def write() -> None:
            async with self._fenced[-1].transaction() as transaction:
                transaction.append([chunk(*part, *some) for part, some in written])

        with pytest.raises(FencedError):
            self._run(write())

    @rule(records_max=st.integers(1, 12))
    def poll(self, records_max: int) -> None:
        for fetched in self._run(self._consumer.poll(records_max, 0.0)):
            part = TopicPartition(fetched.topic, fetched.partition)
            start = self._positions[part]
            assert list(fetched.offsets) == list(range(start, fetched.next_offset))
            assert unpack(fetched.data) == self._model[part][start : fetched.next_offset]
            self._positions[part] = fetched.next_offset

    @rule()
    def read_to_the_end(self) -> None:
        while any(at < len(self._model[part]) for part, at in self._positions.items()):
            before = dict(self._positions)
            self.poll(5)
            assert self._positions != before
        assert set(self._run(self._consumer.lag()).values()) == {0}

    @rule(part=read_parts)
    def commit_position(self, part: TopicPartition) -> None:
        if self._positions[part] >= self._committed[part]:
            self._run(self._consumer.commit({part: self._positions[part]}))
            self._committed[part] = self._positions[part]

    @rule(part=read_parts, share=st.floats(0, 1))
    def seek(self, part: TopicPartition, share: float) -> None:
        self._positions[part] = self._between(part, share)
        self._run(self._consumer.seek({part: self._positions[part]}))

    @rule()
    def rejoin(self) -> None:
        self._run(self._consumer.close())
        self._run(self._join())

    @rule()
    def reopen(self) -> None:
        self._run(self._log.close())
        self._run(self._open())

    @rule()
    def tidy(self) -> None:
        self._run(self._log.tidy())
        # What was skipped by a seek may be below the start now; a group reads on from its commits.
        for part, committed in self._committed.items():
            if self._positions[part] < committed:
                self._positions[part] = committed
                self._run(self._consumer.seek({part: committed}))

    @invariant()
    def replays_agree(self) -> None:
        for part, expected in self._model.items():
            found = self._run(replayed(self._log, *part))
            offsets = [offset for one in found for offset in one.offsets]
            got = [record for one in found for record in unpack(one.data)]
            assert got == [expected[offset] for offset in offsets]
            if part.topic in topics.STATES:
                assert offsets == sorted(set(offsets))
                assert _state(got) == _state(expected)
            else:
                assert offsets == list(range(len(expected) - len(offsets), len(expected)))
                assert len(expected) - len(offsets) <= self._committed.get(part, 0)


def _state(changes: list[Record]) -> dict[bytes, bytes]:
    """What a changelog amounts to."""
    state = dict(changes)
    return {key: value for key, value in state.items() if value is not None}


TestEmbeddedLogModel = EmbeddedLogMachine.TestCase
TestEmbeddedLogModel.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
