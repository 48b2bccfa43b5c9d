"""The wire contract: recorded requests of clients, and what clients accept for an answer.

The bodies in the package's contract/examples/recorded are played in the order of their names, on
one plan.
"""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
import pytest

import bss_stream
from bss_stream.frames import OutboxKind, OutboxMessage
from bss_stream.testing import Playground

RECORDED = sorted(
    (Path(bss_stream.__file__).parent / "contract" / "examples" / "recorded").glob("*.json")
)
PLAN_ID = "3f7b2c9e-plan-lome-0042"

SUCCESS_SIGNALS = {
    "SERVICE_COMPLETED",
    "ASSET_RETURNED",
    "ASSET_ALLOCATED",
    "IDEMPOTENT_OPERATION_DETECTED",
    "CUSTOMER_IDENTIFIED_SUCCESS",
    "SERVICE_QUOTA_UPDATED",
    "SERVICE_STATES_INITIALIZED",
    "ODOO_SYNC_SUCCESS",
}
FAILURE_SIGNALS = {
    "BATTERY_MISMATCH",
    "ASSET_VALIDATION_FAILED",
    "SECURITY_ALERT",
    "VALIDATION_FAILED",
    "PAYMENT_FAILED",
    "SERVICE_COMPLETION_FAILED",
    "RATE_LIMIT_EXCEEDED",
    "SERVICE_REJECTED",
}


def succeeded(echo: dict[str, Any], sent_id: str) -> bool | None:
    """What a client in the field takes an echo for; None if it is another request's."""
    received_id = echo["correlation_id"]
    if not (received_id.startswith(sent_id) or sent_id.startswith(received_id)):
        return None
    data = echo["data"]
    signals = set(data["signals"])
    if not data["success"] or signals & FAILURE_SIGNALS:
        return False
    return not signals or bool(signals & SUCCESS_SIGNALS)


