"""What must hold between the files of a market, and between markets."""

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet

from bss_stream.setup import check_plan, exact, zones
from bss_stream.setup.documents import (
    CONSUMES,
    UNIT_PRICE_MAX,
    BundleFile,
    FleetFile,
    LocationFile,
    MarketFile,
    PlanFile,
    ServiceFile,
    TermsFile,
)
from bss_stream.setup.index import Index, build
from bss_stream.setup.market import Market
from bss_stream.validation import Faults, key_path, show

CLIENT_WAIT_S = 30
"""After that a client gives up waiting for an echo and asks again."""

_NEEDED = (MarketFile, ServiceFile, FleetFile, LocationFile, BundleFile, TermsFile, PlanFile)


def check(markets: Sequence[Market], models: AbstractSet[str], faults: Faults) -> None:
    """Note every fault that no single field shows."""
    indexes = build(markets, faults)
    slugs: dict[str, str] = {}
    for market, index in zip(markets, indexes, strict=True):
        _check_completeness(market, faults)
        _check_slugs(market, slugs, faults)
        settings = market.settings()
        if settings is not None:
            _check_settings(market, settings, faults)
        for file, fleets in market.of(FleetFile):
            _check_fleets(file, fleets, faults)
        for file, stations in market.of(LocationFile):
            _check_stations(file, stations, index, faults)
        for file, service in market.of(ServiceFile):
            _check_service(file, service, index, faults)
        for file, bundle in market.of(BundleFile):
            _check_bundle(file, bundle, index, faults)
        for file, terms in market.of(TermsFile):
            _check_terms(file, terms, settings, faults)
        for file, plan in market.of(PlanFile):
            check_plan.PlanCheck(file, plan, index, settings, faults).run(models)


def _check_completeness(market: Market, faults: Faults) -> None:
    for kind in _NEEDED:
        files = [source.file for source in market.sources if source.kind is kind]
        noun = kind.__name__.removesuffix("File").lower()
        if not files:
            faults.add(market.place, "", f"has no {noun} file, expected at least one")
        if kind is MarketFile and len(files) > 1:
            faults.add(files[1], "", f"a market has one market file, expected only {files[0]}")


def _check_slugs(market: Market, slugs: dict[str, str], faults: Faults) -> None:
    """All files of a folder name one market, and no other folder names it."""
    settings = market.settings()
    if settings is None:
        return
    other = slugs.setdefault(settings.market, market.place)
    for source in market.sources:
        document = source.document
        if document is None:
            continue
        if document.market != settings.market:
            message = f"{show(document.market)}: expected {show(settings.market)} in this folder"
            faults.add(source.file, "$.market", message)
        elif document is settings and other != market.place:
            faults.add(source.file, "$.market", f"{show(document.market)}: is taken by {other}")


def _check_settings(market: Market, settings: MarketFile, faults: Faults) -> None:
    file = next(file for file, _ in market.of(MarketFile))
    if settings.market_id != market.folder:
        message = f"{show(settings.market_id)}: expected the folder's name {show(market.folder)}"
        faults.add(file, "$.market_id", message)
    try:
        zones.offsets(settings.time_zone)
    except (KeyError, ValueError, OSError):
        message = (
            f"{show(settings.time_zone)}: unknown time zone, expected an IANA name such as "
            '"Africa/Nairobi" (and a tz database on this system, or the tzdata package)'
        )
        faults.add(file, "$.time_zone", message)
    waits_s = settings.allocation.answer_timeout_seconds * settings.allocation.attempts_max
    if waits_s >= CLIENT_WAIT_S:
        message = (
            f"{settings.allocation.attempts_max} attempts of "
            f"{settings.allocation.answer_timeout_seconds} s take {waits_s} s, expected less than "
            f"{CLIENT_WAIT_S} s, after which clients stop waiting"
        )
        faults.add(file, "$.allocation", message)
    for name, tier in settings.tiers.items():
        path = key_path("$.tiers", name)
        _check_positive(
            tier.quota_multiplier, exact.fraction, faults, file, f"{path}.quota_multiplier"
        )
        _check_positive(tier.fee_multiplier, exact.fraction, faults, file, f"{path}.fee_multiplier")


