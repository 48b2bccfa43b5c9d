"""Builds a rider's requests: topic, body, and the answers that may come back."""

from enum import StrEnum
from random import Random
from typing import Final, NamedTuple

from msgspec import UNSET, Struct
from msgspec.structs import asdict

from bss_stream.contract.requests import (
    Actor,
    CustomerBinding,
    IdentifyCustomer,
    InitializeStates,
    OdooSync,
    PaymentAndService,
    PaymentData,
    ServiceData,
    ServicePayment,
)
from bss_stream.simulate import bodies
from bss_stream.simulate.arm import HandOver
from bss_stream.simulate.bodies import Stamp
from bss_stream.simulate.network import Market
from bss_stream.simulate.riders import OK, Account, Channel, Kind, Rider

_DURATION_MIN_S, _DURATION_MAX_S = 20, 240
_TOP_UP_SWAPS: Final = (3, 10)
_TOP_UP_KWH: Final = (10, 40)
_ODOO: Final = Actor(type="system", id="odoo")
_APP: Final = Actor(type="system", id="rider-app")


class Fault(StrEnum):
    """What a rider does wrong on purpose, besides garbage."""

    WRONG_STATION = "wrong_station"
    EXHAUSTED_QUOTA = "exhausted_quota"
    EMPTY_STOCK = "empty_stock"
    OVER_RATE_LIMIT = "over_rate_limit"
    DUPLICATE = "duplicate"


class Request:
    """One message on its way to its echo."""

    __slots__ = (
        "answered",
        "attempt",
        "channel",
        "copies",
        "correlation",
        "deadline_us",
        "energy_steps",
        "expected",
        "fault",
        "hand_over",
        "intended_us",
        "kind",
        "location",
        "payload",
        "repeat_answered",
        "rider",
        "topic",
    )

    def __init__(self, kind: Kind, rider: Rider, correlation: str, intended_us: int) -> None:
        self.kind = kind
        self.rider = rider
        self.correlation = correlation
        self.intended_us = intended_us
        """When it was due, whether or not it could be sent then."""
        self.deadline_us = 0
        self.topic = ""
        self.payload = b""
        self.expected: frozenset[str] = OK
        self.channel: Channel | None = None
        self.location = ""
        self.hand_over: HandOver | None = None
        self.energy_steps = 0
        self.fault: Fault | None = None
        self.copies = 1
        self.attempt = 1
        self.answered = False
        self.repeat_answered = False

    def measured_as(self) -> str:
        """The kind as latencies are kept: a swap has one for each channel."""
        if self.kind is Kind.SWAP and self.channel is not None:
            return f"{self.kind}_{self.channel}"
        return str(self.kind)


class Payment(NamedTuple):
    """The payment of a request, and the units of the wire that it pays for."""

    data: PaymentData
    units: int


