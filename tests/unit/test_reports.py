"""Operators' and asset managers' reports: small cases by hand, and what holds of all of them."""

import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bss_stream import topics
from bss_stream.errors import FrameError
from bss_stream.ledger_kinds import RULES, Money
from bss_stream.mqtt.messages import Received
from bss_stream.queries.answers import answers
from bss_stream.reports.charging import HOURS, level
from bss_stream.reports.deployment import moves, needed
from bss_stream.reports.facts import Fact, facts
from bss_stream.reports.fleet import fleet_report, standing
from bss_stream.reports.lifecycle import batteries
from bss_stream.reports.network import EPOCH, Market, Network
from bss_stream.reports.operator import operator_report
from bss_stream.reports.stations import State, Station, Stock, stations
from bss_stream.setup.documents import Slots
from bss_stream.sink import read_model
from bss_stream.stories import Stage
from bss_stream.testing import Playground
from tests.read_model import SETUP, Copied
from tests.rider_story import bind, paid_plan
from tests.scenarios import STORIES
from tests.unit.histories import Action, Player, histories
from tests.unit.test_cli import cli

STANDARD = "fleet-nairobi-standard-4ah"
FIRST, STATION = "station-nbi-001", "station-nbi-003"
COUNTS = st.integers(0, 40)


@contextmanager
def copied(play: Playground) -> Iterator[Copied]:
    with (
        tempfile.TemporaryDirectory() as directory,
        Copied(play, f"sqlite:{directory}/ledger.db") as copy,
    ):
        copy.take()
        yield copy


def played(story: str) -> Playground:
    stage = Stage(STORIES.load(story)).perform()
    assert not stage.faults
    return stage.play


def nairobi(network: Network) -> Market:
    market = network.market_of_fleet(STANDARD)
    assert market is not None
    return market


def of_station(play: Playground, location_id: str, now_ms: int | None = None) -> dict[str, Any]:
    """The operator's report of one station."""
    with copied(play) as copy, copy.model.view() as view:
        network = copy.catalogue.network
        found = stations(view, network, nairobi(network), [location_id])
        (report,) = operator_report(found, play.now_ms if now_ms is None else now_ms)
    return report


def of_fleet(
    play: Playground, last: date, days: int, fleet_id: str | None = None
) -> dict[str, Any]:
    """The asset manager's report of Nairobi."""
    with copied(play) as copy, copy.model.view() as view:
        network = copy.catalogue.network
        return fleet_report(
            view,
            network,
            nairobi(network),
            now_ms=play.now_ms,
            last=last,
            days=days,
            fleet_id=fleet_id,
        )


# Operators.


def test_a_station_that_was_never_heard_of_is_what_the_set_up_says() -> None:
    with Playground() as play:
        report = of_station(play, STATION)
    assert (report["readiness"], report["because"]) == ("READY", "in_service")
    assert [(one["available"], one["on_site"], one["capacity"]) for one in report["stock"]] == [
        (10, 10, 12),
        (11, 11, 16),
    ]
    assert (report["intents"], report["shift"]) == ([], None)
    assert report["today"]["assignments"] == report["day_before"]["assignments"] == 0


def test_the_accounts_of_batteries_are_told() -> None:
    play = played("operator/asset_operations")
    premium, standard = of_station(play, STATION)["stock"]
    assert premium["fleet_id"] < standard["fleet_id"] == STANDARD
    assert standard == {
        "fleet_id": STANDARD,
        "available": 2,
        "promised": 0,
        "charging": 0,
        "inspection": 0,
        "quarantine": 0,
        "on_site": 2,
        "capacity": 16,
        "low_threshold": 3,
    }


