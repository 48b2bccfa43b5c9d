"""A recorded city: what settles its plans, then batches of its steady traffic, for any engine."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from bench import messages
from bench.baselines.plain_python import Input, PlainPython
from bench.baselines.plain_tables import Model
from bench.traffic import START_MS, Arrival, Batch, City, batches
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
    """Signals of plans alone: a batch is what an outsider would call 1,000 signals. What follows
    from them at stations and batteries is emitted, but not fed back."""
    everything: list[Batch]
    """The same traffic with every record that follows: what a processor in the field takes in."""


def record(
    plans: int, rounds: int, *, partitions: int = 1, setup: bytes | None = None
) -> Recording:
    """Settle `plans` plans, then record `rounds` batches of plans' signals."""
    setup = setup or compile_setup(load_setup())
    city = City(setup, plans, partitions=partitions)
    settling = list(batches(city.settle(), 5 * BATCH_RECORDS))
    # One request in fifteen is a refused or a garbled one, a few go to stations: a tenth more of
    # them is enough for so many signals of plans.
    arrivals = list(city.requests(rounds * BATCH_RECORDS * 11 // 10))
    signals = [arrival for arrival in arrivals if arrival.topic == topics.SIGNALS_PLAN]
    return Recording(
        setup, plans, partitions, settling, _whole(signals, rounds), _whole(arrivals, rounds)
    )


def _whole(arrivals: Iterable[Arrival], rounds: int) -> list[Batch]:
    whole = [b for b in batches(arrivals, BATCH_RECORDS) if len(b.arrivals) == BATCH_RECORDS]
    return whole[:rounds]


def engine_calls(
    recording: Recording, traffic: Sequence[Batch], *, threads: int = 1
) -> Iterator[Call]:
    """One call a batch into a settled engine; each may be made once, in order."""
    engine = settled_engine(recording, threads=threads)
    return _calls(engine, traffic)


def _calls(engine: _engine.Engine, traffic: Sequence[Batch]) -> Iterator[Call]:
    for batch in traffic:
        yield lambda b=batch: engine.process(b.inputs, b.now_ms)  # type: ignore[misc]


def settled_engine(recording: Recording, *, threads: int = 1) -> _engine.Engine:
    """An engine in which every plan of the recording has its first battery."""
    engine = open_engine(recording.setup, recording.partitions, threads)
    for batch in recording.settling:
        engine.process(batch.inputs, batch.now_ms)
    return engine


def open_engine(setup: bytes, partitions: int = 1, threads: int = 1) -> _engine.Engine:
    """An engine with all its shards open and empty."""
    engine = _engine.Engine(setup, partitions=partitions, threads=threads)
    for partition in range(partitions):
        engine.open_shard(partition)
    return engine


def baseline_calls(
    recording: Recording, traffic: Sequence[Batch], *, model: type[Model] = Model
) -> Iterator[Call]:
    """The same into the plain-Python baseline; its records are unpacked beforehand.

    `model` runs the state machines: the baseline's own tables, or a peer's library.
    """
    baseline = settled_baseline(recording, PlainPython(recording.setup, model=model))
    for batch in traffic:
        inputs = unpacked(batch)
        yield lambda i=inputs, b=batch: baseline.process(i, b.now_ms)  # type: ignore[misc]


def settled_baseline(recording: Recording, baseline: PlainPython) -> PlainPython:
    """The baseline with every plan of the recording at its first battery."""
    for batch in recording.settling:
        baseline.process(unpacked(batch), batch.now_ms)
    return baseline


def unpacked(batch: Batch) -> Sequence[Input]:
    """A batch's records as Python objects, which the baseline starts from."""
    return [
        (topic, offsets, [(key, value or b"") for key, value in _engine.unpack(data)])
        for topic, _, offsets, data in batch.inputs
    ]


def plan_states(recording: Recording) -> list[tuple[bytes, bytes]]:
    """The changelog record of every plan once all are settled."""
    engine = open_engine(recording.setup, recording.partitions)
    newest: dict[bytes, bytes] = {}
    for batch in recording.settling:
        for chunk in engine.process(batch.inputs, batch.now_ms).chunks:
            if chunk.topic == topics.STATE_PLAN:
                newest |= {key: value or b"" for key, value in _engine.unpack(chunk.data)}
    return list(newest.items())


def copies(states: Sequence[tuple[bytes, bytes]], times: int) -> Iterator[bytes]:
    """Chunks of changelog records that make `times` as many plans, each with a name of its own.

    The first copy has the plans' own names, so that their traffic finds them.
    """
    for copy in range(times):
        prefix = b"plan-" if copy == 0 else b"more%d-" % copy
        for start in range(0, len(states), 5_000):
            part = states[start : start + 5_000]
            yield _engine.pack([(key.replace(b"plan-", prefix), value) for key, value in part])


def restored_calls(
    recording: Recording, states: Sequence[tuple[bytes, bytes]], times: int
) -> Iterator[Call]:
    """One call a batch into an engine with `times` as many plans as were recorded.

    Nearly every signal of the traffic is its plan's first since, so each is fetched from afar.
    """
    engine = open_engine(recording.setup)
    for chunk in copies(states, times):
        engine.restore(0, topics.STATE_PLAN, chunk)
    return _calls(engine, recording.traffic)


def large_setup(locations: int, templates: int) -> bytes:
    """The shipped set-up with so many stations and templates, all that there were among them."""
    setup = json.loads(compile_setup(load_setup()))
    for market in setup["markets"]:
        for field, name, wanted in (
            ("locations", "location_id", locations),
            ("templates", "template_id", templates),
        ):
            known = market[field]
            some = wanted // len(setup["markets"])
            # What is asked for most comes last: a search from the front would show.
            more = [
                {**known[n % len(known)], name: f"{known[n % len(known)][name]}-{n}"}
                for n in range(some - len(known))
            ]
            market[field] = more + known
    return json.dumps(setup).encode()


def wide_setup(services: int) -> bytes:
    """The shipped set-up with bundles of so many services each."""
    setup = json.loads(compile_setup(load_setup()))
    for market in setup["markets"]:
        counted = {"service_id": "", "name": "More", "usage_unit": "unit", "unit_digits": 0}
        counted |= {"unit_price": "1", "fleet_id": None, "consumes": "none"}
        more = [f"service-more-{market['market_id'].lower()}-{n}" for n in range(services)]
        market["services"] += [{**counted, "service_id": service_id} for service_id in more]
        for bundle in market["bundles"]:
            wanted = services - len(bundle["services"])
            bundle["services"] = bundle["services"] + more[:wanted]
            for template in market["templates"]:
                if template["bundle_id"] == bundle["bundle_id"]:
                    template["services"] += [
                        {
                            "service_id": service_id,
                            "initial_quota": "infinite",
                            "max_quota": "infinite",
                            "rate_limit_per_day": None,
                            "overage_allowed": False,
                            "overage_rate_minor": None,
                            "hold_units": 0,
                            "auto_renewal": False,
                        }
                        for service_id in more[:wanted]
                    ]
    return json.dumps(setup).encode()


def one_service_state() -> bytes:
    """The changelog record of a plan with one service, after its first battery and ten swaps."""
    setup = json.loads(compile_setup(load_setup()))
    market = setup["markets"][0]
    template = next(t for t in market["templates"] if t["allowed_locations"] != ["*"])
    service_id = next(s["service_id"] for s in market["services"] if s["consumes"] == "swap")
    bundle = {"bundle_id": "bundle-one", "name": "One service", "services": [service_id]}
    services = [s for s in template["services"] if s["service_id"] == service_id]
    signed = {
        **template,
        "template_id": "template-one-service",
        "bundle_id": "bundle-one",
        "services": [{**services[0], "rate_limit_per_day": None}],
    }
    market["bundles"].append(bundle)
    market["templates"].append(signed)
    engine = open_engine(json.dumps(setup).encode())
    station = template["allowed_locations"][0]
    state = b""
    for offset, message in enumerate(_one_service_life(market["currency"], station)):
        # An hour apart: the dedupe window holds what a rider's day leaves in it.
        received_ms = START_MS + offset * 3_600_000
        data = _engine.pack([(message.key.encode(), message.record(received_ms))])
        output = engine.process([(message.topic, 0, [offset], data)], received_ms)
        assert output.outcomes == {"ok": 1}, output.outcomes
        state = next(
            value or b""
            for chunk in output.chunks
            if chunk.topic == topics.STATE_PLAN
            for _, value in _engine.unpack(chunk.data)
        )
    return state


def _one_service_life(currency: str, station: str) -> Iterator[messages.Message]:
    plan_id, hour_ms = "plan-0000001", 3_600_000
    yield messages.sync(
        plan_id,
        START_MS,
        "first-sync",
        subscription=1,
        invoice=1,
        currency=currency,
        amount="1500",
        template="template-one-service",
    )
    yield messages.initialize(plan_id, START_MS + hour_ms, "initialize")
    old = None
    for swap in range(11):
        new = f"B07{swap:011d}"
        at_ms = START_MS + (swap + 2) * hour_ms
        yield messages.service(
            plan_id, at_ms, f"swap-{swap}", station=station, old=old, new=new, kwh="1.5"
        )
        old = new
