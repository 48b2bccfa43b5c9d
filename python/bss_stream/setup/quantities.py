"""Quotas and holds in the engine's units: one swap, one watt-hour."""

from typing import Literal

from bss_stream.setup import exact
from bss_stream.setup.documents import INFINITE, UNIT_DIGITS, PlanFile, ServiceFile
from bss_stream.setup.index import Index

Infinite = Literal["infinite"]


def units_of(quantity: int | str, digits: int) -> int | Infinite:
    """A quota in units of 10**-digits of the usage unit. Raises ValueError."""
    if quantity == INFINITE:
        return "infinite"
    units = exact.units(str(quantity), digits)
    if units < 0:
        raise ValueError('expected 0 or more, or "infinite"')
    return units


def hold_units(service: ServiceFile, plan: PlanFile, index: Index) -> int:
    """What one self-service swap reserves of a service.

    One swap; the most net energy that a fleet of the bundle can hand out at once; nothing of a
    service that is not metered.
    """
    if service.service_type == "swap":
        return 1
    if service.service_type != "energy":
        return 0
    bundle = index.bundles.by_id.get(plan.bundle_id)
    services = (
        index.services.by_id.get(key) for key in (() if bundle is None else bundle.services)
    )
    fleets = (
        index.fleets.by_id.get(one.fleet_id) for one in services if one and one.fleet_id is not None
    )
    digits = UNIT_DIGITS["energy"]
    return max((exact.units(f.swap_energy_kwh_max, digits) for f in fleets if f), default=0)
