"""The operator's report: how a station stands, who waits, and what was done (OP1 to OP6)."""

from collections import Counter
from collections.abc import Sequence
from datetime import date, timedelta

from bss_stream.echo import rfc3339
from bss_stream.reports.stations import Station, Stock, summed


def operator_report(stations: Sequence[Station], now_ms: int) -> list[dict[str, object]]:
    """One object a station, in the order given."""
    return [_station(station, now_ms) for station in stations]


def _station(station: Station, now_ms: int) -> dict[str, object]:
    state, shift = station.state, station.state.shift
    today = station.market.day(now_ms)
    days = {name: _day(station, day) for name, day in _days(today).items()}
    return {
        "location_id": station.place.location_id,
        "name": station.place.name,
        "readiness": state.readiness,
        "because": state.because,
        "equipment": state.equipment,
        "intents": _intents(station),
        "stock": [_stock(station, stock) for stock in state.stock],
        "shift": None
        if shift is None
        else {
            "operator": shift.operator,
            "started_at": rfc3339(shift.started_ms),
            **shift.tally,
            "incidents": shift.incidents,
        },
        **days,
    }


def _days(today: date) -> dict[str, date]:
    return {"today": today, "day_before": today - timedelta(days=1)}


def _day(station: Station, day: date) -> dict[str, object] | None:
    """OP6. None where a later day has been counted since."""
    tallies = [station.tally(stock, day) for stock in station.state.stock]
    known = [tally for tally in tallies if tally is not None]
    if len(known) < len(tallies):
        return None
    return {"day": day.isoformat(), **summed(known)}


def _intents(station: Station) -> list[dict[str, object]]:
    """OP2 and OP3: who waits for ARM, the first one first, and how long that can last."""
    waiting: Counter[str] = Counter()
    found: list[dict[str, object]] = []
    for intent in station.state.under_way:
        waiting[intent.fleet_id] += 1
        found.append(
            {
                "plan_id": intent.plan_id,
                "correlation_id": intent.correlation_id,
                "fleet_id": intent.fleet_id,
                "position": waiting[intent.fleet_id],
                "since": rfc3339(intent.since_ms),
                "answer_by": rfc3339(intent.since_ms + station.market.answer_within_ms),
            }
        )
    return found


def _stock(station: Station, stock: Stock) -> dict[str, object]:
    """OP4: the accounts of one fleet."""
    aside = stock.set_aside
    return {
        "fleet_id": stock.fleet_id,
        "available": stock.available,
        "promised": stock.promised,
        "charging": aside.charging,
        "inspection": aside.inspection,
        "quarantine": aside.quarantine,
        "on_site": stock.current_stock + aside.total,
        "capacity": station.capacity(stock.fleet_id),
        "low_threshold": station.market.low_threshold,
    }
