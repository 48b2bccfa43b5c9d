"""What so many swaps a day need, from measured costs: `python -m bench.scale [--swaps-per-day N]`.

What a swap causes in records and bytes is measured here, by the engine on the bench's traffic. What
a record costs in each role is given by options; their defaults are what the commands named in
`docs/scale.md` printed on two cores. A simulation of the consumer group then checks the arithmetic:
keys placed by the real partitioner, batches that wait for their shard and their processor, and a
processor that dies at the peak.
"""

import argparse
import heapq
import math
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from random import Random
from typing import Final, NamedTuple

from rich.console import Console
from rich.table import Table

from bench.recording import record, settled_engine
from bss_stream import topics
from bss_stream._engine import partition_for

DAY_S: Final = 86_400
SWAPS_PER_PLAN_DAY: Final = 2
REPLICAS: Final = 3
BATCH_RECORDS_MAX: Final = 5_000
SHARE_OF_CAPACITY: Final = 0.5
"""How much of a role's measured rate is planned for: the rest is for catching up."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What the roles can do, one core each, and what a node of the servers can do."""

    bridge_messages_per_s: float
    processor_records_per_s: float
    publisher_messages_per_s: float
    sink_entries_per_s: float
    transaction_ms: float
    """What a Kafka transaction takes besides the processor's own work."""
    plan_bytes: float
    """Memory of a plan in the engine, with its share of batteries."""
    restored_plans_per_s: float
    broker_mb_per_s: float
    """What one Kafka broker is trusted to write."""


class PerSwap(NamedTuple):
    """What one swap causes, with everything around it (queries, payments, refusals)."""

    messages: float
    """MQTT messages in."""
    records: Counter[str]
    """By topic of the log, in ten-thousandths."""
    octets: Counter[str]
    """By topic of the log, keys included."""

    def rate(self, *of_topics: str) -> float:
        """Records a swap in these topics."""
        return sum(self.records[topic] for topic in of_topics) / 10_000


def measured(plans: int, rounds: int) -> PerSwap:
    """Runs the bench's traffic through the engine and counts."""
    city = record(plans, rounds)
    engine = settled_engine(city)
    records: Counter[str] = Counter()
    octets: Counter[str] = Counter()
    messages = swaps = 0
    for batch in city.everything:
        for arrival in batch.arrivals:
            messages += arrival.external
            if arrival.external:
                records[arrival.topic] += 1
                octets[arrival.topic] += len(arrival.key) + len(arrival.value)
            swaps += arrival.value.startswith(b"1\tasset_assigned\t")
        for chunk in engine.process(batch.inputs, batch.now_ms).chunks:
            records[chunk.topic] += chunk.records
            octets[chunk.topic] += len(chunk.data)
    return PerSwap(
        messages / swaps,
        Counter({topic: round(count * 10_000 / swaps) for topic, count in records.items()}),
        Counter({topic: round(count / swaps) for topic, count in octets.items()}),
    )


class Needs(NamedTuple):
    """What a network needs, at its peak."""

    swaps_per_s: float
    plans: float
    rows: list[tuple[str, str, float]]
    """What, why, and how many."""


def needs(swaps_per_day: float, peak: float, swap: PerSwap, costs: Costs) -> Needs:
    """The arithmetic."""
    per_s = swaps_per_day / DAY_S * peak
    plans = swaps_per_day / SWAPS_PER_PLAN_DAY
    signals = per_s * swap.rate(*topics.SIGNALS)
    outbox = per_s * swap.rate(topics.OUTBOX)
    entries = per_s * swap.rate(*topics.LEDGERS)
    written_mb = per_s * sum(swap.octets.values()) / 1e6
    ledger_tb = swaps_per_day * sum(swap.octets[t] for t in topics.LEDGERS) / 1e12

    def cores(rate: float, capacity: float) -> float:
        return math.ceil(rate / (capacity * SHARE_OF_CAPACITY))

    return Needs(
        per_s,
        plans,
        [
            (
                "bridges, one core each",
                f"{per_s * swap.messages:,.0f} MQTT messages/s in",
                cores(per_s * swap.messages, costs.bridge_messages_per_s),
            ),
            (
                "processors' cores",
                f"{signals:,.0f} signals/s, onward ones included",
                cores(signals, costs.processor_records_per_s),
            ),
            (
                "publishers, one core each",
                f"{outbox:,.0f} MQTT messages/s out",
                cores(outbox, costs.publisher_messages_per_s),
            ),
            (
                "sinks, each with a database of its own",
                f"{entries:,.0f} ledger entries/s",
                cores(entries, costs.sink_entries_per_s),
            ),
            (
                "Kafka brokers",
                f"{written_mb:,.1f} MB/s, {REPLICAS} replicas",
                max(3, cores(written_mb * REPLICAS, costs.broker_mb_per_s)),
            ),
            ("memory of the processors, GB", f"{plans:,.0f} plans", plans * costs.plan_bytes / 1e9),
            ("ledgers a day, TB, once", "never deleted", ledger_tb),
        ],
    )


