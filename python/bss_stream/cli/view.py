"""What an operator sees of a running network: throughput, outcomes, latency, stock."""

from collections.abc import Iterable

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bss_stream.roles import Platform
from bss_stream.simulate import Latency, Snapshot

SHELVES_SHOWN = 8
"""The emptiest shelves: where an operator would look."""


def table(snapshot: Snapshot, platform: Platform | None) -> RenderableType:
    """The live table."""
    parts: list[RenderableType] = [_headline(snapshot)]
    tables = [_outcomes(snapshot), _latencies(snapshot), _stock(snapshot)]
    if platform is not None:
        tables.append(_roles(platform))
    parts.append(Columns(tables))
    return Group(*parts)


def _headline(snapshot: Snapshot) -> Text:
    plans = snapshot.plans
    return Text.assemble(
        (f"{snapshot.phase} ", "bold"),
        f"{snapshot.elapsed_s:.0f} s   ",
        (f"{snapshot.swaps:,} swaps", "bold green"),
        f"   {snapshot.swaps_per_s_now:,.0f}/s now, {snapshot.swaps_per_s:,.0f}/s over all   ",
        f"riders: {plans.joining} joining, {plans.ready} ready, {plans.busy} swapping, ",
        f"{plans.done} left",
    )


def _grid(title: str, *columns: str) -> Table:
    grid = Table(title=title, title_justify="left", pad_edge=False)
    for number, column in enumerate(columns):
        grid.add_column(column, justify="left" if number == 0 else "right")
    return grid


def _fill(grid: Table, rows: Iterable[tuple[str, ...]]) -> Table:
    for row in rows:
        grid.add_row(*row)
    return grid


def _outcomes(snapshot: Snapshot) -> Table:
    ordered = sorted(snapshot.outcomes.items(), key=lambda line: (-line[1], line[0]))
    rows = [(reason, f"{count:,}") for reason, count in ordered]
    return _fill(_grid("outcomes", "reason", "echoes"), rows)


def _latencies(snapshot: Snapshot) -> Table:
    lines = {"swap": snapshot.swap_latency, **snapshot.latencies}
    return _fill(
        _grid("publish to echo, ms", "request", "count", "p50", "p99", "p99.9", "max"),
        [(kind, *_latency(latency)) for kind, latency in lines.items() if latency.count],
    )


def _latency(latency: Latency) -> tuple[str, ...]:
    times = (latency.p50_ms, latency.p99_ms, latency.p999_ms, latency.max_ms)
    return (f"{latency.count:,}", *(f"{ms:.1f}" for ms in times))


def _stock(snapshot: Snapshot) -> Table:
    emptiest = sorted(snapshot.stock, key=lambda s: (s.available, s.location_id, s.fleet_id))
    total = sum(shelf.available for shelf in snapshot.stock)
    rows = [
        (f"{shelf.location_id} {shelf.fleet_id}", f"{shelf.available:,}")
        for shelf in emptiest[:SHELVES_SHOWN]
    ]
    rows.append((f"all {len(snapshot.stock)} shelves", f"{total:,}"))
    return _fill(_grid("stock, emptiest shelves", "station and fleet", "batteries"), rows)


def _roles(platform: Platform) -> Table:
    rows = []
    if platform.bridge is not None:
        bridge = platform.bridge.counters
        rows.append(("bridge: signals appended", f"{bridge.appended:,}"))
        rows.append(("bridge: dead letters", f"{bridge.refused.total():,}"))
    if platform.processor is not None:
        processor = platform.processor.counters
        rows.append(("processor: records", f"{processor.records:,}"))
        for ending, count in processor.endings.items():
            rows.append((f"processor: {ending}", f"{count:,}"))
        rows.append(("processor: transactions", f"{processor.transactions:,}"))
    if platform.publisher is not None:
        rows.append(("publisher: messages", f"{platform.publisher.counters.published:,}"))
    if platform.sink is not None:
        rows.append(("sink: ledger entries", f"{platform.sink.counters.entries:,}"))
    if platform.queries is not None:
        answered = platform.queries.counters.answers.total()
        rows.append(("queries: answers", f"{answered:,}"))
    return _fill(_grid("roles", "what", "count"), rows)


def balance(platform: Platform) -> Text:
    """Whether the roles' counters add up."""
    lines = platform.balance()
    if not lines:
        return Text("counters add up in every role", style="green")
    return Text("\n".join(("counters do not add up:", *lines)), style="red")


def summary(snapshot: Snapshot | None) -> Text:
    """One line to end with."""
    if snapshot is None:
        return Text("nothing was reported", style="red")
    latency = snapshot.swap_latency
    text = Text.assemble(
        (f"{snapshot.swaps:,} swaps", "bold"),
        f" at {snapshot.swaps_per_s:,.0f}/s, publish to echo p50 {latency.p50_ms:.1f} ms, ",
        f"p99 {latency.p99_ms:.1f} ms, p99.9 {latency.p999_ms:.1f} ms; ",
    )
    unexpected = snapshot.unexpected_total
    text.append(f"{unexpected} unexpected answers", style="red" if unexpected else "green")
    for line in snapshot.unexpected:
        text.append(f"\n  {line.kind}: expected {line.expected}, got {line.got}: {line.count}")
    return text
