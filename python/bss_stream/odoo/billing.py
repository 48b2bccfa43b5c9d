"""What a ledger entry or a plan's state is in Odoo's words: records, free of any field's name."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Final, NamedTuple
from zoneinfo import ZoneInfo

import msgspec

from bss_stream.ledger_kinds import RULES, Money
from bss_stream.setup import Setup
from bss_stream.setup.documents import UNIT_DIGITS, ServiceFile
from bss_stream.sink.entry import ENTRY_VERSION, check_version

SMALLEST_UNITS_MAX: Final = 10**15
"""Odoo keeps amounts and quantities as binary floats, which hold 15 decimal digits exactly."""

UNACCOUNTED: Final = {"quota_shortfall"}
"""Kinds that change no account and are usage all the same."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Kind(StrEnum):
    """What a record is; its model is the configuration's say."""

    SUBSCRIPTION = "subscription"
    PAYMENT = "payment"
    USAGE = "usage"


class Record(NamedTuple):
    """One record in Odoo as it has to be."""

    kind: Kind
    key: str
    """The entry's id, or of a subscription the plan's: always the same for the same record."""
    plan_id: str
    values: Mapping[str, str]
    """By name of the configuration's `fields`; empty where there is nothing to say."""
    source: str
    """`topic/partition/offset` of what it was made of."""


class UnmappableError(ValueError):
    """What the set-up or Odoo has no way to say. The message says what would help."""


class Service(NamedTuple):
    """What a service's units are, and whose calendar its days are."""

    unit: str
    digits: int
    """Decimals between `unit` and the unit the ledger counts in."""
    zone: ZoneInfo


class Measures:
    """Units, currencies and calendars of the markets."""

    def __init__(
        self, services: Mapping[str, Service], currencies: Mapping[str, tuple[int, ZoneInfo]]
    ) -> None:
        """`currencies` gives the decimals of each and the calendar of its market."""
        self._services = services
        self._currencies = currencies

    @classmethod
    def of(cls, setup: Setup) -> "Measures":
        """Those of a set-up."""
        services: dict[str, Service] = {}
        currencies: dict[str, tuple[int, ZoneInfo]] = {}
        for market in setup.markets:
            settings = market.settings()
            assert settings is not None  # checked at load
            zone = ZoneInfo(settings.time_zone)
            currencies.setdefault(settings.currency, (settings.currency_digits, zone))
            for service in market.documents(ServiceFile):
                digits = UNIT_DIGITS[service.service_type]
                services[service.service_id] = Service(service.usage_unit, digits, zone)
        return cls(services, currencies)

    def service(self, service_id: str) -> Service:
        """Raises UnmappableError for one that the set-up lacks."""
        found = self._services.get(service_id)
        if found is None:
            raise UnmappableError(f"service {service_id}: not in the set-up, so it has no unit")
        return found

    def currency(self, code: str) -> tuple[int, ZoneInfo]:
        """Decimals and calendar. Raises UnmappableError for one that no market has."""
        found = self._currencies.get(code)
        if found is None:
            raise UnmappableError(f"currency {code}: no market of the set-up has it")
        return found


class _Entry(msgspec.Struct, frozen=True, gc=False):
    v: int
    entry_id: str
    plan_id: str
    seq: int
    kind: str
    event_at: Annotated[datetime, msgspec.Meta(tz=True)]
    units: int
    amount_minor: int
    currency: str
    service_id: str | None = None
    payment_id: str | None = None


_entries: Final = msgspec.json.Decoder(_Entry)


def of_entry(value: bytes, source: str, measures: Measures) -> Record | None:
    """The record of a ledger entry, None for one that concerns no billing.

    Raises UnmappableError, and NewerVersionError for the entry of a later program.
    """
    try:
        entry = _entries.decode(value)
    except (ValueError, RecursionError) as error:
        check_version(value)
        raise UnmappableError(f"is no ledger entry: {error}") from error
    if entry.v != ENTRY_VERSION:
        check_version(value)
        raise UnmappableError(f"v is {entry.v}: expected {ENTRY_VERSION}")
    rule = RULES.get(entry.kind)
    if rule is None:
        raise UnmappableError(f"kind {entry.kind}: this program does not know it")
    if rule.ledger == "payment":
        return None if rule.money is Money.NONE else _payment(entry, rule.money, source, measures)
    is_usage = rule.used or rule.quota or entry.kind in UNACCOUNTED
    if not is_usage or entry.service_id is None:
        return None
    return _usage(entry, rule.used, rule.quota, source, measures)


def _payment(entry: _Entry, money: Money, source: str, measures: Measures) -> Record:
    digits, zone = measures.currency(entry.currency)
    if entry.service_id is not None:
        zone = measures.service(entry.service_id).zone
    values = {
        **_common(entry, zone),
        "payment_id": entry.payment_id or "",
        "money": money.value,
        "amount": decimal_text(entry.amount_minor, digits),
        "amount_minor": str(entry.amount_minor),
        "currency": entry.currency,
    }
    return Record(Kind.PAYMENT, entry.entry_id, entry.plan_id, values, source)


def _usage(entry: _Entry, used: int, quota: int, source: str, measures: Measures) -> Record:
    service = measures.service(entry.service_id or "")
    values = {
        **_common(entry, service.zone),
        "units": decimal_text(entry.units, service.digits),
        "used": decimal_text(used * entry.units, service.digits),
        "granted": decimal_text(quota * entry.units, service.digits),
        "unit": service.unit,
    }
    return Record(Kind.USAGE, entry.entry_id, entry.plan_id, values, source)


def _common(entry: _Entry, zone: ZoneInfo) -> dict[str, str]:
    return {
        "name": entry.entry_id,
        "plan_id": entry.plan_id,
        "seq": str(entry.seq),
        "kind": entry.kind,
        "service_id": entry.service_id or "",
        "day": entry.event_at.astimezone(zone).date().isoformat(),
        "event_at": odoo_time(entry.event_at),
    }


def of_state(plan_id: str, state: Mapping[str, Any], source: str) -> Record:
    """The record of a plan's state, as the engine describes it."""
    end_ms = state["period_end_ms"]
    end = odoo_time(_EPOCH + timedelta(milliseconds=end_ms)) if end_ms > 0 else ""
    words = ("template_id", "customer_id", "status", "payment_state", "service_state")
    values = {"plan_id": plan_id, **{name: str(state[name]) for name in words}, "period_end": end}
    return Record(Kind.SUBSCRIPTION, plan_id, plan_id, values, source)


def decimal_text(units: int, digits: int) -> str:
    """Whole smallest units as a decimal: 150050 with 2 digits is 1500.50.

    Raises UnmappableError for what Odoo's floats would round.
    """
    if abs(units) >= SMALLEST_UNITS_MAX:
        raise UnmappableError(f"{units}: Odoo's numbers hold 15 digits, expected a smaller one")
    sign, text = "-" if units < 0 else "", str(abs(units)).rjust(digits + 1, "0")
    return f"{sign}{text[:-digits]}.{text[-digits:]}" if digits else f"{sign}{text}"


def odoo_time(moment: datetime) -> str:
    """A moment as Odoo has it: UTC, whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
