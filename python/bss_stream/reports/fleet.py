"""The asset manager's report: how fleets stand (AM1, AM3, AM4), and what the ledgers tell."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, timedelta
from typing import Final

import msgspec

from bss_stream.echo import rfc3339
from bss_stream.reports.charging import HOURS, level
from bss_stream.reports.deployment import moves, needed
from bss_stream.reports.facts import (
    BATTERY_KINDS,
    MONEY_KINDS,
    Fact,
    facts,
    issue,
    signed_plans,
)
from bss_stream.reports.finance import finance
from bss_stream.reports.lifecycle import Battery, batteries
from bss_stream.reports.network import Market, Network
from bss_stream.reports.stations import REFUSALS, Station, stations, summed
from bss_stream.sink.entry import epoch_ms
from bss_stream.sink.read_model import ReadView

BATTERIES_MAX: Final = 100
"""Batteries that a report lists, those with the most cycles; it counts all of them."""


def standing(found: Sequence[Station], fleet_id: str, now_ms: int) -> dict[str, object]:
    """AM1, AM3 and AM4 of one fleet, out of its stations' states alone."""
    market = found[0].market
    day = market.day(now_ms) - timedelta(days=1)
    held = Counter(stock=0, promised=0, set_aside=0, with_riders=0)
    available: dict[str, int] = {}
    need: dict[str, int] = {}
    tallies = []
    for station in found:
        one, at = station.stock_of(fleet_id), station.place.location_id
        # Of a station that has counted a later day since, no demand is known.
        tally = station.tally(one, day) or summed(())
        tallies.append(tally)
        held["stock"] += one.current_stock
        held["promised"] += one.promised
        held["set_aside"] += one.set_aside.total
        held["with_riders"] += one.total_assignments - one.total_returns
        available[at] = one.available
        need[at] = needed(
            tally["assignments"],
            tally["inventory_empty"],
            market.low_threshold + 1,
            station.capacity(fleet_id) - one.set_aside.total - one.promised,
        )
    total = summed(tallies)
    asked = total["assignments"] + sum(total[name] for name in REFUSALS)
    moved = moves(available, need)
    lacking = sum(max(need[at] - available[at], 0) for at in need)
    return {
        "fleet_id": fleet_id,
        "name": market.fleets[fleet_id],
        "day": day.isoformat(),
        "stations": len(found),
        "not_ready": sum(one.state.readiness == "NOT_READY" for one in found),
        "batteries": dict(held),
        "capacity": sum(one.capacity(fleet_id) for one in found),
        **total,
        "served_permille": total["assignments"] * 1000 // asked if asked else None,
        "deployment": [
            {"location_id": at, "available": available[at], "needed": need[at]} for at in need
        ],
        "lacking": lacking - sum(move.batteries for move in moved),
        "moves": [move._asdict() for move in moved],
    }


def fleet_standing(
    view: ReadView, network: Network, market: Market, fleet_id: str, now_ms: int
) -> dict[str, object] | None:
    """As `standing`, out of a database; None of a fleet that no station has slots for."""
    places = [at for at, place in market.stations.items() if fleet_id in place.slots]
    found = stations(view, network, market, places)
    return standing(found, fleet_id, now_ms) if found else None