def test_who_waits_is_told_with_the_place_in_the_queue_and_how_long_at_most() -> None:
    with Playground() as play:
        paid_plan(play)
        bind(play, STATION)
        (waiting,) = of_station(play, STATION)["intents"]
    assert waiting["plan_id"] == "p-1"
    assert (waiting["fleet_id"], waiting["position"]) == (STANDARD, 1)
    since, until = (datetime.fromisoformat(waiting[name]) for name in ("since", "answer_by"))
    assert since == datetime.fromtimestamp(play.now_ms / 1000, UTC)
    assert until - since == timedelta(seconds=20)


def test_days_are_told_as_long_as_the_station_remembers_them() -> None:
    play = played("operator/a_day")
    day_ms = 86_400_000
    report = of_station(play, STATION)
    assert [report[day]["day"] for day in ("today", "day_before")] == ["2026-11-28", "2026-11-27"]
    assert report["today"]["assignments"] == report["day_before"]["assignments"] == 0
    # Nothing was heard of the station since.
    assert of_station(play, STATION, play.now_ms + 9 * day_ms)["today"]["assignments"] == 0
    # As seen from a day that it has left behind.
    past = of_station(play, STATION, play.now_ms - 2 * day_ms)
    assert (past["today"], past["day_before"]) == (None, None)


def test_a_shift_under_way_is_told() -> None:
    with Playground() as play:
        topic = f"emit/uxi/operator/station/{STATION}/shift"
        told = {"correlation_id": "s-1", "actor": {"id": "op-1"}, "data": {"action": "START"}}
        play.mqtt(topic, orjson.dumps(told))
        shift = of_station(play, STATION)["shift"]
    assert (shift["operator"], shift["assignments"], shift["incidents"]) == ("op-1", 0, 0)


# Deployment and moves.


@pytest.mark.parametrize(
    ("served", "refused", "room", "expected"),
    [
        (0, 0, 20, 4),
        (16, 0, 20, 4),
        (17, 0, 20, 5),
        (17, 3, 20, 8),
        (0, 2, 20, 6),
        (200, 9, 20, 20),
        (9, 9, -1, 0),
    ],
)
def test_what_a_station_needs(served: int, refused: int, room: int, expected: int) -> None:
    assert needed(served, refused, 4, room) == expected


def test_the_greatest_surplus_goes_to_the_greatest_deficit() -> None:
    available = {"a": 10, "b": 3, "c": 0, "d": 9, "e": 1}
    need = {"a": 4, "b": 4, "c": 8, "d": 4, "e": 1}
    assert moves(available, need) == [("a", "c", 6), ("d", "c", 2), ("d", "b", 1)]


@given(st.dictionaries(st.text(max_size=3), st.tuples(COUNTS, COUNTS), max_size=8))
def test_moves_make_no_deficit_and_lose_no_battery(network: dict[str, tuple[int, int]]) -> None:
    available = {at: one for at, (one, _) in network.items()}
    need = {at: one for at, (_, one) in network.items()}
    found = moves(available, need)
    after = dict(available)
    for giver, getter, count in found:
        assert count > 0
        after[giver] -= count
        after[getter] += count
    assert sum(after.values()) == sum(available.values())
    spare, lacking = 0, 0
    for at in network:
        # Who had enough still has; who had too little has no more than it needs.
        lowest, highest = sorted((available[at], need[at]))
        assert lowest <= after[at] <= highest
        spare += max(after[at] - need[at], 0)
        lacking += max(need[at] - after[at], 0)
    assert spare == 0 or lacking == 0
    assert len(found) < max(len(network), 1)
    reordered = dict(reversed(available.items()))
    assert moves(reordered, need) == found


def test_a_fleet_stands_as_its_stations_do(station: "Made") -> None:
    """Yesterday: 40 served and 2 refused at a, nothing at b, which has batteries to spare."""
    yesterday = {"assignments": 40, "returns": 39, "inventory_empty": 2}
    found = [
        station("a", Stock(STANDARD, 5, promised=1, total_assignments=50, today=yesterday)),
        station("b", Stock(STANDARD, 15, total_returns=45)),
    ]
    told = standing(found, STANDARD, now_ms=NOW_MS)
    assert told["batteries"] == {"stock": 20, "promised": 1, "set_aside": 0, "with_riders": 5}
    assert (told["assignments"], told["inventory_empty"]) == (40, 2)
    assert told["served_permille"] == 952
    assert told["deployment"] == [
        {"location_id": "a", "available": 4, "needed": 12},
        {"location_id": "b", "available": 15, "needed": 4},
    ]
    assert told["moves"] == [{"from_location_id": "b", "to_location_id": "a", "batteries": 8}]
    assert told["lacking"] == 0