# The group, simulated.


@dataclass
class Shard:
    """One partition: what waits, and whether a batch is under way."""

    waiting: deque[float] = field(default_factory=deque)
    """When each record came."""
    busy: bool = False


class Outcome(NamedTuple):
    """What the simulated minutes were like."""

    waits_ms: list[float]
    """From a record's arrival to its commit, sampled."""
    busiest_share: float
    """Records of the busiest partition, as a multiple of the mean."""
    processor_load: float
    """How busy the busiest processor was."""
    recovered_s: float
    """From the death of a processor until no record waits longer than before."""


class Group:
    """Processors that share the partitions, each with one thread of its own work."""

    def __init__(self, partitions: int, processors: int, costs: Costs) -> None:
        self.shards = [Shard() for _ in range(partitions)]
        self.owner = [shard % processors for shard in range(partitions)]
        self._free_at_s = [0.0] * processors
        self.work_s = [0.0] * processors
        self.closed_until_s = [0.0] * partitions
        self._costs = costs
        self._ends: list[tuple[float, int, list[float]]] = []
        self.waits: list[tuple[float, float]] = []
        """When a record was committed, and how long that took."""

    def arrive(self, now_s: float, shard: int) -> None:
        """A record comes in."""
        self.finish(now_s)
        self.shards[shard].waiting.append(now_s)
        self._begin(now_s, shard)

    def _begin(self, now_s: float, at: int) -> None:
        shard = self.shards[at]
        if shard.busy or not shard.waiting:
            return
        owner = self.owner[at]
        start_s = max(now_s, self._free_at_s[owner], self.closed_until_s[at])
        # What comes in until the processor turns to this shard is in the batch, too; leaving it out
        # errs on the side of more transactions.
        batch = [shard.waiting.popleft() for _ in range(min(len(shard.waiting), BATCH_RECORDS_MAX))]
        work_s = len(batch) / self._costs.processor_records_per_s
        self._free_at_s[owner] = start_s + work_s
        self.work_s[owner] += work_s
        shard.busy = True
        end_s = start_s + work_s + self._costs.transaction_ms / 1_000
        heapq.heappush(self._ends, (end_s, at, batch))

    def finish(self, now_s: float) -> None:
        """Commit what is due by then."""
        while self._ends and self._ends[0][0] <= now_s:
            end_s, at, batch = heapq.heappop(self._ends)
            self.waits += [(end_s, end_s - came_s) for came_s in batch]
            self.shards[at].busy = False
            self._begin(end_s, at)

    def lose(self, now_s: float, processor: int, closed_s: float, plans_per_shard: float) -> None:
        """A processor dies: its shards go to the others, once noticed and restored."""
        self.finish(now_s)
        others = [p for p in range(len(self._free_at_s)) if p != processor]
        orphans = [at for at, owner in enumerate(self.owner) if owner == processor]
        restored_s = [0.0] * len(self._free_at_s)
        for number, at in enumerate(orphans):
            heir = others[number % len(others)]
            self.owner[at] = heir
            restored_s[heir] += plans_per_shard / self._costs.restored_plans_per_s
            self.closed_until_s[at] = now_s + closed_s + restored_s[heir]


