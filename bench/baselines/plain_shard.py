"""The baseline's shard off the hot path: envelopes, dedupe, rollback, timers, stations, assets."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from heapq import heappop, heappush
from typing import Any, Final

import msgspec

from bench.baselines import plain_wire as wire
from bench.baselines.plain_events import Events
from bench.baselines.plain_rules import REASONS, Lane, Record, RejectedError, Turn
from bench.baselines.plain_state import Asset, Plan, Station, Stock
from bench.baselines.plain_stations import ASSIGNED, RETURNED, Stations, conditions
from bench.baselines.plain_strict import RefusedError, check
from bench.baselines.plain_tables import Model, Tables
from bench.baselines.plain_wire import Internal, is_clean_id, is_clean_text
from bss_stream import topics

CODES: Final = list(REASONS)

READERS: Final[dict[str, Callable[[bytes], Any]]] = {
    "payment_and_service": wire.read_attendant,
    "identify_customer": wire.read_attendant,
    "customer_binding": wire.read_binding,
    "odoo_sync": wire.read_odoo,
    "initialize_states": wire.read_paid,
    "service_payment": wire.read_paid,
    "allocation_issued": wire.read_internal,
    "allocation_denied": wire.read_internal,
}
"""A plan's events."""

STATION_READERS: Final[dict[str, Callable[[bytes], Any]]] = dict.fromkeys(
    ("arm_allocate", "station_stock", "allocate", "allocation_release", "stock_moved"),
    wire.read_internal,
)
"""A station's events."""

DEDUPLICATED: Final = frozenset(READERS) - {
    "identify_customer",
    "allocation_issued",
    "allocation_denied",
}


def signal_id_blake2b(name: str, *parts: str) -> bytes:
    """A 64-bit id of a signal that is cheap in Python."""
    return blake2b("\xff".join((name, *parts)).encode(), digest_size=8).digest()


_SWAP_ID: Final = blake2b(b"payment_and_service\xc3\xbf", digest_size=8)


def signal_id_blake2b_of_swap(correlation: str) -> bytes:
    """The same for payment_and_service, whose part is hashed already."""
    hasher = _SWAP_ID.copy()
    hasher.update(correlation.encode())
    return hasher.digest()


def signal_id_fnv_of_swap(correlation: str) -> bytes:
    """The engine's id of payment_and_service."""
    return wire.signal_id_fnv("payment_and_service", correlation)


