"""A recorded city: what settles its plans, then batches of its steady traffic, for any engine."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from bench.baselines.plain_python import Input, PlainPython
from bench.traffic import Batch, City, batches
from bss_stream import _engine, topics
from bss_stream.setup import compile_setup, load_setup

BATCH_RECORDS = 1_000
"""Raw signals a call."""

Call = Callable[[], object]


class Recording(NamedTuple):
    """A city's records, all of one partition unless it was made with more."""

    setup: bytes
    plans: int
    partitions: int
    settling: list[Batch]
    traffic: list[Batch]


def record(plans: int, rounds: int, *, partitions: int = 1) -> Recording:
    """Settle `plans` plans, then record `rounds` batches of plans' signals."""
    setup = compile_setup(load_setup())
    city = City(setup, plans, partitions=partitions)
    settling = list(batches(city.settle(), 5_000))
    # Every request has followers at stations and assets; here only plans' signals count, so that
    # a batch is what an outsider would call 1,000 signals.
    requests = (a for a in city.requests(rounds * BATCH_RECORDS) if a.topic == topics.SIGNALS_PLAN)
    traffic = [b for b in batches(requests, BATCH_RECORDS) if len(b.arrivals) == BATCH_RECORDS]
    return Recording(setup, plans, partitions, settling, traffic[:rounds])


def engine_calls(recording: Recording, *, threads: int = 1) -> Iterator[Call]:
    """One call a batch into a settled engine; each may be made once, in order."""
    engine = settled_engine(recording, threads=threads)
    for batch in recording.traffic:
        yield lambda b=batch: engine.process(b.inputs, b.now_ms)  # type: ignore[misc]


def settled_engine(recording: Recording, *, threads: int = 1) -> _engine.Engine:
    """An engine in which every plan of the recording has its first battery."""
    engine = _engine.Engine(recording.setup, partitions=recording.partitions, threads=threads)
    for partition in range(recording.partitions):
        engine.open_shard(partition)
    for batch in recording.settling:
        engine.process(batch.inputs, batch.now_ms)
    return engine


def baseline_calls(recording: Recording) -> Iterator[Call]:
    """The same into the plain-Python baseline; its records are unpacked beforehand."""
    baseline = PlainPython(recording.setup, partition=0, partitions=1)
    for batch in recording.settling:
        baseline.process(_unpacked(batch), batch.now_ms)
    for batch in recording.traffic:
        inputs = _unpacked(batch)
        yield lambda i=inputs, b=batch: baseline.process(i, b.now_ms)  # type: ignore[misc]


def _unpacked(batch: Batch) -> Sequence[Input]:
    return [
        (topic, offsets, [(key, value or b"") for key, value in _engine.unpack(data)])
        for topic, _, offsets, data in batch.inputs
    ]


def state_bytes(recording: Recording) -> Counter[str]:
    """Bytes of the newest changelog record of every entity, by topic, and how many there are."""
    engine = _engine.Engine(recording.setup, partitions=recording.partitions)
    for partition in range(recording.partitions):
        engine.open_shard(partition)
    newest: dict[tuple[str, bytes], int] = {}
    for batch in (*recording.settling, *recording.traffic):
        for chunk in engine.process(batch.inputs, batch.now_ms).chunks:
            if chunk.topic in topics.STATES:
                for key, value in _engine.unpack(chunk.data):
                    newest[chunk.topic, key] = len(value or b"")
    sizes: Counter[str] = Counter()
    for (topic, _), size in newest.items():
        sizes[topic] += size
        sizes[f"{topic} entities"] += 1
    return sizes