NOW_MS = 1_795_593_600_000
"""2026-11-25 11:00 in Nairobi."""


class Made:
    """Makes stations of Nairobi that counted up to yesterday."""

    def __init__(self, market: Market) -> None:
        self._market = market

    def __call__(self, location_id: str, *stock: Stock) -> Station:
        slots = {one.fleet_id: Slots(0, 20) for one in stock}
        place = next(iter(self._market.stations.values()))
        place = place._replace(location_id=location_id, slots=slots)
        day = (date(2026, 11, 24) - EPOCH).days
        return Station(place, self._market, State(stock, day=day))


@pytest.fixture(name="station")
def made() -> Made:
    return Made(nairobi(Network.of(SETUP, lambda *_: b"")))


# Charging.


def hours(**counts: int) -> list[int]:
    return [counts.get(f"h{hour}", 0) for hour in range(HOURS)]


def test_charging_is_level_and_in_time() -> None:
    """Three empty ones, of which two must be ready at 2 and the third at 3: two in two hours."""
    plan = level(hours(h2=2, h3=1), hours(), charged=0, empty=3)
    assert plan.charge[:4] == (1, 1, 1, 0)
    assert (plan.peak, sum(plan.short)) == (1, 0)
    assert level(hours(h1=2), hours(), charged=0, empty=3).peak == 2


def test_what_cannot_be_helped_is_short() -> None:
    plan = level(hours(h0=2, h5=1), hours(h0=1), charged=1, empty=0)
    assert plan.short == tuple(hours(h0=1))
    assert plan.charge == tuple(hours(h1=1))


FEW = st.lists(st.integers(0, 6), min_size=HOURS, max_size=HOURS)


@given(FEW, FEW, st.integers(0, 20), st.integers(0, 20))
def test_no_lower_peak_serves_as_many(
    issued: list[int], returned: list[int], charged: int, empty: int
) -> None:
    plan = level(issued, returned, charged, empty)
    ready, waiting = charged, empty
    for hour in range(HOURS):
        assert 0 <= plan.charge[hour] <= waiting
        given_out = issued[hour] - plan.short[hour]
        assert 0 <= given_out <= ready
        ready += plan.charge[hour] - given_out
        waiting += returned[hour] - plan.charge[hour]
    # Whatever is charged at once is charged as soon as it can be.
    assert sum(plan.short) == shortage(issued, returned, charged, empty, 10_000)
    if plan.peak:
        assert shortage(issued, returned, charged, empty, plan.peak - 1) > sum(plan.short)


def shortage(issued: list[int], returned: list[int], charged: int, empty: int, most: int) -> int:
    """By another way: every hour's riders one by one."""
    short = 0
    for hour in range(HOURS):
        for _ in range(issued[hour]):
            if charged:
                charged -= 1
            else:
                short += 1
        for _ in range(min(most, empty)):
            empty, charged = empty - 1, charged + 1
        empty += returned[hour]
    return short


# Lives of batteries.


def fact(kind: str, seq: int, **fields: Any) -> Fact:
    at = datetime(2026, 11, 24, tzinfo=UTC) + timedelta(hours=seq)
    named: dict[str, Any] = {"plan_id": "p-1", "source": f"s/{seq}", "event_at": at}
    return Fact(seq=seq, kind=kind, units=0, amount_minor=0, currency="KES", **(named | fields))


