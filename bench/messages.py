"""The bytes of the signal records that a city's apps, attendants, Odoo and ARM cause.

Payloads are the wire contract's, with the fields and the lengths that clients in the field send.
"""

import time
from typing import NamedTuple

from bss_stream import frames, topics
from bss_stream.frames import Signal

_SERVICE = "emit/uxi/service/plan/%s/%s"
_ATTENDANT = "emit/uxi/attendant/plan/%s/%s"


class Message(NamedTuple):
    """One record of a signals topic before it has a place in the log."""

    topic: str
    key: str
    event: str
    correlation: str
    source: str
    """The MQTT topic."""
    payload: bytes

    def record(self, received_ms: int) -> bytes:
        """The record value, as the bridge makes it on receipt."""
        signal = Signal(self.event, received_ms, self.correlation, self.source, self.payload)
        return frames.encode_signal(signal)


def stamp(at_ms: int) -> str:
    """An epoch ms as RFC 3339."""
    second, ms = divmod(at_ms, 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(second))}.{ms:03d}Z"


def _request(
    source: str, plan_id: str, event: str, at_ms: int, correlation: str, actor: str, data: str
) -> Message:
    payload = (
        f'{{"timestamp":"{stamp(at_ms)}","plan_id":"{plan_id}","correlation_id":"{correlation}",'
        f'"actor":{{"type":"{actor}","id":"{actor}-{plan_id[-4:]}"}},"data":{{{data}}}}}'
    )
    return Message(
        topics.SIGNALS_PLAN, plan_id, event, correlation, source % plan_id, payload.encode()
    )


def sync(
    plan_id: str,
    at_ms: int,
    correlation: str,
    *,
    subscription: int,
    invoice: int,
    currency: str,
    amount: str,
    template: str,
) -> Message:
    """Odoo tells of a running subscription and a paid invoice."""
    data = (
        f'"action":"SYNC_ODOO_SUBSCRIPTION","odoo_subscription_id":{subscription},'
        f'"odoo_invoice_id":{invoice},"odoo_payment_state":"paid",'
        f'"odoo_subscription_state":"in_progress","odoo_currency_id":"{currency}",'
        f'"odoo_amount_total":{amount},"template_id":"{template}",'
        f'"customer_id":"customer-{subscription:07d}"'
    )
    source = "emit/odo/subscription/plan/%s/sync"
    return _request(source, plan_id, "odoo_sync", at_ms, correlation, "system", data)


def initialize(plan_id: str, at_ms: int, correlation: str) -> Message:
    """The app asks for the plan's first quotas."""
    source = _SERVICE % ("%s", "initialize_states")
    data = '"action":"INITIALIZE_SERVICE_STATES"'
    return _request(source, plan_id, "initialize_states", at_ms, correlation, "customer", data)


def identify(plan_id: str, at_ms: int, correlation: str, station: str) -> Message:
    """An attendant scans the rider's code."""
    source = _ATTENDANT % ("%s", "identify_customer")
    data = (
        f'"action":"IDENTIFY_CUSTOMER","qr_code_data":"QR:{plan_id}",'
        f'"attendant_station":"{station}"'
    )
    return _request(source, plan_id, "identify_customer", at_ms, correlation, "attendant", data)


def payment(service_id: str, amount: str, reference: str) -> str:
    """The fields of a top-up: inside payment_data, or of a service_payment."""
    return (
        f'"service_id":"{service_id}","payment_amount":{amount},'
        f'"payment_reference":"{reference}","payment_method":"MPESA","payment_type":"TOP_UP"'
    )


def service(
    plan_id: str,
    at_ms: int,
    correlation: str,
    *,
    station: str,
    old: str | None,
    new: str,
    kwh: str,
    paid: str | None = None,
) -> Message:
    """An attendant reports a first issue or a swap, `paid` for by a top-up or by the quota."""
    source = _ATTENDANT % ("%s", "payment_and_service")
    returned = f'"old_battery_id":"{old}",' if old is not None else ""
    payment_data = f',"payment_data":{{{paid}}}' if paid is not None else ""
    data = (
        f'"action":"REPORT_PAYMENT_AND_SERVICE_COMPLETION","attendant_station":"{station}",'
        f'"service_data":{{{returned}"new_battery_id":"{new}","energy_transferred":{kwh},'
        f'"service_duration":240}}{payment_data}'
    )
    return _request(source, plan_id, "payment_and_service", at_ms, correlation, "attendant", data)


def service_payment(plan_id: str, at_ms: int, correlation: str, paid: str) -> Message:
    """A payment for one service that comes without a swap."""
    source = "emit/abs/bss/payment/%s/service_payment"
    data = f'"action":"SERVICE_PAYMENT",{paid}'
    return _request(source, plan_id, "service_payment", at_ms, correlation, "system", data)


def binding(
    plan_id: str, at_ms: int, correlation: str, station: str, fleet: str, returned: str
) -> Message:
    """A rider asks a self-service station for a battery."""
    source = _SERVICE % ("%s", "customer_binding")
    data = (
        f'"action":"CUSTOMER_BINDING","location_id":"{station}","fleet_id":"{fleet}",'
        f'"returned_asset_id":"{returned}"'
    )
    return _request(source, plan_id, "customer_binding", at_ms, correlation, "customer", data)


def stock(station: str, at_ms: int, correlation: str, fleet: str, available: int) -> Message:
    """ARM says what lies on a shelf."""
    payload = (
        f'{{"timestamp":"{stamp(at_ms)}","correlation_id":"{correlation}",'
        f'"fleet_id":"{fleet}","available":{available}}}'
    )
    source = f"emit/arm/station/{station}/stock"
    return Message(
        topics.SIGNALS_STATION, station, "station_stock", correlation, source, payload.encode()
    )


def answer(station: str, at_ms: int, correlation: str, fields: str) -> Message:
    """ARM answers an allocation; `fields` is what stands behind the correlation id."""
    payload = f'{{"timestamp":"{stamp(at_ms)}","correlation_id":"{correlation}",{fields}}}'
    source = f"echo/ABS/EPS/{station}/allocate"
    return Message(
        topics.SIGNALS_STATION, station, "arm_allocate", correlation, source, payload.encode()
    )