def _check_positive(
    text: str, read: Callable[[str], object], faults: Faults, file: str, path: str
) -> bool:
    """Note a fault unless `read` takes the text and it is above zero; whether all is well."""
    try:
        read(text)
        if exact.fraction(text) <= 0:
            raise ValueError("expected more than 0")
    except ValueError as error:
        faults.add(file, path, f"{show(text)}: {error}")
        return False
    return True


def _check_fleets(file: str, document: FleetFile, faults: Faults) -> None:
    for i, fleet in enumerate(document.fleets):
        path = f"$.fleets[{i}].swap_energy_kwh_max"
        _check_positive(
            fleet.swap_energy_kwh_max, lambda text: exact.units(text, 3), faults, file, path
        )


def _check_stations(file: str, document: LocationFile, index: Index, faults: Faults) -> None:
    for i, station in enumerate(document.stations):
        for fleet_id, slots in station.fleets.items():
            path = key_path(f"$.stations[{i}].fleets", fleet_id)
            index.fleets.find(fleet_id, faults, file, path)
            if slots.stock > slots.capacity:
                message = f"{slots.stock}: expected at most the capacity {slots.capacity}"
                faults.add(file, f"{path}.stock", message)
            if slots.capacity == 0:
                message = "0: expected at least 1, or no entry for this fleet"
                faults.add(file, f"{path}.capacity", message)


def _check_service(file: str, service: ServiceFile, index: Index, faults: Faults) -> None:
    if _check_positive(service.unit_price, exact.fraction, faults, file, "$.unit_price"):
        price = exact.fraction(service.unit_price)
        if price > UNIT_PRICE_MAX:
            message = f"{show(service.unit_price)}: expected at most {UNIT_PRICE_MAX}"
            faults.add(file, "$.unit_price", message)
    kind = service.service_type
    if kind == "energy" and service.usage_unit != "kWh":
        faults.add(file, "$.usage_unit", f'{show(service.usage_unit)}: expected "kWh" for energy')
    if kind == "asset" and service.fleet_id is None:
        faults.add(file, "$.fleet_id", "null: expected a fleet, an asset service hands it out")
    if kind != "asset" and service.fleet_id is not None:
        message = f"{show(service.fleet_id)}: expected null, only an asset service has a fleet"
        faults.add(file, "$.fleet_id", message)
    if service.fleet_id is not None:
        index.fleets.find(service.fleet_id, faults, file, "$.fleet_id")


def _check_bundle(file: str, bundle: BundleFile, index: Index, faults: Faults) -> None:
    consumers: dict[str, list[str]] = {"none": [], "swap": [], "energy": []}
    fleets: dict[str, str] = {}
    assets = 0
    complete = True
    for i, service_id in enumerate(bundle.services):
        path = f"$.services[{i}]"
        if service_id in bundle.services[:i]:
            faults.add(file, path, f"{show(service_id)}: stands twice in the bundle")
            continue
        service = index.services.find(service_id, faults, file, path)
        if service is None:
            complete = False
            continue
        consumers[CONSUMES[service.service_type]].append(service_id)
        assets += service.service_type == "asset"
        if service.service_type == "asset" and service.fleet_id is not None:
            other = fleets.setdefault(service.fleet_id, service_id)
            if other != service_id:
                message = f"{show(service_id)}: has the same fleet as {show(other)}"
                faults.add(file, path, message)
    for what in ("swap", "energy"):
        if len(consumers[what]) > 1:
            named = ", ".join(consumers[what])
            faults.add(file, "$.services", f"{named}: expected at most one that counts {what}")
    if complete and not consumers["swap"]:
        faults.add(file, "$.services", "no service counts swaps, expected one of type swap")
    if complete and not assets:
        faults.add(file, "$.services", "no service has a fleet, expected one of type asset")


def _check_terms(file: str, terms: TermsFile, settings: MarketFile | None, faults: Faults) -> None:
    if settings is not None and terms.billing_currency != settings.currency:
        message = f"{show(terms.billing_currency)}: expected {show(settings.currency)}"
        faults.add(file, "$.billing_currency", message)
    if terms.billing_cycle_days > terms.service_duration_days:
        message = (
            f"{show(terms.billing_cycle)}: a cycle of {terms.billing_cycle_days} days, expected "
            f"no more than the duration of {terms.service_duration_days} days"
        )
        faults.add(file, "$.billing_cycle", message)
