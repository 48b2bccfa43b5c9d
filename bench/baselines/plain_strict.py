"""The strict reader: says where and why a payload that msgspec refused is unacceptable.

Off the hot path: only payloads that are broken, too deep or of a wrong type come here.
"""

from collections.abc import Callable
from typing import Final, NoReturn

_SPACE: Final = frozenset(b" \n\r\t")
_DIGITS: Final = frozenset(b"0123456789")
_HEX: Final = frozenset(b"0123456789abcdefABCDEF")
_ESCAPES: Final = frozenset(b'"\\/bfnrt')
_BOOLS: Final = frozenset(b"tf")
_EXPONENTS: Final = frozenset(b"eE")
_SIGNS: Final = frozenset(b"+-")

_TOP_TEXTS: Final = ("timestamp", "plan_id", "correlation_id", "asset_id", "status", "reason")
_PLACES: Final = ("location_id", "fleet_id", "returned_asset_id")
_PAYMENT_TEXTS: Final = ("service_id", "payment_reference", "payment_method", "payment_type")
_DATA_TEXTS: Final = (
    "action",
    "attendant_station",
    "qr_code_data",
    "odoo_payment_state",
    "odoo_subscription_state",
    "odoo_currency_id",
    "template_id",
    "customer_id",
)

_FIELDS: Final[dict[str, dict[str, str]]] = {
    "top": {
        **dict.fromkeys((*_TOP_TEXTS, *_PLACES), "text"),
        **dict.fromkeys(("at_ms", "available", "attempt", "energy_transferred"), "number"),
        "actor": "actor",
        "data": "data",
    },
    "actor": {"type": "text", "id": "text"},
    "data": {
        **dict.fromkeys((*_DATA_TEXTS, *_PLACES, *_PAYMENT_TEXTS), "text"),
        **dict.fromkeys(("payment_amount", "odoo_amount_total"), "number"),
        **dict.fromkeys(("odoo_subscription_id", "odoo_invoice_id"), "id"),
        "service_data": "service",
        "payment_data": "payment",
    },
    "service": {
        "old_battery_id": "text",
        "new_battery_id": "text",
        "energy_transferred": "number",
    },
    "payment": {**dict.fromkeys(_PAYMENT_TEXTS, "text"), "payment_amount": "number"},
}
"""By scope: the type of each field that any event reads, or the scope of what is nested in it."""