def test_a_swap_is_one_cycle_however_many_services_it_uses(station: Made) -> None:
    market = station("a").market
    swap = {"asset_id": "b-2", "returned_asset_id": "b-1", "location_id": "a", "source": "s"}
    found = batteries([fact("quota_used", 1, **swap), fact("quota_used", 2, **swap)], {}, market)
    assert [(one.asset_id, one.cycles, one.status) for one in found] == [
        ("b-1", 0, "in_stock"),
        ("b-2", 1, "issued"),
    ]
    assert (found[1].plan_id, found[0].plan_id) == ("p-1", None)


def test_a_battery_goes_out_comes_back_is_lost_found_and_lost_for_good(station: Made) -> None:
    service = "service-battery-fleet-nairobi-standard-4ah"
    battery = {"asset_id": "b-1", "service_id": service}
    told = [
        fact("quota_used", 1, asset_id="b-1", location_id="a"),
        fact("asset_returned", 2, returned_asset_id="b-1", location_id="b"),
        fact("asset_replaced", 3, asset_id="b-1", location_id="b"),
        fact("asset_lost", 4, **battery),
        fact("asset_found", 5, **battery, location_id="c"),
        fact("late_issue", 6, asset_id="b-1", location_id="c"),
        fact("asset_lost", 7, **battery),
        fact("asset_settled", 8, **battery),
    ]
    seen = []
    for count in range(1, len(told) + 1):
        (one,) = batteries(told[:count], {}, station("a").market)
        seen.append((one.status, one.cycles, one.location_id))
    assert seen == [
        ("issued", 1, "a"),
        ("in_stock", 1, "b"),
        ("issued", 2, "b"),
        ("lost", 2, "b"),
        ("in_stock", 2, "c"),
        ("issued", 3, "c"),
        ("lost", 3, "c"),
        ("written_off", 3, "c"),
    ]
    assert one.fleet_id == STANDARD


# A fleet's days.


def test_a_fleet_s_days() -> None:
    report = of_fleet(played("fleet/a_week"), date(2026, 11, 26), 3, STANDARD)
    assert (report["from"], report["to"]) == ("2026-11-24", "2026-11-26")
    (fleet,) = report["fleets"]
    assert (fleet["day"], fleet["assignments"], fleet["inventory_empty"]) == ("2026-11-25", 1, 1)
    assert fleet["served_permille"] == 500
    by_place = {one["location_id"]: one for one in fleet["deployment"]}
    assert by_place[FIRST] == {"location_id": FIRST, "available": 0, "needed": 5}
    assert [(one["to_location_id"], one["batteries"]) for one in fleet["moves"]] == [(FIRST, 5)]
    lives = {one["asset_id"]: one for one in report["lifecycle"]["most_used"]}
    assert (lives["bat-007"]["cycles"], lives["bat-007"]["status"]) == (2, "written_off")
    assert (lives["bat-008"]["cycles"], lives["bat-008"]["status"]) == (1, "in_stock")
    assert report["lifecycle"]["by_status"] == {"in_stock": 1, "written_off": 1}
    places = {one["location_id"]: one for one in report["charging"]}
    assert places.keys() == {FIRST, STATION}
    # Two swaps with 3.5 kWh in three days, both at 10:40 in Nairobi.
    assert places[STATION]["issued_by_hour"] == hours(h10=1)
    assert places[STATION]["energy_wh_per_battery"] == 1_750
    assert places[STATION]["energy_wh_per_day"] == 1_166
    money = report["finance"]
    # The first payment was 8,000, the battery 15,000.
    assert (money["received_minor"], money["settlements_minor"]) == (2_300_000, 1_500_000)
    assert (money["net_minor"], money["batteries_in_use"]) == (2_300_000, 2)
    assert money["net_minor_per_battery"] == 1_150_000
    assert [one["fleets"] for one in money["fleets"]] == [[STANDARD]]
    assert money["batteries"] == {"lost": 1, "found": 0, "written_off": 1}


