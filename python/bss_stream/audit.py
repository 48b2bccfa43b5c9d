"""The audit: recompute every account from the ledgers alone, then compare with the live state."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from itertools import groupby
from operator import attrgetter
from typing import Final, Literal

import msgspec

from bss_stream.audit_log import LogBalance, balance_log
from bss_stream.audit_report import (
    DIFFERENCES_MAX,
    AuditReport,
    Difference,
    KindTotals,
    MoneyTotals,
    Value,
)
from bss_stream.audit_states import LiveStates, Spool, collect_states
from bss_stream.ledger_kinds import RULES, Money, Rule
from bss_stream.sink.entry import ENTRY_VERSION, EntryRow, Instant, check_version, epoch_ms
from bss_stream.sink.store import LedgerReader

__all__ = [
    "AuditReport",
    "Difference",
    "KindTotals",
    "LiveStates",
    "LogBalance",
    "MoneyTotals",
    "audit",
    "audit_plan",
    "balance_log",
    "collect_states",
    "entry_hash",
]

FIRST_PREV: Final = "0" * 64
"""The `prev` of a plan's first entry, and the ledger hash of a plan without entries."""

Quota = int | Literal["infinite"]
State = Mapping[str, object]


class Account(msgspec.Struct, frozen=True):
    """A service's account; `used`, `held` and `quota` in the service's smallest unit."""

    used: int
    held: int
    quota: Quota
    credit_minor: int


class _AuditedEntry(msgspec.Struct, frozen=True):
    v: int
    entry_id: str
    plan_id: str
    seq: int
    kind: str
    source: str
    event_at: Instant
    recorded_at: Instant
    units: int
    amount_minor: int
    currency: str
    prev: str
    hash: str
    service_id: str | None = None
    signal_id: str | None = None
    payment_id: str | None = None
    template_id: str | None = None
    template_version: int | None = None
    before: Account | None = None
    after: Account | None = None
    held_units: int = 0


class _ServiceState(msgspec.Struct, frozen=True):
    service_id: str
    used: int
    held: int
    quota: Quota
    credit_minor: int


class _PlanState(msgspec.Struct, frozen=True):
    plan_id: str
    ledger_seq: int
    ledger_hash: str
    services: list[_ServiceState]
    credit_minor: int = 0
    template_id: str | None = None
    template_version: int | None = None


_HASH_FIELD: Final = f',"hash":"{FIRST_PREV}"}}'

_PLAIN_COLUMNS: Final = (
    "entry_id",
    "plan_id",
    "seq",
    "kind",
    "service_id",
    "signal_id",
    "source",
    "units",
    "amount_minor",
    "currency",
)

_decoder: Final = msgspec.json.Decoder(_AuditedEntry)
_state_decoder: Final = msgspec.json.Decoder(_PlanState)


def audit(
    store: LedgerReader,
    states: Iterable[tuple[str, State]] | None,
    *,
    drained: bool = False,
    differences_max: int = DIFFERENCES_MAX,
) -> AuditReport:
    """Check the ledgers in `store` against themselves and, unless None, against `states`.

    `states` gives each plan id and its described state, in any order; it is read to its end
    before the ledgers are. `drained` says that nothing is being written and that the sink has
    written all there was: then entries that are still to come, and states older than the
    ledgers, are differences. Holds one plan in memory. Raises SinkError, and NewerVersionError for
    an entry of a later program, whose rules this one does not know.
    """
    report = AuditReport(drained)
    with closing(Spool()) as spool:
        if states is not None:
            spool.put((plan_id.encode(), msgspec.json.encode(state)) for plan_id, state in states)
        with store.snapshot() as snapshot:
            report.rejects = snapshot.rejects()
            for plan_id, rows, state in _by_plan(snapshot.entries(), spool.items()):
                _PlanAudit(report, differences_max, plan_id).run(rows, state, states is not None)
    return report


def audit_plan(plan_id: str, rows: Iterable[EntryRow], state: State | None) -> AuditReport:
    """Check one plan's entries, by seq, against themselves and, unless None, its described state.

    Raises NewerVersionError, as `audit` does.
    """
    report = AuditReport(drained=False)
    raw = None if state is None else msgspec.json.encode(state)
    _PlanAudit(report, DIFFERENCES_MAX, plan_id).run(rows, raw, state is not None)
    return report


