"""Random histories of a small network: what riders, attendants, Odoo, ARM and time may do.

An action is plain data, so that hypothesis can shrink it; a Player turns actions into messages,
with an eye on the state where a message makes sense only then: giving back the battery that is
held. What was sent is kept as a script, which can be played again byte for byte.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import orjson
from hypothesis import strategies as st

from bss_stream import topics
from bss_stream.frames import OutboxKind
from bss_stream.setup import compile_setup, load_setup
from bss_stream.testing import Playground

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

NAIROBI_STATIONS = ("station-nbi-001", "station-nbi-002", "station-mbs-001", "station-x")
LOME_STATIONS = ("station-lome-001", "station-lome-002", "station-lome-050", "station-x")
BATTERIES = tuple(f"bat-{number}" for number in range(6))


class Kind(NamedTuple):
    """What a plan is about."""

    template: str
    currency: str
    stations: tuple[str, ...]
    fleets: tuple[str, ...]
    services: tuple[str, ...]


PLANS = {
    "plan-basic": Kind(
        "template-nairobi-basic",
        "KES",
        NAIROBI_STATIONS,
        ("fleet-nairobi-standard-4ah", "fleet-nairobi-premium-8ah"),
        ("service-swap-count-nairobi", "service-electricity-nairobi", "service-x"),
    ),
    "plan-flow": Kind(
        "template-nairobi-swap-freedom",
        "KES",
        NAIROBI_STATIONS,
        ("fleet-nairobi-standard-4ah",),
        ("service-swap-count-nairobi", "service-swap-station-network-nairobi"),
    ),
    "plan-over": Kind(
        "template-nairobi-premium",
        "KES",
        NAIROBI_STATIONS,
        ("fleet-nairobi-standard-4ah", "fleet-nairobi-premium-8ah"),
        ("service-swap-count-nairobi", "service-electricity-nairobi"),
    ),
    "plan-lome": Kind(
        "template-togo-lome-7day-basic",
        "XOF",
        LOME_STATIONS,
        ("fleet-lome-standard-45ah",),
        ("service-swap-count-togo-2", "service-electricity-togo-1"),
    ),
}
"""One plan of each sort: the default model, the asset-flow model, one with overage, the other
market."""


@functools.cache
def setup() -> bytes:
    """The packaged set-up with quotas and stocks so small that histories reach their ends."""
    document: dict[str, Any] = orjson.loads(compile_setup(load_setup()))
    changes: dict[str, dict[str, dict[str, Any]]] = {
        "template-nairobi-basic": {
            "swap": {"initial_quota": {"units": 4}, "max_quota": {"units": 6}},
            "energy": {"initial_quota": {"units": 7_000}, "max_quota": {"units": 12_000}},
        },
        "template-nairobi-swap-freedom": {
            "swap": {"initial_quota": {"units": 3}, "max_quota": "infinite"},
            "energy": {"initial_quota": {"units": 9_000}, "max_quota": {"units": 9_000}},
        },
        "template-nairobi-premium": {
            "swap": {
                "initial_quota": {"units": 1},
                "overage_allowed": True,
                "overage_rate_minor": 4_000,
            },
            "energy": {
                "initial_quota": {"units": 2_500},
                "overage_allowed": True,
                "overage_rate_minor": 3_333,
            },
        },
        "template-togo-lome-7day-basic": {"energy": {"initial_quota": {"units": 5_000}}},
    }
    for market in document["markets"]:
        consumes = {service["service_id"]: service["consumes"] for service in market["services"]}
        for template in market["templates"]:
            for service in template["services"]:
                wanted = changes.get(template["template_id"], {})
                service.update(wanted.get(consumes[service["service_id"]], {}))
            if template["template_id"] == "template-nairobi-swap-freedom":
                template["model"] = "bss-fsm-asset-flow"
        for location in market["locations"]:
            location["stock"] = dict.fromkeys(location["stock"], 4)
    return orjson.dumps(document)


@functools.cache
def services() -> dict[str, dict[str, Any]]:
    """Services by id, with what consumes them."""
    return {
        service["service_id"]: service
        for market in orjson.loads(setup())["markets"]
        for service in market["services"]
    }


@functools.cache
def terms() -> dict[str, dict[str, dict[str, Any]]]:
    """The services' terms by template and service."""
    return {
        template["template_id"]: {one["service_id"]: one for one in template["services"]}
        for market in orjson.loads(setup())["markets"]
        for template in market["templates"]
    }


