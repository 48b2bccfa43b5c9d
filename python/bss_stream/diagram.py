"""Draws a model's cycles as Mermaid or PlantUML text."""

from typing import Literal

import msgspec


class _State(msgspec.Struct):
    name: str
    tags: list[str] = []
    final: bool = False


class _Transition(msgspec.Struct, rename={"source": "from", "target": "to"}):
    source: str
    signal: str
    target: str
    output: str | None = None
    guard: list[str] = []


class _Cycle(msgspec.Struct):
    initial: str
    states: list[_State]
    transitions: list[_Transition]


class _Model(msgspec.Struct):
    model: str
    cycles: dict[str, _Cycle]
    title: str = ""


def draw(model: bytes, style: Literal["mermaid", "plantuml"]) -> str:
    """The diagrams of a model that the engine has found sound, one a cycle."""
    document = msgspec.json.decode(model, type=_Model)
    drawings = [
        _mermaid(name, cycle) if style == "mermaid" else _plantuml(document.model, name, cycle)
        for name, cycle in document.cycles.items()
    ]
    return "\n".join(drawings)


def _edges(cycle: _Cycle) -> list[str]:
    edges = [f"[*] --> {cycle.initial}"]
    edges += [f"{t.source} --> {t.target} : {_label(t)}" for t in cycle.transitions]
    edges += [f"{state.name} --> [*]" for state in cycle.states if state.final]
    return edges


def _label(transition: _Transition) -> str:
    label = transition.signal
    if transition.guard:
        label += f" [{' or '.join(transition.guard)}]"
    if transition.output is not None:
        label += f" / {transition.output}"
    return label


def _mermaid(name: str, cycle: _Cycle) -> str:
    lines = [f"%% {name} cycle", "stateDiagram-v2"]
    lines += [f"    {edge}" for edge in _edges(cycle)]
    return "\n".join(lines) + "\n"


def _plantuml(model: str, name: str, cycle: _Cycle) -> str:
    lines = [f"@startuml {model}-{name}", "hide empty description", f"title {name} cycle"]
    return "\n".join([*lines, *_edges(cycle), "@enduml"]) + "\n"
