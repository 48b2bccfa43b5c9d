"""The life of a plan: which request comes next, and what an answer changes.

Joining, riding and leaving are lists of requests (`Rider.todo`). An answer moves to the next one;
a refusal replaces the list by what a person would do: pay, renew, ask again, or come back later.
"""

from random import Random
from typing import Final

from bss_stream.client.echo import Echo
from bss_stream.simulate.arm import ArmDecisions, HandOver
from bss_stream.simulate.config import SimulationConfig
from bss_stream.simulate.network import Network
from bss_stream.simulate.requests import Fault, Request, RequestBuilder
from bss_stream.simulate.riders import LEAVING, OK, Account, Channel, Kind, Phase, Rider
from bss_stream.simulate.stations import EMPTY, Stations, Visit

FAILURES_MAX: Final = 5
"""Refusals in a row, without an explanation, after which a rider gives up."""

SILENCE: Final = "silence"
"""The outcome of a request that nobody answered."""

SWAPS: Final = frozenset({Kind.ISSUE, Kind.SWAP, Kind.PAID_SWAP})
"""Requests that move a battery to a rider."""

_NO_PROGRESS: Final = frozenset({Kind.IDENTIFY, Kind.TOP_UP, Kind.RENEW})
"""Requests that only prepare another one: their success does not make up for its refusals."""

_COME_BACK_LATER: Final = frozenset(
    {"rate_limited", "inventory_empty", "location_not_allowed", "unknown_location"}
)
_TOP_UPS_MAX: Final = 2
_PAYMENTS_MAX: Final = 4
"""Payments without a swap in between after which each refusal counts as one without reason."""
_PAID_AT_THE_COUNTER: Final = 0.5
"""Riders at a staffed station who pay together with the swap."""