def test_days_beyond_the_window_do_not_count() -> None:
    play = played("fleet/a_week")
    report = of_fleet(play, date(2026, 11, 25), 1)
    assert report["finance"]["received_minor"] == 0
    assert report["lifecycle"]["cycles"] == 2
    assert [one["location_id"] for one in report["charging"]] == [STATION]
    premium = of_fleet(play, date(2026, 11, 26), 3, "fleet-nairobi-premium-8ah")
    assert premium["finance"]["received_minor"] == premium["lifecycle"]["batteries"] == 0


@given(histories)
def test_reports_add_up_to_the_ledgers(history: list[Action]) -> None:
    play = Player().perform(history).play
    entries = list(play.entries())
    signed = {one["plan_id"] for one in entries if one["kind"] == "contract_signed"}
    last = date(2027, 12, 31)
    with copied(play) as copy, copy.model.view() as view:
        network = copy.catalogue.network
        for market in network.markets:
            report: Any = fleet_report(
                view, network, market, now_ms=play.now_ms, last=last, days=1_000
            )
            money = report["finance"]
            mine = [
                one
                for one in entries
                if one["currency"] == market.currency and one["plan_id"] in signed
            ]
            for kind in (Money.RECEIVED, Money.RETURNED, Money.GRANTED, Money.CHARGED):
                field = f"{kind}_minor"
                total = sum(one["amount_minor"] for one in mine if RULES[one["kind"]].money is kind)
                assert money[field] == total
                for part in ("services", "fleets"):
                    assert sum(one[field] for one in money[part]) == total
            out = {
                (one["plan_id"], one["source"], one["asset_id"])
                for one in mine
                if one["kind"] in ("quota_used", "late_issue", "asset_replaced")
                and one.get("asset_id")
            }
            assert money["batteries_in_use"] == len({asset_id for _, _, asset_id in out})
            assert report["lifecycle"]["cycles"] == len(out)
            kinds = Counter(one["kind"] for one in mine)
            assert money["batteries"]["lost"] == kinds["asset_lost"]


@given(histories)
def test_the_days_counts_of_a_station_add_up_to_its_lifetime_s(history: list[Action]) -> None:
    player = Player()
    days: dict[tuple[str, str], dict[int, int]] = defaultdict(dict)
    totals: dict[tuple[str, str], int] = {}
    for action in history:
        player.act(action)
        for topic, key in list(player.play.states):
            if topic != topics.STATE_STATION:
                continue
            state = player.play.state(topic, key.decode())
            for stock in state["stock"]:
                at = (key.decode(), stock["fleet_id"])
                before = days[at].get(state["day"] - 1, 0)
                assert stock["day_before"]["assignments"] == before
                days[at][state["day"]] = stock["today"]["assignments"]
                totals[at] = stock["total_assignments"]
    for at, total in totals.items():
        assert sum(days[at].values()) == total


# The database.


def test_entries_are_read_page_by_page(monkeypatch: pytest.MonkeyPatch) -> None:
    with copied(played("fleet/a_week")) as copy, copy.model.view() as view:
        kinds = ("quota_used", "quota_granted", "settlement")
        whole = list(view.entries_within(kinds, 0, 2**62))
        monkeypatch.setattr(read_model, "_PAGE_ROWS", 2)
        assert list(view.entries_within(kinds, 0, 2**62)) == whole
        assert len(whole) == 11
        times = [one.event_at for one in facts(view, kinds)]
        assert times == sorted(times)
        middle = round(times[6].timestamp() * 1000)
        late = list(facts(view, kinds, from_ms=middle))
        early = list(facts(view, kinds, to_ms=middle))
        assert len(early) + len(late) == len(whole)
        assert all(one.event_at < times[6] for one in early)


def test_an_entry_that_is_none_is_a_fault() -> None:
    view = read_model.ReadView(lambda sql, parameters: [(1, "p", 1, "{}")])
    with pytest.raises(FrameError, match=r"ledger entry '\{\}'"):
        next(facts(view, ["deposit"]))


