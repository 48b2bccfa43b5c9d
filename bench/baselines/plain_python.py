"""The best plain-Python implementation of the engine's work that we know how to write.

One shard; msgspec reads, dict and list tables decide, f-strings write, hashlib seals. Staffed swaps
and identification, most of the traffic, are inlined in one loop over a batch; the rest goes through
the methods of `plain_rules` and `plain_events`. It covers what `bench/traffic.py` sends, byte for
byte as the engine does (docs/decisions/0010-python-baseline.md says what it leaves out).
"""

from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any

import msgspec

from bench.baselines import plain_wire as wire
from bench.baselines.plain_rules import Record
from bench.baselines.plain_shard import Shard
from bench.baselines.plain_state import LAST, NO_ASSET, sint
from bench.baselines.plain_tables import Model
from bench.baselines.plain_wire import (
    FRACTIONS,
    MINUTE_TEXTS,
    MINUTES,
    SECOND_TEXTS,
    SECONDS,
    is_clean_id,
)
from bss_stream import topics

Input = tuple[str, Sequence[int], Sequence[Record]]
"""A signals topic, one offset a record, (key, value) records."""


class PlainPython(Shard):
    """One shard of plans, stations and assets."""

    def __init__(
        self,
        setup: bytes,
        *,
        partition: int = 0,
        partitions: int = 1,
        cheap_ids: bool = True,
        model: type[Model] = Model,
    ) -> None:
        super().__init__(
            setup, partition=partition, partitions=partitions, cheap_ids=cheap_ids, model=model
        )
        self._clean_ids: set[str] = set()
        self._energies: dict[tuple[int, bytes], int] = {}

    def process(self, inputs: Sequence[Input], now_ms: int) -> dict[tuple[str, int], list[Record]]:
        """Applies records in order, then fires the timers due by `now_ms`.

        Returns the records by topic and partition, without topics that got none.
        """
        self._open_lanes()
        for topic, offsets, records in inputs:
            if topic == topics.SIGNALS_PLAN:
                self._apply_to_plans(offsets, records)
            elif topic == topics.SIGNALS_STATION:
                self._apply_to_stations(offsets, records)
            else:
                self._apply_to_assets(offsets, records)
        self._tick(now_ms)
        return self._drain()

    # The hot loop.

    def _apply_to_plans(self, offsets: Sequence[int], records: Sequence[Record]) -> None:
        """Applies a batch to plans: swaps that quota pays for and identification are inlined.

        Whatever is unusual about a record leaves the inlined part before anything has changed,
        and goes through `_arrive`.
        """
        plans, outcomes, tables = self._plans, self.outcomes, self.tables
        clean, energies, arrive = self._clean_ids, self._energies, self._arrive
        stock, dirty_plans = tables.stock, self._dirty_plans
        ledger, outbox = self.service_ledger.append, self.outbox.append
        to_station, to_asset = (
            self.onward[topics.SIGNALS_STATION],
            self.onward[topics.SIGNALS_ASSET],
        )
        partition, partitions, place = self.partition, self.partitions, self._place
        entry_head = f'{{"v":1,"entry_id":"plan-{partition}-'
        source_head = f"{topics.SIGNALS_PLAN}/{partition}/"
        nesting_max, bytes_max = tables.limits["nesting_max"], tables.limits["payload_bytes_max"]
        future_ms, past_ms = tables.limits["skew_future_ms"], -tables.limits["skew_past_ms"]
        dedupe_ms, dedupe_max = self.dedupe_ms, self.dedupe_max
        swap_id = self.swap_id
        decode: Callable[[bytes], Any] = wire.read_attendant
        applied = self._applied[topics.SIGNALS_PLAN]
        done = 0
        for offset, (key, value) in zip(offsets, records, strict=True):
            if offset <= applied:
                outcomes["duplicate"] += 1
                continue
            applied = offset
            plan = plans.get(key)
            head, _, payload = value.partition(b"\n")
            is_swap = head.startswith(b"1\tpayment_and_service\t")
            if plan is None or (not is_swap and not head.startswith(b"1\tidentify_customer\t")):
                arrive(offset, key, value)
                continue
            try:
                _, _, received, _, _ = head.split(b"\t")
                received_ms = int(received)
                if not payload.isascii() or payload.count(b"{") + payload.count(b"[") > nesting_max:
                    arrive(offset, key, value)
                    continue
                request = decode(payload)
                stamp = request.timestamp
                event_ms = MINUTES[stamp[:17]] + SECONDS[stamp[17:]]
            except (ValueError, KeyError, TypeError, msgspec.DecodeError):
                arrive(offset, key, value)
                continue
            plan_id, corr, data = plan.plan_id, request.correlation_id, request.data
            session = plan.session
            if (
                request.plan_id != plan_id
                or not corr
                or not corr.isascii()
                or not corr.isprintable()
                or '"' in corr
                or "\\" in corr
                or len(corr) > 128
                or len(payload) > bytes_max
                or not past_ms <= event_ms - received_ms <= future_ms
                or data is None
                or (is_swap and session is not None)
                or (plan.queued_ms is not None and plan.queued_ms <= received_ms)
            ):
                arrive(offset, key, value)
                continue
            template = plan.template
            model, pair, accounts = template.model, plan.pair, plan.accounts
            minute, ms = divmod(received_ms, 60_000)
            recorded_at = MINUTE_TEXTS[minute] + SECOND_TEXTS[ms]

            if is_swap:
                # Everything is looked at first; nothing changes before the swap is certain.
                service, station = data.service_data, data.attendant_station
                if service is None or data.payment_data is not None or station not in stock:
                    arrive(offset, key, value)
                    continue
                old, new = service.old_battery_id, service.new_battery_id
                raw = bytes(service.energy_transferred)
                energy = energies.get((template.energy_digits, raw))
                held_at = -1
                for at, account in enumerate(accounts):
                    asset = account.asset
                    if asset is not None:
                        if asset == new:
                            held_at = -1
                            break
                        if asset == old and held_at < 0:
                            held_at = at
                seen = swap_id(corr)
                if (
                    seen in plan.window
                    or energy is None
                    or held_at < 0
                    or (template.allowed is not None and station not in template.allowed)
                    or not plan.initialized
                    or not (
                        model.paid[pair] or (model.grace[pair] and event_ms < plan.grace_end_ms)
                    )
                    or template.is_unusual
                    or (new not in clean and not self._is_new_battery(new))
                ):
                    if energy is None and raw:
                        self._learn_energy(template.energy_digits, raw)
                    arrive(offset, key, value)
                    continue
                swap_at, energy_at, limit, swap_id_json, energy_id_json = template.swap_facts
                swaps, power, holder = accounts[swap_at], accounts[energy_at], accounts[held_at]
                day, exhausted = 0, False
                if limit is not None:
                    day = template.market.local_day(event_ms)
                    if swaps.on_day(day) >= limit:
                        arrive(offset, key, value)
                        continue
                used, power_used = swaps.used, power.used
                if swaps.quota is not None:
                    left = swaps.quota - used - 1
                    if left < swaps.held:
                        arrive(offset, key, value)
                        continue
                    exhausted = left == 0
                if power.quota is not None:
                    left = power.quota - power_used - energy
                    if left < power.held and energy > 0:
                        arrive(offset, key, value)
                        continue
                    exhausted = exhausted or left <= 0
                move = model.swaps[pair][exhausted]
                if move is None:
                    arrive(offset, key, value)
                    continue

                # From here on the swap happens.
                pair, _, outputs, grace, _ = move
                seq, prev = plan.seq + 1, plan.prev
                middle = (
                    f'","signal_id":"{corr}","source":"{source_head}{offset}","event_at":"{stamp}",'
                    f'"recorded_at":"{recorded_at}","units":'
                )
                facts = (
                    f',"amount_minor":0,"currency":"{template.market.currency}","asset_id":"{new}",'
                    f'"returned_asset_id":"{old}","location_id":"{station}","before":{{"used":'
                )
                rest = swaps.rest_json
                body = (
                    f'{entry_head}{offset}-0","plan_id":"{plan_id}","seq":{seq},"kind":"quota_used",'
                    f'"service_id":"{swap_id_json}{middle}1{facts}{used}{rest},"after":'
                    f'{{"used":{used + 1}{rest},"prev":"{prev}"'
                )
                prev = sha256(f"{body}}}".encode()).hexdigest()
                ledger((key, f'{body},"hash":"{prev}"}}'.encode()))
                swaps.used = used = used + 1
                if limit is not None:
                    swaps.count_day(day)
                swaps.bytes_ = sint(used) + swaps.limits + NO_ASSET + swaps.days
                swaps.json = f"{swaps.service.used_json}{used}{swaps.quota_json}null}}"
                if energy:
                    seq += 1
                    rest = power.rest_json
                    body = (
                        f'{entry_head}{offset}-1","plan_id":"{plan_id}","seq":{seq},"kind":'
                        f'"quota_used","service_id":"{energy_id_json}{middle}{energy}{facts}'
                        f'{power_used}{rest},"after":{{"used":{power_used + energy}{rest}'
                        f',"prev":"{prev}"'
                    )
                    prev = sha256(f"{body}}}".encode()).hexdigest()
                    ledger((key, f'{body},"hash":"{prev}"}}'.encode()))
                    power.used = power_used = power_used + energy
                    power.bytes_ = sint(power_used) + power.limits + NO_ASSET + power.days
                    whole, part = divmod(power_used, 1000)
                    power.json = (
                        f"{power.service.used_json}{whole}{FRACTIONS[part]}{power.quota_json}null}}"
                    )
                plan.seq, plan.prev, plan.pair = seq, prev, pair
                new_key = new.encode()
                holder.asset = new
                holder.bytes_ = (
                    sint(holder.used)
                    + holder.limits
                    + b"\1"
                    + LAST[len(new)]
                    + new_key
                    + holder.days
                )
                holder.json = f'{holder.service.used_json}{holder.used}{holder.quota_json}"{new}"}}'
                if grace:
                    plan.grace_end_ms = event_ms + template.grace_ms if grace > 0 else 0
                    if grace > 0:
                        plan.grace_enforced = False
                    self._changed(plan)

                # What stations and assets are told.
                told = f'\t{received_ms}\t\tengine\n{{"at_ms":{event_ms},"correlation_id":"{corr}",'
                lane = to_asset[place(old) if partitions > 1 else 0]
                record = f'1\tasset_returned{told}"plan_id":"{plan_id}","location_id":"{station}"}}'
                lane.append((old.encode(), record.encode()))
                lane = to_asset[place(new) if partitions > 1 else 0]
                record = f'1\tasset_assigned{told}"plan_id":"{plan_id}"}}'
                lane.append((new_key, record.encode()))
                fleet_id = holder.service.fleet_id
                if fleet_id is not None:
                    lane = to_station[place(station) if partitions > 1 else 0]
                    record = (
                        f'1\tstock_moved{told}"fleet_id":"{fleet_id}","asset_id":"{new}",'
                        f'"returned_asset_id":"{old}"}}'
                    )
                    lane.append((station.encode(), record.encode()))

                # The dedupe window.
                window = plan.window
                while window:
                    oldest = next(iter(window))
                    if received_ms - window[oldest][0] <= dedupe_ms and len(window) < dedupe_max:
                        break
                    del window[oldest]
                window[seen] = (received_ms, 0)

                over = event_ms >= plan.grace_end_ms and model.grace[pair]
                states = ",".join([account.json for account in accounts])
                named = "".join([f',"{output}"' for output in outputs])[1:] if outputs else ""
                record = (
                    f"1\techo\t1\t0\t300\t{corr}\techo/abs/attendant/plan/{plan_id}"
                    f'/payment_and_service\n{{"timestamp":"{recorded_at}","plan_id":"{plan_id}",'
                    f'"correlation_id":"{corr}","actor":{{"type":"agent","id":"bss-agent-v2"}},'
                    f'"data":{{"plan_id":"{plan_id}","success":true,"signals":["ASSET_RETURNED",'
                    f'"ASSET_ALLOCATED","SERVICE_COMPLETED"],"metadata":{{"reason":"ok"'
                    f'{model.states_json[pair]}{model.status[pair][exhausted + 2 * over]}",'
                    f'"service_states":[{states}],"fsm_outputs":[{named}]}}}}}}'
                )
                outbox((key, record.encode()))
            else:
                if data.qr_code_data is None:
                    arrive(offset, key, value)
                    continue
                customer, quotas = plan.customer_id, ""
                over = event_ms >= plan.grace_end_ms and model.grace[pair]
                status = model.status[pair][plan.is_exhausted() + 2 * over]
                states = ",".join([account.json for account in accounts])
                if template.swap is not None:
                    account = accounts[template.swap]
                    units = (
                        template.market.infinite_wire if account.quota is None else account.quota
                    )
                    quotas = f',"quotaUsed":{account.used},"quotaLimit":{units}'
                record = (
                    f'/identify_customer\n{{"timestamp":"{recorded_at}","plan_id":"{plan_id}",'
                    f'"correlation_id":"{corr}","actor":{{"type":"agent","id":"bss-agent-v2"}},'
                    f'"data":{{"plan_id":"{plan_id}","success":true,"signals":'
                    '["CUSTOMER_IDENTIFIED_SUCCESS"],"metadata":{"reason":"ok","customer_id":'
                    f'"{customer}","identification_method":"QR_CODE","service_plan_data":'
                    f'{{"servicePlanId":"{plan_id}","customerId":"{customer}","status":"{status}",'
                    f'"serviceState":"{model.service_state[pair]}","paymentState":'
                    f'"{model.payment_state[pair]}","templateId":"{template.template_id}",'
                    f'"currency":"{template.market.currency}","serviceStates":[{states}]{quotas}'
                    f"{template.tail_json}}}}}}}"
                )
                start = f"1\techo\t1\t0\t300\t{corr}\techo/abs/"
                outbox((key, f"{start}attendant/plan/{plan_id}{record}".encode()))
                outbox((key, f"{start}service/plan/{plan_id}{record}".encode()))
            done += 1
            plan.applied = offset
            if received_ms > plan.clock_ms:
                plan.clock_ms = received_ms
            if not plan.dirty:
                plan.dirty = True
                dirty_plans.append(plan)
        outcomes["ok"] += done
        self._applied[topics.SIGNALS_PLAN] = applied

    def _is_new_battery(self, battery: str | None) -> bool:
        if battery is None or not is_clean_id(battery):
            return False
        self._clean_ids.add(battery)
        return True

    def _learn_energy(self, digits: int, raw: bytes) -> None:
        """Remembers what a number's text is in the smallest unit: there are few different ones."""
        energy = wire.units(raw, digits) if raw[:1] in b"0123456789" else None
        if energy is not None and energy < 1 << 32 and len(self._energies) < 100_000:
            self._energies[digits, raw] = energy