class Shard(Events, Stations):
    """The entities of one shard, and every record's way to its rule and back.

    `cheap_ids` takes an id for the dedupe window that is cheap in Python in place of the engine's,
    which is not: ledgers, echoes and dead letters are the same, state bytes of the same length.
    """

    def __init__(
        self,
        setup: bytes,
        *,
        partition: int = 0,
        partitions: int = 1,
        cheap_ids: bool = True,
        model: type[Model] = Model,
    ) -> None:
        super().__init__(Tables(setup, model), partition, partitions)
        self.swap_id = signal_id_fnv_of_swap
        if cheap_ids:
            self.signal_id = signal_id_blake2b
            self.swap_id = signal_id_blake2b_of_swap
        limits = self.tables.limits
        self._bytes_max, self._nesting_max = limits["payload_bytes_max"], limits["nesting_max"]
        self._future_ms, self._past_ms = limits["skew_future_ms"], limits["skew_past_ms"]
        self.outcomes: Counter[str] = Counter()
        self._plans: dict[bytes, Plan] = {}
        self._stations: dict[bytes, Station] = {}
        self._assets: dict[bytes, Asset] = {}
        self._applied = dict.fromkeys(topics.SIGNALS, -1)
        self._dirty_plans: list[Plan] = []
        self._dirty_stations: list[Station] = []
        self._dirty_assets: list[tuple[bytes, Asset]] = []
        self._queue: list[tuple[int, int, int, Plan]] = []

    def _open_lanes(self) -> None:
        self.payment_ledger = []
        self.service_ledger = []
        self.outbox = []
        self.dead_letters = []
        self.onward = {topic: [[] for _ in range(self.partitions)] for topic in topics.SIGNALS}

    def _drain(self) -> dict[tuple[str, int], list[Record]]:
        own: dict[str, Lane] = {
            topics.STATE_PLAN: [(plan.key, plan.encode()) for plan in self._dirty_plans],
            topics.STATE_STATION: [
                (station.station_id.encode(), station.encode()) for station in self._dirty_stations
            ],
            topics.STATE_ASSET: [(key, asset.encode()) for key, asset in self._dirty_assets],
            topics.LEDGER_PAYMENT: self.payment_ledger,
            topics.LEDGER_SERVICE: self.service_ledger,
            topics.OUTBOX: self.outbox,
            topics.DEAD_LETTER: self.dead_letters,
        }
        for plan in self._dirty_plans:
            plan.dirty = False
        for station in self._dirty_stations:
            station.dirty = False
        for _, asset in self._dirty_assets:
            asset.dirty = False
        self._dirty_plans, self._dirty_stations, self._dirty_assets = [], [], []
        lanes = {
            (topic, at): lane
            for topic, by_partition in self.onward.items()
            for at, lane in enumerate(by_partition)
            if lane
        }
        lanes |= {(topic, self.partition): lane for topic, lane in own.items() if lane}
        return lanes

    def _place(self, entity_id: str) -> int:
        at = self._partition_of.get(entity_id)
        if at is None:
            at = wire.partition_for(entity_id.encode(), self.partitions)
            self._partition_of[entity_id] = at
        return at

    # Everything else that plans are sent.

    def _arrive(self, offset: int, key: bytes, value: bytes) -> None:
        topic = topics.SIGNALS_PLAN
        read = self._open(topic, offset, key, value, READERS)
        if read is None:
            return
        turn, event, request, internal = read
        if not self._address(turn, event, request, internal):
            return
        plan = self._plans.get(key)
        fresh = plan is None
        try:
            if plan is None:
                plan = self._new_plan(turn, event, request)
        except RejectedError as error:
            self._refuse_record(turn, event, error.reason, error.detail)
            return
        if not fresh:
            self._fire_due(plan, turn.recorded_ms)
        reason = self._apply(turn, plan, event, request)
        self.outcomes[reason] += 1
        plan.clock_ms = max(plan.clock_ms, turn.recorded_ms)
        plan.applied = offset
        if fresh and reason == "ok":
            self._plans[key] = plan
        if not fresh or reason == "ok":
            self._changed(plan)

    def _fire_due(self, plan: Plan, now_ms: int) -> None:
        """Fires a plan's timers that were due when a record came in."""
        while (due_ms := plan.due_ms()) is not None and due_ms <= now_ms:
            self.fire(plan, due_ms)
            self._changed(plan)

    def _refuse_record(self, turn: Turn, event: str, reason: str, detail: str) -> None:
        """Refuses a record that has not come as far as its entity."""
        plan = self._plans.get(turn.key) if turn.topic == topics.SIGNALS_PLAN else None
        if plan is not None:
            # Time has passed before the record, whatever is wrong with it.
            self._fire_due(plan, turn.recorded_ms)
        self.refuse(turn, event, reason, detail)
        self.outcomes[reason] += 1

    def _open(
        self,
        topic: str,
        offset: int,
        key: bytes,
        value: bytes,
        readers: Mapping[str, Callable[[bytes], Any]],
    ) -> tuple[Turn, str, Any, bool] | None:
        """Reads frame and payload; None if they are refused."""
        entity_id = key.decode(errors="replace")
        head, newline, payload = value.partition(b"\n")
        fields = head.decode(errors="replace").split("\t")
        clean = is_clean_id(entity_id)
        if not clean or not newline or len(fields) != 5 or fields[0] != "1":
            reason = "unknown_event" if clean else "bad_id"
            turn = Turn(topic, entity_id if clean else "-", 0, "", offset, value)
            self.dead_letter(turn, reason, entity_id)
            self.outcomes[reason] += 1
            return None
        _, event, received, correlation, source = fields
        turn = Turn(topic, entity_id, int(received), correlation, offset, value)
        read = readers.get(event)
        if read is None:
            self.dead_letter(turn, "unknown_event", event)
            self.outcomes["unknown_event"] += 1
            return None
        bytes_max, nesting_max = self._bytes_max, self._nesting_max
        try:
            if (
                not payload.isascii()
                or payload.count(b"{") + payload.count(b"[") > nesting_max
                or len(payload) > bytes_max
            ):
                check(payload, bytes_max, nesting_max)
            try:
                request = read(payload)
            except msgspec.DecodeError:
                check(payload, bytes_max, nesting_max)
                raise
        except RefusedError as error:
            self._refuse_record(turn, event, error.reason, error.detail)
            return None
        return turn, event, request, source == "engine"

    def _address(self, turn: Turn, event: str, request: Any, internal: bool) -> bool:
        """Takes into the turn what the envelope says; False if that is refused."""
        correlation = request.correlation_id
        if internal:
            turn.address(request.at_ms, correlation or "")
            return True
        try:
            named = request.plan_id
            if named is None:
                raise RejectedError("missing_field", "plan_id")
            if named != turn.entity_id:
                detail = f"topic {turn.entity_id}, payload {named}"
                raise RejectedError("id_mismatch", detail)
            if correlation is None:
                raise RejectedError("missing_field", "correlation_id")
            if not correlation or not is_clean_text(correlation):
                raise RejectedError("bad_id", "correlation_id")
            event_ms = self._event_ms(turn, request.timestamp)
        except RejectedError as error:
            if correlation is not None and is_clean_text(correlation):
                turn.address(turn.recorded_ms, correlation)
            self._refuse_record(turn, event, error.reason, error.detail)
            return False
        turn.address(event_ms, correlation)
        return True

    def _event_ms(self, turn: Turn, stamp: str | None) -> int:
        if stamp is None:
            raise RejectedError("missing_field", "timestamp")
        event_ms = wire.epoch_ms(stamp)
        if event_ms is None:
            raise RejectedError("wrong_type", f"timestamp {stamp}")
        ahead_ms = event_ms - turn.recorded_ms
        if ahead_ms > self._future_ms or -ahead_ms > self._past_ms:
            raise RejectedError("timestamp_skew", f"{ahead_ms} ms ahead")
        return event_ms

    def _new_plan(self, turn: Turn, event: str, request: Any) -> Plan:
        """The plan that a first sync makes. Raises RejectedError."""
        if event != "odoo_sync":
            raise RejectedError("unknown_plan")
        template = self.tables.templates.get(request.data.template_id)
        if template is None:
            raise RejectedError("unknown_template", request.data.template_id)
        order = wire.signal_id_fnv(turn.entity_id)
        return Plan(turn.entity_id, template, request.data.customer_id, order)

    def _apply(self, turn: Turn, plan: Plan, event: str, request: Any) -> str:
        """Applies one signal to a plan, all or not at all; returns how it ended."""
        seen = b""
        if event in DEDUPLICATED:
            seen = self.signal_id(event, turn.correlation)
            first = plan.window.get(seen)
            asked = None if plan.session is None else plan.session.correlation
            if event == "customer_binding" and asked == turn.correlation:
                return "in_progress"
            if first is not None:
                self.repeat(turn, event, CODES[first[1]])
                return "duplicate"
        before = (
            plan.pair,
            plan.initialized,
            plan.cancel_requested,
            plan.period_ended,
            plan.period_end_ms,
            plan.grace_end_ms,
            plan.grace_enforced,
            plan.session,
            plan.seq,
            plan.prev,
        )
        payments = len(plan.payments)
        try:
            reason = self._rule(turn, plan, event, request)
        except RejectedError as error:
            (
                plan.pair,
                plan.initialized,
                plan.cancel_requested,
                plan.period_ended,
                plan.period_end_ms,
                plan.grace_end_ms,
                plan.grace_enforced,
                plan.session,
                plan.seq,
                plan.prev,
            ) = before
            del plan.payments[payments:]
            for at, account in turn.before.items():
                plan.accounts[at] = account
            for lane in turn.pushed:
                lane.pop()
            turn.entries, turn.is_kept = 0, False
            self.refuse(turn, event, error.reason, error.detail)
            reason = error.reason
        if seen:
            self.remember(plan.window, seen, reason, turn.recorded_ms)
        return reason

    def _rule(self, turn: Turn, plan: Plan, event: str, request: Any) -> str:
        if event in ("allocation_issued", "allocation_denied"):
            rule: Callable[[Turn, Plan, Any], str] = getattr(self, event)
            return rule(turn, plan, request)
        rule = getattr(self, event)
        return rule(turn, plan, request.data)

    def _changed(self, plan: Plan) -> None:
        """Marks a plan as changed and queues its next timer."""
        due_ms = plan.due_ms()
        if due_ms != plan.queued_ms:
            plan.queued_ms = due_ms
            if due_ms is not None:
                heappush(self._queue, (due_ms, plan.order, id(plan), plan))
        if not plan.dirty:
            plan.dirty = True
            self._dirty_plans.append(plan)

    def _tick(self, now_ms: int) -> None:
        """Fires every timer due, in order."""
        queue = self._queue
        while queue and queue[0][0] <= now_ms:
            due_ms, _, _, plan = heappop(queue)
            if plan.queued_ms != due_ms:
                # The plan has moved its timer since.
                continue
            plan.queued_ms = None
            due = plan.due_ms()
            if due is not None and due <= now_ms:
                self.fire(plan, due)
            self._changed(plan)

    # Stations and assets.

    def _apply_to_stations(self, offsets: Sequence[int], records: Sequence[Record]) -> None:
        applied = self._applied[topics.SIGNALS_STATION]
        decode, stations, fleets = wire.read_internal, self._stations, self.tables.fleets
        lows, capacities = self.tables.low, self.tables.capacity
        markets = self.tables.market
        moved = 0
        for offset, (key, value) in zip(offsets, records, strict=True):
            if offset <= applied:
                self.outcomes["duplicate"] += 1
                continue
            applied = offset
            station = stations.get(key)
            head, _, payload = value.partition(b"\n")
            if station is None or not (
                head.startswith(b"1\tstock_moved\t") and head.endswith(b"\t\tengine")
            ):
                self._arrive_at_station(offset, key, value)
                continue
            request = decode(payload)
            fleet = request.fleet_id
            if fleet not in fleets:
                self._arrive_at_station(offset, key, value)
                continue
            recorded_ms = int(head.split(b"\t", 3)[2])
            day = markets[station.station_id].local_day(recorded_ms)
            if day > station.day:
                station.turn_day(day)
            stock = station.stock.get(fleet)
            if stock is None:
                stock = station.stock[fleet] = Stock(0)
            if request.asset_id is not None:
                if stock.current > 0:
                    stock.current -= 1
                stock.assignments += 1
                stock.today[ASSIGNED] += 1
            if request.returned_asset_id is not None:
                stock.current += 1
                stock.returns += 1
                stock.today[RETURNED] += 1
            low, capacity = lows[station.station_id], capacities[station.station_id]
            for fleet, stock in station.stock.items():
                if conditions(stock, low, capacity.get(fleet, 0)) != stock.warned:
                    correlation = request.correlation_id or ""
                    turn = Turn(
                        topics.SIGNALS_STATION,
                        station.station_id,
                        recorded_ms,
                        correlation,
                        offset,
                        value,
                    )
                    turn.address(request.at_ms or 0, correlation)
                    self.warn(turn, station)
                    break
            station.applied = offset
            if not station.dirty:
                station.dirty = True
                self._dirty_stations.append(station)
            moved += 1
        self.outcomes["ok"] += moved
        self._applied[topics.SIGNALS_STATION] = applied

    def _arrive_at_station(self, offset: int, key: bytes, value: bytes) -> None:
        read = self._open(topics.SIGNALS_STATION, offset, key, value, STATION_READERS)
        if read is None:
            return
        turn, event, request, internal = read
        event_ms = request.at_ms
        if not internal:
            stamp = request.timestamp
            event_ms = turn.recorded_ms if stamp is None else self._event_ms(turn, stamp)
        turn.address(event_ms, request.correlation_id or "")
        if turn.entity_id not in self.tables.stock:
            self.refuse(turn, event, "unknown_location", turn.entity_id)
            self.outcomes["unknown_location"] += 1
            return
        station = self._stations.get(key)
        if station is None:
            stock = self.tables.stock[turn.entity_id]
            station = self._stations[key] = Station(turn.entity_id, stock)
        if event == "stock_moved":
            # The first of a station: the inlined part knows it now.
            self._applied[topics.SIGNALS_STATION] = offset - 1
            self._apply_to_stations([offset], [(key, value)])
            return
        try:
            reason = self.station_event(turn, station, event, request)
        except RejectedError as error:
            self.refuse(turn, event, error.reason, error.detail)
            reason = error.reason
        self.outcomes[reason] += 1
        station.applied = offset
        if not station.dirty:
            station.dirty = True
            self._dirty_stations.append(station)

    def _apply_to_assets(self, offsets: Sequence[int], records: Sequence[Record]) -> None:
        applied = self._applied[topics.SIGNALS_ASSET]
        decode, assets, dirty = wire.read_internal, self._assets, self._dirty_assets
        done = 0
        for offset, (key, value) in zip(offsets, records, strict=True):
            if offset <= applied:
                self.outcomes["duplicate"] += 1
                continue
            applied = offset
            asset = assets.get(key)
            if asset is None:
                asset = assets[key] = Asset()
            head, _, payload = value.partition(b"\n")
            request = decode(payload)
            plan_id, before = request.plan_id, asset.holder
            if head.startswith(b"1\tasset_assigned\t"):
                asset.location_id = None
                asset.holder = plan_id
                asset.is_assigned = True
                if before is not None and before != plan_id:
                    other, asset.awaited_from = asset.awaited_from, before
                    if other is not None:
                        self._contradiction(offset, key, value, head, request, other)
                        done -= 1
                done += 1
            else:
                if before == plan_id:
                    asset.holder = None
                    asset.is_assigned = False
                    asset.location_id = request.location_id
                elif asset.awaited_from == plan_id:
                    asset.awaited_from = None
                done += 1
            asset.applied = offset
            if not asset.dirty:
                asset.dirty = True
                dirty.append((key, asset))
        self.outcomes["ok"] += done
        self._applied[topics.SIGNALS_ASSET] = applied

    def _contradiction(
        self, offset: int, key: bytes, value: bytes, head: bytes, request: Internal, other: str
    ) -> None:
        recorded_ms = int(head.split(b"\t")[2])
        correlation = request.correlation_id or ""
        event_ms = request.at_ms or 0
        topic, entity_id = topics.SIGNALS_ASSET, key.decode()
        turn = Turn(topic, entity_id, recorded_ms, correlation, offset, value)
        turn.address(event_ms, correlation)
        detail = f"{entity_id}: {other} never gave it back, now {request.plan_id}"
        self.refuse(turn, "asset_assigned", "asset_held_elsewhere", detail)
        self.outcomes["asset_held_elsewhere"] += 1
