"""The plain-Python baseline inside a dataflow framework.

The framework gets every advantage: whole batches as its items, one stateful step, the records
counted where they come out. Neither a log nor recovery is part of it.
"""

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSink, TestingSource, run_main

from bench.baselines.plain_python import PlainPython
from bench.recording import Call, Recording, settled_baseline, unpacked
from bench.traffic import Batch


def bytewax_call(recording: Recording, traffic: list[Batch]) -> Call:
    """One call that drives the whole traffic through a Bytewax dataflow of one worker."""
    baseline = settled_baseline(recording, PlainPython(recording.setup))
    items = [(unpacked(batch), batch.now_ms) for batch in traffic]

    def run() -> None:
        produced: list[int] = []
        flow = Dataflow("swaps")
        batches = op.input("signals", flow, TestingSource(items))
        lanes = op.flat_map("shard", batches, lambda item: baseline.process(*item).items())
        counted = op.map("count", lanes, lambda lane: len(lane[1]))
        op.output("out", counted, TestingSink(produced))
        run_main(flow)  # type: ignore[no-untyped-call]
        assert sum(produced) > len(traffic), "the dataflow made nothing of its signals"

    return run