# Actions.


@dataclass(frozen=True)
class Sync:
    plan: str
    paid: str
    subscription: str
    invoice: int | None


@dataclass(frozen=True)
class Initialize:
    plan: str


@dataclass(frozen=True)
class Identify:
    plan: str


@dataclass(frozen=True)
class Payment:
    service: int
    amount: float
    reference: int
    type: str
    method: str


@dataclass(frozen=True)
class HandOver:
    """An attendant's report. `old` is a battery's number, or "held"."""

    plan: str
    station: int
    old: int | str | None
    new: int | None
    energy: float
    payment: Payment | None
    late_ms: int


@dataclass(frozen=True)
class Pay:
    plan: str
    payment: Payment


@dataclass(frozen=True)
class Bind:
    plan: str
    station: int
    fleet: int | None
    returned: str | None


@dataclass(frozen=True)
class ArmAnswer:
    """ARM answers one of the commands it was given, counted from the latest."""

    command: int
    status: str
    battery: int
    energy: float | None
    returned: str | None
    terse: bool


@dataclass(frozen=True)
class Stock:
    station: int
    available: int


@dataclass(frozen=True)
class Repeat:
    """An earlier message again, counted from the latest."""

    message: int


@dataclass(frozen=True)
class Garbage:
    plan: str
    payload: bytes


@dataclass(frozen=True)
class Wait:
    """Time passes, with or without a look at the timers."""

    ms: int
    tick: bool


Action = (
    Sync
    | Initialize
    | Identify
    | HandOver
    | Pay
    | Bind
    | ArmAnswer
    | Stock
    | Repeat
    | Garbage
    | Wait
)

_stations = st.sampled_from([0] * 10 + [1, 1, 2, 3])
_energy = st.sampled_from([0, 0.01, 1.5, 1.999, 2.5, 2.5, 3.0, 9.99])
_new_batteries = st.sampled_from([*range(len(BATTERIES))] * 3 + [None])

_payments = st.builds(
    Payment,
    service=st.sampled_from([0, 0, 1, 1, 2]),
    amount=st.sampled_from([0, 0, 1, 25, 50, 50, 75.5, 120, 1_000, 0.01, 1e12]),
    reference=st.integers(0, 12),
    type=st.sampled_from(["TOP_UP"] * 6 + ["DEPOSIT"]),
    method=st.sampled_from(["MPESA", "MPESA", "ZERO_COST_ROUNDING"]),
)
_answers = st.builds(
    ArmAnswer,
    command=st.sampled_from([0] * 6 + [1, 2]),
    status=st.sampled_from(["issued"] * 6 + ["denied"]),
    battery=st.integers(0, len(BATTERIES) - 1),
    energy=st.sampled_from([None, 0.0, 0.5, 2.1999999999999957, 3.0, 7.25, -0.5]),
    returned=st.sampled_from(["as ordered"] * 6 + [None, "bat-1"]),
    terse=st.sampled_from([False, False, False, True]),
)
_waits = st.builds(
    Wait,
    ms=st.sampled_from(
        [1, 1_000, 9_999, 10_000, 25_000, 700_000] + [21_600_000] * 3 + [86_400_000, 7 * 86_400_000]
    ),
    tick=st.booleans(),
)


def _actions(plans: st.SearchStrategy[str]) -> st.SearchStrategy[Action]:
    hand_overs = st.builds(
        HandOver,
        plan=plans,
        station=_stations,
        old=st.sampled_from(["held"] * 8 + [None, 0, 1]),
        new=_new_batteries,
        energy=_energy,
        payment=st.none() | st.none() | _payments,
        late_ms=st.sampled_from([0] * 8 + [60_000, 43_200_000, 86_400_000, -300_000]),
    )
    binds = st.builds(
        Bind,
        plan=plans,
        station=_stations,
        fleet=st.sampled_from([None, None, None, 0, 1]),
        returned=st.sampled_from([None, None, None, "held", "bat-0"]),
    )
    syncs = st.builds(
        Sync,
        plan=plans,
        paid=st.sampled_from(["paid", "paid", "paid", "not_paid", "partial"]),
        subscription=st.sampled_from(
            ["in_progress"] * 16 + ["draft", "to_renew", "closed", "cancel"]
        ),
        invoice=st.sampled_from([None, 1, 2, 3, 4]),
    )
    garbage = st.builds(
        Garbage,
        plan=plans,
        payload=st.sampled_from([b"", b"[", b'{"plan_id":7}', b"\xff", b'{"data":{}}'])
        | st.binary(max_size=30),
    )
    swapping = [hand_overs] * 6 + [binds] * 3 + [_answers] * 4 + [_waits] * 4
    return st.one_of(
        *swapping,
        st.builds(Pay, plan=plans, payment=_payments),
        syncs,
        st.builds(Initialize, plan=plans),
        st.builds(Identify, plan=plans),
        st.builds(Stock, station=st.integers(0, 1), available=st.sampled_from([0, 1, 3, 9, 9])),
        st.builds(Repeat, message=st.integers(0, 12)),
        garbage,
    )


