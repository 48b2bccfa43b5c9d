"""The baseline's events off the hot path: Odoo, payments, self-service swaps, timers."""

from typing import Any

from bench.baselines import plain_wire as wire
from bench.baselines.plain_payments import Payments
from bench.baselines.plain_rules import (
    REASONS,
    OutsideTheMixError,
    RejectedError,
    Turn,
    require,
    require_id,
)
from bench.baselines.plain_state import Plan, Session
from bench.baselines.plain_wire import Internal, decimal, rfc3339
from bss_stream import topics


def _named(names: list[str]) -> str:
    return ",".join(f'"{name}"' for name in names)


class Events(Payments):
    """What each event does to a plan, all or nothing."""

    # Odoo.

    def odoo_sync(self, turn: Turn, plan: Plan, data: Any) -> str:
        """Odoo's states become the payment cycle's signals. Raises RejectedError."""
        currency = require(data.odoo_currency_id, "odoo_currency_id")
        market = plan.template.market
        if currency != market.currency:
            detail = f"{currency}: the market's is {market.currency}"
            raise RejectedError("currency_mismatch", detail)
        signed = plan.template.template_id
        if data.template_id is not None and data.template_id != signed:
            detail = f"template_id {data.template_id}: the plan signed {signed}"
            raise RejectedError("unknown_template", detail)
        states = (data.odoo_payment_state, data.odoo_subscription_state)
        if states != ("paid", "in_progress") or data.odoo_invoice_id is None:
            raise OutsideTheMixError(f"odoo_sync {states}")
        amount = self.amount(plan, data.odoo_amount_total, "odoo_amount_total")
        payment_id = f"odoo:{data.odoo_subscription_id}:invoice:{data.odoo_invoice_id}"
        tags = plan.template.model.payment_tags
        if "unsigned" in tags[plan.pair]:
            self.external(turn, plan, "CONTRACT_EXECUTED")
            version = plan.template.version
            extra = f',"template_id":"{signed}","template_version":{version}'
            self.enter(turn, plan, self.payment_ledger, "contract_signed", extra=extra)
        if "deposit_due" in tags[plan.pair]:
            self.claim(plan, payment_id, amount)
            self.external(turn, plan, "DEPOSIT_CONFIRMED")
            self.money_entry(turn, plan, "deposit", amount, payment_id)
            self.start_period(turn, plan)
            self.external(turn, plan, "SERVICE_ACTIVATED")
        elif plan.template.model.takes(plan.pair, 0, "RENEWAL_PAID"):
            self._renew_if_new(turn, plan, amount, payment_id)
        inputs = ",".join(f'{{"cycle":"{c}","input":"{signal}"}}' for c, signal in turn.inputs)
        metadata = (
            f',"fsm_inputs_generated":[{inputs}],"fsm_outputs":[{_named(turn.outputs)}]'
            f',"period_end_ms":{plan.period_end_ms}{self.plan_states(plan, turn.event_ms)}'
        )
        self.echo(turn, "odoo_sync", True, '"ODOO_SYNC_SUCCESS"', "ok", metadata)
        return "ok"

    def _renew_if_new(self, turn: Turn, plan: Plan, amount: int, payment_id: str) -> None:
        try:
            self.claim(plan, payment_id, amount)
        except RejectedError:
            return
        was_due = plan.template.model.grace[plan.pair]
        self.external(turn, plan, "RENEWAL_CONFIRMED")
        self.money_entry(turn, plan, "renewal", amount, payment_id)
        self.start_period(turn, plan)
        if plan.initialized:
            self.close_cycle(turn, plan, was_due)
            self.grant_all(turn, plan)
        self.external(turn, plan, "SERVICE_ACTIVATED")

    def initialize_states(self, turn: Turn, plan: Plan, data: Any) -> str:
        """Grants every service its first quota. Raises RejectedError."""
        first = not plan.initialized
        signals, reason = '"SERVICE_STATES_INITIALIZED"', "ok"
        if first:
            model, pair = plan.template.model, plan.pair
            if not model.paid[pair] and not model.grace[pair]:
                raise RejectedError("payment_not_current")
            plan.initialized = True
            self.grant_all(turn, plan)
        else:
            signals, reason = f'"IDEMPOTENT_OPERATION_DETECTED",{signals}', "duplicate"
        metadata = self.plan_states(plan, turn.event_ms)
        self.echo(turn, "initialize_states", True, signals, reason, metadata)
        return reason

    def identify_customer(self, turn: Turn, plan: Plan, data: Any) -> str:
        """Who the customer is and what the plan has. Raises RejectedError."""
        require(data.qr_code_data if data is not None else None, "qr_code_data")
        template, model, pair = plan.template, plan.template.model, plan.pair
        quotas = ""
        if template.swap is not None:
            account = plan.accounts[template.swap]
            limit = template.market.infinite_wire if account.quota is None else account.quota
            quotas = f',"quotaUsed":{account.used},"quotaLimit":{limit}'
        metadata = (
            f',"customer_id":"{plan.customer_id}","identification_method":"QR_CODE",'
            f'"service_plan_data":{{"servicePlanId":"{plan.plan_id}","customerId":'
            f'"{plan.customer_id}","status":"{self.status(plan, turn.event_ms)}","serviceState":'
            f'"{model.service_state[pair]}","paymentState":"{model.payment_state[pair]}",'
            f'"templateId":"{template.template_id}","currency":"{template.market.currency}",'
            f'"serviceStates":{self.service_states(plan)}{quotas}{template.tail_json}'
        )
        self.echo(turn, "identify_customer", True, '"CUSTOMER_IDENTIFIED_SUCCESS"', "ok", metadata)
        return "ok"

    def service_payment(self, turn: Turn, plan: Plan, data: Any) -> str:
        """A payment for one service, from outside a station. Raises RejectedError."""
        if data is None:
            raise RejectedError("missing_field", "payment_reference")
        self.pay(turn, plan, data)
        metadata = self.plan_states(plan, turn.event_ms)
        self.echo(turn, "service_payment", True, '"SERVICE_QUOTA_UPDATED"', "ok", metadata)
        return "ok"

    # A staffed station.

    def payment_and_service(self, turn: Turn, plan: Plan, data: Any) -> str:
        """Payment, return, issue and use in one message. Raises RejectedError."""
        template = plan.template
        station = require(data.attendant_station if data is not None else None, "attendant_station")
        if station not in self.tables.stock:
            raise RejectedError("unknown_location", station)
        if template.allowed is not None and station not in template.allowed:
            raise RejectedError("location_not_allowed", station)
        if plan.session is not None:
            raise RejectedError("session_in_progress")
        service, paid = data.service_data, data.payment_data
        old = new = None
        energy = 0
        if service is not None:
            old, new = service.old_battery_id, service.new_battery_id
            if old is not None:
                require_id(old, "old_battery_id")
            if new is not None:
                require_id(new, "new_battery_id")
            energy = self._energy(plan, service.energy_transferred)
        if new is not None and any(account.asset == new for account in plan.accounts):
            return self._handed_over_before(turn, plan, paid)
        if paid is not None:
            self.pay(turn, plan, paid)
        if new is None:
            raise OutsideTheMixError("payment_and_service without a battery to issue")
        self._hand_over(turn, plan, station, old, new, energy)
        signals = '"ASSET_RETURNED",' if old is not None else ""
        signals += '"ASSET_ALLOCATED","SERVICE_COMPLETED"'
        signals += ',"SERVICE_QUOTA_UPDATED"' if paid is not None else ""
        self._echo_service(turn, plan, signals, "ok")
        return "ok"

    def _handed_over_before(self, turn: Turn, plan: Plan, paid: Any) -> str:
        """Sent again with a new correlation id: only new money is taken. Raises RejectedError."""
        signals = '"IDEMPOTENT_OPERATION_DETECTED"'
        if paid is not None:
            try:
                self.pay(turn, plan, paid)
                signals += ',"SERVICE_QUOTA_UPDATED"'
            except RejectedError as error:
                if error.reason != "payment_already_applied":
                    raise
        self._echo_service(turn, plan, signals, "duplicate")
        return "duplicate"

    def _energy(self, plan: Plan, raw: Any) -> int:
        """Net energy in the smallest unit. Raises RejectedError."""
        number = wire.given(raw)
        if number is None or plan.template.energy is None:
            return 0
        energy = wire.units(number, plan.template.energy_digits)
        if energy is None or not 0 <= energy < 1 << 32:
            detail = f"energy_transferred {number.decode()}"
            raise RejectedError("number_out_of_range", detail)
        return energy

    def _hand_over(
        self, turn: Turn, plan: Plan, station: str, old: str | None, new: str, energy: int
    ) -> None:
        held = {a.asset: at for at, a in reversed([*enumerate(plan.accounts)]) if a.asset}
        if old is None and held:
            raise RejectedError("battery_mismatch", next(reversed(held)))
        if old is not None and old not in held:
            raise RejectedError("battery_mismatch", old)
        at = plan.template.asset if old is None else held[old]
        self.check_served(plan, turn.event_ms)
        self.check_quota(plan, 1, energy)
        self.check_rate(plan, turn.event_ms)
        self._move_battery(turn, plan, at, station, old, new)
        returned = f',"returned_asset_id":"{old}"' if old is not None else ""
        facts = f',"asset_id":"{new}"{returned},"location_id":"{station}"'
        template = plan.template
        if template.swap is not None:
            self.consume(turn, plan, template.swap, 1, 0, facts)
        if template.energy is not None:
            self.consume(turn, plan, template.energy, energy, 0, facts)
        self.count_day(turn, plan, turn.event_ms)
        self.settle_quota(turn, plan)
        fleet = template.services[at].fleet_id
        if fleet is not None:
            fields = f',"fleet_id":"{fleet}","asset_id":"{new}"{returned}'
            self.send(turn, topics.SIGNALS_STATION, station, "stock_moved", fields)

    def _move_battery(
        self, turn: Turn, plan: Plan, at: int, station: str, old: str | None, new: str
    ) -> None:
        account = self.change(turn, plan, at)
        if old is not None:
            self.external(turn, plan, "ASSET_RETURNED")
            fields = f',"plan_id":"{plan.plan_id}","location_id":"{station}"'
            self.send(turn, topics.SIGNALS_ASSET, old, "asset_returned", fields)
        self.external(turn, plan, "ASSET_ALLOCATED")
        account.asset = new
        account.used_changed()
        fields = f',"plan_id":"{plan.plan_id}"'
        self.send(turn, topics.SIGNALS_ASSET, new, "asset_assigned", fields)

    def _echo_service(self, turn: Turn, plan: Plan, signals: str, reason: str) -> None:
        metadata = self.plan_states(plan, turn.event_ms)
        metadata += f',"fsm_outputs":[{_named(turn.outputs)}]'
        self.echo(turn, "payment_and_service", True, signals, reason, metadata)

    # Self-service.

    def customer_binding(self, turn: Turn, plan: Plan, data: Any) -> str:
        """W1 to W4; the echo follows when ARM has answered. Raises RejectedError."""
        location = require(data.location_id if data is not None else None, "location_id")
        if location not in self.tables.stock:
            raise RejectedError("unknown_location", location)
        at = self._required_assets(plan, data.fleet_id)
        self.external(turn, plan, "ASSET_IDS_RESOLVED")
        energy = self._service_intent(turn, plan, location, at)
        self.external(turn, plan, "INTENT_SIGNAL_EMITTED")
        returned = self._returned_battery(plan, data.returned_asset_id, at)
        self.external(turn, plan, "BINDING_ESTABLISHED")
        session = Session(turn.correlation, location, at, returned, turn.event_ms)
        template = plan.template
        session.due_ms = turn.recorded_ms + template.market.answer_timeout_ms
        if template.swap is not None:
            session.held_swaps = 1
            self._hold(turn, plan, template.swap, "quota_held", 1, 1)
        if template.energy is not None:
            session.held_energy = energy
            self._hold(turn, plan, template.energy, "quota_held", energy, energy)
        self._ask_station(turn, plan, session)
        plan.session = session
        self.external(turn, plan, "INSTRUCTION_SENT")
        return "in_progress"

    def _required_assets(self, plan: Plan, fleet: str | None) -> int:
        if fleet is None:
            held = (at for at, account in enumerate(plan.accounts) if account.asset is not None)
            return next(held, plan.template.asset)
        for at, service in enumerate(plan.template.services):
            if service.fleet_id == fleet:
                return at
        raise RejectedError("fleet_not_in_bundle", fleet)

    def _service_intent(self, turn: Turn, plan: Plan, location: str, at: int) -> int:
        template = plan.template
        if template.allowed is not None and location not in template.allowed:
            raise RejectedError("location_not_allowed", location)
        if plan.session is not None:
            raise RejectedError("session_in_progress")
        self.check_served(plan, turn.event_ms)
        energy = 0
        if template.energy is not None:
            service, left = (
                template.services[template.energy],
                plan.accounts[template.energy].left(),
            )
            energy = service.hold_units
            if left is not None and not service.overage_allowed:
                energy = min(energy, max(left, 0))
        self.check_quota(plan, 1, max(energy, int(template.energy is not None)))
        self.check_rate(plan, turn.event_ms)
        fleet = template.services[at].fleet_id
        fleet_field = f',"fleet_id":"{fleet}"' if fleet is not None else ""
        payload = (
            f'{{"plan_id":"{plan.plan_id}"{fleet_field},"location_id":"{location}"'
            f',"correlation_id":"{turn.corr}"}}'
        )
        self.publish(turn, "emit", f"emit/ABS/BSS/{plan.plan_id}/service_access", payload)
        return energy

    def _returned_battery(self, plan: Plan, named: str | None, at: int) -> str | None:
        held = plan.accounts[at].asset
        if held is None:
            held = next((a.asset for a in plan.accounts if a.asset is not None), None)
        if named is not None and held != require_id(named, "returned_asset_id"):
            raise RejectedError("battery_mismatch", named)
        signal = "BATTERY_ISSUED" if held is None else "BATTERY_RETURNED"
        model, pair = plan.template.model, plan.pair
        if not model.takes(pair, 1, signal):
            detail = f"service cycle in {model.service_state[pair]} does not take {signal}"
            raise RejectedError("rejected_transition", detail)
        return held

    def _hold(self, turn: Turn, plan: Plan, at: int, kind: str, units: int, change: int) -> None:
        if units == 0:
            return
        account = self.change(turn, plan, at)
        before = account.balance()
        account.held += change
        account.changed()
        self.account_entry(turn, plan, self.service_ledger, kind, at, before, units=units)

    def _ask_station(self, turn: Turn, plan: Plan, session: Session) -> None:
        fleet = plan.template.services[session.account].fleet_id
        fields = f',"plan_id":"{plan.plan_id}"'
        fields += f',"fleet_id":"{fleet}"' if fleet is not None else ""
        if session.returned is not None:
            fields += f',"returned_asset_id":"{session.returned}"'
        fields += f',"attempt":{session.attempt}'
        self.send(turn, topics.SIGNALS_STATION, session.location, "allocate", fields)

    def allocation_issued(self, turn: Turn, plan: Plan, request: Internal) -> str:
        """ARM has issued a battery (W5). Raises RejectedError."""
        asset = require_id(request.asset_id, "asset_id")
        session = plan.session
        awaited = session is not None and session.correlation == turn.correlation
        late = not awaited or session is None
        if late and any(account.asset == asset for account in plan.accounts):
            return "duplicate"
        told = self._outcome_id(turn, "customer_binding"), self._outcome_id(turn, "battery_out")
        ok = REASONS["ok"][0]
        if late and any(plan.window.get(one, (0, -1))[1] == ok for one in told):
            detail = f"{asset}: the request has had its battery"
            raise RejectedError("unknown_allocation", detail)
        if late or session is None:
            location = require(request.location_id, "location_id")
            at = self._late_account(plan, request.fleet_id)
            returned = request.returned_asset_id
        else:
            plan.session = None
            location, at = session.location, session.account
            returned = request.returned_asset_id or session.returned
        self._take_battery(turn, plan, at, asset, returned, location)
        back = f',"returned_asset_id":"{returned}"' if returned is not None else ""
        facts = f',"asset_id":"{asset}"{back},"location_id":"{location}"'
        if late or session is None:
            self._book_late(turn, plan, at, facts)
            self._use_energy(turn, plan, request, 0, facts)
        else:
            if plan.template.swap is not None:
                self.consume(turn, plan, plan.template.swap, 1, session.held_swaps, facts)
                self.count_day(turn, plan, session.event_ms)
            self._use_energy(turn, plan, request, session.held_energy, facts)
        over = "QUOTA_LIMIT_REACHED" if plan.is_exhausted() else "ALL_STATES_UPDATED"
        self._forced(turn, plan, over)
        self._remember(turn, plan, "battery_out" if late else "customer_binding", "ok")
        if late:
            self._notify(turn, plan, "BATTERY_ISSUED_LATE", asset, location)
            return "ok"
        metadata = f',"asset_id":"{asset}","location_id":"{location}"'
        fleet = plan.template.services[at].fleet_id
        metadata += f',"fleet_id":"{fleet}"' if fleet is not None else ""
        metadata += f',"issued_at":"{turn.event_at}"{self.plan_states(plan, turn.event_ms)}'
        signals = '"ASSET_ALLOCATED","SERVICE_COMPLETED"'
        self.echo(turn, "customer_binding", True, signals, "ok", metadata)
        return "ok"

    def _late_account(self, plan: Plan, fleet: str | None) -> int:
        for at, service in enumerate(plan.template.services):
            if fleet in self.tables.fleets and service.fleet_id == fleet:
                return at
        return plan.template.asset

    def _use_energy(self, turn: Turn, plan: Plan, request: Internal, held: int, facts: str) -> None:
        """Books what was held, then what is left; beyond that it is a shortfall."""
        at = plan.template.energy
        if at is None:
            return
        delivered = self._energy(plan, request.energy_transferred)
        account = plan.accounts[at]
        left, used = account.left(), delivered
        if left is not None and not plan.template.services[at].overage_allowed:
            used = min(delivered, held + max(left, 0))
        self.consume(turn, plan, at, used, held, facts)
        if delivered > used:
            self.account_entry(
                turn,
                plan,
                self.service_ledger,
                "quota_shortfall",
                at,
                account.balance(),
                units=delivered - used,
                extra=f',"asset_id":"{request.asset_id}"',
            )

    def _book_late(self, turn: Turn, plan: Plan, at: int, facts: str) -> None:
        swap = plan.template.swap if plan.template.swap is not None else at
        account = self.change(turn, plan, swap)
        left, before = account.left(), account.balance()
        fits = plan.template.services[swap].overage_allowed or left is None or left >= 1
        account.used += fits
        account.used_changed()
        self.account_entry(
            turn,
            plan,
            self.service_ledger,
            "late_issue",
            swap,
            before,
            units=int(fits),
            extra=facts,
        )
        self.charge_overage(turn, plan, swap, account.used - fits)
        self.count_day(turn, plan, turn.event_ms)

    def _take_battery(
        self, turn: Turn, plan: Plan, at: int, asset: str, returned: str | None, location: str
    ) -> None:
        """What has happened at the door cannot be refused any more."""
        account = self.change(turn, plan, at)
        if returned is not None:
            self._forced(turn, plan, "ASSET_RETURNED")
            for holder, other in enumerate(plan.accounts):
                if other.asset == returned:
                    other = self.change(turn, plan, holder)
                    other.asset = None
                    other.used_changed()
                    break
            else:
                self.dead_letter(turn, "battery_mismatch", returned)
            fields = f',"plan_id":"{plan.plan_id}","location_id":"{location}"'
            self.send(turn, topics.SIGNALS_ASSET, returned, "asset_returned", fields)
        self._forced(turn, plan, "ASSET_ALLOCATED")
        account.asset = asset
        account.used_changed()
        fields = f',"plan_id":"{plan.plan_id}"'
        self.send(turn, topics.SIGNALS_ASSET, asset, "asset_assigned", fields)

    def _forced(self, turn: Turn, plan: Plan, external: str) -> None:
        try:
            self.external(turn, plan, external)
        except RejectedError as error:
            self.dead_letter(turn, error.reason, error.detail)

    def _remember(self, turn: Turn, plan: Plan, name: str, reason: str) -> None:
        self.remember(plan.window, self._outcome_id(turn, name), reason, turn.recorded_ms)

    def _outcome_id(self, turn: Turn, name: str) -> bytes:
        return self.signal_id(name, turn.correlation)

    def _notify(self, turn: Turn, plan: Plan, signal: str, asset: str, location: str) -> None:
        """Tells the customer of something that nobody asked about."""
        payload = (
            f'{{"timestamp":"{turn.event_at}","plan_id":"{plan.plan_id}","correlation_id":'
            f'"{turn.corr}","customer_id":"{plan.customer_id}","signal":"{signal}","asset_id":'
            f'"{asset}","location_id":"{location}"}}'
        )
        self.publish(turn, "emit", f"emit/abs/bss/plan/{plan.plan_id}/notification", payload)

    def allocation_denied(self, turn: Turn, plan: Plan, request: Internal) -> str:
        """The station or ARM has refused."""
        session = plan.session
        if session is None or session.correlation != turn.correlation:
            return "duplicate"
        reason = "allocation_denied"
        if request.reason in ("inventory_empty", "station_not_ready"):
            reason = request.reason
        plan.session = None
        self._give_up(turn, plan, session, reason)
        return reason

    def _give_up(self, turn: Turn, plan: Plan, session: Session, reason: str) -> None:
        template = plan.template
        if template.swap is not None:
            held = session.held_swaps
            self._hold(turn, plan, template.swap, "quota_released", held, -held)
        if template.energy is not None:
            held = session.held_energy
            self._hold(turn, plan, template.energy, "quota_released", held, -held)
        self._remember(turn, plan, "customer_binding", reason)
        self.refuse(turn, "customer_binding", reason, session.location)

    # Timers.

    def fire(self, plan: Plan, due_ms: int) -> None:
        """Fires the plan's earliest timer."""
        session = plan.session
        correlation = ""
        if session is not None and session.due_ms <= due_ms:
            correlation = session.correlation
        turn = Turn(topics.SIGNALS_PLAN, plan.plan_id, due_ms, correlation, None, b"")
        if session is None or session.due_ms > due_ms:
            if plan.period_end_ms <= due_ms and not plan.period_ended:
                self._period_ended(turn, plan)
            else:
                self._grace_over(turn, plan)
        elif session.attempt < plan.template.market.attempts_max:
            session.attempt += 1
            session.due_ms += plan.template.market.answer_timeout_ms
            self._ask_station(turn, plan, session)
        else:
            plan.session = None
            self._give_up(turn, plan, session, "allocation_timed_out")
            station = session.location
            fields = f',"plan_id":"{plan.plan_id}"'
            self.send(turn, topics.SIGNALS_STATION, station, "allocation_release", fields)
        plan.clock_ms = max(plan.clock_ms, due_ms)

    def _period_ended(self, turn: Turn, plan: Plan) -> None:
        plan.period_ended = True
        before = plan.pair
        try:
            self.external(turn, plan, "SUBSCRIPTION_PERIOD_ENDED")
        except RejectedError:
            plan.pair = before
        if turn.outputs:
            self._announce_payment(turn, plan)
        template = plan.template
        if template.auto_renewal and template.model.grace[plan.pair]:
            market = template.market
            payload = (
                f'{{"timestamp":"{turn.event_at}","plan_id":"{plan.plan_id}","correlation_id":'
                f'"{turn.corr}","template_id":"{template.template_id}","currency":'
                f'"{market.currency}","amount":'
                f'{decimal(template.fee_minor, market.currency_digits)},"credit":0,"period_end":'
                f'"{rfc3339(plan.period_end_ms)}"}}'
            )
            topic = f"emit/abs/subscription/plan/{plan.plan_id}/renewal_required"
            self.publish(turn, "emit", topic, payload)

    def _grace_over(self, turn: Turn, plan: Plan) -> None:
        plan.grace_enforced = True
        self._announce_payment(turn, plan)
        for account in plan.accounts:
            if account.asset is not None:
                payload = (
                    f'{{"plan_id":"{plan.plan_id}","customer_id":"{plan.customer_id}","asset_id":'
                    f'"{account.asset}","correlation_id":"{turn.corr}","reason":"grace_over"}}'
                )
                self.publish(turn, "cmd", f"cmd/ABS/EPS/{plan.plan_id}/recover", payload)

    def _announce_payment(self, turn: Turn, plan: Plan) -> None:
        state = plan.template.model.payment_state[plan.pair]
        payload = (
            f'{{"timestamp":"{turn.recorded_at}","plan_id":"{plan.plan_id}","payment_state":'
            f'"{state}","status":"{self.status(plan, turn.event_ms)}",'
            f'"signals":[{_named(turn.outputs)}]}}'
        )
        self.publish(turn, "emit", f"emit/abs/bss/plan/{plan.plan_id}/payment_state", payload)
