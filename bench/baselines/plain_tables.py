"""The set-up as dict and list tables: what the plain-Python baseline looks up.

Machines are worked out in advance: for every external event and every pair of states there is one
finished `Move`, so that a signal costs one list access instead of a walk through transitions.
"""

import json
from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Final, NamedTuple

CYCLES: Final = ("payment", "service")


class Move(NamedTuple):
    """What an external event does to a pair of states."""

    pair: int
    """The next pair, also if a step was refused halfway."""
    inputs: tuple[tuple[str, str], ...]
    """(cycle, fundamental signal) that the machines took."""
    outputs: tuple[str, ...]
    grace: int
    """0 leaves the end of grace alone, 1 starts the time of grace, -1 ends it."""
    refused: str | None
    """Why a step was refused."""


class Cycle:
    """One machine: states, their tags, transitions."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.states: list[str] = [state["name"] for state in document["states"]]
        self.tags = [frozenset(state.get("tags", ())) for state in document["states"]]
        self.initial = self.states.index(document["initial"])
        self.steps = {
            (self.states.index(row["from"]), row["signal"]): (
                self.states.index(row["to"]),
                row.get("output"),
                frozenset(row.get("guard", ())),
            )
            for row in document["transitions"]
        }


class Model:
    """Both machines of a plan; a pair of states is payment * width + service."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.name: str = document["model"]
        self.cycles = [Cycle(document["cycles"][name]) for name in CYCLES]
        payment, service = self.cycles
        self.width = len(service.states)
        self.initial = payment.initial * self.width + service.initial
        pairs = [(p, s) for p in range(len(payment.states)) for s in range(self.width)]
        self.payment_state = [payment.states[p] for p, _ in pairs]
        self.service_state = [service.states[s] for _, s in pairs]
        self.states_json = [
            f',"payment_state":"{payment.states[p]}","service_state":"{service.states[s]}","status":"'
            for p, s in pairs
        ]
        self.state_bytes = [_short(payment.states[p]) + _short(service.states[s]) for p, s in pairs]
        self.payment_tags = [payment.tags[p] for p, _ in pairs]
        self.service_tags = [service.tags[s] for _, s in pairs]
        self.paid = ["paid" in tags for tags in self.payment_tags]
        self.grace = ["grace" in tags for tags in self.payment_tags]
        self._rows = self._compression(document["compression"])
        externals = {row["external"] for row in document["compression"]}
        self.moves: dict[str, Sequence[Move]] = {
            external: [self.move(external, pair) for pair in range(len(pairs))]
            for external in externals
        }
        # By pair, then by quota exhausted + 2 * grace over.
        self.status = [
            [self._status(document["status"], pair, bool(i & 1), bool(i & 2)) for i in range(4)]
            for pair in range(len(pairs))
        ]
        self.swaps: Sequence[Sequence[Move | None]] = [
            [self.swap(pair, end) for end in (False, True)] for pair in range(len(pairs))
        ]

    def _compression(
        self, rows: list[dict[str, Any]]
    ) -> dict[tuple[str, int, int], tuple[list[str], frozenset[str]]]:
        table = {}
        for row in rows:
            at = CYCLES.index(row["cycle"])
            states = self.cycles[at].states
            for state in states if row["when"] == "*" else row["when"]:
                entry = (row["signals"], frozenset(row.get("guard", ())))
                table[row["external"], at, states.index(state)] = entry
        return table

    def takes(self, pair: int, at: int, signal: str) -> bool:
        """Whether a cycle takes a signal now."""
        return self.step(list(divmod(pair, self.width)), at, signal) is not None

    def step(self, states: list[int], at: int, signal: str) -> tuple[int, str | None] | None:
        """The next state of one machine and its output; None if it does not take the signal."""
        found = self.cycles[at].steps.get((states[at], signal))
        if found is None:
            return None
        to, output, guard = found
        if guard and not guard & self.cycles[1 - at].tags[states[1 - at]]:
            return None
        return to, output

    def move(self, external: str, pair: int) -> Move:
        """What an external event does to a pair of states, step by step."""
        states = list(divmod(pair, self.width))
        inputs: list[tuple[str, str]] = []
        outputs: list[str] = []
        grace = 0
        payment = self.cycles[0]
        for at in (0, 1):
            signals, guard = self._rows.get((external, at, states[at]), ([], frozenset()))
            if guard and not guard & self.cycles[1 - at].tags[states[1 - at]]:
                continue
            for signal in signals:
                step = self.step(states, at, signal)
                if step is None:
                    state = self.cycles[at].states[states[at]]
                    refused = f"{CYCLES[at]} cycle in {state} does not take {signal}"
                    return Move(self._pair(states), tuple(inputs), tuple(outputs), grace, refused)
                was_in_grace = "grace" in payment.tags[states[0]]
                states[at], output = step
                inputs.append((CYCLES[at], signal))
                outputs += [output] if output is not None else []
                if "grace" not in payment.tags[states[0]]:
                    grace = -1
                elif not was_in_grace:
                    grace = 1
        return Move(self._pair(states), tuple(inputs), tuple(outputs), grace, None)

    def _pair(self, states: list[int]) -> int:
        return states[0] * self.width + states[1]

    def swap(self, pair: int, exhausted: bool) -> Move | None:
        """A whole staffed swap: back, out, settled; None if any step is refused."""
        last = "QUOTA_LIMIT_REACHED" if exhausted else "ALL_STATES_UPDATED"
        inputs: tuple[tuple[str, str], ...] = ()
        outputs: tuple[str, ...] = ()
        grace = 0
        for external in ("ASSET_RETURNED", "ASSET_ALLOCATED", last):
            move = self.moves[external][pair]
            if move.refused is not None:
                return None
            pair = move.pair
            inputs += move.inputs
            outputs += move.outputs
            grace = move.grace or grace
        return Move(pair, inputs, outputs, grace, None)

    def _status(
        self, rows: list[dict[str, Any]], pair: int, exhausted: bool, grace_over: bool
    ) -> str:
        holds = {None: True, "quota_exhausted": exhausted, "grace_over": grace_over}
        tags = {"payment": self.payment_tags[pair], "service": self.service_tags[pair]}
        for row in rows:
            wanted = row.get("tags", {}).items()
            if holds[row.get("condition")] and all(tags[c] & set(t) for c, t in wanted):
                return str(row["status"])
        return ""