def simulate(
    per_s: float,
    plans: int,
    swap: PerSwap,
    costs: Costs,
    *,
    partitions: int,
    processors: int,
    stations: int,
    seconds: float,
    noticed_s: float,
) -> Outcome:
    """A peak of so many seconds; a processor dies in the middle of it."""
    random = Random(1)
    group = Group(partitions, processors, costs)
    of_plan = [partition_for(b"plan-%d" % n, partitions) for n in range(min(plans, 200_000))]
    of_station = [partition_for(b"station-%d" % n, partitions) for n in range(stations)]
    rates = [per_s * swap.rate(topic) for topic in topics.SIGNALS]
    total = sum(rates)
    now_s, dies_at_s, died = 0.0, seconds / 2, False
    arrived: Counter[int] = Counter()
    while now_s < seconds:
        now_s += random.expovariate(total)
        if now_s >= dies_at_s and not died:
            died = True
            group.lose(now_s, 0, noticed_s, plans / partitions)
        pick = random.random() * total
        if pick < rates[0]:
            shard = of_plan[int(random.random() * len(of_plan))]
        elif pick < rates[0] + rates[1]:
            # Some stations are far busier than others.
            shard = of_station[int(stations * random.random() ** 2)]
        else:
            shard = int(random.random() * partitions)
        arrived[shard] += 1
        group.arrive(now_s, shard)
    group.finish(math.inf)
    calm = sorted(wait for end_s, wait in group.waits if end_s < dies_at_s)
    usual_s = calm[int(len(calm) * 0.999)]
    late = [end_s for end_s, wait in group.waits if wait > 2 * usual_s and end_s >= dies_at_s]
    return Outcome(
        [1_000 * wait for wait in calm],
        max(arrived.values()) / (arrived.total() / partitions),
        max(group.work_s) / seconds,
        (max(late) - dies_at_s) if late else 0.0,
    )


DEFAULTS: Final = Costs(
    bridge_messages_per_s=150_000,
    processor_records_per_s=85_000,
    publisher_messages_per_s=75_000,
    sink_entries_per_s=37_000,
    transaction_ms=20,
    plan_bytes=470,
    restored_plans_per_s=600_000,
    broker_mb_per_s=100,
)
"""By `python -m bench.report` and `bench.restore`; what a broker is trusted to write is an
assumption."""


def shown_needs(wanted: Needs, swaps_per_day: float) -> Table:
    """The arithmetic as a table."""
    table = Table(
        title=f"{swaps_per_day:,.0f} swaps a day, {wanted.swaps_per_s:,.0f}/s at the peak",
        caption=f"planned for {SHARE_OF_CAPACITY:.0%} of what was measured",
    )
    for name in ("what", "because of"):
        table.add_column(name)
    table.add_column("needed", justify="right")
    for what, why, count in wanted.rows:
        table.add_row(what, why, f"{count:,.0f}" if count >= 10 else f"{count:,.2g}")
    return table


def shown_outcome(outcome: Outcome, partitions: int, processors: int) -> Table:
    """The simulation as a table."""
    table = Table(title=f"{partitions} partitions on {processors} processors, simulated")
    table.add_column("what")
    table.add_column("figure", justify="right")
    waits = outcome.waits_ms
    for share in (0.5, 0.99, 0.999):
        table.add_row(f"arrival to commit, p{share:.1%}", f"{_at(waits, share):,.1f} ms")
    table.add_row("records of the busiest partition, to the mean", f"{outcome.busiest_share:.2f}")
    table.add_row("busiest processor at work", f"{outcome.processor_load:.0%}")
    table.add_row("a processor dies: until none waits longer", f"{outcome.recovered_s:,.1f} s")
    return table


def _at(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def arguments() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--swaps-per-day", type=float, default=1e7)
    parser.add_argument("--peak", type=float, default=3.0, help="peak hour's rate to the mean rate")
    parser.add_argument("--partitions", type=int, default=100)
    parser.add_argument("--processors", type=int, help="by default what the arithmetic says")
    parser.add_argument("--stations", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=20.0, help="simulated")
    parser.add_argument("--noticed-s", type=float, default=10.0, help="a member's session time-out")
    for name, value in vars_of(DEFAULTS).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=value)
    return parser.parse_args()


def vars_of(costs: Costs) -> dict[str, float]:
    """The costs by name."""
    return {each.name: getattr(costs, each.name) for each in fields(costs)}


def main() -> None:
    """Count, work out, simulate and print."""
    chosen = arguments()
    costs = Costs(**{name: getattr(chosen, name) for name in vars_of(DEFAULTS)})
    swap = measured(plans=2_000, rounds=20)
    wanted = needs(chosen.swaps_per_day, chosen.peak, swap, costs)
    console = Console(width=100)
    console.print(shown_needs(wanted, chosen.swaps_per_day))
    processors = chosen.processors or max(2, math.ceil(dict(_counts(wanted))["processors' cores"]))
    outcome = simulate(
        wanted.swaps_per_s,
        int(wanted.plans),
        swap,
        costs,
        partitions=chosen.partitions,
        processors=processors,
        stations=chosen.stations,
        seconds=chosen.seconds,
        noticed_s=chosen.noticed_s,
    )
    console.print(shown_outcome(outcome, chosen.partitions, processors))


def _counts(wanted: Needs) -> list[tuple[str, float]]:
    return [(what, count) for what, _, count in wanted.rows]


if __name__ == "__main__":
    main()
