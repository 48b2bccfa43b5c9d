"""A cycle of a model as SVG: its states from top to bottom, the present one lit.

Steps to the next state go straight down; those ahead pass on the right, those back on the left,
each in a lane of its own, so that no line runs over another. A mark says that a signal stays.
"""

from collections import defaultdict
from collections.abc import Sequence
from html import escape
from typing import Final, NamedTuple

from markupsafe import Markup

from bss_stream.diagram import Cycle

WIDTH: Final = 178
HEIGHT: Final = 32
GAP: Final = 22
LANE: Final = 13
MARGIN: Final = 20
TIP: Final = 5


class _Edge(NamedTuple):
    source: int
    target: int
    signals: tuple[str, ...]
    is_next: bool
    """Whether it leads out of the present state."""

    @property
    def span(self) -> tuple[int, int]:
        return min(self.source, self.target), max(self.source, self.target)


def draw(name: str, cycle: Cycle, current: str | None) -> Markup:
    """The drawing; `current` is a state of the cycle, or None to light none."""
    names = [state.name for state in cycle.states]
    edges = _edges(cycle, names, current)
    stays = {edge.source: edge for edge in edges if edge.source == edge.target}
    edges = [edge for edge in edges if edge.source != edge.target]
    right = [edge for edge in edges if edge.target > edge.source + 1]
    left = [edge for edge in edges if edge.target < edge.source]
    right_lanes, left_lanes = _lanes(right), _lanes(left)
    x = MARGIN + LANE * (max(left_lanes.values(), default=-1) + 1)
    width = x + WIDTH + MARGIN + LANE * (max(right_lanes.values(), default=-1) + 1)
    height = len(names) * (HEIGHT + GAP) - GAP + 4
    ports = _ports(right, left)
    parts = [
        f'<svg class="cycle" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(_spoken(name, current))}">'
    ]
    # What is lit is drawn last, over the rest.
    for edge in sorted(edges, key=lambda one: one.is_next):
        if edge.target == edge.source + 1:
            path = _down(x + WIDTH // 2, _top(edge.source) + HEIGHT, _top(edge.target))
        elif edge in right_lanes:
            at = x + WIDTH + MARGIN - 6 + LANE * right_lanes[edge]
            path = _round(x + WIDTH, at, *ports[edge])
        else:
            at = x - MARGIN + 6 - LANE * left_lanes[edge]
            path = _round(x, at, *ports[edge])
        title = f"{names[edge.source]} → {names[edge.target]}: {', '.join(edge.signals)}"
        lit = " next" if edge.is_next else ""
        parts.append(f'<g class="edge{lit}"><title>{escape(title)}</title>{path}</g>')
    for number, state in enumerate(cycle.states):
        box = _state(x, _top(number), state.name, state.final, state.name == current)
        parts.append(box if number not in stays else _staying(box, x, number, stays[number]))
    # All of it is numbers, or escaped above.
    return Markup("".join((*parts, "</svg>")))


def _spoken(name: str, current: str | None) -> str:
    return f"{name} cycle" if current is None else f"{name} cycle, now {current}"


def _edges(cycle: Cycle, names: Sequence[str], current: str | None) -> list[_Edge]:
    """One edge for all signals that lead from one state to another."""
    signals: defaultdict[tuple[int, int], list[str]] = defaultdict(list)
    for one in cycle.transitions:
        found = signals[names.index(one.source), names.index(one.target)]
        if one.signal not in found:
            found.append(one.signal)
    return [
        _Edge(source, target, tuple(found), names[source] == current)
        for (source, target), found in signals.items()
    ]


def _lanes(edges: Sequence[_Edge]) -> dict[_Edge, int]:
    """The lane of each edge, short ones inside; edges that share a stretch share no lane."""
    lanes: dict[_Edge, int] = {}
    for edge in sorted(edges, key=lambda one: (one.span[1] - one.span[0], one.span)):
        first, last = edge.span
        taken = {
            lane
            for other, lane in lanes.items()
            if other.span[0] <= last and first <= other.span[1]
        }
        lanes[edge] = next(lane for lane in range(len(edges)) if lane not in taken)
    return lanes


def _ports(*sides: Sequence[_Edge]) -> dict[_Edge, tuple[float, float]]:
    """Where each edge leaves and arrives, so that no two meet at a state."""
    found: dict[_Edge, tuple[float, float]] = {}
    for edges in sides:
        places: dict[tuple[_Edge, bool], float] = {}
        for state in {number for edge in edges for number in edge.span}:
            ends = [(edge, True) for edge in edges if edge.source == state]
            ends += [(edge, False) for edge in edges if edge.target == state]
            # Those that come from above arrive above; of these the outer lanes, which are longer.
            ends.sort(key=lambda end, at=state: _slope(end[0], at))  # type: ignore[misc]
            step = HEIGHT / (len(ends) + 1)
            for number, end in enumerate(ends, 1):
                places[end] = _top(state) + step * number
        for edge in edges:
            found[edge] = places[edge, True], places[edge, False]
    return found


def _slope(edge: _Edge, state: int) -> tuple[int, int]:
    other = edge.target if edge.source == state else edge.source
    return (0, other - state) if other < state else (1, other - state)


def _top(number: int) -> float:
    return 2 + number * (HEIGHT + GAP)


def _state(x: float, y: float, name: str, is_final: bool, is_current: bool) -> str:
    kinds = "state" + (" final" if is_final else "") + (" current" if is_current else "")
    text = f'<text x="{x + WIDTH / 2}" y="{y + HEIGHT / 2 + 4}">{escape(name)}</text>'
    box = f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>'
    inner = (
        f'<rect x="{x + 3}" y="{y + 3}" width="{WIDTH - 6}" height="{HEIGHT - 6}" rx="4"/>'
        if is_final
        else ""
    )
    return f'<g class="{kinds}">{box}{inner}{text}</g>'


def _staying(box: str, x: float, number: int, edge: _Edge) -> str:
    """A state with a mark: some signal leads back to it."""
    title = f"<title>stays: {escape(', '.join(edge.signals))}</title>"
    mark = f'<text class="stays" x="{x + WIDTH - 13}" y="{_top(number) + HEIGHT / 2 + 4}">↻</text>'
    return box.replace("</g>", f"{title}{mark}</g>")


def _tip(points: Sequence[tuple[float, float]]) -> str:
    return f'<polygon points="{" ".join(f"{x:g},{y:g}" for x, y in points)}"/>'


def _down(x: float, start: float, end: float) -> str:
    tip = _tip(((x, end), (x - TIP + 1, end - TIP - 1), (x + TIP - 1, end - TIP - 1)))
    return f'<path d="M{x:g} {start:g}V{end - TIP:g}"/>{tip}'


def _round(side: float, lane: float, start: float, end: float) -> str:
    """Out of a state's side, along a lane, into another state's side."""
    way = 1 if lane > side else -1
    turn = 1 if end > start else -1
    radius = 6
    line = (
        f"M{side:g} {start:g}H{lane - way * radius:g}"
        f"Q{lane:g} {start:g} {lane:g} {start + turn * radius:g}"
        f"V{end - turn * radius:g}"
        f"Q{lane:g} {end:g} {lane - way * radius:g} {end:g}H{side + way * TIP:g}"
    )
    back = side + way * (TIP + 1)
    tip = _tip(((side, end), (back, end - TIP + 1), (back, end + TIP - 1)))
    return f'<path d="{line}"/>{tip}'
