"""The bytes of every message that riders, attendants, Odoo and ARM send (the wire contract).

Every value that goes in is an id of [A-Za-z0-9._:@-], a whole number or a decimal made here, so
nothing needs escaping and one `%` fills a body: under a microsecond instead of a tree of objects.
"""

import time
from typing import Final, Literal

from bss_stream.setup.exact import text
from bss_stream.simulate.arm import Answer, StockReport

PaymentType = Literal["DEPOSIT", "TOP_UP"]

_ENVELOPE: Final = (
    b'{"timestamp":"%b","plan_id":"%b","correlation_id":"%b",'
    b'"actor":{"type":"%b","id":"%b"},"data":{%b}}'
)
_SYNC: Final = (
    b'"action":"SYNC_ODOO_SUBSCRIPTION","odoo_subscription_id":%d,"odoo_invoice_id":%d,'
    b'"odoo_payment_state":"paid","odoo_subscription_state":"%b","odoo_currency_id":"%b",'
    b'"odoo_amount_total":%b,"template_id":"%b","customer_id":"%b"'
)
_INITIALIZE: Final = b'"action":"INITIALIZE_SERVICE_STATES"'
_IDENTIFY: Final = b'"action":"IDENTIFY_CUSTOMER","qr_code_data":"%b","attendant_station":"%b"'
_SERVICE: Final = (
    b'"action":"REPORT_PAYMENT_AND_SERVICE_COMPLETION","attendant_station":"%b",'
    b'"service_data":{%b%b"energy_transferred":%b,"service_duration":%d}%b'
)
_PAYMENT_FIELDS: Final = (
    b'"service_id":"%b","payment_amount":%b,"payment_reference":"%b",'
    b'"payment_method":"MPESA","payment_type":"%b"'
)
_BINDING: Final = b'"action":"CUSTOMER_BINDING","location_id":"%b","fleet_id":"%b"%b'
_STOCK: Final = (
    b'{"timestamp":"%b","correlation_id":"%b","fleet_id":"%b","available":%d,'
    b'"actor":{"type":"system","id":"arm-simulator"}}'
)
_ISSUED: Final = (
    b'{"timestamp":"%b","correlation_id":"%b","plan_id":"%b","fleet_id":"%b",'
    b'"status":"issued","asset_id":"%b"%b,"energy_transferred":%b}'
)
_DENIED: Final = (
    b'{"timestamp":"%b","correlation_id":"%b","plan_id":"%b","fleet_id":"%b",'
    b'"status":"denied","reason":"%b"}'
)


class Stamp:
    """RFC 3339 timestamps in UTC with milliseconds; the text of the last second is kept."""

    __slots__ = ("_prefix", "_second")

    def __init__(self) -> None:
        self._second = -1
        self._prefix = b""

    def __call__(self, wall_ms: int) -> bytes:
        """The timestamp of an epoch ms."""
        second, millis = divmod(wall_ms, 1000)
        if second != self._second:
            self._second = second
            self._prefix = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)).encode()
        return b"%b.%03dZ" % (self._prefix, millis)


def kwh(steps: int) -> bytes:
    """Hundredths of a kWh as the wire's decimal."""
    return b"%d.%02d" % divmod(steps, 100)


def money(amount_minor: int, digits: int) -> bytes:
    """Minor units as a decimal in currency units."""
    return text(amount_minor, digits).encode()


def envelope(
    stamp: bytes, plan_id: bytes, correlation: bytes, actor: bytes, actor_id: bytes, data: bytes
) -> bytes:
    """A request; `data` is what stands between the braces."""
    return _ENVELOPE % (stamp, plan_id, correlation, actor, actor_id, data)


def sync(
    subscription: int,
    invoice: int,
    state: bytes,
    currency: bytes,
    amount: bytes,
    template: bytes,
    customer: bytes,
) -> bytes:
    """Odoo tells of a paid invoice, and of what the subscription is now."""
    return _SYNC % (subscription, invoice, state, currency, amount, template, customer)


def initialize() -> bytes:
    """The first use of a plan asks for its service states."""
    return _INITIALIZE


def identify(customer: bytes, station: bytes) -> bytes:
    """An attendant scans the rider's QR code."""
    return _IDENTIFY % (customer, station)


def service(
    station: bytes,
    old: bytes | None,
    new: bytes | None,
    energy_steps: int,
    duration_s: int,
    payment: bytes | None = None,
) -> bytes:
    """An attendant reports a return, an issue or both; `payment` comes from `payment_fields`."""
    return _SERVICE % (
        station,
        b'"old_battery_id":"%b",' % old if old is not None else b"",
        b'"new_battery_id":"%b",' % new if new is not None else b"",
        kwh(energy_steps),
        duration_s,
        b',"payment_data":{%b}' % payment if payment is not None else b"",
    )


def payment_fields(service_id: bytes, amount: bytes, reference: bytes, kind: PaymentType) -> bytes:
    """A payment for one service: inside payment_data, or a service_payment of its own."""
    return _PAYMENT_FIELDS % (service_id, amount, reference, kind.encode())


def service_payment(fields: bytes) -> bytes:
    """A payment that comes without a swap."""
    return b'"action":"SERVICE_PAYMENT",' + fields


def binding(location: bytes, fleet: bytes, returned: bytes | None) -> bytes:
    """A rider checks in at a self-service station."""
    back = b',"returned_asset_id":"%b"' % returned if returned is not None else b""
    return _BINDING % (location, fleet, back)


def stock(stamp: bytes, correlation: bytes, report: StockReport) -> bytes:
    """A station says what lies on a shelf."""
    return _STOCK % (stamp, correlation, report.fleet_id.encode(), report.available)


def answer(stamp: bytes, given: Answer) -> bytes:
    """ARM's answer to an allocate command."""
    head = (stamp, given.correlation_id.encode(), given.plan_id.encode(), given.fleet_id.encode())
    if given.asset_id is None:
        return _DENIED % (*head, (given.reason or "denied").encode())
    returned = given.returned_asset_id
    back = b',"returned_asset_id":"%b"' % returned.encode() if returned is not None else b""
    return _ISSUED % (*head, given.asset_id.encode(), back, kwh(given.energy_steps))
