"""A rider's plan as the rider knows it, and what a request may therefore be answered.

The rider counts what was used. So every answer can be judged: it either follows from the terms
and the count, or it is unexpected.
"""

from enum import StrEnum
from typing import Final

from bss_stream.client.echo import INFINITE_FROM, ServicePlan
from bss_stream.contract.echoes import ServiceState
from bss_stream.simulate.arm import HandOver
from bss_stream.simulate.network import ServiceTerms, Terms

OK: Final = frozenset({"ok"})
REPEATED: Final = frozenset({"duplicate"})
"""What the second copy of an accepted message is told; of a refused one, the same reason again."""


class Kind(StrEnum):
    """What a request is for."""

    SYNC = "odoo_sync"
    INITIALIZE = "initialize_states"
    IDENTIFY = "identify_customer"
    ISSUE = "first_issue"
    SWAP = "swap"
    PAID_SWAP = "paid_swap"
    """A staffed swap with payment_data."""
    TOP_UP = "service_payment"
    RENEW = "renewal"
    CANCEL = "cancel"
    RETURN = "battery_return"


class Channel(StrEnum):
    """How a rider swaps."""

    STAFFED = "staffed"
    SELF_SERVICE = "self_service"


class Phase(StrEnum):
    """Where a plan is in its life."""

    JOINING = "joining"
    RIDING = "riding"
    LEAVING = "leaving"
    DONE = "done"
    STUCK = "stuck"
    """No answer made sense several times in a row; the rider has given up."""


JOINING: Final = (Kind.SYNC, Kind.INITIALIZE, Kind.IDENTIFY, Kind.ISSUE)
LEAVING: Final = (Kind.CANCEL, Kind.RETURN)


