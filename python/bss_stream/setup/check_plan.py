"""What must hold for a plan template: its references, money, quotas and places."""

from collections.abc import Set as AbstractSet
from fractions import Fraction

from bss_stream.setup import exact
from bss_stream.setup.documents import (
    EVERYWHERE,
    INFINITE,
    UNIT_DIGITS,
    MarketFile,
    PlanFile,
    ServiceFile,
    ServiceTerms,
    Tier,
)
from bss_stream.setup.index import Index
from bss_stream.setup.quantities import hold_units, units_of
from bss_stream.validation import Faults, show

CLIENT_INFINITY = 100_000
"""Clients read a quota from here on as no limit, so a limited one must stay below."""


class PlanCheck:
    """Checks one template; each method notes its faults and returns what others build on."""

    def __init__(
        self, file: str, plan: PlanFile, index: Index, settings: MarketFile | None, faults: Faults
    ) -> None:
        self.file = file
        self.plan = plan
        self.index = index
        self.settings = settings
        self.faults = faults

    def run(self, models: AbstractSet[str]) -> None:
        """Note every fault of the template."""
        plan = self.plan
        if plan.model not in models:
            known = ", ".join(sorted(models)) or "none"
            self._add("$.model", f"{show(plan.model)}: unknown model, expected one of {known}")
        self.index.terms.find(plan.terms_id, self.faults, self.file, "$.terms_id")
        tier = self._tier()
        self._check_money(tier)
        self._check_services(tier)
        self._check_locations()

    def _add(self, path: str, message: str) -> None:
        self.faults.add(self.file, path, message)

    def _tier(self) -> Tier | None:
        if self.settings is None:
            return None
        tier = self.settings.tiers.get(self.plan.tier)
        if tier is None:
            known = ", ".join(self.settings.tiers)
            self._add("$.tier", f"{show(self.plan.tier)}: unknown tier, expected one of {known}")
        return tier

    def _minor(self, text: str, path: str, least: int) -> int | None:
        """An amount in minor units, None after noting a fault."""
        if self.settings is None:
            return None
        try:
            amount = exact.units(text, self.settings.currency_digits)
        except ValueError as error:
            self._add(path, f"{show(text)}: {error} ({self.settings.currency})")
            return None
        if amount < least:
            wanted = "0 or more" if least == 0 else "more than 0"
            self._add(path, f"{show(text)}: expected {wanted}")
            return None
        return amount

    def _check_money(self, tier: Tier | None) -> None:
        self._minor(self.plan.deposit, "$.deposit", least=0)
        fee = self._minor(self.plan.fee, "$.fee", least=1)
        factor = None if tier is None else _factor(tier.fee_multiplier)
        if fee is not None and factor is not None and (fee * factor).denominator != 1:
            message = (
                f"{show(self.plan.fee)}: times the tier's {factor} is no whole number of minor "
                "units, expected a fee that is"
            )
            self._add("$.fee", message)

    def _check_services(self, tier: Tier | None) -> None:
        bundle = self.index.bundles.find(self.plan.bundle_id, self.faults, self.file, "$.bundle_id")
        configured = [terms.service_id for terms in self.plan.services]
        for i, terms in enumerate(self.plan.services):
            path = f"$.services[{i}]"
            if terms.service_id in configured[:i]:
                self._add(f"{path}.service_id", f"{show(terms.service_id)}: stands twice")
                continue
            if bundle is None:
                continue
            if terms.service_id not in bundle.services:
                expected = ", ".join(bundle.services)
                message = f"{show(terms.service_id)}: not in the bundle, expected {expected}"
                self._add(f"{path}.service_id", message)
                continue
            service = self.index.services.by_id.get(terms.service_id)
            if service is not None:
                self._check_service(path, terms, service, tier)
        first = self.plan.services[0].auto_renewal if self.plan.services else True
        for i, terms in enumerate(self.plan.services):
            if terms.auto_renewal != first:
                message = (
                    f"{show(terms.auto_renewal)}: a plan renews as a whole, expected one value"
                )
                self._add(f"$.services[{i}].auto_renewal", message)
        for service_id in () if bundle is None else bundle.services:
            if service_id not in configured and service_id in self.index.services.by_id:
                self._add("$.services", f"expected an entry for the bundle's {show(service_id)}")

    def _check_service(
        self, path: str, terms: ServiceTerms, service: ServiceFile, tier: Tier | None
    ) -> None:
        first = self._quantity(terms.initial_quota, f"{path}.initial_quota", service)
        most = self._quantity(terms.max_quota, f"{path}.max_quota", service)
        metered = service.service_type in ("energy", "swap")
        if not metered and not (first == most == INFINITE):
            message = (
                f'expected "infinite", a service of type {service.service_type} is not metered'
            )
            self._add(f"{path}.initial_quota", message)
        elif first is not None and most is not None:
            self._check_quotas(path, first, most, service, tier)
        if terms.rate_limit_per_day is not None and service.service_type != "swap":
            message = f"{terms.rate_limit_per_day}: expected null, the day's limit counts swaps"
            self._add(f"{path}.rate_limit_per_day", message)
        self._check_overage(path, terms, metered)

    def _quantity(self, quantity: int | str, path: str, service: ServiceFile) -> int | str | None:
        """Units or "infinite", None after noting a fault."""
        digits = UNIT_DIGITS[service.service_type]
        try:
            return units_of(quantity, digits)
        except ValueError as error:
            self._add(path, f"{show(quantity)}: {error}")
            return None

    def _check_quotas(
        self, path: str, first: int | str, most: int | str, service: ServiceFile, tier: Tier | None
    ) -> None:
        if isinstance(first, int):
            self._check_multiplied(f"{path}.initial_quota", first, service, tier)
        if isinstance(most, str):
            return
        self._check_multiplied(f"{path}.max_quota", most, service, tier)
        if isinstance(first, str):
            self._add(f"{path}.max_quota", 'expected "infinite", as initial_quota is')
        elif first > most:
            self._add(f"{path}.initial_quota", "above max_quota, expected at most that")
        if most < hold_units(service, self.plan, self.index):
            message = "expected at least what one swap takes, or no swap is ever possible"
            self._add(f"{path}.max_quota", message)

    def _check_multiplied(
        self, path: str, units: int, service: ServiceFile, tier: Tier | None
    ) -> None:
        """The tier lifts the quota and its cap alike: both stay whole, and finite to clients."""
        factor = Fraction(1) if tier is None else _factor(tier.quota_multiplier)
        if factor is None:
            return
        times = "" if factor == 1 else f" times the tier's {factor}"
        if (units * factor).denominator != 1:
            self._add(path, f"{units} units{times}: expected a whole number")
        if units * factor >= CLIENT_INFINITY * 10 ** UNIT_DIGITS[service.service_type]:
            message = (
                f"{units} units{times}: expected less than {CLIENT_INFINITY} "
                f'{service.usage_unit}, or "infinite": clients read such a number as no limit'
            )
            self._add(path, message)

    def _check_overage(self, path: str, terms: ServiceTerms, metered: bool) -> None:
        at = f"{path}.overage_rate"
        if terms.overage_allowed and not metered:
            self._add(f"{path}.overage_allowed", "true: expected false, the service has no limit")
        elif terms.overage_allowed and terms.overage_rate is None:
            self._add(at, "null: expected the price of one unit, as overage_allowed is true")
        elif not terms.overage_allowed and terms.overage_rate is not None:
            message = f"{show(terms.overage_rate)}: expected null, as overage_allowed is false"
            self._add(at, message)
        elif terms.overage_rate is not None:
            self._minor(terms.overage_rate, at, least=1)

    def _check_locations(self) -> None:
        allowed = self.plan.allowed_locations
        if EVERYWHERE in allowed:
            if len(allowed) > 1:
                self._add("$.allowed_locations", '"*" stands beside others, expected it alone')
                return
            stations = list(self.index.stations.by_id.values())
        else:
            stations = []
            for i, location_id in enumerate(allowed):
                path = f"$.allowed_locations[{i}]"
                if location_id in allowed[:i]:
                    self._add(path, f"{show(location_id)}: stands twice")
                else:
                    stations.append(
                        self.index.stations.find(location_id, self.faults, self.file, path)
                    )
        if None in stations:
            return
        served = {fleet for station in stations if station is not None for fleet in station.fleets}
        for fleet_id in self._fleets():
            if fleet_id not in served and fleet_id in self.index.fleets.by_id:
                message = f"no allowed location has the bundle's {show(fleet_id)}, expected one"
                self._add("$.allowed_locations", message)

    def _fleets(self) -> list[str]:
        bundle = self.index.bundles.by_id.get(self.plan.bundle_id)
        services = () if bundle is None else bundle.services
        found = (self.index.services.by_id.get(service_id) for service_id in services)
        return [service.fleet_id for service in found if service and service.fleet_id is not None]


def _factor(text: str) -> Fraction | None:
    """A tier's multiplier; None if it has a fault, which the market file's check notes."""
    try:
        return exact.fraction(text)
    except ValueError:
        return None