class Market:
    """A market's money and calendar."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.currency: str = document["currency"]
        self.currency_digits: int = document["currency_digits"]
        self.infinite_wire: int = document["infinite_wire"]
        self.answer_timeout_ms: int = document["allocation"]["answer_timeout_ms"]
        self.attempts_max: int = document["allocation"]["attempts_max"]
        offsets = document["zone"]["offsets"]
        self._from_ms = [from_ms for from_ms, _ in offsets[1:]]
        self._offset_ms = [seconds * 1000 for _, seconds in offsets]

    def offset_ms(self, at_ms: int) -> int:
        """The UTC offset at a time."""
        offset_ms: int = self._offset_ms[bisect_right(self._from_ms, at_ms)]
        return offset_ms

    def local_day(self, at_ms: int) -> int:
        """The local calendar day, in days since 1970-01-01."""
        return (at_ms + self.offset_ms(at_ms)) // 86_400_000

    def plus_days(self, at_ms: int, days: int) -> int:
        """The same local time of day, some days later."""
        local = at_ms + self.offset_ms(at_ms) + days * 86_400_000
        return local - self.offset_ms(local - self.offset_ms(at_ms))


class Service:
    """One service as one template configures it."""

    def __init__(
        self, market: Market, document: dict[str, Any], config: dict[str, Any], tier: Fraction
    ) -> None:
        self.service_id: str = document["service_id"]
        self.infinite_wire = market.infinite_wire
        self.fleet_id: str | None = document["fleet_id"]
        self.consumes: str = document["consumes"]
        self.digits: int = document["unit_digits"]
        self.scale = 10**self.digits
        price = Fraction(document["unit_price"]) * 10**market.currency_digits / self.scale
        self.lot_units, self.lot_minor = price.denominator, price.numerator
        self.cap = _units(config["max_quota"], tier)
        initial = _units(config["initial_quota"], tier)
        if initial is None:
            self.cap = None
        elif self.cap is not None:
            initial = min(initial, self.cap)
        self.initial = initial
        self.rate_limit: int | None = config["rate_limit_per_day"]
        self.overage_allowed: bool = config["overage_allowed"]
        self.overage_rate_minor: int | None = config["overage_rate_minor"]
        self.hold_units: int = config["hold_units"]
        # Fragments of JSON that never change.
        self.used_json = f'{{"service_id":"{self.service_id}","used":'
        self.bundle_json = (
            f'{{"serviceId":"{self.service_id}","name":{_quoted(document["name"])}'
            f',"usageUnit":{_quoted(document["usage_unit"])}'
            f',"usageUnitPrice":{document["unit_price"]}}}'
        )


def _short(name: str) -> bytes:
    """A text of less than 128 bytes as state bytes have it."""
    raw = name.encode()
    return bytes((len(raw),)) + raw


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _units(quota: Any, tier: Fraction) -> int | None:
    return None if quota == "infinite" else int(quota["units"] * tier)


class Template:
    """What a customer signs, by position of its services."""

    def __init__(
        self,
        market: Market,
        document: dict[str, Any],
        model: Model,
        services: list[Service],
        fee_minor: int,
    ) -> None:
        self.template_id: str = document["template_id"]
        self.version: int = document["version"]
        self.market = market
        self.model = model
        self.services = services
        self.cycle_days: int = document["billing_cycle_days"]
        self.grace_ms: int = document["grace_ms"]
        self.fee_minor = fee_minor
        """What a cycle costs, the tier's multiplier applied."""
        self.auto_renewal = all(one["auto_renewal"] for one in document["services"])
        allowed = set(document["allowed_locations"])
        self.allowed: set[str] | None = None if "*" in allowed else allowed
        self.swap = self._first("swap")
        self.energy = self._first("energy")
        fleets = [at for at, service in enumerate(services) if service.fleet_id is not None]
        self.asset = fleets[0] if fleets else self.swap or 0
        self.energy_digits = services[self.energy].digits if self.energy is not None else 0
        self.positions = {service.service_id: at for at, service in enumerate(services)}
        self.tail_json = ""
        # The inlined swap is for templates as they are sold.
        self.is_unusual = (
            self.swap is None
            or self.energy is None
            or self.energy_digits != 3
            or not fleets
            or services[self.swap].overage_allowed
            or services[self.energy].overage_allowed
        )
        self.swap_facts = (
            self.swap or 0,
            self.energy or 0,
            services[self.swap or 0].rate_limit,
            services[self.swap or 0].service_id,
            services[self.energy or 0].service_id,
        )

    def _first(self, what: str) -> int | None:
        return next((at for at, s in enumerate(self.services) if s.consumes == what), None)

    def write_tail(self, document: dict[str, Any], bundle: dict[str, Any]) -> None:
        """Prepares what identify_customer says of the template, whatever the plan."""
        name = _quoted(bundle["name"])
        services = ",".join(service.bundle_json for service in self.services)
        self.tail_json = (
            f'}},"service_bundle":{{"bundleId":"{bundle["bundle_id"]}","name":{name}'
            f',"services":[{services}]}},"common_terms":{{"serviceDurationDays":'
            f'{document["service_duration_days"]},"billingCycle":"{document["billing_cycle"]}"'
            f',"billingCurrency":"{self.market.currency}"}}'
        )


