"""Operators' requests among a station's traffic."""

from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from bss_stream import topics
from bss_stream.testing import Playground

STATION, FLEET = "station-nbi-003", "fleet-nairobi-standard-4ah"
ACCOUNTS = ("charging", "inspection", "quarantine")
EVERYWHERE = ("stock", *ACCOUNTS, "outside")


def operate(play: Playground, number: int, quantity: int, source: str, target: str) -> str:
    """Move batteries; the reason of the echo."""
    data = {"fleet_id": FLEET, "quantity": quantity, "from": source, "to": target}
    body = {"correlation_id": f"operation-{number}", "data": data}
    play.mqtt(f"emit/uxi/operator/station/{STATION}/asset_operation", orjson.dumps(body))
    reason: str = play.echoes[-1]["data"]["metadata"]["reason"]
    return reason


def accounts(play: Playground) -> dict[str, int]:
    """The fleet's batteries at the station."""
    stock: Any = next(s for s in play.station(STATION)["stock"] if s["fleet_id"] == FLEET)
    return {"stock": stock["current_stock"], **stock["set_aside"]}


def test_a_repeat_is_told_however_many_batteries_have_gone_out_since() -> None:
    with Playground() as play:
        assert operate(play, 1, 5, "outside", "stock") == "ok"
        for number in range(40):
            asked = {"at_ms": play.now_ms, "correlation_id": f"c-{number}", "plan_id": "p-1"}
            allocate = orjson.dumps({**asked, "fleet_id": FLEET})
            play.signal(topics.SIGNALS_STATION, STATION, "allocate", allocate, source="engine")
            answer = {"correlation_id": f"c-{number}", "plan_id": "p-1", "status": "denied"}
            play.mqtt(f"echo/ABS/EPS/{STATION}/allocate", orjson.dumps(answer))
        stock = play.station(STATION)["stock"]
        assert sum(fleet["today"]["allocation_denied"] for fleet in stock) == 40
        assert operate(play, 1, 5, "outside", "stock") == "duplicate"
        assert accounts(play)["stock"] == 16


MOVES = st.lists(
    st.tuples(st.integers(1, 20), st.sampled_from(EVERYWHERE), st.sampled_from(EVERYWHERE)),
    max_size=20,
)


@given(MOVES)
def test_no_battery_is_made_or_lost_between_accounts(moves: list[tuple[int, str, str]]) -> None:
    with Playground() as play:
        operate(play, 0, 1, "outside", "stock")
        books = accounts(play)
        for number, (quantity, source, target) in enumerate(moves, 1):
            reason = operate(play, number, quantity, source, target)
            if source == target:
                assert reason == "unknown_value"
            elif source != "outside" and books[source] < quantity:
                assert reason == "stock_short"
            else:
                assert reason == "ok"
                for place, change in ((source, -quantity), (target, quantity)):
                    if place != "outside":
                        books[place] += change
            assert accounts(play) == books