def recorded(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def send(play: Playground, request: dict[str, Any]) -> list[OutboxMessage]:
    """Send a request and return the echoes."""
    before = len(play.outbox)
    play.mqtt(request["topic"], request["body"])
    return [message for message in play.outbox[before:] if message.kind is OutboxKind.ECHO]


def body_of(message: OutboxMessage) -> dict[str, Any]:
    body: dict[str, Any] = orjson.loads(message.payload)
    return body


def played_up_to(name: str) -> Playground:
    """A playground on which the recordings before the one with this name have been played."""
    play = Playground()
    for path in RECORDED:
        if path.stem == name:
            return play
        send(play, recorded(path)["request"])
    raise AssertionError(f"no recording is called {name}")


@pytest.mark.parametrize("path", RECORDED, ids=[path.stem for path in RECORDED])
def test_a_client_takes_the_answer_for_a_success(path: Path) -> None:
    document = recorded(path)
    request, expected = document["request"], document["echoes"]
    echoes = send(played_up_to(path.stem), request)

    assert [message.topic for message in echoes] == expected["topics"]
    sent_id = request["body"]["correlation_id"]
    for message in echoes:
        body = body_of(message)
        assert succeeded(body, sent_id) is True
        assert body["data"]["signals"] == expected["signals"]
        assert body["data"]["metadata"]["reason"] == "ok"


@pytest.mark.parametrize("path", RECORDED, ids=[path.stem for path in RECORDED])
def test_a_client_that_repeats_itself_still_succeeds(path: Path) -> None:
    request = recorded(path)["request"]
    play = played_up_to(path.stem)
    send(play, request)
    play.advance(30_000)
    for message in send(play, request):
        assert succeeded(body_of(message), request["body"]["correlation_id"]) is True


@pytest.mark.parametrize("path", RECORDED, ids=[path.stem for path in RECORDED])
def test_the_envelope_and_the_message_are_the_contract_s(path: Path) -> None:
    request = recorded(path)["request"]
    for message in send(played_up_to(path.stem), request):
        assert (message.qos, message.retain, message.expiry_s) == (1, False, 300)
        assert message.correlation == request["body"]["correlation_id"]
        body = body_of(message)
        assert list(body) == ["timestamp", "plan_id", "correlation_id", "actor", "data"]
        assert list(body["data"]) == ["plan_id", "success", "signals", "metadata"]
        assert body["plan_id"] == body["data"]["plan_id"] == PLAN_ID
        assert body["actor"] == {"type": "agent", "id": "bss-agent-v2"}
        assert datetime.fromisoformat(body["timestamp"]).tzinfo is not None


def test_both_topics_of_identify_customer_say_the_same() -> None:
    play = played_up_to("3_identify_customer")
    one, other = send(play, recorded(RECORDED[2])["request"])
    assert one.payload == other.payload


def test_identify_customer_has_the_fields_of_the_contract_and_no_others() -> None:
    play = played_up_to("3_identify_customer")
    metadata = body_of(send(play, recorded(RECORDED[2])["request"])[0])["data"]["metadata"]
    services = [
        ("service-swap-station-network-togo-lome", "Togo Lome Swap Station Network", "access", 1),
        ("service-battery-fleet-togo-lome", "Togo Lome Battery Fleet Access", "battery", 1),
        ("service-electricity-togo-1", "Togo Electricity Service", "kWh", 0.1),
        ("service-swap-count-togo-2", "Togo Swap Count Service", "swaps", 100),
    ]
    quotas = [10_000_000, 10_000_000, 300, 10_000_000]
    assert metadata == {
        "reason": "ok",
        "customer_id": "customer-togo-0042",
        "identification_method": "QR_CODE",
        "service_plan_data": {
            "servicePlanId": PLAN_ID,
            "customerId": "customer-togo-0042",
            "status": "ACTIVE",
            "serviceState": "WAIT_BATTERY_ISSUE",
            "paymentState": "CURRENT",
            "templateId": "template-togo-lome-7day-basic",
            "currency": "XOF",
            "serviceStates": [
                {"service_id": service[0], "used": 0, "quota": quota, "current_asset": None}
                for service, quota in zip(services, quotas, strict=True)
            ],
            "quotaUsed": 0,
            "quotaLimit": 10_000_000,
        },
        "service_bundle": {
            "bundleId": "bundle-togo-basic",
            "name": "Togo Basic Bundle",
            "services": [
                {"serviceId": id, "name": name, "usageUnit": unit, "usageUnitPrice": price}
                for id, name, unit, price in services
            ],
        },
        "common_terms": {
            "serviceDurationDays": 7,
            "billingCycle": "weekly",
            "billingCurrency": "XOF",
        },
    }


def test_the_contract_s_example_of_a_plan() -> None:
    """Of 300 kWh 300 are used, of infinite swaps two, and a battery is out: renewal is due."""
    play = played_up_to("6_swap_with_top_up")
    identified = send(play, recorded(RECORDED[2])["request"])[0]
    plan = body_of(identified)["data"]["metadata"]["service_plan_data"]
    assert (plan["paymentState"], plan["serviceState"]) == ("RENEWAL_DUE", "BATTERY_ISSUED")
    # The platform's example says ACTIVE; our models' status table suspends a used-up plan.
    assert plan["status"] == "SUSPENDED"
    states = {state.pop("service_id"): state for state in plan["serviceStates"]}
    assert states == {
        "service-swap-station-network-togo-lome": {
            "used": 0,
            "quota": 10_000_000,
            "current_asset": None,
        },
        "service-battery-fleet-togo-lome": {
            "used": 0,
            "quota": 10_000_000,
            "current_asset": "B0723025100049",
        },
        "service-electricity-togo-1": {"used": 300, "quota": 300, "current_asset": None},
        "service-swap-count-togo-2": {"used": 2, "quota": 10_000_000, "current_asset": None},
    }


def test_electricity_has_exact_decimals_and_whole_numbers_have_none() -> None:
    play = played_up_to("5_swap")
    [message] = send(play, recorded(RECORDED[4])["request"])
    # 99.75 + 200.25, and not a binary sum of them.
    assert b'"service-electricity-togo-1","used":300,"quota":300,' in message.payload
    [message] = send(play, recorded(RECORDED[5])["request"])
    assert b'"service-electricity-togo-1","used":312.34,"quota":350,' in message.payload


@pytest.mark.parametrize(
    ("template", "currency", "service_id", "wire"),
    [
        ("template-nairobi-swap-freedom", "KES", "service-swap-count-nairobi", b"100000000"),
        ("template-togo-lome-7day-basic", "XOF", "service-swap-count-togo-2", b"10000000"),
    ],
)
def test_an_infinite_quota_is_the_market_s_number(
    template: str, currency: str, service_id: str, wire: bytes
) -> None:
    play = Playground()
    sync = recorded(RECORDED[0])["request"]
    sync["body"]["data"] |= {"template_id": template, "odoo_currency_id": currency}
    send(play, sync)
    [message] = send(play, recorded(RECORDED[1])["request"])
    assert b'"%b","used":0,"quota":%b,' % (service_id.encode(), wire) in message.payload
    # Clients take 100000 and above for infinite.
    assert int(wire) >= 100_000


def test_the_first_paid_sync_generates_the_contract_s_signals() -> None:
    [message] = send(Playground(), recorded(RECORDED[0])["request"])
    assert body_of(message)["data"]["metadata"]["fsm_inputs_generated"] == [
        {"cycle": "payment", "input": "CONTRACT_SIGNED"},
        {"cycle": "payment", "input": "DEPOSIT_PAID"},
        {"cycle": "service", "input": "DEPOSIT_CONFIRMED"},
    ]


def binding(data: dict[str, Any]) -> dict[str, Any]:
    request = recorded(RECORDED[1])["request"]
    request["topic"] = f"emit/uxi/service/plan/{PLAN_ID}/customer_binding"
    request["body"] |= {"correlation_id": "bind-1795500000000", "data": data}
    return dict(request)


def test_a_self_service_swap_speaks_the_topics_of_the_contract() -> None:
    play = played_up_to("5_swap")
    request = binding({"action": "CUSTOMER_BINDING", "location_id": "station-lome-003"})
    assert send(play, request) == []
    access, command = play.outbox[-2:]
    assert (access.kind, access.topic) == (
        OutboxKind.EMIT,
        f"emit/ABS/BSS/{PLAN_ID}/service_access",
    )
    assert (command.kind, command.topic) == (
        OutboxKind.CMD,
        "cmd/ABS/EPS/station-lome-003/allocate",
    )
    assert body_of(command) == {
        "fleet_id": "fleet-lome-standard-45ah",
        "plan_id": PLAN_ID,
        "location_id": "station-lome-003",
        "correlation_id": "bind-1795500000000",
        "returned_asset_id": "B0723025100048",
        "attempt": 1,
        "timestamp": "2026-11-24T06:00:00.000Z",
    }

    answer = {
        "topic": "echo/ABS/EPS/station-lome-003/allocate",
        "body": {
            "asset_id": "B0723025100051",
            "status": "issued",
            "fleet_id": "fleet-lome-standard-45ah",
            "plan_id": PLAN_ID,
            "correlation_id": "bind-1795500000000",
            "returned_asset_id": "B0723025100048",
            "energy_transferred": 2.5,
            "timestamp": "2026-11-24T06:00:00Z",
        },
    }
    [message] = send(play, answer)
    assert message.topic == f"echo/abs/service/plan/{PLAN_ID}/customer_binding"
    body = body_of(message)
    assert succeeded(body, "bind-1795500000000") is True
    named = ("asset_id", "location_id", "fleet_id")
    assert [body["data"]["metadata"][name] for name in named] == [
        "B0723025100051",
        "station-lome-003",
        "fleet-lome-standard-45ah",
    ]


def test_a_top_up_is_announced_on_the_service_s_topic() -> None:
    play = played_up_to("7_service_payment")
    before = len(play.outbox)
    send(play, recorded(RECORDED[6])["request"])
    [announced] = [m for m in play.outbox[before:] if m.kind is OutboxKind.EMIT]
    assert announced.topic == "emit/abs/bss/service/service-electricity-togo-1/topup_applied"
    assert body_of(announced) == {
        "timestamp": "2026-11-24T06:00:00.000Z",
        "plan_id": PLAN_ID,
        "correlation_id": "topup-1795500000000",
        "service_id": "service-electricity-togo-1",
        "payment_reference": "TMONEY-77120043",
        "currency": "XOF",
        "amount": 2,
        "units": 20,
        "quota_before": 350,
        "quota_after": 370,
    }


@pytest.mark.parametrize(
    ("name", "change", "signal", "reason"),
    [
        (
            "5_swap",
            {"service_data": {"old_battery_id": "B1", "new_battery_id": "B2"}},
            "BATTERY_MISMATCH",
            "battery_mismatch",
        ),
        ("5_swap", {"attendant_station": "station-lome-042"}, "SERVICE_REJECTED", None),
        ("5_swap", {"attendant_station": 7}, "VALIDATION_FAILED", "wrong_type"),
        ("4_first_issue", {"service_data": {}}, "VALIDATION_FAILED", "missing_field"),
        ("7_service_payment", {"service_id": "service-x"}, "PAYMENT_FAILED", None),
        ("7_service_payment", {"payment_type": "DEPOSIT"}, "SERVICE_COMPLETION_FAILED", None),
        ("1_odoo_sync", {"odoo_currency_id": "KES"}, "PAYMENT_FAILED", "currency_mismatch"),
    ],
)
def test_a_client_takes_a_refusal_for_a_failure_that_says_why(
    name: str, change: dict[str, Any], signal: str, reason: str | None
) -> None:
    request = recorded(next(path for path in RECORDED if path.stem == name))["request"]
    request["body"]["data"] |= change
    [message] = send(played_up_to(name), request)
    body = body_of(message)
    assert succeeded(body, request["body"]["correlation_id"]) is False
    assert body["data"]["signals"] == [signal]
    metadata = body["data"]["metadata"]
    assert metadata["message"]
    assert reason in (None, metadata["reason"])


def test_a_plan_in_the_body_that_is_not_the_topic_s_is_an_alert() -> None:
    request = recorded(RECORDED[1])["request"]
    request["body"]["plan_id"] = "another-plan"
    [message] = send(played_up_to("2_initialize_states"), request)
    assert body_of(message)["data"]["signals"] == ["SECURITY_ALERT"]


def test_no_signal_that_the_engine_sends_is_unknown_to_clients() -> None:
    play = played_up_to(RECORDED[-1].stem)
    sent = {signal for echo in play.echoes for signal in echo["data"]["signals"]}
    assert sent <= SUCCESS_SIGNALS | FAILURE_SIGNALS