class RefusedError(Exception):
    """A payload is unacceptable."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


def check(payload: bytes, bytes_max: int, nesting_max: int) -> None:
    """Reads a payload whole. Raises RefusedError if it cannot be a request."""
    if len(payload) > bytes_max:
        detail = f"{len(payload)} bytes: at most {bytes_max} are taken"
        raise RefusedError("payload_too_large", detail)
    try:
        payload.decode()
    except UnicodeDecodeError as error:
        raise RefusedError("invalid_utf8", f"byte {error.start}") from error
    reader = _Reader(payload, nesting_max)
    reader.scope("top")
    reader.end()


class _Reader:
    def __init__(self, text: bytes, nesting_max: int) -> None:
        self._text = text
        self._at = 0
        self._depth = 0
        self._depth_max = nesting_max
        self._given: set[str] = set()
        self._wrong = ""

    def scope(self, name: str) -> None:
        """Reads one of the envelope's objects."""
        fields = _FIELDS[name]
        self._object(lambda key: self._field(fields.get(key), key))

    def end(self) -> None:
        """Makes sure that nothing is left."""
        self._skip_space()
        if self._at != len(self._text):
            self._malformed()

    def _field(self, kind: str | None, key: str) -> None:
        if kind is None:
            self._skip()
        elif self._peek() == "null":
            self._literal()
        elif kind in _FIELDS:
            try:
                self.scope(kind)
            except RefusedError as error:
                raise self._named(error, key) from error
        else:
            if kind == "id":
                kind = "number" if self._peek() == "number" else "text"
            try:
                self._want(kind)
            except RefusedError as error:
                raise self._named(error, key) from error
            self._skip()
            if key in self._given:
                raise RefusedError("malformed_json", "a field is given twice")
            self._given.add(key)

    def _named(self, error: RefusedError, key: str) -> RefusedError:
        """The innermost field of a wrong type gives its name."""
        if error.reason != "wrong_type" or self._wrong:
            return error
        self._wrong = key
        return RefusedError("wrong_type", key)

    def _malformed(self) -> NoReturn:
        raise RefusedError("malformed_json", f"byte {self._at}")

    def _byte(self) -> int:
        return self._text[self._at] if self._at < len(self._text) else -1

    def _skip_space(self) -> None:
        while self._byte() in _SPACE:
            self._at += 1

    def _expect(self, byte: int) -> None:
        if self._byte() != byte:
            self._malformed()
        self._at += 1

    def _peek(self) -> str:
        self._skip_space()
        byte = self._byte()
        if byte == ord("-") or byte in _DIGITS:
            return "number"
        kinds = {ord("{"): "object", ord("["): "array", ord('"'): "text", ord("n"): "null"}
        if byte in kinds:
            return kinds[byte]
        if byte not in _BOOLS:
            self._malformed()
        return "bool"

    def _want(self, kind: str) -> None:
        if self._peek() != kind:
            raise RefusedError("wrong_type", f"byte {self._at}")

    def _descend(self) -> None:
        self._depth += 1
        if self._depth > self._depth_max:
            raise RefusedError("nesting_too_deep", f"byte {self._at}")
        self._at += 1

    def _object(self, field: Callable[[str], None]) -> None:
        self._want("object")

        def member() -> None:
            self._skip_space()
            if self._byte() != ord('"'):
                self._malformed()
            key = self._string()
            self._skip_space()
            self._expect(ord(":"))
            field(key)

        self._members(ord("}"), member)

    def _members(self, closing: int, member: Callable[[], None]) -> None:
        self._descend()
        self._skip_space()
        if self._byte() != closing:
            while True:
                member()
                self._skip_space()
                if self._byte() == closing:
                    break
                self._expect(ord(","))
        self._at += 1
        self._depth -= 1

    def _skip(self) -> None:
        kind = self._peek()
        if kind == "object":
            self._object(lambda _: self._skip())
        elif kind == "array":
            self._members(ord("]"), self._skip)
        elif kind == "text":
            self._string()
        elif kind == "number":
            self._number()
        else:
            self._literal()

    def _string(self) -> str:
        self._at += 1
        start = self._at
        while (byte := self._byte()) != ord('"'):
            if byte < 0x20:
                self._malformed()
            self._at += 1
            if byte == ord("\\"):
                self._escape()
        self._at += 1
        return self._text[start : self._at - 1].decode()

    def _escape(self) -> None:
        byte = self._byte()
        if byte == -1:
            self._malformed()
        self._at += 1
        if byte == ord("u"):
            for _ in range(4):
                if self._byte() not in _HEX:
                    self._malformed()
                self._at += 1
        elif byte not in _ESCAPES:
            self._malformed()

    def _number(self) -> None:
        if self._byte() == ord("-"):
            self._at += 1
        if self._byte() == ord("0"):
            self._at += 1
        else:
            self._digits()
        if self._byte() == ord("."):
            self._at += 1
            self._digits()
        if self._byte() in _EXPONENTS:
            self._at += 1
            if self._byte() in _SIGNS:
                self._at += 1
            self._digits()

    def _digits(self) -> None:
        start = self._at
        while self._byte() in _DIGITS:
            self._at += 1
        if self._at == start:
            self._malformed()

    def _literal(self) -> None:
        for word in (b"true", b"false", b"null"):
            if self._text.startswith(word, self._at):
                self._at += len(word)
                return
        self._malformed()
