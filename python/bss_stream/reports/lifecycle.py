"""A battery's life as the ledgers tell it (AM2): cycles, age, where it is, whether it is lost."""

from collections.abc import Iterable, Mapping
from datetime import datetime

import msgspec

from bss_stream.reports.facts import Fact, Signed, issue
from bss_stream.reports.network import Market


class Battery(msgspec.Struct):
    """One battery."""

    asset_id: str
    first_seen: datetime
    last_seen: datetime
    fleet_id: str | None = None
    """None as long as no entry tells it: a plan of several fleets does not."""
    cycles: int = 0
    """How often it was issued."""
    status: str = "issued"
    """issued, in_stock, lost or written_off."""
    plan_id: str | None = None
    """Who has it, or had it when it was lost."""
    location_id: str | None = None
    """Where it was seen last."""


def batteries(
    entries: Iterable[Fact], plans: Mapping[str, Signed], market: Market
) -> list[Battery]:
    """Every battery that these entries name, by id; `entries` are in the order of their times."""
    found: dict[str, Battery] = {}
    last_issue: dict[str, object] = {}
    for fact in entries:
        going = issue(fact)
        for asset_id in {fact.asset_id, fact.returned_asset_id} - {None}:
            assert asset_id is not None
            battery = found.get(asset_id)
            if battery is None:
                battery = found[asset_id] = Battery(asset_id, fact.event_at, fact.event_at)
            battery.last_seen = fact.event_at
            battery.fleet_id = _fleet(fact, plans, market) or battery.fleet_id
            if asset_id == fact.asset_id and going is not None:
                battery.cycles += last_issue.get(asset_id) != going
                last_issue[asset_id] = going
            _come_to(battery, fact, is_out=asset_id == fact.asset_id)
    return [found[asset_id] for asset_id in sorted(found)]


def _come_to(battery: Battery, fact: Fact, *, is_out: bool) -> None:
    battery.location_id = fact.location_id or battery.location_id
    if fact.kind == "asset_lost":
        battery.status, battery.plan_id = "lost", fact.plan_id
    elif fact.kind == "asset_settled":
        battery.status, battery.plan_id = "written_off", fact.plan_id
    elif fact.kind == "asset_found" or not is_out:
        battery.status, battery.plan_id = "in_stock", None
    else:
        battery.status, battery.plan_id = "issued", fact.plan_id


def _fleet(fact: Fact, plans: Mapping[str, Signed], market: Market) -> str | None:
    named = market.fleet_of.get(fact.service_id or "")
    if named is not None:
        return named
    signed = plans.get(fact.plan_id)
    return signed.fleets[0] if signed is not None and len(signed.fleets) == 1 else None
