"""The baseline's words on the wire: requests as msgspec reads them, times, numbers, texts.

Numbers stay raw bytes until somebody knows their unit; texts that repeat (energies, minutes) are
worked out once and remembered.
"""

import re
import time
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Final

import msgspec
from msgspec import Raw, Struct

Text = str | None
NONE: Final = Raw()
"""A number that is not there."""


class Actor(Struct, gc=False):
    """Who asks."""

    type: Text = None
    id: Text = None


class ServiceData(Struct, gc=False):
    """What an attendant did."""

    old_battery_id: Text = None
    new_battery_id: Text = None
    energy_transferred: Raw = NONE


class PaymentData(Struct, gc=False):
    """A payment inside payment_data."""

    service_id: Text = None
    payment_amount: Raw = NONE
    payment_reference: Text = None
    payment_method: Text = None
    payment_type: Text = None


class AttendantData(Struct, gc=False):
    """`data` of payment_and_service and of identify_customer."""

    action: Text = None
    attendant_station: Text = None
    qr_code_data: Text = None
    service_data: ServiceData | None = None
    payment_data: PaymentData | None = None


class BindingData(Struct, gc=False):
    """`data` of customer_binding."""

    action: Text = None
    location_id: Text = None
    fleet_id: Text = None
    returned_asset_id: Text = None


class OdooData(Struct, gc=False):
    """`data` of odoo_sync."""

    action: Text = None
    odoo_subscription_id: int | str | None = None
    odoo_invoice_id: int | str | None = None
    odoo_payment_state: Text = None
    odoo_subscription_state: Text = None
    odoo_currency_id: Text = None
    odoo_amount_total: Raw = NONE
    template_id: Text = None
    customer_id: Text = None


class PaidData(PaymentData, gc=False):
    """`data` of service_payment and of initialize_states."""

    action: Text = None


class AttendantRequest(Struct, gc=False):
    """payment_and_service, identify_customer."""

    timestamp: Text = None
    plan_id: Text = None
    correlation_id: Text = None
    actor: Actor | None = None
    data: AttendantData | None = None


class BindingRequest(Struct, gc=False):
    """customer_binding."""

    timestamp: Text = None
    plan_id: Text = None
    correlation_id: Text = None
    actor: Actor | None = None
    data: BindingData | None = None


class OdooRequest(Struct, gc=False):
    """odoo_sync."""

    timestamp: Text = None
    plan_id: Text = None
    correlation_id: Text = None
    actor: Actor | None = None
    data: OdooData | None = None


class PaidRequest(Struct, gc=False):
    """service_payment, initialize_states."""

    timestamp: Text = None
    plan_id: Text = None
    correlation_id: Text = None
    actor: Actor | None = None
    data: PaidData | None = None


class Internal(Struct, gc=False):
    """What entities send each other, and what ARM says."""

    timestamp: Text = None
    at_ms: int | None = None
    plan_id: Text = None
    correlation_id: Text = None
    location_id: Text = None
    fleet_id: Text = None
    asset_id: Text = None
    returned_asset_id: Text = None
    status: Text = None
    reason: Text = None
    energy_transferred: Raw = NONE
    available: int | None = None
    attempt: int | None = None


Request = AttendantRequest | BindingRequest | OdooRequest | PaidRequest

read_attendant = msgspec.json.Decoder(AttendantRequest).decode
read_binding = msgspec.json.Decoder(BindingRequest).decode
read_odoo = msgspec.json.Decoder(OdooRequest).decode
read_paid = msgspec.json.Decoder(PaidRequest).decode
read_internal = msgspec.json.Decoder(Internal).decode

SECONDS: Final = {f"{n // 1000:02d}.{n % 1000:03d}Z": n for n in range(60_000)}
"""The last seven characters of a timestamp in UTC with milliseconds: to ms in the minute."""

SECOND_TEXTS: Final = list(SECONDS)

FRACTIONS: Final = ["" if n == 0 else "." + f"{n:03d}".rstrip("0") for n in range(1000)]
"""Thousandths without trailing zeros."""

_RFC3339: Final = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d+))?(?:[Zz]|([+-])(\d\d):(\d\d))"
)
_CLEAN_ID: Final = re.compile(r"[A-Za-z0-9._:@-]{1,64}")


class Minutes(dict[str, int]):
    """`2026-11-24T06:00:` to epoch ms, worked out once each."""

    def __missing__(self, prefix: str) -> int:
        if len(prefix) != 17 or prefix[10] != "T" or prefix[16] != ":":
            raise KeyError(prefix)
        at = datetime.strptime(prefix, "%Y-%m-%dT%H:%M:").replace(tzinfo=UTC)
        self[prefix] = at_ms = int(at.timestamp()) * 1000
        return at_ms


