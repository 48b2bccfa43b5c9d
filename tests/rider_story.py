"""A rider's story to be asked about: a plan that is paid, its swaps, and what ARM answers."""

from typing import Any

import orjson

from bss_stream.testing import Playground
from tests.unit.histories import rfc3339

HALF_DAY_MS = 12 * 3_600_000
"""The plan swaps twice a day at most."""
SWAP, ENERGY = "service-swap-count-nairobi", "service-electricity-nairobi"


def paid_plan(play: Playground, plan_id: str = "p-1") -> None:
    """A plan of Nairobi that is paid and has its quotas."""
    send(
        play,
        f"emit/odo/subscription/plan/{plan_id}/sync",
        plan_id,
        odoo_subscription_id=7,
        odoo_payment_state="paid",
        odoo_subscription_state="in_progress",
        odoo_currency_id="KES",
        odoo_amount_total=1500.5,
        template_id="template-nairobi-basic",
        customer_id="cust-1",
    )
    send(play, f"emit/uxi/service/plan/{plan_id}/initialize_states", plan_id)


def send(play: Playground, topic: str, plan_id: str = "p-1", **data: Any) -> None:
    """A message half a day after the last one, with an id of its own: c-1, c-2, ..."""
    play.advance(HALF_DAY_MS)
    body = {
        "timestamp": rfc3339(play.now_ms),
        "plan_id": plan_id,
        "correlation_id": f"c-{len(play.echoes) + 1}",
        "data": data,
    }
    play.mqtt(topic, orjson.dumps(body))


def hand_over(play: Playground, old: str | None, new: str, energy: float, **more: Any) -> None:
    battery = {"new_battery_id": new, "energy_transferred": energy}
    if old is not None:
        battery["old_battery_id"] = old
    topic = "emit/uxi/attendant/plan/p-1/payment_and_service"
    send(play, topic, attendant_station="station-nbi-001", service_data=battery, **more)


def bind(play: Playground, station: str) -> dict[str, Any]:
    """Ask for a battery and return ARM's command."""
    send(play, "emit/uxi/service/plan/p-1/customer_binding", location_id=station)
    command: dict[str, Any] = orjson.loads(
        next(m.payload for m in reversed(play.outbox) if m.topic.startswith("cmd/ABS/EPS/"))
    )
    return command


def answer(play: Playground, command: dict[str, Any], asset_id: str, energy: float) -> None:
    body = {
        "asset_id": asset_id,
        "status": "issued",
        "correlation_id": command["correlation_id"],
        "fleet_id": command["fleet_id"],
        "plan_id": "p-1",
        "returned_asset_id": command["returned_asset_id"],
        "energy_transferred": energy,
        "timestamp": rfc3339(play.now_ms),
    }
    play.mqtt(f"echo/ABS/EPS/{command['location_id']}/allocate", orjson.dumps(body))
