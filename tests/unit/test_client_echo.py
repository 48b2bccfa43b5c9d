"""Echoes are read as the clients in the field read them."""

import json
from typing import Any

import msgspec
import pytest

from bss_stream.client.echo import Echo, read_echo


def echo(success: bool, signals: list[str], **metadata: Any) -> Echo:
    body = {
        "timestamp": "2026-11-24T12:00:00.007Z",
        "plan_id": "plan-1",
        "correlation_id": "c-1",
        "actor": {"type": "agent", "id": "bss-agent-v2"},
        "data": {"plan_id": "plan-1", "success": success, "signals": signals, "metadata": metadata},
    }
    return read_echo(json.dumps(body).encode())


@pytest.mark.parametrize(
    ("success", "signals", "reason", "outcome"),
    [
        (True, ["ASSET_RETURNED", "SERVICE_COMPLETED"], "ok", "ok"),
        (True, [], None, "ok"),
        (True, ["IDEMPOTENT_OPERATION_DETECTED"], "duplicate", "duplicate"),
        (False, ["RATE_LIMIT_EXCEEDED"], "rate_limited", "rate_limited"),
        # Clients take this for a failure, whatever `success` says.
        (True, ["BATTERY_MISMATCH"], "ok", "contradiction"),
        (False, ["SERVICE_REJECTED"], "ok", "contradiction"),
        (False, ["SERVICE_REJECTED"], None, "contradiction"),
    ],
)
def test_the_outcome(success: bool, signals: list[str], reason: str | None, outcome: str) -> None:
    assert echo(success, signals, reason=reason).reason() == outcome


def test_a_repeat_of_a_failure_is_no_success() -> None:
    reason = "quota_exhausted"
    repeated = echo(False, ["SERVICE_REJECTED"], reason=reason, first_reason=reason)
    assert (repeated.reason(), repeated.succeeded(), repeated.is_repeat()) == (reason, False, True)
    assert not echo(False, ["SERVICE_REJECTED"], reason=reason).is_repeat()


def test_service_states_are_read() -> None:
    states = [{"service_id": "s", "used": 344.5, "quota": 400, "current_asset": "B0723025100049"}]
    plan = {"paymentState": "RENEWAL_DUE", "serviceStates": states}
    told = echo(True, [], service_plan_data=plan).data.metadata.service_plan_data
    assert told is not None
    assert told.payment_state == "RENEWAL_DUE"
    assert told.service_states[0].used == 344.5


@pytest.mark.parametrize("payload", [b"", b"{", b'{"correlation_id":"c"}', b"[]"])
def test_what_is_no_echo_is_refused(payload: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        read_echo(payload)