class Account:
    """What is used and left of one service, in its smallest unit."""

    __slots__ = ("quota", "terms", "used")

    def __init__(self, terms: ServiceTerms) -> None:
        self.terms = terms
        self.used = 0
        self.quota: int | None = None
        """None while infinite or not yet told."""

    def left(self) -> int | None:
        """Units left, None for no limit."""
        if self.quota is None or self.terms.overage_allowed:
            return None
        return max(0, self.quota - self.used)

    def need(self, energy_steps: int | None) -> int:
        """Units that must be left for a swap.

        Where only ARM will know the energy (None), any energy left will do: the platform reserves
        the rest of the quota at most, and what the battery brings beyond it is not counted.
        """
        if self.terms.consumes == "swap" or energy_steps is None:
            return 1
        return int(energy_steps * 10**self.terms.unit_digits // 100)

    def use(self, energy_steps: int) -> None:
        """Count a swap that was let through."""
        left, need = self.left(), self.need(energy_steps)
        self.used += need if left is None else min(need, left)

    def has_room(self, wire_units: int) -> bool:
        """Whether a payment for so many units of the wire would be granted whole."""
        cap = self.terms.max_units
        bought = wire_units * 10**self.terms.unit_digits
        return self.quota is None or cap is None or bool(self.quota + bought <= cap)


class Rider:
    """One plan and the person who has it."""

    __slots__ = (
        "accounts",
        "battery",
        "battery_certain",
        "certain",
        "channel",
        "customer",
        "day",
        "doubtful_today",
        "failures",
        "fleet",
        "invoices",
        "newcomer",
        "number",
        "open_hand_over",
        "paid",
        "payment_state",
        "phase",
        "plan_id",
        "seat",
        "swaps",
        "swaps_today",
        "terms",
        "terms_index",
        "todo",
    )

    def __init__(self, number: int, run: str, terms_index: int, terms: Terms, fleet: str) -> None:
        self.number = number
        self.plan_id = f"plan-{run}-{number:07d}"
        self.customer = f"cust-{run}-{number:07d}"
        self.terms = terms
        self.terms_index = terms_index
        self.fleet = fleet
        self.seat = 0
        """The rider's place in the traffic's list of riders."""
        self.phase = Phase.JOINING
        self.newcomer = True
        """Whether the traffic still counts the rider among those who join."""
        self.todo: tuple[Kind, ...] = JOINING
        """What to ask next, the request under way first."""
        self.channel = Channel.STAFFED
        self.battery: str | None = None
        self.accounts = [Account(service) for service in terms.services]
        self.battery_certain = True
        """Whether the platform is known to have the same battery on record."""
        self.certain = False
        """Whether the accounts are known to be what the platform has."""
        self.payment_state: str | None = None
        self.open_hand_over: HandOver | None = None
        """A battery of which no answer told whether it was accepted."""
        self.invoices = 0
        self.failures = 0
        self.paid = 0
        """Payments since the last accepted swap."""
        self.swaps = 0
        self.day = -1
        self.swaps_today = 0
        self.doubtful_today = 0
        """Swaps of today of which no echo told whether they were accepted."""

    def see_day(self, day: int) -> None:
        """Start the day's count anew when the market's calendar day has changed."""
        if day != self.day:
            self.day = day
            self.swaps_today = 0
            self.doubtful_today = 0

    def at_rate_limit(self) -> bool:
        """Whether the next swap of the day may be refused."""
        limit = self.rate_limit()
        return limit is not None and self.swaps_today + self.doubtful_today >= limit

    def rate_limit(self) -> int | None:
        """Swaps a day that every service of the bundle allows, None for no limit."""
        limits = [a.terms.rate_limit_per_day for a in self.accounts]
        return min((limit for limit in limits if limit is not None), default=None)

    def short(self, energy_steps: int | None) -> list[Account]:
        """Accounts with less left than a swap takes."""
        return [
            account
            for account in self.accounts
            if (left := account.left()) is not None and account.need(energy_steps) > left
        ]

    def expect_swap(self, energy_steps: int | None) -> frozenset[str]:
        """The answers that a swap may get at a station that is allowed and stocked.

        `energy_steps` is the net energy in 0.01 kWh, None when only ARM will know it.
        """
        refused: set[str] = set()
        possible: set[str] = set()
        for account in self.accounts:
            left = account.left()
            if left is not None:
                need = account.need(energy_steps)
                if need > left:
                    refused.add("quota_exhausted")
                elif not self.certain and 2 * need > left:
                    possible.add("quota_exhausted")
            limit = account.terms.rate_limit_per_day
            if limit is not None and self.swaps_today + self.doubtful_today >= limit:
                surely = self.swaps_today >= limit
                (refused if surely else possible).add("rate_limited")
        if refused:
            uncertain = {"ok"} if not self.certain else set()
            return frozenset(refused | possible | uncertain)
        return frozenset(possible | {"ok"}) if possible else OK

    def count_swap(self, energy_steps: int) -> None:
        """Count an accepted swap or first issue: both use up quota and the day's limit."""
        for account in self.accounts:
            account.use(energy_steps)
        self.swaps_today += 1
        self.paid = 0

    def doubt(self) -> None:
        """An answer was lost: only identify_customer can tell what the platform has now."""
        self.certain = False
        self.battery_certain = False

    def learn(self, told: ServicePlan) -> list[str]:
        """Take over what identify_customer told; the differences from the rider's own count."""
        untouched = not self.certain and self.battery_certain and self.paid == 0
        fresh = self.phase is Phase.JOINING and untouched
        self.payment_state = told.payment_state
        states = {state.service_id: state for state in told.service_states}
        assets = [s.current_asset for s in told.service_states if s.current_asset is not None]
        differences = []
        if not self.battery_certain:
            self.battery = assets[0] if assets else None
            self.battery_certain = True
        elif self.battery not in assets and (assets or self.battery is not None):
            differences.append(f"current_asset {assets} is not the rider's {self.battery}")
        for account in self.accounts:
            state = states.get(account.terms.service_id)
            if state is None:
                differences.append(f"no service state for {account.terms.service_id}")
                continue
            differences += self._take_over(account, state, fresh=fresh)
        self.certain = True
        return differences

    def _take_over(self, account: Account, state: ServiceState, *, fresh: bool) -> list[str]:
        """`fresh` tells that nothing but the first grant has happened to the account."""
        scale = 10**account.terms.unit_digits
        used = round(state.used * scale)
        quota = round(state.quota * scale) if state.quota < INFINITE_FROM else None
        differences = []
        if self.certain and used != account.used:
            differences.append(f"{state.service_id} used {used}, the rider's {account.used}")
        if fresh and (used, quota) != (0, account.terms.initial_units):
            granted = account.terms.initial_units
            differences.append(f"{state.service_id} {used} of {quota}, the terms' 0 of {granted}")
        account.used = used
        account.quota = quota
        return differences