@st.composite
def _histories(draw: st.DrawFn) -> list[Action]:
    """Mostly a few plans that are paid and ready, so that much happens to each."""
    plans = draw(st.sampled_from([*([plan] for plan in PLANS), [*PLANS][:2], [*PLANS]]))
    ready = draw(st.sampled_from([True] * 7 + [False]))
    start: list[Action] = []
    for plan in plans if ready else ():
        start += [Sync(plan, "paid", "in_progress", 1), Initialize(plan)]
    return start + draw(st.lists(_actions(st.sampled_from(plans)), min_size=12, max_size=60))


histories = _histories()


class Sent(NamedTuple):
    """A line of a script: an MQTT message at a time."""

    at_ms: int
    topic: str
    payload: bytes
    correlation: str


class Tick(NamedTuple):
    """A line of a script: a look at the timers."""

    at_ms: int


Script = list[Sent | Tick]


@dataclass
class Player:
    """Plays actions on a playground and writes down what was sent."""

    play: Playground = field(default_factory=lambda: Playground(setup(), partitions=3))
    script: Script = field(default_factory=list)
    _serial: int = 0

    def perform(self, actions: Iterable[Action]) -> "Player":
        for action in actions:
            self.act(action)
        # ARM's time runs out on whatever is still open.
        self.act(Wait(60_000, True))
        return self

    def act(self, action: Action) -> None:
        match action:
            case Wait():
                self._wait(action)
            case Repeat(number):
                sent = [line for line in self.script if isinstance(line, Sent)]
                if number < len(sent):
                    _, topic, payload, correlation = sent[-1 - number]
                    self._send(topic, payload, correlation)
            case ArmAnswer():
                self._answer(action)
            case Stock(station, available):
                body = {"fleet_id": "fleet-nairobi-standard-4ah", "available": available}
                self._send(f"emit/arm/station/{NAIROBI_STATIONS[station]}/stock", _json(body))
            case Garbage(plan, payload):
                topic = f"emit/uxi/attendant/plan/{plan}/payment_and_service"
                self._send(topic, payload, self._id())
            case _:
                self._request(action)

    def _wait(self, action: Wait) -> None:
        if action.tick:
            self.play.advance(action.ms)
            self.script.append(Tick(self.play.now_ms))
        else:
            self.play.now_ms += action.ms

    def _request(self, action: Sync | Initialize | Identify | HandOver | Pay | Bind) -> None:
        kind = PLANS[action.plan]
        late_ms = 0
        match action:
            case Sync():
                topic = f"emit/odo/subscription/plan/{action.plan}/sync"
                data = _sync(action, kind)
            case Initialize():
                topic, data = f"emit/uxi/service/plan/{action.plan}/initialize_states", {}
            case Identify():
                topic = f"emit/uxi/attendant/plan/{action.plan}/identify_customer"
                data = {"qr_code_data": "qr"}
            case HandOver():
                topic = f"emit/uxi/attendant/plan/{action.plan}/payment_and_service"
                data, late_ms = self._hand_over(action, kind), action.late_ms
            case Pay():
                topic = f"emit/abs/bss/payment/{action.plan}/service_payment"
                data = _payment(action.payment, kind)
            case Bind():
                topic = f"emit/uxi/service/plan/{action.plan}/customer_binding"
                data = self._binding(action, kind)
        correlation_id = self._id()
        body = {
            "timestamp": rfc3339(self.play.now_ms - late_ms),
            "plan_id": action.plan,
            "correlation_id": correlation_id,
            "data": data,
        }
        self._send(topic, _json(body), correlation_id)

    def _hand_over(self, action: HandOver, kind: Kind) -> dict[str, Any]:
        service_data: dict[str, Any] = {"energy_transferred": action.energy}
        old = self._held(action.plan) if action.old == "held" else action.old
        if isinstance(old, int):
            old = BATTERIES[old]
        if old is not None:
            service_data["old_battery_id"] = old
        if action.new is not None:
            service_data["new_battery_id"] = BATTERIES[action.new]
        data = {"attendant_station": kind.stations[action.station], "service_data": service_data}
        if action.payment is not None:
            data["payment_data"] = _payment(action.payment, kind)
        return data

    def _binding(self, action: Bind, kind: Kind) -> dict[str, Any]:
        data: dict[str, Any] = {"location_id": kind.stations[action.station]}
        if action.fleet is not None:
            data["fleet_id"] = kind.fleets[action.fleet % len(kind.fleets)]
        returned = self._held(action.plan) if action.returned == "held" else action.returned
        if returned is not None:
            data["returned_asset_id"] = returned
        return data

    def _answer(self, action: ArmAnswer) -> None:
        commands = [
            message
            for message in self.play.outbox
            if message.kind is OutboxKind.CMD and message.topic.endswith("/allocate")
        ]
        if action.command >= len(commands):
            return
        command = orjson.loads(commands[-1 - action.command].payload)
        body: dict[str, Any] = {"status": action.status}
        if action.status == "issued":
            body["asset_id"] = BATTERIES[action.battery]
            ordered = action.returned == "as ordered"
            body["returned_asset_id"] = command["returned_asset_id"] if ordered else action.returned
            if action.energy is not None:
                body["energy_transferred"] = action.energy
        if not action.terse:
            body["correlation_id"] = command["correlation_id"]
            body["plan_id"] = command["plan_id"]
            body["fleet_id"] = command["fleet_id"]
        self._send(f"echo/ABS/EPS/{command['location_id']}/allocate", _json(body))

    def _held(self, plan_id: str) -> str | None:
        if (topics.STATE_PLAN, plan_id.encode()) not in self.play.states:
            return None
        held = (service["current_asset"] for service in self.play.plan(plan_id)["services"])
        return next((asset for asset in held if asset is not None), None)

    def _id(self) -> str:
        self._serial += 1
        return f"c-{self._serial}"

    def _send(self, topic: str, payload: bytes, correlation: str = "") -> None:
        self.script.append(Sent(self.play.now_ms, topic, payload, correlation))
        self.play.mqtt(topic, payload, correlation=correlation)