class Life:
    """Makes the requests of all riders. Draws from `random` in the order of its calls."""

    def __init__(
        self,
        network: Network,
        arm: ArmDecisions,
        config: SimulationConfig,
        random: Random,
    ) -> None:
        self._network = network
        self._arm = arm
        self._config = config
        self._random = random
        self._minute = -1
        self._days = [0] * len(network.markets)
        self.stations = Stations(network, arm, random)
        self.builder = RequestBuilder(network.markets, config.run, random)

    def day(self, market: int, wall_ms: int) -> int:
        """The market's calendar day."""
        minute = wall_ms // 60_000
        if minute != self._minute:
            self._minute = minute
            self._days = [m.day(wall_ms) for m in self._network.markets]
        return self._days[market]

    def choose_channel(self) -> Channel:
        """Staffed or self-service, in the configured ratio."""
        staffed = self._random.random() < self._config.staffed_share
        return Channel.STAFFED if staffed else Channel.SELF_SERVICE

    def make(
        self, rider: Rider, intended_us: int, wall_ms: int, fault: Fault | None = None
    ) -> Request | None:
        """The request at the head of the rider's list; None when no battery is there for it."""
        kind = rider.todo[0]
        request = self.builder.start(kind, rider, intended_us)
        request.fault = fault
        match kind:
            case Kind.SYNC | Kind.RENEW | Kind.CANCEL:
                self.builder.odoo(request, wall_ms)
            case Kind.INITIALIZE:
                self.builder.initialize(request, wall_ms)
            case Kind.IDENTIFY:
                request.location = self.stations.choose(rider).location
                self.builder.identify(request, wall_ms)
            case Kind.TOP_UP:
                self._make_top_up(request, wall_ms)
            case Kind.RETURN:
                request.location = self.stations.choose(rider).location
                self.builder.service(request, wall_ms, new=None, energy_steps=0)
            case _:
                return request if self._make_swap(request, wall_ms) else None
        return request

    def finish(self, request: Request, reason: str, echo: Echo | None, wall_ms: int) -> list[str]:
        """Take an answer, or the lack of one; tells what in it contradicts the rider's count."""
        rider = request.rider
        if request.kind in SWAPS:
            self.stations.arrive(request.location, rider.fleet)
        accepted = reason == "ok" or (
            reason == "duplicate" and echo is not None and echo.succeeded()
        )
        retried = request.attempt > 1 and request.kind in SWAPS
        if request.hand_over is not None:
            # After a retry, a refusal does not say what became of the first attempt.
            if not accepted and (reason == SILENCE or retried):
                self._leave_open(rider, request.hand_over, wall_ms)
            else:
                self._arm.settle(request.hand_over, rider.fleet, accepted=accepted, now_ms=wall_ms)
        differences: list[str] = []
        if accepted and echo is not None:
            differences = self._accept(request, echo, wall_ms)
        elif retried:
            rider.doubtful_today += 1
            rider.failures += reason == SILENCE
            rider.todo = (Kind.ISSUE,) if request.kind is Kind.ISSUE else ()
        else:
            self._refuse(request, reason, wall_ms)
        if retried:
            rider.doubt()
            rider.todo = (Kind.IDENTIFY, *rider.todo)
        if rider.failures >= FAILURES_MAX or (reason == SILENCE and rider.phase is Phase.JOINING):
            self._give_up(rider)
        elif accepted:
            self._see_phase(rider)
        return differences

    def turn_back(self, rider: Rider) -> None:
        """The rider found no battery to ask for."""
        if rider.phase is Phase.RIDING:
            rider.todo = ()
            return
        rider.failures += 1
        if rider.failures >= FAILURES_MAX:
            self._give_up(rider)

    def _give_up(self, rider: Rider) -> None:
        rider.phase = Phase.STUCK
        rider.todo = ()

    def _make_swap(self, request: Request, wall_ms: int) -> bool:
        rider = request.rider
        rider.see_day(self.day(rider.terms.market, wall_ms))
        fault = request.fault
        if request.kind is Kind.PAID_SWAP or fault is Fault.EXHAUSTED_QUOTA:
            rider.channel = Channel.STAFFED
        elif fault is Fault.EMPTY_STOCK:
            rider.channel = Channel.SELF_SERVICE
        elif request.kind is Kind.ISSUE:
            staffed = rider.fleet == rider.terms.default_fleet
            rider.channel = self.choose_channel() if staffed else Channel.SELF_SERVICE
        request.channel = rider.channel
        visit = self._visit(rider, fault)
        request.location = visit.location
        made = (
            self._make_staffed(request, visit, wall_ms)
            if rider.channel is Channel.STAFFED
            else self._make_self_service(request, visit, wall_ms)
        )
        if made:
            self.stations.set_out(request.location, rider.fleet)
        return made

    def _visit(self, rider: Rider, fault: Fault | None) -> Visit:
        if fault is Fault.WRONG_STATION:
            return self.stations.choose_wrong(rider)
        dry = self.stations.choose_dry(rider) if fault is Fault.EMPTY_STOCK else None
        return dry or self.stations.choose(rider)

    def _make_staffed(self, request: Request, visit: Visit, wall_ms: int) -> bool:
        rider = request.rider
        if request.fault is Fault.WRONG_STATION:
            # The attendant there has none of the rider's batteries: one is made up.
            new, energy_steps = f"bat-{self._config.run}-offered", 1
        else:
            hand_over = self._arm.hand_over(
                visit.location, rider.fleet, rider.plan_id, rider.battery, wall_ms
            )
            if hand_over is None:
                return False
            request.hand_over = hand_over
            new, energy_steps = hand_over.asset_id, hand_over.energy_steps
        if request.fault is Fault.EXHAUSTED_QUOTA:
            energy_steps = _more_than_left(rider)
        request.energy_steps = energy_steps
        expected = rider.expect_swap(energy_steps)
        paid = None
        if request.kind is Kind.PAID_SWAP:
            short = rider.short(energy_steps) or rider.accounts
            payment = self.builder.payment(request, short[0])
            if payment is not None:
                paid = payment.data
                if len(short) == 1 and short[0].has_room(payment.units):
                    expected = expected - {"quota_exhausted"} | OK
                else:
                    expected = expected | OK
        request.expected = _with_visit(request.fault, expected, visit)
        self.builder.service(request, wall_ms, new=new, energy_steps=energy_steps, payment=paid)
        return True

    def _make_self_service(self, request: Request, visit: Visit, wall_ms: int) -> bool:
        expected = request.rider.expect_swap(None)
        if request.kind is Kind.ISSUE:
            # While all plans join, more riders than batteries may be on their way to a station.
            expected |= EMPTY
        request.expected = _with_visit(request.fault, expected, visit)
        self.builder.binding(request, wall_ms)
        return True

    def _make_top_up(self, request: Request, wall_ms: int) -> None:
        rider = request.rider
        for account in rider.short(None) or rider.accounts:
            payment = self.builder.payment(request, account)
            if payment is not None:
                self.builder.top_up(request, wall_ms, payment.data)
                return
        # Nothing of this plan has a price by the unit: only a renewal brings quota.
        rider.todo = (Kind.RENEW, *rider.todo[1:])
        request.kind = Kind.RENEW
        self.builder.odoo(request, wall_ms)

    def _accept(self, request: Request, echo: Echo, wall_ms: int) -> list[str]:
        rider = request.rider
        if request.kind not in _NO_PROGRESS:
            rider.failures = 0
        rider.todo = rider.todo[1:]
        match request.kind:
            case Kind.IDENTIFY:
                return self._identified(rider, echo, wall_ms)
            case Kind.ISSUE | Kind.SWAP | Kind.PAID_SWAP:
                return self._swapped(request, echo)
            case Kind.RENEW | Kind.TOP_UP:
                rider.certain = False
            case Kind.CANCEL:
                rider.phase = Phase.LEAVING
            case Kind.RETURN:
                self._returned(request, wall_ms)
            case _:
                pass
        return []

    def _returned(self, request: Request, wall_ms: int) -> None:
        rider = request.rider
        if rider.battery is not None:
            self._arm.take_back(request.location, rider.fleet, rider.battery, wall_ms)
            rider.battery = None
        rider.phase = Phase.DONE
        rider.todo = ()

    def _identified(self, rider: Rider, echo: Echo, wall_ms: int) -> list[str]:
        told = echo.data.metadata.service_plan_data
        if told is None:
            return ["the echo has no service_plan_data"]
        differences = rider.learn(told)
        if rider.open_hand_over is not None:
            hand_over, rider.open_hand_over = rider.open_hand_over, None
            given = rider.battery == hand_over.asset_id
            self._arm.settle(hand_over, rider.fleet, accepted=given, now_ms=wall_ms)
        if rider.battery is not None and rider.todo[:1] == (Kind.ISSUE,):
            rider.todo = rider.todo[1:]
        due = rider.payment_state == "RENEWAL_DUE" and rider.phase is Phase.RIDING
        if due and self._random.random() < self._config.renew_share:
            rider.todo = (Kind.RENEW, Kind.IDENTIFY, *rider.todo)
        return differences

    def _swapped(self, request: Request, echo: Echo) -> list[str]:
        rider = request.rider
        rider.swaps += request.kind is not Kind.ISSUE
        differences: list[str] = []
        if request.hand_over is not None:
            rider.battery = request.hand_over.asset_id
            rider.count_swap(request.energy_steps)
        elif request.attempt > 1:
            # The first answer is lost, and with it perhaps the name of the battery; if it had been
            # accepted, a retry under another id was another swap to the station.
            rider.count_swap(0)
            rider.doubtful_today += 1
        else:
            differences = self._took_out(request, echo.data.metadata.asset_id)
        if request.kind is Kind.PAID_SWAP:
            rider.certain = False
        return differences

    def _took_out(self, request: Request, asset_id: str | None) -> list[str]:
        """A self-service station gave a battery: it must be the one that ARM says it issued."""
        rider = request.rider
        issued = self._arm.issued(asset_id) if asset_id is not None else None
        rider.battery = asset_id
        if issued is None or issued.plan_id != rider.plan_id:
            rider.doubt()
            rider.count_swap(0)
            holder = issued.plan_id if issued is not None else "nobody"
            return [f"asset_id {asset_id} was issued to {holder}, not to {rider.plan_id}"]
        rider.count_swap(issued.energy_steps)
        return []

    def _see_phase(self, rider: Rider) -> None:
        """After an accepted request: begin to ride once joined, leave once it is enough."""
        if rider.todo:
            return
        if rider.phase is Phase.JOINING:
            rider.phase = Phase.RIDING
        if rider.phase is not Phase.RIDING or rider.swaps == 0:
            return
        enough = self._config.swaps_per_plan
        if 0 < enough <= rider.swaps or self._random.random() < self._config.cancel_share:
            rider.todo = LEAVING

    def _refuse(self, request: Request, reason: str, wall_ms: int) -> None:
        rider = request.rider
        if request.fault is not None and request.fault is not Fault.DUPLICATE:
            rider.todo = ()
            return
        if reason == "inventory_empty":
            self._arm.recount(request.location, rider.fleet)
        if reason in _COME_BACK_LATER and rider.phase is Phase.RIDING:
            if reason == "rate_limited":
                rider.swaps_today = max(rider.swaps_today, rider.rate_limit() or 0)
            rider.todo = ()
            return
        rider.failures += reason not in request.expected or rider.paid > _PAYMENTS_MAX
        if reason == "payment_already_applied":
            rider.todo = rider.todo[1:]
        elif reason == "battery_mismatch" and request.kind is Kind.RETURN and request.attempt > 1:
            self._returned(request, wall_ms)
        elif reason == "quota_exhausted" and request.kind in SWAPS:
            rider.todo = self._pay(request)
        elif reason == "payment_not_current" and rider.phase is Phase.RIDING:
            rider.todo = (Kind.RENEW, Kind.IDENTIFY)
        elif rider.phase is Phase.RIDING or request.kind is Kind.ISSUE:
            # Whatever it was, the platform's record decides who has which battery.
            rider.doubt()
            again = (Kind.ISSUE,) if request.kind is Kind.ISSUE else ()
            rider.todo = (Kind.IDENTIFY, *again)

    def _pay(self, request: Request) -> tuple[Kind, ...]:
        """What a rider does about an exhausted quota; the swap is asked for again afterwards."""
        rider = request.rider
        again = rider.todo
        rider.paid += 1
        # A quota at its cap takes no more payments: after the second one only a renewal helps.
        if rider.paid > _TOP_UPS_MAX or self._random.random() < self._config.renew_share:
            return (Kind.RENEW, Kind.IDENTIFY, *again)
        counter = request.channel is Channel.STAFFED and request.kind is Kind.SWAP
        priced = any(account.terms.unit_price_minor > 0 for account in rider.accounts)
        if counter and priced and self._random.random() < _PAID_AT_THE_COUNTER:
            return (Kind.PAID_SWAP, *again[1:])
        return (Kind.TOP_UP, Kind.IDENTIFY, *again)

    def _leave_open(self, rider: Rider, hand_over: HandOver, wall_ms: int) -> None:
        if rider.open_hand_over is not None:
            self._arm.settle(rider.open_hand_over, rider.fleet, accepted=False, now_ms=wall_ms)
        rider.open_hand_over = hand_over


def _more_than_left(rider: Rider) -> int:
    """The least energy, in 0.01 kWh, that the rider's quota does not cover."""
    left = next(a for a in rider.accounts if is_metered(a)).left() or 0
    digits = next(a for a in rider.accounts if is_metered(a)).terms.unit_digits
    return left * 100 // int(10**digits) + 1


def is_metered(account: Account) -> bool:
    """Whether it is energy with a quota that can run out."""
    return account.terms.consumes == "energy" and account.left() is not None


def _with_visit(fault: Fault | None, expected: frozenset[str], visit: Visit) -> frozenset[str]:
    """What follows from the terms, and what follows from the place."""
    if not visit.risk:
        return expected
    if fault in (Fault.WRONG_STATION, Fault.EMPTY_STOCK):
        return visit.risk | (expected - OK)
    return expected | visit.risk