class MinuteTexts(dict[int, str]):
    """Minutes since 1970 to `2026-11-24T06:00:`, worked out once each."""

    def __missing__(self, minute: int) -> str:
        self[minute] = made = time.strftime("%Y-%m-%dT%H:%M:", time.gmtime(minute * 60))
        return made


MINUTES: Final = Minutes()
MINUTE_TEXTS: Final = MinuteTexts()


def rfc3339(at_ms: int) -> str:
    """An epoch ms as text."""
    minute, ms = divmod(at_ms, 60_000)
    return MINUTE_TEXTS[minute] + SECOND_TEXTS[ms]


def epoch_ms(stamp: str) -> int | None:
    """Any RFC 3339 text as epoch ms, finer fractions cut."""
    ms_in_minute = SECONDS.get(stamp[17:])
    if ms_in_minute is not None and stamp[:17] in MINUTES:
        return MINUTES[stamp[:17]] + ms_in_minute
    match = _RFC3339.fullmatch(stamp)
    if match is None or not stamp.isascii():
        return None
    date, clock, fraction, sign, hours, minutes = match.groups()
    try:
        at = datetime.fromisoformat(f"{date}T{clock}+00:00")
    except ValueError:
        return None
    cut_ms = int(((fraction or "") + "000")[:3])
    offset = (int(hours) * 60 + int(minutes)) * 60_000 if sign else 0
    return int(at.timestamp()) * 1000 + cut_ms - (-offset if sign == "-" else offset)


def units(raw: bytes, digits: int) -> int | None:
    """A JSON number in units of 10^-digits, exactly; None if it is none or no whole number."""
    try:
        value = Decimal(raw.decode()).scaleb(digits)
    except InvalidOperation:
        return None
    whole = int(value)
    return whole if whole == value and -(1 << 63) <= whole < 1 << 63 else None


def given(raw: Raw) -> bytes | None:
    """A raw number's text, or None where there is none."""
    value = bytes(raw)
    return None if value in (b"", b"null") else value


def decimal(value: int, digits: int) -> str:
    """Units of 10^-digits as a JSON number without trailing zeros."""
    if digits == 0:
        return str(value)
    if digits == 3 and value >= 0:
        whole, rest = divmod(value, 1000)
        return f"{whole}{FRACTIONS[rest]}"
    whole, rest = divmod(abs(value), 10**digits)
    fraction = f".{rest:0{digits}d}".rstrip("0").rstrip(".") if rest else ""
    return f"{'-' if value < 0 else ''}{whole}{fraction}"


def is_clean_id(text: str) -> bool:
    """Whether a text can be an id."""
    return _CLEAN_ID.fullmatch(text) is not None


def is_clean_text(text: str) -> bool:
    """Whether a text can be a correlation id."""
    if len(text) > 128 or (not text.isascii() and len(text.encode()) > 128):
        return False
    return text.isprintable() or not any(_is_control(c) for c in text)


def _is_control(c: str) -> bool:
    return c < " " or "\x7f" <= c <= "\x9f"


def header(text: str) -> str:
    """A text as a frame's header takes it."""
    return text if text.isprintable() else "".join(c for c in text if not _is_control(c))


_NAMED: Final = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def escaped(text: str) -> str:
    """A text as it stands between the quotes of a JSON string."""
    if text.isprintable() and '"' not in text and "\\" not in text:
        return text
    return "".join(_NAMED.get(c) or (f"\\u{ord(c):04x}" if c < " " else c) for c in text)


def signal_id_fnv(name: str, *parts: str) -> bytes:
    """The engine's 64-bit id of a signal: FNV-1a over the parts, then mixed."""
    value = 0xCBF29CE484222325
    for part in (name, *parts):
        for byte in part.encode() + b"\xff":
            value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    value ^= value >> 32
    value = value * 0xD6E8FEB86659FD93 & 0xFFFFFFFFFFFFFFFF
    return (value ^ value >> 32).to_bytes(8, "little")


def partition_for(key: bytes, partitions: int) -> int:
    """Kafka's default partitioner."""
    size = len(key)
    m = 0x5BD1E995
    h = 0x9747B28C ^ size
    for at in range(0, size - 3, 4):
        k = int.from_bytes(key[at : at + 4], "little") * m & 0xFFFFFFFF
        k = (k ^ k >> 24) * m & 0xFFFFFFFF
        h = (h * m & 0xFFFFFFFF) ^ k
    if size & 3:
        h = (h ^ int.from_bytes(key[size & ~3 :], "little")) * m & 0xFFFFFFFF
    h = (h ^ h >> 13) * m & 0xFFFFFFFF
    return ((h ^ h >> 15) & 0x7FFFFFFF) % partitions
