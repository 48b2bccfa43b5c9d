"""The baseline's payments and quotas: deposits, top-ups, renewals, grants."""

from decimal import Decimal
from hashlib import sha256
from typing import Any

from bench.baselines import plain_wire as wire
from bench.baselines.plain_rules import OutsideTheMixError, RejectedError, Rules, Turn, require
from bench.baselines.plain_state import Plan
from bench.baselines.plain_wire import decimal, escaped


class Payments(Rules):
    """What money does to a plan."""

    def amount(self, plan: Plan, raw: Any, field: str) -> int:
        """An amount of the market's currency in minor units. Raises RejectedError."""
        number = wire.given(raw)
        if number is None:
            raise RejectedError("missing_field", field)
        amount = wire.units(number, plan.template.market.currency_digits)
        if amount is None or not 0 <= amount <= 1_000_000_000_000:
            market, text = plan.template.market, number.decode()
            detail = f"{field} {text}"
            if Decimal(text).scaleb(market.currency_digits) % 1:
                detail += f": {market.currency} has {market.currency_digits} decimals"
            raise RejectedError("number_out_of_range", detail)
        return amount

    def claim(self, plan: Plan, payment_id: str, amount: int) -> None:
        """Marks a payment id as applied. Raises RejectedError if it is."""
        digest = sha256(payment_id.encode()).digest()[:16]
        if any(digest == applied for applied, _, _ in plan.payments):
            raise RejectedError("payment_already_applied", payment_id)
        plan.payments.append((digest, amount, 0))

    def money_entry(self, turn: Turn, plan: Plan, kind: str, amount: int, payment_id: str) -> None:
        """Appends a payment-ledger entry about no single service."""
        extra = f',"payment_id":"{escaped(payment_id)}"'
        self.enter(turn, plan, self.payment_ledger, kind, amount=amount, extra=extra)

    def pay(self, turn: Turn, plan: Plan, paid: Any) -> None:
        """Applies a top-up. Raises RejectedError."""
        payment_id = require(paid.payment_reference, "payment_reference")
        if not payment_id or not wire.is_clean_text(payment_id):
            raise RejectedError("bad_id", "payment_reference")
        amount = self.amount(plan, paid.payment_amount, "payment_amount")
        self.claim(plan, payment_id, amount)
        kind = require(paid.payment_type, "payment_type")
        if kind != "TOP_UP" or paid.payment_method == "ZERO_COST_ROUNDING":
            raise OutsideTheMixError(f"payment {kind} {paid.payment_method}")
        service_id = require(paid.service_id, "service_id")
        at = plan.template.positions.get(service_id)
        if at is None:
            raise RejectedError("service_not_in_bundle", service_id)
        digest, paid_in, _ = plan.payments[-1]
        plan.payments[-1] = (digest, paid_in, at + 1)
        if not plan.initialized:
            raise RejectedError("states_not_initialized")
        account = self.change(turn, plan, at)
        before = account.balance()
        account.credit += amount
        account.changed()
        reference = f',"payment_id":"{escaped(payment_id)}"'
        method = paid.payment_method
        detail = "" if method is None else f',"detail":"{escaped(method)}"'
        self.account_entry(
            turn,
            plan,
            self.payment_ledger,
            "service_payment",
            at,
            before,
            amount=amount,
            extra=reference + detail,
        )
        self._convert_credit(turn, plan, at, payment_id)
        self._resume(turn, plan)

    def _convert_credit(self, turn: Turn, plan: Plan, at: int, payment_id: str) -> None:
        """Turns credit into whole lots of units, up to the cap."""
        service, account = plan.template.services[at], plan.accounts[at]
        quota_before = account.quota
        if quota_before is None:
            return
        room = (1 << 63) - 1 - quota_before
        if service.cap is not None:
            room = min(room, max(service.cap - quota_before, 0))
        lots = min(account.credit // service.lot_minor, room // service.lot_units)
        if lots <= 0:
            return
        before = account.balance()
        units, cost = lots * service.lot_units, lots * service.lot_minor
        account.quota = quota_before + units
        account.credit -= cost
        account.bought += units
        account.changed()
        self.account_entry(
            turn,
            plan,
            self.service_ledger,
            "topup_applied",
            at,
            before,
            units=units,
            amount=cost,
            extra=f',"payment_id":"{escaped(payment_id)}"',
        )
        market, digits = plan.template.market, service.digits
        payload = (
            f'{{"timestamp":"{turn.event_at}","plan_id":"{plan.plan_id}","correlation_id":'
            f'"{turn.corr}","service_id":"{service.service_id}","payment_reference":'
            f'"{escaped(payment_id)}","currency":"{market.currency}","amount":'
            f'{decimal(cost, market.currency_digits)},"units":{decimal(units, digits)},'
            f'"quota_before":{decimal(quota_before, digits)},'
            f'"quota_after":{decimal(account.quota, digits)}}}'
        )
        topic = f"emit/abs/bss/service/{service.service_id}/topup_applied"
        self.publish(turn, "emit", topic, payload)

    def _resume(self, turn: Turn, plan: Plan) -> None:
        """A plan that waits for renewal only because its quota was used up goes on."""
        waits = plan.template.model.grace[plan.pair]
        if waits and not plan.period_ended and not plan.is_exhausted():
            self.external(turn, plan, "RENEWAL_CONFIRMED")
            self.external(turn, plan, "SERVICE_ACTIVATED")

    def start_period(self, turn: Turn, plan: Plan) -> None:
        """Begins a paid period, or adds one to a period still running."""
        runs = plan.period_end_ms > turn.event_ms and not plan.period_ended
        from_ms = plan.period_end_ms if runs else turn.event_ms
        template = plan.template
        plan.period_end_ms = template.market.plus_days(from_ms, template.cycle_days)
        plan.period_ended = False

    def grant_all(self, turn: Turn, plan: Plan) -> None:
        """Grants a cycle's quota to every service."""
        for at, service in enumerate(plan.template.services):
            account = self.change(turn, plan, at)
            before, units, detail = account.balance(), 0, ',"detail":"infinite"'
            if service.initial is not None and account.quota is not None:
                room = service.initial if service.cap is None else service.cap - account.quota
                units, detail = min(service.initial, max(room, 0)), ""
                account.quota += units
                account.changed()
            self.account_entry(
                turn,
                plan,
                self.service_ledger,
                "quota_granted",
                at,
                before,
                units=units,
                extra=detail,
            )

    def close_cycle(self, turn: Turn, plan: Plan, has_ended: bool) -> None:
        """Ends a cycle's quotas: what was bought stays, what was granted if it was cut short."""
        for at in range(len(plan.accounts)):
            account = self.change(turn, plan, at)
            before, used, units = account.balance(), account.used, 0
            account.used = 0
            if account.quota is not None:
                left = max(account.quota - used, 0)
                account.bought = min(account.bought, left)
                account.quota = account.bought if has_ended else left
                units = left - account.quota
            account.changed()
            self.account_entry(
                turn, plan, self.service_ledger, "quota_expired", at, before, units=units
            )
