"""The baseline's rules off the hot path: everything but plain swaps and identification."""

from hashlib import sha256
from typing import Final

from bench.baselines import plain_wire as wire
from bench.baselines.plain_state import Account, Plan
from bench.baselines.plain_tables import Move, Tables
from bench.baselines.plain_wire import escaped, rfc3339
from bss_stream import _engine, topics

Record = tuple[bytes, bytes]
Lane = list[Record]

REASONS: Final = {row[0]: (at, *row[1:]) for at, row in enumerate(_engine.reasons())}
"""By code: index, message, what can be done, whether it makes a dead letter."""

SIGNALS: Final = {
    "ok": "SERVICE_COMPLETED",
    "duplicate": "IDEMPOTENT_OPERATION_DETECTED",
    "id_mismatch": "SECURITY_ALERT",
    "asset_held_elsewhere": "SECURITY_ALERT",
    "service_not_in_bundle": "PAYMENT_FAILED",
    "payment_already_applied": "PAYMENT_FAILED",
    "currency_mismatch": "PAYMENT_FAILED",
    "rate_limited": "RATE_LIMIT_EXCEEDED",
    "rejected_transition": "SERVICE_COMPLETION_FAILED",
    "battery_mismatch": "BATTERY_MISMATCH",
    "unknown_allocation": "ASSET_VALIDATION_FAILED",
    **dict.fromkeys(
        (
            "in_progress",
            "location_not_allowed",
            "fleet_not_in_bundle",
            "quota_exhausted",
            "inventory_empty",
            "station_not_ready",
            "payment_not_current",
            "states_not_initialized",
            "allocation_timed_out",
            "allocation_denied",
            "session_in_progress",
        ),
        "SERVICE_REJECTED",
    ),
}
"""The signal that clients know a reason by; VALIDATION_FAILED where none stands."""

ECHOES: Final = {
    "identify_customer": (
        ("echo/abs/attendant/plan/", "/identify_customer"),
        ("echo/abs/service/plan/", "/identify_customer"),
    ),
    "payment_and_service": (("echo/abs/attendant/plan/", "/payment_and_service"),),
    "customer_binding": (("echo/abs/service/plan/", "/customer_binding"),),
    "initialize_states": (("echo/abs/service/plan/", "/initialize_states_result"),),
    "odoo_sync": (("echo/odo/subscription/plan/", "/sync"),),
    "service_payment": (("echo/abs/bss/payment/", "/service_payment"),),
}
"""What stands before and behind the plan's id in the topics of an event's echo."""