# Over MQTT.


def asked(play: Playground, topic: str, **fields: str) -> dict[str, Any]:
    """The echo of a query."""
    payload = orjson.dumps({"correlation_id": "c-1", "data": {}, **fields})
    message = Received(topic, payload, 1, False, False, None, [], 1, 1)
    with copied(play) as copy:
        (answer,) = answers(copy.model, copy.catalogue, [message], play.now_ms)
    assert answer.echo is not None
    assert answer.echo.topic == topic.replace("emit/uxi", "echo/abs")
    body: dict[str, Any] = orjson.loads(answer.echo.payload)
    assert body["data"]["metadata"]["reason"] == answer.outcome
    return body


def test_operators_and_managers_ask_by_mqtt() -> None:
    play = played("fleet/a_week")
    body = asked(play, f"emit/uxi/operator/station/{FIRST}/report", location_id=FIRST)
    assert (body["location_id"], body["data"]["success"]) == (FIRST, True)
    assert body["data"]["metadata"]["readiness"] == "LIMITED"
    assert "plan_id" not in body
    body = asked(play, f"emit/uxi/manager/fleet/{STANDARD}/report", fleet_id=STANDARD)
    assert body["fleet_id"] == STANDARD
    assert len(body["data"]["metadata"]["moves"]) == 1


@pytest.mark.parametrize(
    ("topic", "fields", "reason"),
    [
        ("operator/station/s-1", {"location_id": "s-1"}, "unknown_location"),
        ("operator/station/s-1", {"location_id": "s-2"}, "id_mismatch"),
        ("operator/station/s-1", {"plan_id": "s-1"}, "missing_field"),
        ("manager/fleet/f-1", {"fleet_id": "f-1"}, "unknown_value"),
        ("manager/fleet/f-1", {}, "missing_field"),
    ],
)
def test_bad_questions_are_told_why(topic: str, fields: dict[str, str], reason: str) -> None:
    with Playground() as play:
        body = asked(play, f"emit/uxi/{topic}/report", **fields)
    assert body["data"]["success"] is False
    assert body["data"]["metadata"]["reason"] == reason


# The command.


@pytest.fixture
def config(tmp_path: Path) -> Iterator[Path]:
    """A configuration whose ledger database has a fleet's days."""
    database = tmp_path / "ledger.db"
    with Copied(played("fleet/a_week"), f"sqlite:{database}") as copy:
        copy.take()
        file = tmp_path / "bss.toml"
        file.write_text(f'[sink]\nbackend = "sqlite"\npath = "{database}"\n')
        yield file


def test_the_command_shows_tables_and_json(config: Path) -> None:
    done = cli("report", "operator", "--station", FIRST, "-c", str(config), "--format", "json")
    assert done.returncode == 0, done.stderr
    (station,) = json.loads(done.stdout)["stations"]
    assert station["because"] == "stock_low"
    days = ("--day", "2026-11-26", "--days", "3")
    done = cli("report", "fleet", "--fleet", STANDARD, *days, "-c", str(config), "--format", "json")
    (market,) = json.loads(done.stdout)["markets"]
    assert market["finance"]["settlements_minor"] == 1_500_000
    done = cli("report", "fleet", *days, "-c", str(config))
    assert done.returncode == 0, done.stderr
    for shown in ("settlements_minor", "written_off", "station-nbi-003", "mombasa"):
        assert shown in done.stdout


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (("operator", "--station", "s-x"), "'s-x': expected a station of the set-up"),
        (("fleet", "--fleet", "f-x"), "'f-x': expected a fleet of the set-up"),
        (("fleet", "--day", "24.11."), "'24.11.': Invalid isoformat string"),
    ],
)
def test_the_command_says_what_is_wrong(
    config: Path, arguments: tuple[str, ...], fault: str
) -> None:
    done = cli("report", *arguments, "-c", str(config))
    assert done.returncode == 2
    assert fault in done.stderr
