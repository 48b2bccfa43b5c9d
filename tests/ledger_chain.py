"""Valid ledger chains for tests: entries as the engine writes them, by plain arithmetic."""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from bss_stream import topics
from bss_stream.sink.entry import LEDGER_NAMES, Batch, EntryRow, Position, decode_row

FIRST_PREV = "0" * 64
EMPTY = {"used": 0, "held": 0, "quota": 0, "credit_minor": 0}


@dataclass
class PlanLedger:
    """One plan's two ledgers and the state that goes with them."""

    plan_id: str = "plan-1"
    currency: str = "KES"
    entries: list[tuple[str, bytes]] = field(default_factory=list)
    """Topic and record value, in the order of seq."""
    accounts: dict[str, dict[str, Any]] = field(default_factory=dict)
    hash: str = FIRST_PREV

    def add(
        self,
        topic: str,
        kind: str,
        service_id: str | None = None,
        units: int = 0,
        amount_minor: int = 0,
        after: dict[str, Any] | None = None,
        **fields: Any,
    ) -> None:
        """Append an entry; `after` holds the account's fields that change."""
        seq = len(self.entries) + 1
        before = self.accounts.get(service_id or "", EMPTY)
        account = {**before, **(after or {})}
        if service_id:
            self.accounts[service_id] = account
        entry = {
            "v": 1,
            "entry_id": f"{self.plan_id}-{seq}-0",
            "plan_id": self.plan_id,
            "seq": seq,
            "kind": kind,
            "service_id": service_id,
            "signal_id": f"signal-{seq}",
            "source": f"bss.signals.plan/3/{1000 + seq}",
            "event_at": f"2026-11-24T20:14:{seq % 60:02}.123Z",
            "recorded_at": f"2026-11-24T20:15:{seq % 60:02}.456Z",
            "units": units,
            "amount_minor": amount_minor,
            "currency": self.currency,
            **fields,
            "before": before,
            "after": account,
            "prev": self.hash,
        }
        value, self.hash = sealed(entry)
        self.entries.append((topic, value))

    def grant(self, service_id: str, units: int) -> None:
        quota = self._account(service_id)["quota"]
        self._service("quota_granted", service_id, units, quota=_plus(quota, units))

    def grant_unlimited(self, service_id: str) -> None:
        """The first grant of a service whose quota has no limit; of another, a grant of 0."""
        if service_id not in self.accounts:
            self.accounts[service_id] = {**EMPTY, "quota": "infinite"}
        self._service("quota_granted", service_id, 0)

    def hold(self, service_id: str, units: int) -> None:
        held = self._account(service_id)["held"]
        self._service("quota_held", service_id, units, held=held + units)

    def release(self, service_id: str) -> None:
        self._service("quota_released", service_id, self._account(service_id)["held"], held=0)

    def use(self, service_id: str, units: int) -> None:
        """Use units, and give back all that is held."""
        account = self._account(service_id)
        topic, after = topics.LEDGER_SERVICE, {"used": account["used"] + units, "held": 0}
        held = account["held"]
        self.add(topic, "quota_used", service_id, units, after=after, held_units=held)

    def expire(self, service_id: str, bought: int = 0) -> None:
        """End a billing cycle: of what is left, only what was bought stays."""
        account = self._account(service_id)
        if account["quota"] == "infinite":
            self._service("quota_expired", service_id, 0, used=0)
            return
        left = max(account["quota"] - account["used"], 0)
        stays = min(bought, left)
        self._service("quota_expired", service_id, left - stays, used=0, quota=stays)

    def deposit(self, amount_minor: int) -> None:
        self.add(topics.LEDGER_PAYMENT, "deposit", amount_minor=amount_minor)

    def pay(self, service_id: str, amount_minor: int, price_minor: int) -> None:
        """Pay for a service: whole units become quota, the rest stays as credit."""
        credit = self._account(service_id)["credit_minor"] + amount_minor
        self.add(
            *(topics.LEDGER_PAYMENT, "service_payment", service_id, 0, amount_minor),
            after={"credit_minor": credit},
        )
        units, rest = divmod(credit, price_minor)
        quota = _plus(self._account(service_id)["quota"], units)
        self.add(
            *(topics.LEDGER_SERVICE, "topup_applied", service_id, units, credit - rest),
            after={"credit_minor": rest, "quota": quota},
        )

    def refund(self, service_id: str) -> None:
        """Pay back a service's credit."""
        credit = self._account(service_id)["credit_minor"]
        self.add(
            *(topics.LEDGER_PAYMENT, "refund", service_id, 0, credit), after={"credit_minor": 0}
        )

    def state(self) -> dict[str, Any]:
        """The plan's state as the engine describes it."""
        services = [{"service_id": name, **account} for name, account in self.accounts.items()]
        return {
            "plan_id": self.plan_id,
            "ledger_seq": len(self.entries),
            "ledger_hash": self.hash,
            "services": services,
            "status": "ACTIVE",
        }

    def rows(self) -> list[EntryRow]:
        """The rows that the sink makes of the entries."""
        return [decode_row(LEDGER_NAMES[topic], value) for topic, value in self.entries]

    def _account(self, service_id: str) -> dict[str, Any]:
        return self.accounts.get(service_id, EMPTY)

    def _service(self, kind: str, service_id: str, units: int, **after: Any) -> None:
        self.add(topics.LEDGER_SERVICE, kind, service_id, units, after=after)


PRICE_MINOR = 250


def history(plan: PlanLedger, steps: list[tuple[int, str, int]]) -> PlanLedger:
    """Play steps of (what, service, amount) into a plan's ledgers."""
    plays: list[Callable[[str, int], None]] = [
        lambda service, amount: plan.deposit(amount),
        plan.grant,
        plan.hold,
        lambda service, amount: plan.release(service),
        plan.use,
        plan.expire,
        lambda service, amount: plan.pay(service, amount, PRICE_MINOR),
        lambda service, amount: plan.refund(service),
        lambda service, amount: plan.grant_unlimited(service),
    ]
    for what, service, amount in steps:
        plays[what](service, amount)
    return plan


WHOLE_PLAN = [
    *((0, "", 4000), (1, "swap-count", 30), (8, "network", 0)),
    *((2, "swap-count", 1), (4, "swap-count", 1), (6, "electricity", 1040)),
    *((2, "swap-count", 2), (3, "swap-count", 0), (4, "electricity", 3)),
    *((5, "swap-count", 0), (7, "electricity", 0), (1, "swap-count", 30)),
]


def whole_plan(plan_id: str = "plan-1") -> PlanLedger:
    """A plan with an entry of each kind that the builder knows."""
    return history(PlanLedger(plan_id), WHOLE_PLAN)


def sealed(entry: dict[str, Any]) -> tuple[bytes, str]:
    """An entry's bytes with its hash as the last field, and the hash."""
    body = json.dumps(entry, separators=(",", ":")).encode()
    digest = hashlib.sha256(body).hexdigest()
    return body[:-1] + f',"hash":"{digest}"}}'.encode(), digest


def batch_of(rows: Iterable[EntryRow]) -> Batch:
    """The batch in which the sink would write rows, from made-up positions."""
    entries = list(rows)
    positions = [Position(topics.LEDGER_SERVICE, 0, offset) for offset in range(len(entries))]
    return Batch(entries, positions, [])


def _plus(quota: int | str, units: int) -> int | str:
    return quota if isinstance(quota, str) else quota + units
