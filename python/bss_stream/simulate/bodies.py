"""The bodies that riders, attendants, Odoo and ARM send, out of what the simulation counts in."""

import time
from decimal import Decimal

from msgspec import UNSET, Struct

from bss_stream.contract.requests import Actor, ArmAnswer, PlanRequest, StationStock, encode
from bss_stream.simulate.arm import Answer, StockReport

_ARM = Actor(type="system", id="arm-simulator")


class Stamp:
    """RFC 3339 timestamps in UTC with milliseconds; the text of the last second is kept."""

    __slots__ = ("_prefix", "_second")

    def __init__(self) -> None:
        self._second = -1
        self._prefix = ""

    def __call__(self, wall_ms: int) -> str:
        """The timestamp of an epoch ms."""
        second, millis = divmod(wall_ms, 1000)
        if second != self._second:
            self._second = second
            self._prefix = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._prefix}.{millis:03d}Z"


def kwh(steps: int) -> Decimal:
    """Hundredths of a kWh."""
    return Decimal(steps).scaleb(-2)


def money(amount_minor: int, digits: int) -> Decimal:
    """Minor units in currency units."""
    return Decimal(amount_minor).scaleb(-digits)


def request(stamp: str, plan_id: str, correlation: str, actor: Actor, data: Struct) -> bytes:
    """What is asked of a plan."""
    return encode(
        PlanRequest(
            timestamp=stamp,
            plan_id=plan_id,
            correlation_id=correlation,
            actor=actor,
            data=data,
        )
    )


def stock(stamp: str, correlation: str, report: StockReport) -> bytes:
    """A station says what lies on a shelf."""
    return encode(
        StationStock(
            timestamp=stamp,
            correlation_id=correlation,
            fleet_id=report.fleet_id,
            available=report.available,
            actor=_ARM,
        )
    )


def answer(stamp: str, given: Answer) -> bytes:
    """ARM's answer to an allocate command."""
    issued = given.asset_id is not None
    return encode(
        ArmAnswer(
            timestamp=stamp,
            correlation_id=given.correlation_id,
            plan_id=given.plan_id,
            fleet_id=given.fleet_id,
            status="issued" if issued else "denied",
            asset_id=given.asset_id or UNSET,
            returned_asset_id=given.returned_asset_id or UNSET,
            energy_transferred=kwh(given.energy_steps) if issued else UNSET,
            reason=UNSET if issued else given.reason or "denied",
        )
    )
