"""What each kind of ledger entry does to a service's account and to money, as one table.

The engine writes entries by these rules and the audit recomputes by them; docs/ledgers.md says
the same in words. An entry without a service moves no account, whatever its kind.
"""

from enum import StrEnum
from typing import Final, NamedTuple


class Money(StrEnum):
    """What an entry's `amount_minor` was."""

    NONE = "none"
    RECEIVED = "received"
    """Paid by the customer; negative when a payment is reversed."""
    RETURNED = "returned"
    """Paid back to the customer."""
    GRANTED = "granted"
    """Turned from a service's credit into quota, or from the plan's into a renewal."""
    CHARGED = "charged"
    """Owed for use beyond the quota; it counts as received once a payment covers it."""


class Rule(NamedTuple):
    """The effect of one kind: factors of `units` and `amount_minor` on the account's fields."""

    ledger: str
    used: int = 0
    held: int = 0
    quota: int = 0
    credit: int = 0
    """Factor of `amount_minor`; the other three are factors of `units`."""
    plan_credit: int = 0
    """Factor of `amount_minor` on the plan's credit, which no service has."""
    money: Money = Money.NONE
    takes_held_units: bool = False
    """The entry's `held_units`, if present, are taken off `held`."""
    ends_cycle: bool = False
    """Before the factors apply, what was used leaves the quota, down to 0, and `used` is 0."""
    opens_unlimited: bool = False
    """Whether a service's first entry may be of this kind and find a quota without a limit. That is
    the grant, or what ARM did before it."""
    signed: bool = False
    """Whether `units` and `amount_minor` may be negative."""


RULES: Final = {
    "quota_granted": Rule("service", quota=1, opens_unlimited=True),
    "quota_held": Rule("service", held=1),
    "quota_released": Rule("service", held=-1),
    "quota_used": Rule("service", used=1, takes_held_units=True, opens_unlimited=True),
    "quota_expired": Rule("service", quota=-1, ends_cycle=True),
    "quota_adjusted": Rule("service", quota=1, credit=-1, money=Money.GRANTED, signed=True),
    "quota_shortfall": Rule("service"),
    "late_issue": Rule("service", used=1, opens_unlimited=True),
    "asset_returned": Rule("service", opens_unlimited=True),
    "asset_lost": Rule("service", opens_unlimited=True),
    "asset_found": Rule("service", opens_unlimited=True),
    "asset_replaced": Rule("service", opens_unlimited=True),
    "asset_settled": Rule("service", opens_unlimited=True),
    "activity_reported": Rule("service"),
    "topup_applied": Rule("service", quota=1, credit=-1, money=Money.GRANTED),
    "contract_signed": Rule("payment"),
    "deposit": Rule("payment", money=Money.RECEIVED),
    "renewal": Rule("payment", money=Money.RECEIVED),
    "renewal_payment": Rule("payment", plan_credit=1, money=Money.RECEIVED),
    "renewal_from_credit": Rule("payment", plan_credit=-1, money=Money.GRANTED),
    "service_payment": Rule("payment", credit=1, money=Money.RECEIVED),
    "overage_charge": Rule("payment", money=Money.CHARGED),
    "final_payment": Rule("payment", money=Money.RECEIVED),
    "settlement": Rule("payment", money=Money.RECEIVED),
    "refund": Rule("payment", credit=-1, money=Money.RETURNED),
    "reversal": Rule("payment", credit=1, money=Money.RECEIVED, signed=True),
}
"""By kind. Quota without a limit stays without one under every rule."""
