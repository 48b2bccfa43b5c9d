"""Every body is JSON and has the fields that the wire contract names, with exact decimals."""

import json

from bss_stream.contract.requests import Actor, PaymentAndService, PaymentData, ServiceData
from bss_stream.simulate import bodies
from bss_stream.simulate.arm import Answer, StockReport
from bss_stream.simulate.bodies import Stamp

AT_MS = 1_795_521_600_007


def test_a_request_has_the_contract_s_envelope_and_exact_decimals() -> None:
    data = PaymentAndService(
        attendant_station="station-1",
        service_data=ServiceData(
            old_battery_id="b-1",
            new_battery_id="b-2",
            energy_transferred=bodies.kwh(105),
            service_duration=60,
        ),
        payment_data=PaymentData(
            service_id="service-1",
            payment_amount=bodies.money(2500, 2),
            payment_reference="pay-1",
            payment_method="MPESA",
            payment_type="TOP_UP",
        ),
    )
    actor = Actor(type="attendant", id="attendant-1")
    body = bodies.request(Stamp()(AT_MS), "plan-1", "c-1", actor, data)
    assert b'"energy_transferred":1.05' in body
    assert b'"payment_amount":25.00' in body
    assert json.loads(body) == {
        "timestamp": "2026-11-24T12:00:00.007Z",
        "plan_id": "plan-1",
        "correlation_id": "c-1",
        "actor": {"type": "attendant", "id": "attendant-1"},
        "data": {
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
        },
    }


def test_what_is_absent_is_left_out() -> None:
    actor = Actor(type="attendant", id="attendant-1")
    first = PaymentAndService("station-1", ServiceData(new_battery_id="b-2"))
    body = json.loads(bodies.request(Stamp()(AT_MS), "plan-1", "c-1", actor, first))
    assert body["data"]["service_data"] == {"new_battery_id": "b-2"}
    assert "payment_data" not in body["data"]


def test_money_of_a_currency_without_minor_units_has_no_decimals() -> None:
    assert str(bodies.money(7, 0)) == "7"
    assert str(bodies.money(5, 2)) == "0.05"


def test_stock_report() -> None:
    body = json.loads(bodies.stock(Stamp()(AT_MS), "c-1", StockReport("s", "fleet-a", 12)))
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
    assert stamp(AT_MS + 1_000) == "2026-11-24T12:00:01.007Z"
    assert stamp(AT_MS) == "2026-11-24T12:00:00.007Z"