def replayed(script: Script, *, restarts: Iterable[int] = ()) -> Playground:
    """A script on a new playground, which is restarted before the lines with these numbers."""
    play = Playground(setup(), partitions=3)
    before = set(restarts)
    for number, line in enumerate(script):
        if number in before:
            play.restart()
        if isinstance(line, Tick):
            play.advance(line.at_ms - play.now_ms)
        else:
            play.now_ms = line.at_ms
            play.mqtt(line.topic, line.payload, correlation=line.correlation)
    return play


def _sync(action: Sync, kind: Kind) -> dict[str, Any]:
    data: dict[str, Any] = {
        "odoo_subscription_id": 1,
        "odoo_payment_state": action.paid,
        "odoo_subscription_state": action.subscription,
        "odoo_currency_id": kind.currency,
        "odoo_amount_total": 4500,
        "template_id": kind.template,
        "customer_id": f"cust-{action.plan}",
    }
    if action.invoice is not None:
        data["odoo_invoice_id"] = action.invoice
    return data


def _payment(payment: Payment, kind: Kind) -> dict[str, Any]:
    return {
        "service_id": kind.services[payment.service % len(kind.services)],
        "payment_amount": payment.amount,
        "payment_reference": f"receipt-{payment.reference}",
        "payment_type": payment.type,
        "payment_method": payment.method,
    }


def _json(body: dict[str, Any]) -> bytes:
    return orjson.dumps({name: value for name, value in body.items() if value is not None})


def rfc3339(ms: int) -> str:
    """A time stamp in UTC."""
    moment = _EPOCH + timedelta(milliseconds=ms)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