class RejectedError(Exception):
    """A signal is understood and refused."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


class Turn:
    """One signal, or one timer, on its way through the rules."""

    __slots__ = (
        "before",
        "corr",
        "correlation",
        "entity_id",
        "entries",
        "event_at",
        "event_ms",
        "inputs",
        "is_kept",
        "key",
        "offset",
        "outputs",
        "pushed",
        "raw",
        "recorded_at",
        "recorded_ms",
        "topic",
    )

    def __init__(
        self,
        topic: str,
        entity_id: str,
        recorded_ms: int,
        correlation: str,
        offset: int | None,
        raw: bytes,
    ) -> None:
        self.topic = topic
        self.entity_id = entity_id
        self.key = entity_id.encode()
        self.recorded_ms = recorded_ms
        self.recorded_at = rfc3339(recorded_ms)
        self.address(recorded_ms, correlation)
        self.offset = offset
        """None for a timer."""
        self.raw = raw
        self.entries = 0
        self.is_kept = False
        """Whether the record has become a dead letter: once is enough."""
        self.inputs: list[tuple[str, str]] = []
        self.outputs: list[str] = []
        self.pushed: list[Lane] = []
        self.before: dict[int, Account] = {}
        """Accounts as they were before the turn."""

    def address(self, event_ms: int, correlation: str) -> None:
        """Takes in what the payload says of the event."""
        self.event_ms = event_ms
        self.event_at = rfc3339(event_ms)
        self.correlation = correlation
        self.corr = escaped(correlation)


class Rules:
    """One shard's lanes and the rules that fill them."""

    def __init__(self, tables: Tables, partition: int, partitions: int) -> None:
        self.tables = tables
        self.partition = partition
        self.partitions = partitions
        self.dedupe_ms = tables.limits["dedupe_window_ms"]
        self.dedupe_max = tables.limits["dedupe_entries_max"]
        self.signal_id = wire.signal_id_fnv
        self.payment_ledger: Lane = []
        self.service_ledger: Lane = []
        self.outbox: Lane = []
        self.dead_letters: Lane = []
        self.onward: dict[str, list[Lane]] = {}
        self._partition_of: dict[str, int] = {}

    # What a turn emits.

    def push(self, turn: Turn, lane: Lane, value: str) -> None:
        """Appends a record of the entity's own."""
        lane.append((turn.key, value.encode()))
        turn.pushed.append(lane)

    def send(self, turn: Turn, topic: str, entity_id: str, event: str, fields: str) -> None:
        """Sends a signal to another entity."""
        at = self._partition_of.get(entity_id)
        if at is None:
            key = entity_id.encode()
            at = self._partition_of[entity_id] = wire.partition_for(key, self.partitions)
        lane = self.onward[topic][at]
        value = (
            f'1\t{event}\t{turn.recorded_ms}\t\tengine\n{{"at_ms":{turn.event_ms}'
            f',"correlation_id":"{turn.corr}"{fields}}}'
        )
        lane.append((entity_id.encode(), value.encode()))
        turn.pushed.append(lane)

    def publish(self, turn: Turn, kind: str, topic: str, payload: str) -> None:
        """Sends an MQTT message."""
        corr = wire.header(turn.correlation)
        self.push(turn, self.outbox, f"1\t{kind}\t1\t0\t300\t{corr}\t{topic}\n{payload}")

    def publish_retained(self, turn: Turn, kind: str, topic: str, payload: str) -> None:
        """Sends an MQTT message that the broker keeps."""
        corr = wire.header(turn.correlation)
        self.push(turn, self.outbox, f"1\t{kind}\t1\t1\t0\t{corr}\t{topic}\n{payload}")

    def dead_letter(self, turn: Turn, reason: str, detail: str) -> None:
        """Keeps the record, unless it is kept already or there is none."""
        if turn.offset is None or turn.is_kept:
            return
        turn.is_kept = True
        head = (
            f"1\t{reason}\t{turn.topic}\t{self.partition}\t{turn.offset}\t{turn.recorded_ms}"
            f"\t{wire.header(detail)}\n"
        )
        self.dead_letters.append((turn.key, head.encode() + turn.raw))
        turn.pushed.append(self.dead_letters)

    def echo(
        self, turn: Turn, event: str, success: bool, signals: str, reason: str, metadata: str
    ) -> None:
        """Answers a request; `signals` are the quoted names."""
        plan_id = turn.entity_id
        payload = (
            f'{{"timestamp":"{turn.recorded_at}","plan_id":"{plan_id}","correlation_id":'
            f'"{turn.corr}","actor":{{"type":"agent","id":"bss-agent-v2"}},"data":{{"plan_id":'
            f'"{plan_id}","success":{"true" if success else "false"},"signals":[{signals}],'
            f'"metadata":{{"reason":"{reason}"{metadata}}}}}}}'
        )
        for prefix, suffix in ECHOES.get(event, ()):
            self.publish(turn, "echo", prefix + plan_id + suffix, payload)

    def refuse(self, turn: Turn, event: str, reason: str, detail: str) -> None:
        """Answers a request that is refused."""
        _, message, action, is_dead_letter = REASONS[reason]
        metadata = f',"message":"{message}"'
        if detail:
            metadata += f',"detail":"{escaped(detail)}"'
        if action is not None:
            metadata += f',"action_required":"{action}"'
        signal = SIGNALS.get(reason, "VALIDATION_FAILED")
        self.echo(turn, event, False, f'"{signal}"', reason, metadata)
        if is_dead_letter:
            self.dead_letter(turn, reason, detail)

    def repeat(self, turn: Turn, event: str, first: str) -> None:
        """Answers a request that was seen before."""
        succeeded = first in ("ok", "duplicate")
        reason = "duplicate" if succeeded else first
        _, message, action, _ = REASONS[reason]
        signal = SIGNALS.get(reason, "VALIDATION_FAILED")
        metadata = f',"first_reason":"{first}","message":"{message}"'
        if action is not None:
            metadata += f',"action_required":"{action}"'
        self.echo(turn, event, succeeded, f'"{signal}"', reason, metadata)

    def remember(
        self, window: dict[bytes, tuple[int, int]], signal_id: bytes, reason: str, at_ms: int
    ) -> None:
        """Notes how a signal ended, and forgets old ones."""
        outcome: int = REASONS[reason][0]
        if window.pop(signal_id, None) is not None:
            window[signal_id] = (at_ms, outcome)
            return
        while window:
            oldest = next(iter(window))
            if at_ms - window[oldest][0] <= self.dedupe_ms and len(window) < self.dedupe_max:
                break
            del window[oldest]
        window[signal_id] = (at_ms, outcome)

    # Ledgers and accounts.

    def enter(
        self,
        turn: Turn,
        plan: Plan,
        lane: Lane,
        kind: str,
        *,
        service: str = "null",
        units: int = 0,
        held: int = 0,
        amount: int = 0,
        extra: str = "",
    ) -> None:
        """Appends a sealed entry; `extra` is what stands between currency and prev."""
        plan.seq = seq = plan.seq + 1
        plan_id, offset = plan.plan_id, turn.offset
        if offset is None:
            entry_id, source = f"timer-{plan_id}-{seq}", "timer"
        else:
            entry_id = f"plan-{self.partition}-{offset}-{turn.entries}"
            source = f"{topics.SIGNALS_PLAN}/{self.partition}/{offset}"
        held_units = f',"held_units":{held}' if held else ""
        body = (
            f'{{"v":1,"entry_id":"{entry_id}","plan_id":"{plan_id}","seq":{seq},"kind":"{kind}",'
            f'"service_id":{service},"signal_id":"{turn.corr}","source":"{source}","event_at":'
            f'"{turn.event_at}","recorded_at":"{turn.recorded_at}","units":{units}{held_units},'
            f'"amount_minor":{amount},"currency":"{plan.template.market.currency}"{extra},'
            f'"prev":"{plan.prev}"'
        )
        plan.prev = sha256(f"{body}}}".encode()).hexdigest()
        self.push(turn, lane, f'{body},"hash":"{plan.prev}"}}')
        turn.entries += 1

    def account_entry(
        self,
        turn: Turn,
        plan: Plan,
        lane: Lane,
        kind: str,
        at: int,
        before: str,
        *,
        units: int = 0,
        held: int = 0,
        amount: int = 0,
        extra: str = "",
    ) -> None:
        """Appends an entry about one account."""
        service = f'"{plan.template.services[at].service_id}"'
        extra += f',"before":{before},"after":{plan.accounts[at].balance()}'
        self.enter(
            turn,
            plan,
            lane,
            kind,
            service=service,
            units=units,
            held=held,
            amount=amount,
            extra=extra,
        )

    def change(self, turn: Turn, plan: Plan, at: int) -> Account:
        """An account about to change, kept as it was; call its `changed` afterwards."""
        account = plan.accounts[at]
        if at not in turn.before:
            turn.before[at] = account.copy()
        return account

    def external(self, turn: Turn, plan: Plan, external: str) -> None:
        """Brings an external event to both cycles. Raises RejectedError, steps kept."""
        move: Move = plan.template.model.moves[external][plan.pair]
        plan.pair = move.pair
        turn.inputs += move.inputs
        turn.outputs += move.outputs
        if move.grace:
            after_ms = turn.event_ms + plan.template.grace_ms
            plan.grace_end_ms = after_ms if move.grace > 0 else 0
            if move.grace > 0:
                plan.grace_enforced = False
        if move.refused is not None:
            raise RejectedError("rejected_transition", move.refused)

    # What echoes say of a plan.

    def status(self, plan: Plan, at_ms: int) -> str:
        """The status derived from both cycles, quota and grace."""
        model, pair = plan.template.model, plan.pair
        over = model.grace[pair] and at_ms >= plan.grace_end_ms
        return model.status[pair][plan.is_exhausted() + 2 * over]

    def service_states(self, plan: Plan) -> str:
        """The services' use, quota and battery."""
        return f"[{','.join([account.json for account in plan.accounts])}]"

    def plan_states(self, plan: Plan, at_ms: int) -> str:
        """The three states and the services', as clients read them."""
        model, pair = plan.template.model, plan.pair
        return (
            f',"payment_state":"{model.payment_state[pair]}","service_state":'
            f'"{model.service_state[pair]}","status":"{self.status(plan, at_ms)}",'
            f'"service_states":{self.service_states(plan)}'
        )

    # Checks.

    def check_quota(self, plan: Plan, swaps: int, energy: int) -> None:
        """Every service that a swap uses up must admit it. Raises RejectedError."""
        template = plan.template
        for at, units in ((template.swap, swaps), (template.energy, energy)):
            if at is None or units <= 0:
                continue
            service, left = template.services[at], plan.accounts[at].left()
            if not service.overage_allowed and left is not None and units > left:
                detail = f"{service.service_id}: {units} units needed, {left} left"
                raise RejectedError("quota_exhausted", detail)

    def check_rate(self, plan: Plan, event_ms: int) -> None:
        """The day's limit. Raises RejectedError."""
        template = plan.template
        if template.swap is None:
            return
        service = template.services[template.swap]
        limit = service.rate_limit
        if limit is not None:
            day = template.market.local_day(event_ms)
            if plan.accounts[template.swap].on_day(day) >= limit:
                detail = f"{service.service_id}: {limit} swaps a day"
                raise RejectedError("rate_limited", detail)

    def check_served(self, plan: Plan, event_ms: int) -> None:
        """The plan must be initialised and paid. Raises RejectedError."""
        if not plan.initialized:
            raise RejectedError("states_not_initialized")
        model, pair = plan.template.model, plan.pair
        if not model.paid[pair] and not (model.grace[pair] and event_ms < plan.grace_end_ms):
            raise RejectedError("payment_not_current")

    def settle_quota(self, turn: Turn, plan: Plan) -> None:
        """Tells the cycles whether the quota is at its end."""
        self.external(
            turn, plan, "QUOTA_LIMIT_REACHED" if plan.is_exhausted() else "ALL_STATES_UPDATED"
        )

    def consume(self, turn: Turn, plan: Plan, at: int, units: int, held: int, facts: str) -> None:
        """Uses units, of which `held` had been reserved; what passes the quota is charged."""
        if units == 0 and held == 0:
            return
        account = self.change(turn, plan, at)
        before, used_before = account.balance(), account.used
        account.used += units
        account.held -= held
        account.changed()
        self.account_entry(
            turn,
            plan,
            self.service_ledger,
            "quota_used",
            at,
            before,
            units=units,
            held=held,
            extra=facts,
        )
        self.charge_overage(turn, plan, at, used_before)

    def charge_overage(self, turn: Turn, plan: Plan, at: int, used_before: int) -> None:
        """Charges what use has passed the quota by, if the template says how."""
        account, service = plan.accounts[at], plan.template.services[at]
        if account.quota is None or service.overage_rate_minor is None:
            return
        over = account.used - max(account.quota, used_before)
        if over > 0:
            amount = -(-over * service.overage_rate_minor // service.scale)
            after = account.balance()
            self.account_entry(
                turn,
                plan,
                self.payment_ledger,
                "overage_charge",
                at,
                after,
                units=over,
                amount=amount,
            )

    def count_day(self, turn: Turn, plan: Plan, event_ms: int) -> None:
        """Counts one swap on its day."""
        template = plan.template
        at = template.swap
        if at is not None and template.services[at].rate_limit is not None:
            account = self.change(turn, plan, at)
            account.count_day(template.market.local_day(event_ms))
            account.used_changed()


class OutsideTheMixError(Exception):
    """The traffic holds what the baseline was not written for."""


def require(text: str | None, name: str) -> str:
    """A field that must be there. Raises RejectedError."""
    if text is None:
        raise RejectedError("missing_field", name)
    return text


def require_id(text: str | None, name: str) -> str:
    """A field that must be a clean id. Raises RejectedError."""
    clean = require(text, name)
    if not wire.is_clean_id(clean):
        raise RejectedError("bad_id", name)
    return clean
