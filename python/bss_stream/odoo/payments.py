"""What Odoo knows of payments: its invoices, and which of them the ledgers have as payments.

The ledgers' side is read in Odoo as well, where each of their payments is a record: so nothing is
kept here, and what has not arrived there yet counts as not applied.
"""

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final, NamedTuple

from bss_stream.errors import OdooAccessError, OdooRefusedError
from bss_stream.odoo.billing import Kind, Measures, UnmappableError
from bss_stream.odoo.client import OdooClient
from bss_stream.odoo.config import Odoo
from bss_stream.odoo.upsert import targets

PAID: Final = "paid"
INVOICES_MAX: Final = 200
"""Read at once."""

_ROUNDED: Final = Decimal("0.000001")
"""A binary float that stands for a decimal of few digits is no further from it."""

Domain = Sequence[Sequence[object]]


class Invoice(NamedTuple):
    """One invoice of a subscription."""

    row: int
    """Odoo's database id."""
    id: str
    plan_id: str
    subscription_id: str
    subscription_state: str
    payment_state: str
    amount: Decimal
    currency: str

    @property
    def payment_id(self) -> str:
        """What the ledgers call the payment that an invoice's sync brings."""
        return f"odoo:{self.subscription_id}:invoice:{self.id}"


class Line(NamedTuple):
    """A payment of the ledgers, as Odoo has it."""

    plan_id: str
    payment_id: str

    @property
    def names_no_invoice(self) -> bool:
        """Whether it came by a sync that did not say which invoice was paid."""
        return self.payment_id.startswith("odoo:") and ":invoice:" not in self.payment_id


class Payments:
    """Reads invoices, and payments of the ledgers, of one Odoo."""

    def __init__(self, client: OdooClient, config: Odoo) -> None:
        self._client = client
        self._invoices: Mapping[Any, str] = config.invoice.fields
        self._model = config.invoice.model
        self._lines = targets(config)[Kind.PAYMENT]

    def invoice_field(self, name: str) -> str:
        """What a field of an invoice is called there."""
        return self._invoices[name]

    async def check(self) -> None:
        """Raise OdooAccessError where the model of invoices is not what is configured."""
        try:
            fields = await self._client.call(self._model, "fields_get", attributes=["type"])
        except OdooRefusedError as error:
            raise OdooAccessError(f"odoo.invoice.model: {self._model}: {error}") from error
        missing = [
            f"odoo.invoice.fields.{ours}: {self._model}.{name} is not there"
            for ours, name in self._invoices.items()
            if name not in fields
        ]
        if missing:
            raise OdooAccessError(
                "Odoo is not set up for this (docs/odoo.md): " + "; ".join(missing)
            )

    async def invoices(self, domain: Domain, *, order: str, limit: int) -> list[Invoice]:
        """Invoices that a domain of Odoo's own field names takes."""
        rows = await self._client.call(
            self._model,
            "search_read",
            domain=domain,
            fields=sorted(set(self._invoices.values())),
            order=order,
            limit=limit,
        )
        return [self._invoice(row) for row in rows]

    def _invoice(self, row: Mapping[str, Any]) -> Invoice:
        told = {name: _text(row[field]) for name, field in self._invoices.items()}
        return Invoice(
            row["id"],
            told["id"],
            told["plan_id"],
            told["subscription_id"],
            told["subscription_state"],
            told["payment_state"],
            Decimal(told["amount"] or 0),
            told["currency"],
        )

    async def with_ids(self, payment_ids: Iterable[str]) -> list[Line]:
        """The ledgers' payments with these ids."""
        return await self._read([[self._lines.fields["payment_id"], "in", sorted(payment_ids)]])

    async def from_odoo(self, plan_ids: Iterable[str]) -> list[Line]:
        """The ledgers' payments of these plans that Odoo's syncs have brought."""
        fields = self._lines.fields
        plans = [fields["plan_id"], "in", sorted(plan_ids)]
        return await self._read([plans, [fields["payment_id"], "=like", "odoo:%"]])

    async def _read(self, domain: Domain) -> list[Line]:
        plan, payment = self._lines.fields["plan_id"], self._lines.fields["payment_id"]
        rows = await self._client.call(
            self._lines.model, "search_read", domain=domain, fields=[plan, payment]
        )
        return [Line(_text(row[plan]), _text(row[payment])) for row in rows]


def _text(value: object) -> str:
    """A field's value: Odoo says False for nothing, and id and name for a related record."""
    if value is False or value is None:
        return ""
    if isinstance(value, list):
        return str(value[1])
    return str(value)


def exact(amount: Decimal, currency: str, measures: Measures) -> str:
    """An amount as the decimal that Odoo's float stands for.

    Raises UnmappableError for one that the currency cannot have.
    """
    digits, _ = measures.currency(currency)
    rounded = amount.quantize(Decimal(1).scaleb(-digits))
    if abs(rounded - amount) > _ROUNDED:
        raise UnmappableError(f"amount {amount}: {currency} has {digits} decimals")
    return str(rounded)
