"""The plain-Python baseline gives the engine's bytes: only then is it a yardstick."""

from collections import Counter

import pytest

from bench.baselines.plain_python import Input, PlainPython
from bench.traffic import Batch, City, batches
from bss_stream import _engine, topics
from bss_stream.setup import compile_setup, load_setup

Lanes = dict[tuple[int, str, int], list[tuple[bytes, bytes]]]

SETUP = compile_setup(load_setup())


class Pair:
    """The engine and the baseline, a shard a partition each."""

    def __init__(self, partitions: int, *, cheap_ids: bool = False) -> None:
        self.shards = range(partitions)
        self.engine = _engine.Engine(SETUP, partitions=partitions)
        for partition in self.shards:
            self.engine.open_shard(partition)
        self.baselines = [
            PlainPython(SETUP, partition=at, partitions=partitions, cheap_ids=cheap_ids)
            for at in self.shards
        ]
        self.outcomes: Counter[str] = Counter()

    def engine_lanes(self, batch: Batch) -> Lanes:
        output = self.engine.process(batch.inputs, batch.now_ms, tick=self.shards)
        self.outcomes.update(output.outcomes)
        return {
            (chunk.shard, chunk.topic, chunk.partition): [
                (key, value or b"") for key, value in _engine.unpack(chunk.data)
            ]
            for chunk in output.chunks
        }

    def baseline_lanes(self, batch: Batch) -> Lanes:
        lanes: Lanes = {}
        for shard, baseline in zip(self.shards, self.baselines, strict=True):
            inputs: list[Input] = [
                (topic, offsets, [(key, value or b"") for key, value in _engine.unpack(data)])
                for topic, partition, offsets, data in batch.inputs
                if partition == shard
            ]
            for (topic, partition), lane in baseline.process(inputs, batch.now_ms).items():
                lanes[shard, topic, partition] = lane
        return lanes


@pytest.mark.parametrize(
    ("plans", "requests", "partitions"),
    [
        pytest.param(400, 3_000, 4, id="two-days-of-a-town"),
        pytest.param(25, 2_500, 1, id="a-month-of-a-village"),
    ],
)
def test_every_record_of_the_engine_is_the_baseline_s(
    plans: int, requests: int, partitions: int
) -> None:
    city = City(SETUP, plans, partitions=partitions, seed=plans)
    arrivals = [*city.settle(), *city.requests(requests)]
    pair = Pair(partitions)
    seen: Counter[str] = Counter()
    for batch in batches(arrivals, 500):
        want, got = pair.engine_lanes(batch), pair.baseline_lanes(batch)
        assert got.keys() == want.keys()
        for at, lane in want.items():
            assert got[at] == lane, at
            seen[at[1]] += len(lane)
    assert sum((baseline.outcomes for baseline in pair.baselines), Counter()) == pair.outcomes
    assert seen.keys() == set(topics.ENGINE)
    assert pair.outcomes == city.outcomes


def test_cheap_ids_change_nothing_but_the_ids_in_states() -> None:
    city = City(SETUP, 100, seed=5)
    pair = Pair(1, cheap_ids=True)
    for batch in batches([*city.settle(), *city.requests(1_000)], 500):
        want, got = pair.engine_lanes(batch), pair.baseline_lanes(batch)
        assert got.keys() == want.keys()
        for at, lane in want.items():
            if at[1] in topics.STATES:
                sizes = [(key, len(value)) for key, value in lane]
                assert [(key, len(value)) for key, value in got[at]] == sizes
            else:
                assert got[at] == lane


def test_the_same_seed_gives_the_same_traffic() -> None:
    recordings = [
        [*city.settle(), *city.requests(300)]
        for city in (City(SETUP, 20, seed=3), City(SETUP, 20, seed=3), City(SETUP, 20, seed=4))
    ]
    assert recordings[0] == recordings[1]
    assert recordings[0] != recordings[2]
