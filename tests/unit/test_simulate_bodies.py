"""Every body is JSON and has the fields that the wire contract names, with exact decimals."""

import json
from typing import Any

import pytest

from bss_stream.simulate import bodies
from bss_stream.simulate.arm import Answer, StockReport
from bss_stream.simulate.bodies import Stamp

AT_MS = 1_795_521_600_007


def envelope(data: bytes) -> dict[str, Any]:
    stamp = Stamp()(AT_MS)
    body = bodies.envelope(stamp, b"plan-1", b"c-1", b"attendant", b"attendant-1", data)
    read: dict[str, Any] = json.loads(body)
    assert read["timestamp"] == "2026-11-24T12:00:00.007Z"
    assert (read["plan_id"], read["correlation_id"]) == ("plan-1", "c-1")
    assert read["actor"] == {"type": "attendant", "id": "attendant-1"}
    data_read: dict[str, Any] = read["data"]
    return data_read


def test_odoo_sync() -> None:
    data = bodies.sync(7, 7001, b"in_progress", b"KES", bodies.money(150050, 2), b"t-1", b"cust-1")
    assert envelope(data) == {
        "action": "SYNC_ODOO_SUBSCRIPTION",
        "odoo_subscription_id": 7,
        "odoo_invoice_id": 7001,
        "odoo_payment_state": "paid",
        "odoo_subscription_state": "in_progress",
        "odoo_currency_id": "KES",
        "odoo_amount_total": 1500.5,
        "template_id": "t-1",
        "customer_id": "cust-1",
    }


def test_initialize_and_identify() -> None:
    assert envelope(bodies.initialize()) == {"action": "INITIALIZE_SERVICE_STATES"}
    assert envelope(bodies.identify(b"cust-1", b"station-1")) == {
        "action": "IDENTIFY_CUSTOMER",
        "qr_code_data": "cust-1",
        "attendant_station": "station-1",
    }


def test_payment_and_service() -> None:
    payment = bodies.payment_fields(b"service-1", bodies.money(2500, 2), b"pay-1", "TOP_UP")
    data = envelope(bodies.service(b"station-1", b"b-1", b"b-2", 105, 60, payment))
    assert data == {
        "action": "REPORT_PAYMENT_AND_SERVICE_COMPLETION",
        "attendant_station": "station-1",
        "service_data": {
            "old_battery_id": "b-1",
            "new_battery_id": "b-2",
            "energy_transferred": 1.05,
            "service_duration": 60,
        },
        "payment_data": {
            "service_id": "service-1",
            "payment_amount": 25.0,
            "payment_reference": "pay-1",
            "payment_method": "MPESA",
            "payment_type": "TOP_UP",
        },
    }


def test_a_first_issue_and_a_last_return_leave_the_other_battery_out() -> None:
    first = envelope(bodies.service(b"s", None, b"b-2", 300, 60))["service_data"]
    last = envelope(bodies.service(b"s", b"b-1", None, 0, 60))["service_data"]
    assert "old_battery_id" not in first
    assert "new_battery_id" not in last


@pytest.mark.parametrize("returned", [None, b"b-1"])
def test_customer_binding(returned: bytes | None) -> None:
    wanted = {"action": "CUSTOMER_BINDING", "location_id": "station-1", "fleet_id": "fleet-a"}
    if returned is not None:
        wanted["returned_asset_id"] = "b-1"
    assert envelope(bodies.binding(b"station-1", b"fleet-a", returned)) == wanted


def test_service_payment() -> None:
    payment = bodies.payment_fields(b"service-1", bodies.money(7, 0), b"pay-1", "TOP_UP")
    data = envelope(bodies.service_payment(payment))
    assert data["action"] == "SERVICE_PAYMENT"
    assert data["payment_amount"] == 7


def test_stock_report() -> None:
    body = json.loads(bodies.stock(Stamp()(AT_MS), b"c-1", StockReport("s", "fleet-a", 12)))
    assert body["fleet_id"] == "fleet-a"
    assert body["available"] == 12
    assert body["timestamp"] == "2026-11-24T12:00:00.007Z"


def test_answers_of_arm() -> None:
    stamp = Stamp()(AT_MS)
    issued = Answer("c-1", "plan-1", "fleet-a", "b-2", "b-1", 7, None)
    denied = Answer("c-1", "plan-1", "fleet-a", None, None, 0, "inventory_empty")
    assert json.loads(bodies.answer(stamp, issued)) == {
        "timestamp": "2026-11-24T12:00:00.007Z",
        "correlation_id": "c-1",
        "plan_id": "plan-1",
        "fleet_id": "fleet-a",
        "status": "issued",
        "asset_id": "b-2",
        "returned_asset_id": "b-1",
        "energy_transferred": 0.07,
    }
    body = json.loads(bodies.answer(stamp, denied))
    assert (body["status"], body["reason"]) == ("denied", "inventory_empty")
    assert "asset_id" not in body


def test_the_stamp_follows_the_clock_in_both_directions() -> None:
    stamp = Stamp()
    assert stamp(AT_MS + 1_000) == b"2026-11-24T12:00:01.007Z"
    assert stamp(AT_MS) == b"2026-11-24T12:00:00.007Z"