def _by_plan(
    entries: Iterable[EntryRow], states: Iterator[tuple[bytes, bytes]]
) -> Iterator[tuple[str, Iterable[EntryRow], bytes | None]]:
    """Merge entries and states, both in the byte order of plan ids, plan by plan."""
    state = next(states, None)
    for plan_id, rows in groupby(entries, attrgetter("plan_id")):
        key = plan_id.encode()
        while state is not None and state[0] < key:
            yield state[0].decode(), (), state[1]
            state = next(states, None)
        if state is not None and state[0] == key:
            yield plan_id, rows, state[1]
            state = next(states, None)
        else:
            yield plan_id, rows, None
    while state is not None:
        yield state[0].decode(), (), state[1]
        state = next(states, None)


class _PlanAudit:
    """One plan's way through its entries."""

    def __init__(self, report: AuditReport, differences_max: int, plan_id: str) -> None:
        self._report = report
        self._differences_max = differences_max
        self._plan_id = plan_id
        self._seq = 0
        self._hash = FIRST_PREV
        self._currency: str | None = None
        self._accounts: dict[str, Account] = {}
        self._credited = 0
        self._plan_credit = 0
        self._renewal_payments: set[str] = set()
        self._signed: tuple[str, int] | None = None
        # From the first gap on, an account is what the next entry says that it was before.
        self._whole = True
        self._gaps: list[tuple[int, int, str]] = []
        self._last_seq_of_ledger = {"payment": 0, "service": 0}
        self._linked = False

    def run(self, rows: Iterable[EntryRow], raw_state: bytes | None, with_states: bool) -> None:
        state = self._decode_state(raw_state)
        self._report.plans += 1
        self._compare_at(state)
        for row in rows:
            self._report.entries += 1
            self._entry(row)
            self._compare_at(state)
        self._balance()
        behind = self._settle_gaps()
        if with_states and (state is not None or raw_state is None):
            behind = self._settle_state(state) or behind
        self._report.behind += behind

    # Each entry on its own and against the ones before it.

    def _entry(self, row: EntryRow) -> None:
        self._follow_seq(row)
        try:
            entry = _decoder.decode(row.entry)
            if entry.v != ENTRY_VERSION:
                raise ValueError(f"v is {entry.v}: expected {ENTRY_VERSION}")
        except (ValueError, RecursionError) as error:
            check_version(row.entry)
            self._differ(row.entry_id, "entry", "a ledger entry", str(error))
            self._whole = False
            self._accounts.clear()
            return
        self._columns(row, entry)
        self._chain(row, entry)
        rule = RULES.get(entry.kind)
        if rule is None:
            self._differ(row.entry_id, "kind", "a kind of the ledgers", entry.kind)
            if entry.service_id and entry.after:
                self._accounts[entry.service_id] = entry.after
            return
        self._expect(row.entry_id, "ledger", rule.ledger, row.ledger)
        if not rule.signed:
            self._expect(row.entry_id, "units", abs(entry.units), entry.units)
            self._expect(row.entry_id, "amount_minor", abs(entry.amount_minor), entry.amount_minor)
        self._count(entry, rule)
        if entry.kind == "contract_signed":
            self._sign(entry)
        if entry.service_id:
            self._account(entry, entry.service_id, rule)
        else:
            self._credit_plan(entry, rule)
            self._expect_account(entry.entry_id, "after", entry.before, entry.after)

    def _follow_seq(self, row: EntryRow) -> None:
        if row.seq > self._seq + 1:
            self._gaps.append((self._seq + 1, row.seq - 1, row.entry_id))
            self._whole = False
            self._accounts.clear()
        elif row.seq <= self._seq:
            self._differ(row.entry_id, "seq", self._seq + 1, row.seq)
        self._linked = row.seq == self._seq + 1
        self._seq = max(self._seq, row.seq)
        if row.ledger in self._last_seq_of_ledger:
            self._last_seq_of_ledger[row.ledger] = row.seq

    def _columns(self, row: EntryRow, entry: _AuditedEntry) -> None:
        """Compare the columns, which auditors query, with the bytes that the hash covers."""
        for name in _PLAIN_COLUMNS:
            self._expect(row.entry_id, name, getattr(entry, name), getattr(row, name))
        self._expect(row.entry_id, "event_at_ms", epoch_ms(entry.event_at), row.event_at_ms)
        recorded_at_ms = epoch_ms(entry.recorded_at)
        self._expect(row.entry_id, "recorded_at_ms", recorded_at_ms, row.recorded_at_ms)

    def _chain(self, row: EntryRow, entry: _AuditedEntry) -> None:
        if self._linked:
            self._expect(row.entry_id, "prev", self._hash, entry.prev)
        self._expect(row.entry_id, "hash", entry_hash(row.entry), entry.hash)
        self._hash = entry.hash

    def _account(self, entry: _AuditedEntry, service_id: str, rule: Rule) -> None:
        if entry.before is None or entry.after is None:
            self._differ(entry.entry_id, "before, after", "the service's accounts", "none")
            self._accounts.pop(service_id, None)
            self._whole = False
            return
        running = self._accounts.get(service_id)
        if running is None and self._whole:
            running = _opening(entry.before, rule.opens_unlimited)
        if running is not None:
            self._expect_account(entry.entry_id, "before", running, entry.before)
        after = _applied(entry.before, entry, rule)
        self._expect_account(entry.entry_id, "after", after, entry.after)
        for name in ("used", "held"):
            amount = getattr(entry.after, name)
            if amount < 0:
                self._differ(entry.entry_id, f"after.{name}", "0 or more", amount)
        self._credited += rule.credit * entry.amount_minor
        # The entry's word, so that one fault is one difference.
        self._accounts[service_id] = entry.after

    def _sign(self, entry: _AuditedEntry) -> None:
        """A plan signs one template, in one version, once."""
        if entry.template_id is None or entry.template_version is None:
            self._differ(entry.entry_id, "template_id, template_version", "what is signed", "none")
            return
        if self._signed is not None:
            self._differ(entry.entry_id, "kind", "no second contract_signed", entry.kind)
        self._signed = (entry.template_id, entry.template_version)

    def _credit_plan(self, entry: _AuditedEntry, rule: Rule) -> None:
        """Follow the plan's credit; what goes back of it is known by the payment's id."""
        factor = rule.plan_credit
        if factor > 0 and entry.payment_id is not None:
            self._renewal_payments.add(entry.payment_id)
        elif entry.payment_id in self._renewal_payments:
            factor = rule.credit
        self._plan_credit += factor * entry.amount_minor

    def _count(self, entry: _AuditedEntry, rule: Rule) -> None:
        if self._currency is None:
            self._currency = entry.currency
        self._expect(entry.entry_id, "currency", self._currency, entry.currency)
        kind = self._report.kinds.setdefault((entry.kind, entry.currency), KindTotals())
        kind.entries += 1
        kind.units += entry.units
        kind.amount_minor += entry.amount_minor
        if rule.money is not Money.NONE:
            money = self._report.money.setdefault(entry.currency, MoneyTotals())
            setattr(money, rule.money, getattr(money, rule.money) + entry.amount_minor)

    # The plan as a whole.

    def _balance(self) -> None:
        """Money in is money granted, money returned and credit."""
        credit = sum(account.credit_minor for account in self._accounts.values())
        if self._whole:
            self._expect(None, "credit_minor", self._credited, credit)
        if self._currency is not None:
            credit += self._plan_credit
            self._report.money.setdefault(self._currency, MoneyTotals()).credit += credit

    def _settle_gaps(self) -> bool:
        """Report the gaps; True if one may just be a ledger that has not arrived yet.

        Each ledger arrives in order, so a gap below the last entry of both is for good.
        """
        arrived = min(self._last_seq_of_ledger.values())
        pending = False
        for first, last, entry_id in self._gaps:
            if self._report.drained or first < arrived:
                self._differ(entry_id, "seq", first, last + 1)
            else:
                pending = True
        return pending

    def _decode_state(self, raw_state: bytes | None) -> _PlanState | None:
        if raw_state is None:
            return None
        self._report.states += 1
        try:
            state = _state_decoder.decode(raw_state)
        except ValueError as error:
            self._differ(None, "state", "a plan's state", str(error))
            return None
        self._expect(None, "plan_id", self._plan_id, state.plan_id)
        return state

    def _settle_state(self, state: _PlanState | None) -> bool:
        """Account for a state at another seq than the ledgers; True if SQL is behind."""
        if state is None:
            self._report.ahead += 1
            if self._report.drained:
                self._differ(None, "state", f"a state at ledger_seq {self._seq}", "none")
            return False
        if state.ledger_seq > self._seq:
            if self._report.drained:
                self._differ(None, "ledger_seq", self._seq, state.ledger_seq)
            return True
        if state.ledger_seq < self._seq:
            self._report.ahead += 1
            if self._report.drained or state.ledger_seq < 0:
                self._differ(None, "ledger_seq", self._seq, state.ledger_seq)
        return False

    def _compare_at(self, state: _PlanState | None) -> None:
        """Compare the state with the accounts, at the entry up to which the state goes."""
        if state is None or state.ledger_seq != self._seq:
            return
        self._expect(None, "ledger_hash", self._hash, state.ledger_hash)
        if self._signed is not None:
            template_id, version = self._signed
            self._expect(None, "template_id", template_id, state.template_id)
            self._expect(None, "template_version", version, state.template_version)
        services = {service.service_id: service for service in state.services}
        self._expect(None, "services", len(services), len(state.services))
        if self._whole:
            self._expect(None, "plan.credit_minor", self._plan_credit, state.credit_minor)
        for service_id, service in services.items():
            found = Account(service.used, service.held, service.quota, service.credit_minor)
            expected = self._accounts.get(service_id)
            if expected is None and self._whole:
                expected = _opening(found, True)
            if expected is not None:
                self._expect_account(None, service_id, expected, found)
        for service_id in self._accounts.keys() - services.keys():
            self._differ(None, service_id, "an account", "none")

    # Reporting.

    def _expect(self, entry_id: str | None, name: str, expected: Value, found: Value) -> None:
        if expected != found:
            self._differ(entry_id, name, expected, found)

    def _expect_account(
        self, entry_id: str | None, name: str, expected: Account | None, found: Account | None
    ) -> None:
        if expected == found:
            return
        if expected is None or found is None:
            self._differ(entry_id, name, _text(expected), _text(found))
            return
        for part in Account.__struct_fields__:
            self._expect(entry_id, f"{name}.{part}", getattr(expected, part), getattr(found, part))

    def _differ(self, entry_id: str | None, name: str, expected: Value, found: Value) -> None:
        self._report.differences_total += 1
        if len(self._report.differences) < self._differences_max:
            self._report.differences.append(
                Difference(self._plan_id, entry_id, name, expected, found)
            )


def entry_hash(entry: str) -> str:
    """SHA-256 of an entry without its own `hash`, which is its last field."""
    return hashlib.sha256(entry.encode()[: -len(_HASH_FIELD)] + b"}").hexdigest()


def _opening(found: Account, may_be_unlimited: bool) -> Account:
    """What a service starts with: nothing, though there may be no limit to its quota."""
    unlimited = may_be_unlimited and found.quota == "infinite"
    return Account(used=0, held=0, quota="infinite" if unlimited else 0, credit_minor=0)


def _applied(before: Account, entry: _AuditedEntry, rule: Rule) -> Account:
    used, held, quota = before.used, before.held, before.quota
    if rule.ends_cycle:
        used, quota = 0, quota if quota == "infinite" else max(quota - used, 0)
    used += rule.used * entry.units
    held += rule.held * entry.units - (entry.held_units if rule.takes_held_units else 0)
    if quota != "infinite":
        quota += rule.quota * entry.units
    return Account(used, held, quota, before.credit_minor + rule.credit * entry.amount_minor)


def _text(account: Account | None) -> str:
    return "none" if account is None else msgspec.json.encode(account).decode()
