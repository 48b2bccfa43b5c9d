"""A model's cycles, read to be drawn; and drawn as Mermaid or PlantUML text."""

from typing import Literal

import msgspec


class State(msgspec.Struct):
    """A state of a cycle."""

    name: str
    tags: list[str] = []
    final: bool = False


class Transition(msgspec.Struct, rename={"source": "from", "target": "to"}):
    """What a signal does in a state."""

    source: str
    signal: str
    target: str
    output: str | None = None
    guard: list[str] = []


class Cycle(msgspec.Struct):
    """One state machine; its states in the order in which its author tells of them."""

    initial: str
    states: list[State]
    transitions: list[Transition]


class Model(msgspec.Struct):
    """A model that the engine has found sound."""

    model: str
    cycles: dict[str, Cycle]
    title: str = ""


def read(model: bytes) -> Model:
    """The document of a sound model."""
    return msgspec.json.decode(model, type=Model)


def draw(model: bytes, style: Literal["mermaid", "plantuml"]) -> str:
    """The diagrams of a model that the engine has found sound, one a cycle."""
    document = read(model)
    drawings = [
        _mermaid(name, cycle) if style == "mermaid" else _plantuml(document.model, name, cycle)
        for name, cycle in document.cycles.items()
    ]
    return "\n".join(drawings)


def _edges(cycle: Cycle) -> list[str]:
    edges = [f"[*] --> {cycle.initial}"]
    edges += [f"{t.source} --> {t.target} : {_label(t)}" for t in cycle.transitions]
    edges += [f"{state.name} --> [*]" for state in cycle.states if state.final]
    return edges


def _label(transition: Transition) -> str:
    label = transition.signal
    if transition.guard:
        label += f" [{' or '.join(transition.guard)}]"
    if transition.output is not None:
        label += f" / {transition.output}"
    return label


def _mermaid(name: str, cycle: Cycle) -> str:
    lines = [f"%% {name} cycle", "stateDiagram-v2"]
    lines += [f"    {edge}" for edge in _edges(cycle)]
    return "\n".join(lines) + "\n"


def _plantuml(model: str, name: str, cycle: Cycle) -> str:
    lines = [f"@startuml {model}-{name}", "hide empty description", f"title {name} cycle"]
    return "\n".join([*lines, *_edges(cycle), "@enduml"]) + "\n"