class Tables:
    """Everything that the rules look up."""

    def __init__(self, setup: bytes, model: type[Model] = Model) -> None:
        document = json.loads(setup)
        self.limits: dict[str, int] = document["limits"]
        plan_models = [m for m in document["models"] if m.get("kind", "plan") == "plan"]
        models = {document["model"]: model(document) for document in plan_models}
        self.stock: dict[str, dict[str, int]] = {}
        self.low: dict[str, int] = {}
        """The stock at which a station's operator is asked to restock."""
        self.capacity: dict[str, dict[str, int]] = {}
        self.market: dict[str, Market] = {}
        """That of a station."""
        self.fleets: set[str] = set()
        self.templates: dict[str, Template] = {}
        """The newest version of each: the baseline does not reload."""
        for market in document["markets"]:
            self.fleets |= {fleet["fleet_id"] for fleet in market["fleets"]}
            shared = Market(market)
            for location in market["locations"]:
                self.stock[location["location_id"]] = dict(sorted(location["stock"].items()))
                self.capacity[location["location_id"]] = location["capacity"]
                self.low[location["location_id"]] = market["inventory"]["low_threshold"]
                self.market[location["location_id"]] = shared
            self._add(shared, market, models)

    def _add(self, market: Market, document: dict[str, Any], models: dict[str, Model]) -> None:
        services = {service["service_id"]: service for service in document["services"]}
        bundles = {bundle["bundle_id"]: bundle for bundle in document["bundles"]}
        tiers = {t["tier"]: Fraction(*t["quota_multiplier"]) for t in document["tiers"]}
        fees = {t["tier"]: Fraction(*t["fee_multiplier"]) for t in document["tiers"]}
        for signed in sorted(document["templates"], key=lambda t: int(t["version"])):
            bundle = bundles[signed["bundle_id"]]
            configs = {config["service_id"]: config for config in signed["services"]}
            own = [
                Service(market, services[at], configs[at], tiers[signed["tier"]])
                for at in bundle["services"]
            ]
            fee_minor = int(signed["fee_minor"] * fees[signed["tier"]])
            template = Template(market, signed, models[signed["model"]], own, fee_minor)
            template.write_tail(signed, bundle)
            self.templates[template.template_id] = template
