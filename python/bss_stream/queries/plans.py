"""A plan's balance and its swaps, out of its ledger entries."""

from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from operator import attrgetter
from typing import Any, Final, Literal

import msgspec

from bss_stream.errors import FrameError
from bss_stream.ledger_kinds import RULES, Money
from bss_stream.queries.catalogue import Catalogue
from bss_stream.queries.wire import Rejection, SwapHistory
from bss_stream.setup import exact
from bss_stream.sink.read_model import ReadView

PAYMENT_KINDS: Final = tuple(
    kind for kind, rule in RULES.items() if rule.money is Money.RECEIVED and not rule.signed
)
"""What a customer has paid; a reversal takes such a payment back."""

SWAP_KINDS: Final = ("quota_used", "late_issue")
"""An entry of these stands for a battery that went out."""

_KINDS: Final = (*SWAP_KINDS, "quota_shortfall", "overage_charge", *PAYMENT_KINDS)

_ROWS_PER_SWAP: Final = 4
"""How many entries of these kinds a swap has, mostly: what is read in one go."""


class Account(msgspec.Struct, frozen=True):
    """A service's account in its smallest unit."""

    used: int
    held: int
    quota: int | Literal["infinite"]
    credit_minor: int


class Entry(msgspec.Struct, frozen=True):
    """A ledger entry, as far as riders are told of it."""

    seq: int
    kind: str
    source: str
    event_at: str
    units: int
    amount_minor: int
    currency: str
    signal_id: str | None = None
    service_id: str | None = None
    held_units: int = 0
    payment_id: str | None = None
    asset_id: str | None = None
    returned_asset_id: str | None = None
    location_id: str | None = None
    after: Account | None = None


_decoder: Final = msgspec.json.Decoder(Entry)


def balance(view: ReadView, catalogue: Catalogue, plan_id: str) -> dict[str, object] | Rejection:
    """A plan's accounts and its last payment, in the wire's units.

    Raises FrameError for an entry that cannot be read, ConfigError for one that the set-up does
    not explain.
    """
    accounts = [_entry(text) for text in view.accounts(plan_id)]
    paid = view.last_payment(plan_id, PAYMENT_KINDS)
    last = None if paid is None else _entry(paid)
    if not accounts and last is None and not view.has_plan(plan_id):
        return Rejection("unknown_plan")
    currency = next((entry.currency for entry in (*accounts, last) if entry), None)
    return {
        "currency": currency,
        "service_states": [_service_state(catalogue, entry) for entry in accounts],
        "last_payment": None if last is None else _payment(catalogue, last),
    }


def _service_state(catalogue: Catalogue, entry: Entry) -> dict[str, object]:
    service_id, account = entry.service_id or "", entry.after
    if account is None:
        raise FrameError(f"ledger entry {entry.seq} of {service_id} has no account after it")
    service = catalogue.service(service_id)
    if account.quota == "infinite":
        quota = left = msgspec.Raw(str(service.infinite_wire).encode())
    else:
        quota = number(account.quota, service.unit_digits)
        # Use beyond the quota, which is charged, leaves nothing and not less than that.
        left = number(max(account.quota - account.used - account.held, 0), service.unit_digits)
    return {
        "service_id": service_id,
        "name": service.name,
        "usage_unit": service.usage_unit,
        "used": number(account.used, service.unit_digits),
        "held": number(account.held, service.unit_digits),
        "quota": quota,
        "left": left,
        "credit": number(account.credit_minor, catalogue.digits(entry.currency)),
    }


def _payment(catalogue: Catalogue, entry: Entry) -> dict[str, object]:
    return {
        "kind": entry.kind,
        "amount": number(entry.amount_minor, catalogue.digits(entry.currency)),
        "currency": entry.currency,
        "time": entry.event_at,
        "payment_reference": entry.payment_id,
        "service_id": entry.service_id,
    }


def swap_history(
    view: ReadView, catalogue: Catalogue, asked: SwapHistory
) -> dict[str, object] | Rejection:
    """A plan's last swaps, and where the ones before them begin. Raises as `balance` does."""
    found = list(islice(_swaps(view, asked), asked.limit + 1))
    if not found and not view.has_plan(asked.plan_id):
        return Rejection("unknown_plan")
    shown = found[: asked.limit]
    return {
        "swaps": [_swap(catalogue, entries) for entries in shown],
        "next_before": shown[-1][-1].seq if len(found) > len(shown) else None,
    }


def _swaps(view: ReadView, asked: SwapHistory) -> Iterator[list[Entry]]:
    """The entries of each swap, the newest first: those of one cause belong to one swap."""
    for _, entries in groupby(_back(view, asked), attrgetter("source")):
        swap = list(entries)
        # The entry at `before` ended the last page, and so did the rest of its swap.
        if swap[0].seq != asked.before and any(entry.kind in SWAP_KINDS for entry in swap):
            yield swap


def _back(view: ReadView, asked: SwapHistory) -> Iterator[Entry]:
    seq_max, rows_max = asked.before, _ROWS_PER_SWAP * (asked.limit + 1)
    while texts := view.entries(asked.plan_id, seq_max, _KINDS, rows_max):
        entries = [_entry(text) for text in texts]
        yield from entries
        if len(entries) < rows_max:
            return
        seq_max = entries[-1].seq - 1


def _swap(catalogue: Catalogue, entries: Sequence[Entry]) -> dict[str, object]:
    issue = next(entry for entry in entries if entry.kind in SWAP_KINDS)
    digits = catalogue.digits(issue.currency)
    is_late = any(entry.kind == "late_issue" for entry in entries)
    # Only a swap that was asked for beforehand takes what was held for it.
    is_self_service = is_late or any(entry.held_units for entry in entries)
    swap: dict[str, object] = {
        "time": issue.event_at,
        "correlation_id": issue.signal_id,
        "location_id": issue.location_id,
        "location_name": catalogue.station_name(issue.location_id),
        "battery_issued": issue.asset_id,
        "battery_returned": issue.returned_asset_id,
        "energy_kwh": _energy(catalogue, entries, "quota_used"),
        "mode": "self_service" if is_self_service else "staffed",
        "overage": number(_amount(entries, ("overage_charge",)), digits),
        "paid": number(_amount(entries, PAYMENT_KINDS), digits),
        "currency": issue.currency,
    }
    if is_late:
        swap["late"] = True
    if any(entry.kind == "quota_shortfall" for entry in entries):
        swap["energy_beyond_quota_kwh"] = _energy(catalogue, entries, "quota_shortfall")
    return swap


def _energy(catalogue: Catalogue, entries: Sequence[Entry], kind: str) -> msgspec.Raw:
    units = digits = 0
    for entry in entries:
        if entry.kind == kind and entry.service_id is not None:
            service = catalogue.service(entry.service_id)
            if service.is_energy:
                units, digits = units + entry.units, service.unit_digits
    return number(units, digits)


def _amount(entries: Sequence[Entry], kinds: Sequence[str]) -> int:
    return sum(entry.amount_minor for entry in entries if entry.kind in kinds)


def number(units: int, digits: int) -> msgspec.Raw:
    """`units` of 10**-digits as an exact JSON number without trailing zeros."""
    text = exact.text(units, digits)
    return msgspec.Raw((text.rstrip("0").rstrip(".") if digits else text).encode())


def _entry(text: str) -> Any:
    try:
        return _decoder.decode(text)
    except msgspec.DecodeError as error:
        raise FrameError(f"ledger entry {text[:80]!r}: {error}") from error
