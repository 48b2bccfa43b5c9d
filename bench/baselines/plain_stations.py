"""The baseline's stations: stock, allocations under way, ARM's answers."""

from bench.baselines import plain_wire as wire
from bench.baselines.plain_rules import (
    OutsideTheMixError,
    RejectedError,
    Rules,
    Turn,
    require,
    require_id,
)
from bench.baselines.plain_state import COUNTED, Station, Stock
from bench.baselines.plain_wire import Internal, escaped
from bss_stream import topics

WARNINGS = {1: ("INVENTORY_EMPTY",), 2: ("INVENTORY_LOW", "RESTOCK_NEEDED"), 4: ("HIGH_DEMAND",)}


ASSIGNED, RETURNED, EMPTY, _, DENIED, TIMED_OUT = range(len(COUNTED))
READINESS = (("READY", "in_service"), ("LIMITED", "stock_low"), ("NOT_READY", "no_stock"))


def conditions(stock: Stock, low: int, capacity: int) -> int:
    """The bits of a stock's conditions: empty, low, in high demand."""
    current = stock.current
    high_demand = stock.assignments > 100 and current * 100 < capacity * 30
    return (current <= 0) | (current <= low) << 1 | high_demand << 2


class Stations(Rules):
    """What each event does to a station."""

    def station_event(self, turn: Turn, station: Station, event: str, request: Internal) -> str:
        """Applies one event to a station. Raises RejectedError."""
        day = self.tables.market[turn.entity_id].local_day(turn.recorded_ms)
        if day > station.day:
            station.turn_day(day)
        try:
            return self._take(turn, station, event, request)
        finally:
            self.warn(turn, station)

    def warn(self, turn: Turn, station: Station) -> None:
        """Tells the operator of conditions that begin to hold."""
        place = turn.entity_id
        for fleet, stock in station.stock.items():
            before = stock.warned
            capacity = self.tables.capacity[place].get(fleet, 0)
            stock.warned = conditions(stock, self.tables.low[place], capacity)
            began = stock.warned & ~before
            for bit, signals in WARNINGS.items():
                for signal in signals if began & bit else ():
                    self._announce(turn, fleet, stock, signal)
        self._tell_readiness(turn, station)

    def _tell_readiness(self, turn: Turn, station: Station) -> None:
        """The mix has no operator who closes a station, and no equipment that fails."""
        slots = self.tables.capacity[turn.entity_id]
        warned = [stock.warned for fleet, stock in station.stock.items() if slots.get(fleet, 0)]
        readiness = 0
        if warned and all(bits & 1 for bits in warned):
            readiness = 2
        elif any(bits & 2 for bits in warned):
            readiness = 1
        if readiness == station.is_told:
            return
        station.is_told = readiness
        name, because = READINESS[readiness]
        available = ",".join(
            f'"{fleet}":{max(stock.current - stock.promised, 0)}'
            for fleet, stock in station.stock.items()
        )
        payload = (
            f'{{"timestamp":"{turn.event_at}","location_id":"{turn.entity_id}","readiness":"{name}"'
            f',"because":"{because}","equipment":"OK","available":{{{available}}}'
            f',"intents":{len(station.intents)}}}'
        )
        topic = f"emit/abs/bss/station/{turn.entity_id}/readiness"
        self.publish_retained(turn, "emit", topic, payload)

    def _announce(self, turn: Turn, fleet: str, stock: Stock, signal: str, known: str = "") -> None:
        payload = (
            f'{{"timestamp":"{turn.event_at}","location_id":"{turn.entity_id}","fleet_id":'
            f'"{fleet}","signal":"{signal}","current_stock":{stock.current}{known}'
            f',"total_assignments":{stock.assignments},"total_returns":{stock.returns}'
            f',"total_restocks":{stock.restocks}}}'
        )
        self.publish(turn, "emit", f"emit/abs/bss/station/{turn.entity_id}/inventory", payload)

    def _take(self, turn: Turn, station: Station, event: str, request: Internal) -> str:
        if event == "allocate":
            return self._allocate(turn, station, request)
        if event == "allocation_release":
            given_up = self._take_intent(station, turn.correlation, request.plan_id)
            if given_up is not None:
                station.stock[given_up[2]].today[TIMED_OUT] += 1
        elif event == "station_stock":
            self._restock(turn, station, request)
        else:
            return self._arm_answer(turn, station, request)
        return "ok"

    def known_fleet(self, request: Internal) -> str:
        """The fleet that a request names. Raises RejectedError."""
        fleet = require(request.fleet_id, "fleet_id")
        if fleet not in self.tables.fleets:
            raise RejectedError("unknown_value", f"fleet_id {fleet}")
        return fleet

    def _allocate(self, turn: Turn, station: Station, request: Internal) -> str:
        plan_id = require(request.plan_id, "plan_id")
        fleet = self.known_fleet(request)
        if self.signal_id(turn.correlation, plan_id) in station.answers:
            # ARM's answer and the plan's next try have crossed.
            return "duplicate"
        asked = (turn.correlation, plan_id)
        if all(intent[:2] != asked for intent in station.intents):
            stock = station.stock.setdefault(fleet, Stock(0))
            if stock.current - stock.promised <= 0:
                stock.today[EMPTY] += 1
                self._deny(turn, plan_id, "inventory_empty")
                return "ok"
            stock.promised += 1
            station.intents.append((turn.correlation, plan_id, fleet, turn.recorded_ms))
        returned = request.returned_asset_id
        back = "null" if returned is None else f'"{returned}"'
        attempt = request.attempt if request.attempt is not None else 1
        payload = (
            f'{{"fleet_id":"{fleet}","plan_id":"{plan_id}","location_id":"{turn.entity_id}"'
            f',"correlation_id":"{turn.corr}","returned_asset_id":{back},"attempt":{attempt}'
            f',"timestamp":"{turn.recorded_at}"}}'
        )
        self.publish(turn, "cmd", f"cmd/ABS/EPS/{turn.entity_id}/allocate", payload)
        return "ok"

    def _deny(self, turn: Turn, plan_id: str, reason: str) -> None:
        fields = f',"reason":"{escaped(reason)}"'
        self.send(turn, topics.SIGNALS_PLAN, plan_id, "allocation_denied", fields)

    def _restock(self, turn: Turn, station: Station, request: Internal) -> None:
        fleet = self.known_fleet(request)
        if request.available is None:
            raise RejectedError("missing_field", "available")
        if not 0 <= request.available <= 1_000_000:
            raise RejectedError("number_out_of_range", f"available {request.available}")
        stock = station.stock.setdefault(fleet, Stock(0))
        known, stock.current = stock.current, request.available
        if request.available > known and request.reason != "count":
            stock.restocks += 1
        elif request.available != known:
            self._announce(turn, fleet, stock, "STOCK_RECONCILED", f',"expected_stock":{known}')

    def _take_intent(
        self, station: Station, correlation: str, plan_id: str | None
    ) -> tuple[str, str, str, int] | None:
        for at, intent in enumerate(station.intents):
            if intent[0] == correlation and plan_id in (None, intent[1]):
                station.stock[intent[2]].promised -= 1
                return station.intents.pop(at)
        return None

    def _arm_answer(self, turn: Turn, station: Station, request: Internal) -> str:
        status = require(request.status, "status")
        asset = request.asset_id
        if asset is not None:
            require_id(asset, "asset_id")
        if not turn.correlation:
            raise OutsideTheMixError("an answer of ARM without correlation id")
        named = request.plan_id or ""
        seen = self.signal_id(turn.correlation, named, status, asset or "")
        if seen in station.answers:
            return "duplicate"
        if status == "issued":
            require_id(asset, "asset_id")
            if request.returned_asset_id is not None:
                require_id(request.returned_asset_id, "returned_asset_id")
        intent = self._take_intent(station, turn.correlation, request.plan_id)
        if status == "issued":
            self._station_issued(turn, station, request, intent)
        elif intent is None:
            raise RejectedError("unknown_allocation")
        else:
            station.stock[intent[2]].today[DENIED] += 1
            self._deny(turn, intent[1], request.reason or status)
        answered = self.signal_id(turn.correlation, named if intent is None else intent[1])
        for signal_id in (seen, answered):
            self.remember(station.answers, signal_id, "ok", turn.recorded_ms)
        return "ok"

    def _station_issued(
        self,
        turn: Turn,
        station: Station,
        request: Internal,
        intent: tuple[str, str, str, int] | None,
    ) -> None:
        asset = require_id(request.asset_id, "asset_id")
        returned = request.returned_asset_id
        if intent is not None:
            _, plan_id, fleet, _ = intent
        elif request.plan_id is not None:
            plan_id = require_id(request.plan_id, "plan_id")
            fleet = self.known_fleet(request)
        else:
            raise RejectedError("unknown_allocation")
        stock = station.stock.setdefault(fleet, Stock(0))
        stock.current = max(stock.current - 1, 0) + (returned is not None)
        stock.assignments += 1
        stock.returns += returned is not None
        stock.today[ASSIGNED] += 1
        stock.today[RETURNED] += returned is not None
        fields = f',"asset_id":"{asset}"'
        fields += f',"returned_asset_id":"{returned}"' if returned is not None else ""
        fields += f',"fleet_id":"{fleet}","location_id":"{turn.entity_id}"'
        energy = wire.given(request.energy_transferred)
        fields += f',"energy_transferred":{energy.decode()}' if energy is not None else ""
        self.send(turn, topics.SIGNALS_PLAN, plan_id, "allocation_issued", fields)