def fleet_report(
    view: ReadView,
    network: Network,
    market: Market,
    *,
    now_ms: int,
    last: date,
    days: int,
    fleet_id: str | None = None,
) -> dict[str, object]:
    """All of a market, or of one fleet of it; what the ledgers tell, of the days up to `last`."""
    from_ms, to_ms = market.window_ms(last, days)
    plans = {
        plan_id: signed
        for plan_id, signed in signed_plans(facts(view, ["contract_signed"]), network).items()
        if signed.market_id == market.market_id and fleet_id in (None, *signed.fleets)
    }

    def of_plans(kinds: Sequence[str], from_ms: int, to_ms: int) -> Iterable[Fact]:
        return (one for one in facts(view, kinds, from_ms, to_ms) if one.plan_id in plans)

    lives = batteries(of_plans(BATTERY_KINDS, 0, to_ms), plans, market)
    wanted = market.fleets if fleet_id is None else [fleet_id]
    places = sorted(
        at for at, place in market.stations.items() if any(one in place.slots for one in wanted)
    )
    found = stations(view, network, market, places)
    return {
        "market_id": market.market_id,
        "from": (last - timedelta(days=days - 1)).isoformat(),
        "to": last.isoformat(),
        "fleets": [
            told
            for one in wanted
            if (told := fleet_standing(view, network, market, one, now_ms)) is not None
        ],
        "lifecycle": _lifecycle(lives),
        "charging": charging(found, of_plans(BATTERY_KINDS, from_ms, to_ms), days),
        "finance": finance(
            of_plans((*MONEY_KINDS, *BATTERY_KINDS), from_ms, to_ms), plans, market.currency
        ),
    }


def _lifecycle(lives: Sequence[Battery]) -> dict[str, object]:
    """AM2."""
    most = sorted(lives, key=lambda one: (-one.cycles, one.asset_id))[:BATTERIES_MAX]
    return {
        "batteries": len(lives),
        "cycles": sum(one.cycles for one in lives),
        "by_status": dict(sorted(Counter(one.status for one in lives).items())),
        "most_used": [
            msgspec.structs.asdict(one)
            | {
                "first_seen": rfc3339(epoch_ms(one.first_seen)),
                "last_seen": rfc3339(epoch_ms(one.last_seen)),
                "age_days": (one.last_seen - one.first_seen).days,
            }
            for one in most
        ],
    }


def charging(
    found: Sequence[Station], entries: Iterable[Fact], days: int
) -> list[dict[str, object]]:
    """AM5: each station's plan for a day like the mean of these days, for those that had swaps."""
    issued: defaultdict[str, Counter[int]] = defaultdict(Counter)
    returned: defaultdict[str, Counter[int]] = defaultdict(Counter)
    energy: Counter[str] = Counter()
    counted: set[tuple[object, ...]] = set()
    zones = {one.place.location_id: one.market for one in found}
    for fact in entries:
        market = zones.get(fact.location_id or "")
        if market is None or fact.location_id is None:
            continue
        hour = fact.event_at.astimezone(market.zone).hour
        if fact.service_id in market.energy:
            energy[fact.location_id] += fact.units
        going = issue(fact)
        back = fact.returned_asset_id
        # A swap has an entry for each service that it uses.
        for by_place, key in (
            (issued, None if going is None else ("out", *going)),
            (returned, None if back is None else ("back", fact.plan_id, fact.source, back)),
        ):
            if key is not None and key not in counted:
                counted.add(key)
                by_place[fact.location_id][hour] += 1
    return [
        _charging_plan(one, issued[at], returned[at], energy[at], days)
        for one in found
        if (at := one.place.location_id) in issued
    ]


def _charging_plan(
    station: Station,
    issued: Mapping[int, int],
    returned: Mapping[int, int],
    energy_wh: int,
    days: int,
) -> dict[str, object]:
    stock = station.state.stock
    charged = sum(one.available for one in stock)
    empty = sum(one.set_aside.charging for one in stock)
    # Rounded up what is needed, and down what is brought.
    wanted = [-(-issued.get(hour, 0) // days) for hour in range(HOURS)]
    brought = [returned.get(hour, 0) // days for hour in range(HOURS)]
    plan = level(wanted, brought, charged, empty)
    per_battery_wh = energy_wh // sum(issued.values())
    return {
        "location_id": station.place.location_id,
        "energy_wh_per_day": energy_wh // days,
        "energy_wh_per_battery": per_battery_wh,
        "charged": charged,
        "empty": empty,
        "issued_by_hour": wanted,
        "charge_by_hour": list(plan.charge),
        "peak_batteries": plan.peak,
        "peak_wh": plan.peak * per_battery_wh,
        "short_by_hour": list(plan.short),
    }
