"""The plain-Python baseline with its state machines run by a library.

Everything but the steps of the machines stays the baseline's: reading, tables, quota, ledgers,
echoes, states. What differs in speed is the library.
"""

import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Protocol, overload

from statemachine import State, StateMachine
from statemachine.exceptions import TransitionNotAllowed
from transitions import Machine, MachineError

from bench.baselines.plain_tables import CYCLES, Model, Move

Step = tuple[int, str | None]
"""The next state and the transition's output."""


class Stepper(Protocol):
    """One cycle's machine in a library's hands."""

    def step(self, state: int, signal: str, other_tags: frozenset[str]) -> Step | None:
        """From one state; None if the machine does not take the signal there and then."""
        ...


class _AtEveryLook(Sequence[Any]):
    """Stands where the baseline has a worked-out table, and works each entry out anew."""

    def __init__(self, size: int, entry: Callable[[int], Any]) -> None:
        self._size = size
        self._entry = entry

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, at: int) -> Any: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Any]: ...
    def __getitem__(self, at: int | slice) -> Any:
        if isinstance(at, slice):
            return [self._entry(i) for i in range(*at.indices(self._size))]
        return self._entry(at)

    def __iter__(self) -> Iterator[Any]:
        return (self._entry(at) for at in range(self._size))


class SteppedModel(Model):
    """Both machines of a plan, stepped by a library at every signal."""

    stepper: Callable[[dict[str, Any]], Stepper]

    def __init__(self, document: dict[str, Any]) -> None:
        self._steppers = [self.stepper(document["cycles"][name]) for name in CYCLES]
        super().__init__(document)
        pairs = len(self.payment_state)

        def moves(external: str) -> Sequence[Move]:
            return _AtEveryLook(pairs, lambda pair: self.move(external, pair))

        def swaps(pair: int) -> Sequence[Move | None]:
            return _AtEveryLook(2, lambda exhausted: self.swap(pair, bool(exhausted)))

        self.moves = {external: moves(external) for external in self.moves}
        self.swaps = _AtEveryLook(pairs, swaps)

    def step(self, states: list[int], at: int, signal: str) -> Step | None:
        other = 1 - at
        return self._steppers[at].step(states[at], signal, self.cycles[other].tags[states[other]])


class _Rider:
    """What a `transitions` machine moves."""

    state: str
    trigger: Callable[[str], bool]
    output: str | None = None
    other_tags: frozenset[str] = frozenset()


class TransitionsStepper:
    """`transitions`: one machine a cycle, moved from the state that a plan is in."""

    def __init__(self, cycle: dict[str, Any]) -> None:
        self._states: Final = [state["name"] for state in cycle["states"]]
        self._rider = rider = _Rider()
        self._machine = Machine(
            model=rider,
            states=self._states,
            initial=cycle["initial"],
            auto_transitions=False,
        )
        for row in cycle["transitions"]:
            self._add(row)
        self._index = {name: at for at, name in enumerate(self._states)}

    def _add(self, row: dict[str, Any]) -> None:
        rider, output = self._rider, row.get("output")
        guard = frozenset(row.get("guard", ()))

        def emit() -> None:
            rider.output = output

        def admits() -> bool:
            return bool(guard & rider.other_tags)

        self._machine.add_transition(
            row["signal"],
            row["from"],
            row["to"],
            conditions=[admits] if guard else None,
            after=[emit] if output is not None else None,
        )

    def step(self, state: int, signal: str, other_tags: frozenset[str]) -> Step | None:
        rider = self._rider
        rider.state, rider.output, rider.other_tags = self._states[state], None, other_tags
        try:
            if not rider.trigger(signal):
                return None
        except (MachineError, AttributeError):
            # A signal without any transition is an attribute that is not there.
            return None
        return self._index[rider.state], rider.output


class StateMachineStepper:
    """`python-statemachine`: one machine a cycle, set to the state that a plan is in."""

    def __init__(self, cycle: dict[str, Any]) -> None:
        names = [state["name"] for state in cycle["states"]]
        states = {
            state["name"]: State(
                state["name"],
                value=at,
                initial=state["name"] == cycle["initial"],
                final=bool(state.get("final")),
            )
            for at, state in enumerate(cycle["states"])
        }
        body: dict[str, Any] = {f"state_{name}": states[name] for name in names}
        events: dict[str, Any] = {}
        for number, row in enumerate(cycle["transitions"]):
            options: dict[str, Any] = {}
            guard = frozenset(row.get("guard", ()))
            if guard:
                body[f"admits_{number}"] = _admits(guard)
                options["cond"] = f"admits_{number}"
            if row.get("output") is not None:
                body[f"emit_{number}"] = _emits(row["output"])
                options["on"] = f"emit_{number}"
            transition = states[row["from"]].to(states[row["to"]], **options)
            signal = row["signal"]
            events[signal] = events[signal] | transition if signal in events else transition
        body |= events
        body |= {"output": None, "other_tags": frozenset()}
        self._kind: type[Any] = types.new_class(
            "CycleMachine", (StateMachine,), exec_body=lambda namespace: namespace.update(body)
        )
        self._machine = self._kind()

    def step(self, state: int, signal: str, other_tags: frozenset[str]) -> Step | None:
        if self._machine.is_terminated:
            # One that has come to rest once takes nothing any more, whatever state it is set to.
            self._machine = self._kind()
        machine = self._machine
        machine.current_state_value = state
        machine.output, machine.other_tags = None, other_tags
        try:
            machine.send(signal)
        except TransitionNotAllowed:
            return None
        return machine.current_state_value, machine.output


def _emits(output: str) -> Callable[[Any], None]:
    def emit(self: Any) -> None:
        self.output = output

    return emit


def _admits(guard: frozenset[str]) -> Callable[[Any], bool]:
    def admits(self: Any) -> bool:
        return bool(guard & self.other_tags)

    return admits


class TransitionsModel(SteppedModel):
    """The baseline's models, stepped by `transitions`."""

    stepper = TransitionsStepper


class StateMachineModel(SteppedModel):
    """The baseline's models, stepped by `python-statemachine`."""

    stepper = StateMachineStepper