class RequestBuilder:
    """Fills in topics and bodies. Every random detail of a body comes from `random`."""

    def __init__(self, markets: tuple[Market, ...], run: str, random: Random) -> None:
        self._markets = markets
        self._run = run
        self._random = random
        self._correlations = 0
        self._stamp = Stamp()

    def start(self, kind: Kind, rider: Rider, intended_us: int) -> Request:
        """A request with a correlation id of its own.

        The ids have one length, so that none is a prefix of another: clients match prefixes.
        """
        return Request(kind, rider, self.correlation(), intended_us)

    def correlation(self) -> str:
        """A new correlation id."""
        self._correlations += 1
        return f"{self._run}-{self._correlations:010d}"

    def odoo(self, request: Request, wall_ms: int) -> None:
        """Signing, renewal and cancellation: a sync of a paid invoice."""
        rider = request.rider
        market = self._markets[rider.terms.market]
        rider.invoices += 1
        amounts = {Kind.SYNC: rider.terms.first_payment_minor, Kind.RENEW: rider.terms.fee_minor}
        data = OdooSync(
            odoo_subscription_id=rider.number,
            odoo_invoice_id=rider.number * 1_000 + rider.invoices,
            odoo_payment_state="paid",
            odoo_subscription_state="closed" if request.kind is Kind.CANCEL else "in_progress",
            odoo_currency_id=market.currency,
            odoo_amount_total=bodies.money(amounts.get(request.kind, 0), market.currency_digits),
            template_id=rider.terms.template_id,
            customer_id=rider.customer,
        )
        request.topic = f"emit/odo/subscription/plan/{rider.plan_id}/sync"
        self._fill(request, wall_ms, _ODOO, data)

    def initialize(self, request: Request, wall_ms: int) -> None:
        """The first request for a plan's service states."""
        request.topic = f"emit/uxi/service/plan/{request.rider.plan_id}/initialize_states"
        self._fill(request, wall_ms, _APP, InitializeStates())

    def identify(self, request: Request, wall_ms: int) -> None:
        """An attendant identifies the rider."""
        rider = request.rider
        request.topic = f"emit/uxi/attendant/plan/{rider.plan_id}/identify_customer"
        data = IdentifyCustomer(rider.customer, request.location)
        self._fill(request, wall_ms, _attendant(request), data)

    def service(
        self,
        request: Request,
        wall_ms: int,
        *,
        new: str | None,
        energy_steps: int,
        payment: PaymentData | None = None,
    ) -> None:
        """A swap, an issue or a return at a staffed station."""
        rider = request.rider
        duration_s = int(self._random.uniform(_DURATION_MIN_S, _DURATION_MAX_S))
        handed_over = ServiceData(
            old_battery_id=rider.battery or UNSET,
            new_battery_id=new or UNSET,
            energy_transferred=bodies.kwh(energy_steps),
            service_duration=duration_s,
        )
        data = PaymentAndService(request.location, handed_over, payment or UNSET)
        request.topic = f"emit/uxi/attendant/plan/{rider.plan_id}/payment_and_service"
        self._fill(request, wall_ms, _attendant(request), data)

    def binding(self, request: Request, wall_ms: int) -> None:
        """A swap or an issue at a self-service station."""
        rider = request.rider
        data = CustomerBinding(request.location, rider.fleet, rider.battery or UNSET)
        request.topic = f"emit/uxi/service/plan/{rider.plan_id}/customer_binding"
        self._fill(request, wall_ms, _customer(rider), data)

    def top_up(self, request: Request, wall_ms: int, payment: PaymentData) -> None:
        """A payment without a swap."""
        request.topic = f"emit/abs/bss/payment/{request.rider.plan_id}/service_payment"
        data = ServicePayment(**asdict(payment))
        self._fill(request, wall_ms, _customer(request.rider), data)

    def payment(self, request: Request, account: Account) -> Payment | None:
        """A payment for whole units of a service; None when it has no price.

        The amount is exact: as many units as make it a whole number of minor units.
        """
        price = account.terms.unit_price_minor
        if price <= 0:
            return None
        low, high = _TOP_UP_SWAPS if account.terms.consumes == "swap" else _TOP_UP_KWH
        units = self._random.randrange(low, high)
        units += -units % price.denominator
        digits = self._markets[request.rider.terms.market].currency_digits
        data = PaymentData(
            service_id=account.terms.service_id,
            payment_amount=bodies.money(int(units * price), digits),
            payment_reference=f"pay-{request.correlation}",
            payment_method="MPESA",
            payment_type="TOP_UP",
        )
        return Payment(data, units)

    def _fill(self, request: Request, wall_ms: int, actor: Actor, data: Struct) -> None:
        stamp, plan_id = self._stamp(wall_ms), request.rider.plan_id
        request.payload = bodies.request(stamp, plan_id, request.correlation, actor, data)


def _attendant(request: Request) -> Actor:
    return Actor(type="attendant", id=f"attendant-{request.location}")


def _customer(rider: Rider) -> Actor:
    return Actor(type="customer", id=rider.customer)
