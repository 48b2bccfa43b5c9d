"""Stations as the platform believes them to be: their state, or what the set-up says of one that
nothing was heard of."""

from collections.abc import Iterable
from datetime import date
from typing import Final, Literal

import msgspec

from bss_stream.reports.network import EPOCH, Market, Network, Place
from bss_stream.sink.read_model import ReadView

COUNTED: Final = (
    "assignments",
    "returns",
    "inventory_empty",
    "station_not_ready",
    "allocation_denied",
    "allocation_timed_out",
)
"""What a station counts by day and fleet; a refusal by its reason."""
REFUSALS: Final = COUNTED[2:]

Tally = dict[str, int]


class SetAside(msgspec.Struct, frozen=True):
    """Batteries at the station that cannot be issued."""

    charging: int = 0
    inspection: int = 0
    quarantine: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.charging + self.inspection + self.quarantine


class Stock(msgspec.Struct, frozen=True):
    """One fleet at a station."""

    fleet_id: str
    current_stock: int
    promised: int = 0
    total_assignments: int = 0
    total_returns: int = 0
    set_aside: SetAside = SetAside()
    today: Tally = {}
    day_before: Tally = {}

    @property
    def available(self) -> int:
        """Batteries that a rider could have."""
        return max(self.current_stock - self.promised, 0)


class Intent(msgspec.Struct, frozen=True):
    """An allocation that ARM has not answered."""

    correlation_id: str
    plan_id: str
    fleet_id: str
    since_ms: int


class Shift(msgspec.Struct, frozen=True):
    """A shift under way."""

    operator: str
    started_ms: int
    tally: Tally
    incidents: int


class State(msgspec.Struct, frozen=True):
    """What a station's state says."""

    stock: tuple[Stock, ...]
    readiness: Literal["READY", "LIMITED", "NOT_READY"] = "READY"
    because: str = "in_service"
    equipment: str = "OK"
    under_way: tuple[Intent, ...] = ()
    day: int = 0
    incidents_today: int = 0
    shift: Shift | None = None


class Station(msgspec.Struct, frozen=True):
    """A station of the set-up with its state."""

    place: Place
    market: Market
    state: State

    def tally(self, stock: Stock, day: date) -> Tally | None:
        """What was done with a fleet on a day; None if it is too long ago to be known."""
        counted = (day - EPOCH).days
        nothing = dict.fromkeys(COUNTED, 0)
        if counted == self.state.day:
            return nothing | stock.today
        if counted == self.state.day - 1:
            return nothing | stock.day_before
        return nothing if counted > self.state.day else None

    def stock_of(self, fleet_id: str) -> Stock:
        """That of one fleet, none if nothing was heard of it."""
        found = (stock for stock in self.state.stock if stock.fleet_id == fleet_id)
        return next(found, Stock(fleet_id, 0))

    def capacity(self, fleet_id: str) -> int:
        """Slots for a fleet."""
        slots = self.place.slots.get(fleet_id)
        return 0 if slots is None else slots.capacity


_decoder: Final = msgspec.json.Decoder(State)


def stations(
    view: ReadView, network: Network, market: Market, location_ids: Iterable[str]
) -> list[Station]:
    """These stations of a market, by id. Raises ConfigError for a state that cannot be told."""
    wanted = sorted(location_ids)
    states = view.station_states(wanted)
    found = []
    for location_id in wanted:
        place = market.stations[location_id]
        if (raw := states.get(location_id)) is None:
            slots = sorted(place.slots.items())
            state = State(tuple(Stock(fleet, one.stock) for fleet, one in slots))
        else:
            state = _decoder.decode(network.described(location_id, raw))
        found.append(Station(place, market, state))
    return found


def summed(tallies: Iterable[Tally]) -> Tally:
    """Counts added up."""
    total = dict.fromkeys(COUNTED, 0)
    for tally in tallies:
        for name, count in tally.items():
            total[name] += count
    return total
