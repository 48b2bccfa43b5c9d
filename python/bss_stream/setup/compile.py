"""Setup into the one JSON document that the engine reads."""

from typing import Any, Final

import msgspec
import orjson

from bss_stream.setup import exact, zones
from bss_stream.setup.documents import (
    CONSUMES,
    UNIT_DIGITS,
    BundleFile,
    FleetFile,
    LocationFile,
    MarketFile,
    PlanFile,
    ServiceFile,
    ServiceTerms,
    Tier,
)
from bss_stream.setup.index import Index, build
from bss_stream.setup.market import Market, Setup
from bss_stream.setup.quantities import hold_units, units_of
from bss_stream.validation import Faults

FORMAT_VERSION: Final = 1

_HOUR_MS: Final = 3_600_000


class Limits(msgspec.Struct, frozen=True):
    """What the engine takes at most from a client."""

    payload_bytes_max: int = 65_536
    nesting_max: int = 32
    id_bytes_max: int = 64
    dedupe_window_ms: int = 600_000
    dedupe_entries_max: int = 32
    skew_future_ms: int = 300_000
    skew_past_ms: int = 86_400_000


def compile_setup(setup: Setup, limits: Limits | None = None) -> bytes:
    """The engine's setup document. The same files give the same bytes."""
    indexes = build(setup.markets, Faults())
    document = {
        "version": FORMAT_VERSION,
        "limits": msgspec.structs.asdict(limits or Limits()),
        "models": [orjson.Fragment(model.raw) for model in setup.models],
        "markets": [_market(*pair) for pair in zip(setup.markets, indexes, strict=True)],
    }
    return orjson.dumps(document)


def _market(market: Market, index: Index) -> dict[str, Any]:
    settings = market.settings()
    assert settings is not None  # checked at load
    stations = [one for document in market.documents(LocationFile) for one in document.stations]
    fleets = [one for document in market.documents(FleetFile) for one in document.fleets]
    return {
        "market_id": settings.market_id,
        "version": settings.version,
        "currency": settings.currency,
        "currency_digits": settings.currency_digits,
        "infinite_wire": settings.infinite_on_the_wire,
        "zone": {"name": settings.time_zone, "offsets": zones.offsets(settings.time_zone)},
        "allocation": {
            "answer_timeout_ms": settings.allocation.answer_timeout_seconds * 1000,
            "attempts_max": settings.allocation.attempts_max,
        },
        "inventory": {"low_threshold": settings.low_stock_threshold},
        "services": [_service(service) for service in market.documents(ServiceFile)],
        "fleets": [{"fleet_id": fleet.fleet_id, "name": fleet.name} for fleet in fleets],
        "locations": [
            {
                "location_id": station.location_id,
                "name": station.name,
                "stock": {fleet: slots.stock for fleet, slots in station.fleets.items()},
                "capacity": {fleet: slots.capacity for fleet, slots in station.fleets.items()},
            }
            for station in stations
        ],
        "bundles": [
            {"bundle_id": bundle.bundle_id, "name": bundle.name, "services": bundle.services}
            for bundle in market.documents(BundleFile)
        ],
        "tiers": [_tier(name, tier) for name, tier in settings.tiers.items()],
        "templates": [_template(plan, settings, index) for plan in market.documents(PlanFile)],
    }


def _service(service: ServiceFile) -> dict[str, Any]:
    return {
        "service_id": service.service_id,
        "name": service.name,
        "usage_unit": service.usage_unit,
        "unit_digits": UNIT_DIGITS[service.service_type],
        "unit_price": service.unit_price,
        "fleet_id": service.fleet_id,
        "consumes": CONSUMES[service.service_type],
    }


def _tier(name: str, tier: Tier) -> dict[str, Any]:
    quota = exact.fraction(tier.quota_multiplier)
    fee = exact.fraction(tier.fee_multiplier)
    return {
        "tier": name,
        "quota_multiplier": [quota.numerator, quota.denominator],
        "fee_multiplier": [fee.numerator, fee.denominator],
    }


def _template(plan: PlanFile, settings: MarketFile, index: Index) -> dict[str, Any]:
    terms = index.terms.by_id[plan.terms_id]
    assert terms is not None  # checked at load
    return {
        "template_id": plan.template_id,
        "version": plan.version_number,
        "name": plan.name,
        "model": plan.model,
        "bundle_id": plan.bundle_id,
        "tier": plan.tier,
        "deposit_minor": exact.units(plan.deposit, settings.currency_digits),
        "fee_minor": exact.units(plan.fee, settings.currency_digits),
        "service_duration_days": terms.service_duration_days,
        "billing_cycle": terms.billing_cycle,
        "billing_cycle_days": terms.billing_cycle_days,
        "grace_ms": terms.grace_hours * _HOUR_MS,
        "allowed_locations": plan.allowed_locations,
        "services": [_service_terms(one, plan, settings, index) for one in plan.services],
    }


def _service_terms(
    terms: ServiceTerms, plan: PlanFile, settings: MarketFile, index: Index
) -> dict[str, Any]:
    service = index.services.by_id[terms.service_id]
    assert service is not None  # checked at load
    digits = UNIT_DIGITS[service.service_type]
    rate = terms.overage_rate
    return {
        "service_id": terms.service_id,
        "initial_quota": _quota(terms.initial_quota, digits),
        "max_quota": _quota(terms.max_quota, digits),
        "rate_limit_per_day": terms.rate_limit_per_day,
        "auto_renewal": terms.auto_renewal,
        "overage_allowed": terms.overage_allowed,
        "overage_rate_minor": None if rate is None else exact.units(rate, settings.currency_digits),
        "hold_units": hold_units(service, plan, index),
    }


def _quota(quantity: int | str, digits: int) -> dict[str, int] | str:
    units = units_of(quantity, digits)
    return units if isinstance(units, str) else {"units": units}
