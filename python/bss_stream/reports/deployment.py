"""How many batteries each station of a fleet needs (AM3), and what to move there (AM4).

Whole numbers throughout: the same states give the same moves.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

TURNS_PER_DAY: Final = 4
"""How often a battery can go out in a day: it takes some six hours until it is charged again."""


class Move(NamedTuple):
    """Batteries to be taken from one station to another."""

    from_location_id: str
    to_location_id: str
    batteries: int


def needed(served: int, refused: int, floor: int, room: int) -> int:
    """How many batteries a station needs for a day like one with so many riders.

    Those that the riders who were served share, but `floor` at least; one more for every rider who
    found none; and no more than there is room for.
    """
    shared = -(-served // TURNS_PER_DAY)
    return max(min(max(shared, floor) + refused, room), 0)


def moves(available: Mapping[str, int], need: Mapping[str, int]) -> list[Move]:
    """Moves that make up deficits, the greatest first, out of surpluses, the greatest first.

    No station gives more than it can spare or gets more than it lacks, and there are fewer moves
    than stations. What no surplus makes up is left.
    """
    surplus = _by_size({at: available[at] - need[at] for at in available})
    deficit = _by_size({at: need[at] - available[at] for at in available})
    found: list[Move] = []
    while surplus and deficit:
        (spare, giver), (lacking, getter) = surplus.pop(), deficit.pop()
        batteries = min(spare, lacking)
        found.append(Move(giver, getter, batteries))
        # What is left is next, though others may be greater now: fewer ways for the van.
        if spare > batteries:
            surplus.append((spare - batteries, giver))
        if lacking > batteries:
            deficit.append((lacking - batteries, getter))
    return found


def _by_size(differences: Mapping[str, int]) -> list[tuple[int, str]]:
    """Those above zero, the greatest last, and of equals the first by id last."""
    above = [(size, at) for at, size in sorted(differences.items(), reverse=True) if size > 0]
    return sorted(above, key=lambda one: one[0])
