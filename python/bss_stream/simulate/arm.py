"""The Asset Resource Manager's decisions: which battery leaves which shelf, and what comes back.

Pure: the time is an argument and randomness is handed in, so the same calls give the same
batteries. `arm_client` puts MQTT around it. Charge is counted in hundredths of a kWh, the
contract's two decimals, so energy is exact.
"""

from collections import deque
from collections.abc import Iterable
from heapq import heappop, heappush
from random import Random
from typing import Annotated, Final, NamedTuple

from msgspec import Meta, Struct

from bss_stream.simulate.config import ArmConfig
from bss_stream.simulate.network import Shelf

WH_PER_STEP: Final = 10
"""One step of charge is 0.01 kWh."""

_LEFT_MIN, _LEFT_MAX = 0.05, 0.6
"""What share of its charge a rider leaves in a battery."""


CleanText = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._:@-]{1,128}\Z")]
"""What an answer repeats from its command without escaping it."""


class AllocateCommand(Struct, frozen=True):
    """The payload of cmd/ABS/EPS/{location_id}/allocate."""

    fleet_id: CleanText
    plan_id: CleanText
    location_id: CleanText
    correlation_id: CleanText
    returned_asset_id: CleanText | None = None
    attempt: int = 1


class Answer(NamedTuple):
    """What ARM says to an allocate command."""

    correlation_id: str
    plan_id: str
    fleet_id: str
    asset_id: str | None
    returned_asset_id: str | None
    energy_steps: int
    """Net energy in 0.01 kWh: the issued charge less the returned one, never negative."""
    reason: str | None
    """Why the command is denied, None when a battery is issued."""


class Delivery(NamedTuple):
    """An answer and when it leaves."""

    answer: Answer
    repeated: bool
    """Whether the command had been answered before."""
    delay_ms: int | None
    """0 for at once, None for an answer that gets lost."""


class StockReport(NamedTuple):
    """The payload of emit/arm/station/{location_id}/stock."""

    location_id: str
    fleet_id: str
    available: int


class HandOver(NamedTuple):
    """A battery that an attendant holds ready for a rider, not yet given away."""

    asset_id: str
    location_id: str
    plan_id: str
    returned_asset_id: str | None
    energy_steps: int


class Issued(NamedTuple):
    """A battery in a rider's hands."""

    plan_id: str
    energy_steps: int
    """The net energy of the swap that brought it there."""


class _Battery:
    __slots__ = (
        "asset_id",
        "full_at_ms",
        "health",
        "net_steps",
        "plan_id",
        "shelf",
        "steps_left",
    )

    def __init__(self, asset_id: str, health: int) -> None:
        self.asset_id = asset_id
        self.health = health
        self.full_at_ms = 0
        self.net_steps = 0
        self.steps_left = 0
        """Charge that it will have when its rider brings it back."""
        self.plan_id: str | None = None
        self.shelf: _Shelf | None = None


class _Shelf:
    """Batteries of one fleet at one location, the best one first.

    All of them charge at one rate, so the one that is full first has the most charge at any time
    before: charging ones are ordered by that time, full ones by health. Both in O(log n).
    What has just come back rests first: a battery that went on to the next rider at once would
    overtake the record of its return.
    """

    __slots__ = (
        "_charging",
        "_full",
        "_resting",
        "available",
        "capacity_steps",
        "dry",
        "place",
        "ready",
        "target",
    )

    def __init__(self, place: Shelf, target: int, dry: bool) -> None:
        self.place = place
        self.target = target
        self.dry = dry
        self.capacity_steps = place.hold_wh // WH_PER_STEP
        self.available = 0
        self.ready = 0
        """Batteries in an attendant's hands: no longer on the shelf, not yet given away."""
        self._charging: list[tuple[int, str, _Battery]] = []
        self._full: list[tuple[int, str, _Battery]] = []
        self._resting: deque[tuple[int, _Battery]] = deque()

    def put(self, battery: _Battery, rests_until_ms: int = 0) -> None:
        if rests_until_ms:
            self._resting.append((rests_until_ms, battery))
        else:
            heappush(self._charging, (battery.full_at_ms, battery.asset_id, battery))
        battery.shelf = self
        battery.plan_id = None
        self.available += 1

    def take_best(self, now_ms: int) -> _Battery | None:
        resting, charging = self._resting, self._charging
        while resting and resting[0][0] <= now_ms:
            battery = resting.popleft()[1]
            heappush(charging, (battery.full_at_ms, battery.asset_id, battery))
        while charging and charging[0][0] <= now_ms:
            _, asset_id, battery = heappop(charging)
            heappush(self._full, (-battery.health, asset_id, battery))
        if not self.available:
            return None
        heap = self._full or charging
        battery = heappop(heap)[2] if heap else resting.popleft()[1]
        battery.shelf = None
        self.available -= 1
        return battery

    def report(self) -> StockReport:
        # To the platform a battery is in stock until it is told of the swap.
        available = self.available + self.ready
        return StockReport(self.place.location_id, self.place.fleet_id, available)


