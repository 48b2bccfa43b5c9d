"""Where riders go: a station that their plan covers, their fleet is kept at and has stock."""

from collections import Counter
from random import Random
from typing import Final, NamedTuple

from bss_stream.simulate.arm import ArmDecisions
from bss_stream.simulate.network import Network
from bss_stream.simulate.riders import Rider

_TRIES: Final = 4
_SPARE: Final = 2
"""Batteries beyond those promised to riders on their way that make a swap certain."""

NOWHERE: Final = "station-that-does-not-exist"

EMPTY: Final = frozenset({"inventory_empty", "allocation_denied"})
"""How a station without stock may answer."""


class Visit(NamedTuple):
    """A station chosen for a swap, and the answers that its stock and place make possible."""

    location: str
    risk: frozenset[str]


_NO_RISK: Final[frozenset[str]] = frozenset()


class Stations:
    """Chooses stations, and keeps count of the riders on their way to each."""

    def __init__(self, network: Network, arm: ArmDecisions, random: Random) -> None:
        self._arm = arm
        self._random = random
        self._on_way: Counter[tuple[str, str]] = Counter()
        self._open: dict[tuple[int, str], tuple[str, ...]] = {}
        self._dry: dict[tuple[int, str], tuple[str, ...]] = {}
        for index, terms in enumerate(network.terms):
            for fleet, places in terms.places.items():
                dry = tuple(place for place in places if place in arm.dry)
                stocked = tuple(place for place in places if place not in arm.dry)
                self._open[index, fleet] = stocked or places
                self._dry[index, fleet] = dry

    def choose(self, rider: Rider) -> Visit:
        """A covered station, preferably one with batteries to spare."""
        places = self._open[rider.terms_index, rider.fleet]
        for _ in range(_TRIES):
            place = self._random.choice(places)
            at = (place, rider.fleet)
            if self._arm.available(*at) - self._on_way[at] > _SPARE:
                return Visit(place, _NO_RISK)
        return Visit(place, EMPTY)

    def choose_dry(self, rider: Rider) -> Visit | None:
        """A covered station that has run out; None when the plan covers none."""
        places = self._dry[rider.terms_index, rider.fleet]
        return Visit(places[0], EMPTY) if places else None

    def choose_wrong(self, rider: Rider) -> Visit:
        """A station that the plan does not cover, or that does not exist."""
        places = rider.terms.forbidden
        if places:
            return Visit(self._random.choice(places), frozenset({"location_not_allowed"}))
        return Visit(NOWHERE, frozenset({"location_not_allowed", "unknown_location"}))

    def set_out(self, location: str, fleet: str) -> None:
        """A rider is on the way."""
        self._on_way[location, fleet] += 1

    def arrive(self, location: str, fleet: str) -> None:
        """A rider has been answered."""
        self._on_way[location, fleet] -= 1
