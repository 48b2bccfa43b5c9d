"""How Odoo is reached, and what records and fields are called there: installations differ."""

from typing import Annotated, Literal, get_args

from msgspec import Meta, Struct, field

ModelName = Annotated[
    str,
    Meta(pattern=r"^[a-z][a-z0-9_.]{0,63}\Z", description='a technical name such as "sale.order"'),
]
FieldName = Annotated[
    str,
    Meta(pattern=r"^[a-z][a-z0-9_]{0,62}\Z", description='a technical name such as "x_plan_id"'),
]
KeyField = Annotated[
    str,
    Meta(
        pattern=r"^([a-z][a-z0-9_]{0,62})?\Z",
        description='a technical name such as "client_order_ref", or nothing',
    ),
]
Text = Annotated[str, Meta(min_length=1, description="text")]
File = Annotated[str, Meta(min_length=1, description="a path")]

SubscriptionField = Literal[
    "plan_id",
    "template_id",
    "customer_id",
    "status",
    "payment_state",
    "service_state",
    "period_end",
]
PaymentField = Literal[
    "name",
    "plan_id",
    "seq",
    "kind",
    "service_id",
    "payment_id",
    "money",
    "amount",
    "amount_minor",
    "currency",
    "day",
    "event_at",
]
UsageField = Literal[
    "name",
    "plan_id",
    "seq",
    "kind",
    "service_id",
    "units",
    "used",
    "granted",
    "unit",
    "day",
    "event_at",
]
InvoiceField = Literal[
    "id",
    "plan_id",
    "subscription_id",
    "subscription_state",
    "payment_state",
    "amount",
    "currency",
    "changed_at",
]


class Subscription(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a plan's life cycle is written."""

    model: ModelName = "sale.order"
    key: KeyField = "client_order_ref"
    """The field that holds the plan's id: only records that are there are written. Empty: records
    are made, and found again by their external id."""
    fields: dict[SubscriptionField, FieldName] = field(
        default_factory=lambda: {
            "status": "x_bss_status",
            "payment_state": "x_bss_payment_state",
            "service_state": "x_bss_service_state",
            "period_end": "x_bss_period_end",
        }
    )
    """What is written, and the field's name in Odoo."""


class Payment(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where each entry of the payment ledger that moves money is written."""

    model: ModelName = "x_bss_payment"
    fields: dict[PaymentField, FieldName] = field(
        default_factory=lambda: {name: f"x_{name}" for name in get_args(PaymentField)}
    )
    """What is written, and the field's name in Odoo. `plan_id` and `payment_id` must be among
    them: payments are matched by these."""


class Usage(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where each entry of the service ledger that grants or uses units is written."""

    model: ModelName = "x_bss_usage"
    fields: dict[UsageField, FieldName] = field(
        default_factory=lambda: {name: f"x_{name}" for name in get_args(UsageField)}
    )
    """What is written, and the field's name in Odoo."""


class Invoice(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where invoices and their payment states are read."""

    model: ModelName = "account.move"
    fields: dict[InvoiceField, FieldName] = field(
        default_factory=lambda: {
            "id": "id",
            "plan_id": "x_bss_plan_id",
            "subscription_id": "x_bss_subscription_id",
            "subscription_state": "x_bss_subscription_state",
            "payment_state": "payment_state",
            "amount": "amount_total",
            "currency": "currency_id",
            "changed_at": "write_date",
        }
    )
    """What is read, all of it, and the field's name in Odoo. `id` is what syncs carry as
    `odoo_invoice_id`; `subscription_state` speaks the wire's words (draft, in_progress, ...)."""


class Odoo(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Billing records to Odoo, payment states from it. The role is on where `url` is set."""

    url: (
        Annotated[
            str,
            Meta(
                pattern=r"^https?://[A-Za-z0-9.\[\]:-]+(/[A-Za-z0-9._~/-]*)?\Z",
                description="https://HOST, perhaps with :PORT and a path, without a user",
            ),
        ]
        | None
    ) = None
    api: Literal["jsonrpc", "json2"] = "jsonrpc"
    """`json2` is there from Odoo 19 on; `jsonrpc` goes with Odoo 22."""
    database: Text = "odoo"
    username: Text | None = None
    """The login of the user whose key it is; `jsonrpc` alone asks for it."""
    api_key_file: File | None = None
    """A file that holds nothing but the user's API key."""
    ca_file: File | None = None
    """Whom to trust, in PEM; not set: whom the system trusts."""
    group: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z0-9._-]{1,48}\Z",
            description="1 to 48 characters out of A-Z a-z 0-9 . _ -",
        ),
    ] = "odoo"
    """The consumer group; processes of one group share plans and payment queries."""
    external_ids: Annotated[
        str,
        Meta(
            pattern=r"^[a-z][a-z0-9_]{0,47}\Z",
            description="up to 48 characters out of a-z 0-9 _, a letter first",
        ),
    ] = "bss_stream"
    """The module part of external ids. Two installations with one Odoo need two of them, and so
    does a log that was made anew."""
    batch_records_max: Annotated[int, Meta(ge=1, le=5_000, description="records, 1 to 5000")] = 200
    """Records of the log that are settled together, and rows in one call."""
    calls_per_s_max: Annotated[
        float, Meta(ge=0.1, le=1_000, description="calls a second, 0.1 to 1000")
    ] = 10.0
    timeout_ms: Annotated[
        int, Meta(ge=100, le=600_000, description="milliseconds, 100 to 600000")
    ] = 60_000
    """A call that has no answer by then is made again."""
    reconcile_interval_s: Annotated[
        int, Meta(ge=0, le=86_400, description="seconds, 0 to 86400")
    ] = 900
    """How often Odoo is asked for paid invoices that MQTT has not brought; 0 never asks."""
    reconcile_window_hours: Annotated[int, Meta(ge=1, le=8_760, description="hours, 1 to 8760")] = (
        48
    )
    """How far back invoices are looked at, by their last change."""
    reconcile_grace_s: Annotated[int, Meta(ge=0, le=86_400, description="seconds, 0 to 86400")] = (
        300
    )
    """An invoice that changed more recently may still be on its way."""
    replay_missed: bool = False
    """Publish the sync that was missed, with the invoice's payment id, and not only say so."""
    subscription: Subscription = Subscription()
    payment: Payment = Payment()
    usage: Usage = Usage()
    invoice: Invoice = Invoice()