class ArmDecisions:
    """Every battery of every shelf, and the answers already given.

    `dry` are locations that have run out: they start empty and nobody refills them.
    """

    def __init__(
        self,
        shelves: Iterable[Shelf],
        config: ArmConfig,
        random: Random,
        *,
        run: str,
        dry: frozenset[str] = frozenset(),
    ) -> None:
        self._config = config
        self._random = random
        self._run = run
        self.dry = dry
        self.late: set[str] = set()
        """Plans with an answer that was slow or lost, until their rider takes note of it."""
        self._serial = 0
        self._batteries: dict[str, _Battery] = {}
        self._answers: dict[str, Answer] = {}
        self._reports: list[StockReport] = []
        self._shelves: dict[tuple[str, str], _Shelf] = {}
        for place in shelves:
            target = config.shelf_batteries or max(place.stock, place.capacity)
            is_dry = place.location_id in dry
            shelf = _Shelf(place, target, is_dry)
            self._shelves[place.location_id, place.fleet_id] = shelf
            start = 0 if is_dry else config.shelf_batteries or place.stock
            self._fill(shelf, start)
        self._fleets = frozenset(fleet for _, fleet in self._shelves)
        self._locations = frozenset(location for location, _ in self._shelves)

    def allocate(self, command: AllocateCommand, now_ms: int) -> Delivery:
        """Decide a command. A command that comes again gets the same answer, at once."""
        known = self._answers.get(command.correlation_id)
        if known is not None:
            return Delivery(known, True, 0)
        answer = self._decide(command, now_ms)
        self._answers[command.correlation_id] = answer
        if len(self._answers) > self._config.answers_max:
            del self._answers[next(iter(self._answers))]
        delay_ms = self._delay_ms()
        if delay_ms != 0:
            self.late.add(command.plan_id)
        return Delivery(answer, False, delay_ms)

    def hand_over(
        self, location_id: str, fleet_id: str, plan_id: str, returned: str | None, now_ms: int
    ) -> HandOver | None:
        """Pick a battery for an attendant to give; None when the shelf is empty.

        It belongs to nobody until `settle` says how the request was answered.
        """
        shelf = self._shelves[location_id, fleet_id]
        battery = self._take(shelf, now_ms)
        if battery is None:
            return None
        shelf.ready += 1
        net = self._charge(battery, shelf, now_ms) - self._left(returned)
        return HandOver(battery.asset_id, location_id, plan_id, returned, max(0, net))

    def settle(self, hand_over: HandOver, fleet_id: str, *, accepted: bool, now_ms: int) -> None:
        """Give the battery to the rider and shelve the returned one, or put it back."""
        shelf = self._shelves[hand_over.location_id, fleet_id]
        battery = self._batteries[hand_over.asset_id]
        shelf.ready -= 1
        if not accepted:
            shelf.put(battery)
            return
        charge = self._charge(battery, shelf, now_ms)
        if hand_over.returned_asset_id is not None:
            self._shelve(hand_over.returned_asset_id, shelf, now_ms)
        self._give(battery, hand_over.plan_id, charge, hand_over.energy_steps)

    def take_back(self, location_id: str, fleet_id: str, asset_id: str, now_ms: int) -> None:
        """Shelve a battery that a rider gives up without taking another."""
        self._shelve(asset_id, self._shelves[location_id, fleet_id], now_ms)

    def issued(self, asset_id: str) -> Issued | None:
        """Who has the battery and what it brought; None when it is on a shelf or unknown."""
        battery = self._batteries.get(asset_id)
        if battery is None or battery.plan_id is None:
            return None
        return Issued(battery.plan_id, battery.net_steps)

    def health(self, asset_id: str) -> int:
        """A known battery's health in thousandths."""
        return self._batteries[asset_id].health

    def available(self, location_id: str, fleet_id: str) -> int:
        """Batteries on a shelf; 0 for a shelf that does not exist."""
        shelf = self._shelves.get((location_id, fleet_id))
        return shelf.available if shelf is not None else 0

    def stock(self) -> list[StockReport]:
        """What every shelf has now, with what attendants hold ready."""
        return [shelf.report() for shelf in self._shelves.values()]

    def recount(self, location_id: str, fleet_id: str) -> None:
        """Have a shelf's stock reported, if there is such a shelf."""
        shelf = self._shelves.get((location_id, fleet_id))
        if shelf is not None:
            self._reports.append(shelf.report())

    def recount_all(self) -> None:
        """Have the stock of every shelf reported."""
        self._reports = self.stock()

    def take_reports(self) -> list[StockReport]:
        """The stock reports of shelves refilled or counted since the last call."""
        reports, self._reports = self._reports, []
        return reports

    def _delay_ms(self) -> int | None:
        config = self._config
        if config.slow_share + config.lost_share <= 0:
            return 0
        draw = self._random.random()
        if draw < config.lost_share:
            return None
        if draw < config.lost_share + config.slow_share:
            return self._random.randint(config.slow_ms_min, config.slow_ms_max)
        return 0

    def _decide(self, command: AllocateCommand, now_ms: int) -> Answer:
        shelf = self._shelves.get((command.location_id, command.fleet_id))
        if shelf is None:
            return _denied(command, self._why_no_shelf(command))
        returned = command.returned_asset_id
        if returned is not None and self._is_shelved(returned):
            return _denied(command, "asset_not_out")
        battery = self._take(shelf, now_ms)
        if battery is None:
            return _denied(command, "inventory_empty")
        charge = self._charge(battery, shelf, now_ms)
        net = max(0, charge - self._left(returned))
        if returned is not None:
            self._shelve(returned, shelf, now_ms)
        self._give(battery, command.plan_id, charge, net)
        return Answer(
            command.correlation_id,
            command.plan_id,
            command.fleet_id,
            battery.asset_id,
            returned,
            net,
            None,
        )

    def _why_no_shelf(self, command: AllocateCommand) -> str:
        if command.location_id not in self._locations:
            return "unknown_location"
        return "inventory_empty" if command.fleet_id in self._fleets else "unknown_fleet"

    def _is_shelved(self, asset_id: str) -> bool:
        battery = self._batteries.get(asset_id)
        return battery is not None and battery.shelf is not None

    def _charge(self, battery: _Battery, shelf: _Shelf, now_ms: int) -> int:
        missing_ms = battery.full_at_ms - now_ms
        if missing_ms <= 0:
            return shelf.capacity_steps
        missing = -(-missing_ms * shelf.capacity_steps // max(1, self._config.recharge_ms))
        return max(0, shelf.capacity_steps - missing)

    def _left(self, asset_id: str | None) -> int:
        battery = self._batteries.get(asset_id) if asset_id is not None else None
        return battery.steps_left if battery is not None else 0

    def _shelve(self, asset_id: str, shelf: _Shelf, now_ms: int) -> None:
        battery = self._batteries.get(asset_id)
        if battery is None:
            # From before this run: taken in, as a station takes in any battery that fits.
            battery = self._new_battery(asset_id)
        if battery.shelf is None:
            missing = shelf.capacity_steps - battery.steps_left
            recharge_ms = missing * self._config.recharge_ms // max(1, shelf.capacity_steps)
            battery.full_at_ms = now_ms + recharge_ms
            shelf.put(battery, now_ms + self._config.rest_ms)

    def _give(self, battery: _Battery, plan_id: str, charge: int, net: int) -> None:
        battery.plan_id = plan_id
        battery.net_steps = net
        battery.steps_left = int(charge * self._random.uniform(_LEFT_MIN, _LEFT_MAX))

    def _take(self, shelf: _Shelf, now_ms: int) -> _Battery | None:
        battery = shelf.take_best(now_ms)
        if not shelf.dry and shelf.available <= shelf.target * self._config.restock_share:
            self._fill(shelf, shelf.target - shelf.available)
            self._reports.append(shelf.report())
        return battery

    def _fill(self, shelf: _Shelf, batteries: int) -> None:
        for _ in range(batteries):
            self._serial += 1
            shelf.put(self._new_battery(f"bat-{self._run}-{self._serial:07d}"))

    def _new_battery(self, asset_id: str) -> _Battery:
        battery = _Battery(asset_id, health=self._random.randrange(800, 1000))
        self._batteries[asset_id] = battery
        return battery


def _denied(command: AllocateCommand, reason: str) -> Answer:
    return Answer(
        command.correlation_id,
        command.plan_id,
        command.fleet_id,
        None,
        command.returned_asset_id,
        0,
        reason,
    )
