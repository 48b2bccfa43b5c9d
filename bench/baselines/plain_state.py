"""The baseline's entities, and their state bytes in the changelog.

Integers of up to 28 bits are one or two look-ups in tables of 14 bits; parts of a plan that a swap
does not touch keep their bytes.
"""

from typing import Final

from bench.baselines.plain_tables import Service, Template
from bench.baselines.plain_wire import decimal

_BITS: Final = 14
_SIZE: Final = 1 << _BITS
_MASK: Final = _SIZE - 1
_ONE_BYTE: Final = 0x80

LAST: Final = [
    bytes((n,)) if n < _ONE_BYTE else bytes((n & 0x7F | 0x80, n >> 7)) for n in range(_SIZE)
]
_MORE: Final = [bytes((n & 0x7F | 0x80, n >> 7 | 0x80)) for n in range(_SIZE)]


def uint(value: int) -> bytes:
    """An unsigned integer, seven bits a byte."""
    if value < _SIZE:
        return LAST[value]
    if value < 1 << 28:
        return _MORE[value & _MASK] + LAST[value >> 14]
    if value < 1 << 42:
        return _MORE[value & _MASK] + _MORE[value >> 14 & _MASK] + LAST[value >> 28]
    return _MORE[value & _MASK] + _MORE[value >> 14 & _MASK] + uint(value >> 28)


def sint(value: int) -> bytes:
    """A signed integer, small magnitudes short."""
    return uint(value << 1 if value >= 0 else (-value << 1) - 1)


def text(value: str) -> bytes:
    """A text with its length."""
    raw = value.encode()
    return uint(len(raw)) + raw


ASSET: Final = b"\1"
"""A text follows with its length."""

NO_ASSET: Final = b"\0"
"""A text that is not there."""


def optional_text(value: str | None) -> bytes:
    """A text or nothing."""
    return NO_ASSET if value is None else ASSET + text(value)


class Account:
    """One service of one plan, and its parts of records, kept until they change."""

    __slots__ = (
        "asset",
        "bought",
        "bytes_",
        "counts",
        "credit",
        "days",
        "held",
        "json",
        "latest_day",
        "limits",
        "quota",
        "quota_json",
        "rest_json",
        "service",
        "used",
    )

    def __init__(self, service: Service) -> None:
        self.service = service
        self.used = 0
        self.held = 0
        self.quota = None if service.initial is None else 0
        """None is infinite."""
        self.credit = 0
        self.bought = 0
        self.asset: str | None = None
        self.latest_day = 0
        self.counts = [0, 0, 0, 0]
        """Swaps of the latest day and of those before it."""
        self.days = b"\0\0\0\0\0"
        """The days in the state."""
        self.changed()

    def changed(self) -> None:
        """Works out again what depends on anything but `used`, `asset` and the days."""
        service, quota = self.service, self.quota
        self.limits = (
            sint(self.held)
            + (b"\0" if quota is None else b"\1" + sint(quota))
            + sint(self.credit)
            + sint(self.bought)
        )
        """What stands behind `used` in the state."""
        ledger = '"infinite"' if quota is None else quota
        self.rest_json = f',"held":{self.held},"quota":{ledger},"credit_minor":{self.credit}}}'
        """What stands behind `used` in a ledger entry."""
        wire = service.infinite_wire if quota is None else decimal(quota, service.digits)
        self.quota_json = f',"quota":{wire},"current_asset":'
        """What stands behind `used` in an echo."""
        self.used_changed()

    def used_changed(self) -> None:
        """Works out again what depends on `used`, `asset` or the days."""
        service, asset = self.service, self.asset
        holds = "null" if asset is None else f'"{asset}"'
        self.json = (
            f"{service.used_json}{decimal(self.used, service.digits)}{self.quota_json}{holds}}}"
        )
        """The account in an echo."""
        self.bytes_ = sint(self.used) + self.limits + optional_text(asset) + self.days
        """The account in its plan's state."""

    def left(self) -> int | None:
        """Units neither used nor held; None without end."""
        return None if self.quota is None else self.quota - self.used - self.held

    def on_day(self, day: int) -> int:
        """Swaps counted on a day."""
        back = self.latest_day - day
        return self.counts[back] if 0 <= back < 4 else 0

    def count_day(self, day: int) -> None:
        """Counts one swap."""
        counts = self.counts
        if day > self.latest_day:
            shift = min(day - self.latest_day, 4)
            counts = ([0] * shift + counts)[:4]
            self.latest_day = day
        back = self.latest_day - day
        if back < 4:
            counts = [*counts]
            counts[back] = min(counts[back] + 1, 65_535)
        # A new list: copies of the account share the old one.
        self.counts = counts
        self.days = sint(self.latest_day) + b"".join([uint(count) for count in counts])

    def copy(self) -> "Account":
        """The account as it is now."""
        other = Account.__new__(Account)
        other.service = self.service
        other.used = self.used
        other.held = self.held
        other.quota = self.quota
        other.credit = self.credit
        other.bought = self.bought
        other.asset = self.asset
        other.latest_day = self.latest_day
        other.counts = self.counts
        other.days = self.days
        other.limits = self.limits
        other.rest_json = self.rest_json
        other.quota_json = self.quota_json
        other.json = self.json
        other.bytes_ = self.bytes_
        return other

    def balance(self) -> str:
        """`before` or `after` of a ledger entry."""
        return f'{{"used":{self.used}{self.rest_json}'


ALLOCATING: Final = text("ALLOCATING") + b"\0"
"""The state of every session that is kept, and that it replaces no damaged battery."""


class Session:
    """A self-service swap that ARM has not answered yet."""

    __slots__ = (
        "account",
        "attempt",
        "correlation",
        "due_ms",
        "event_ms",
        "held_energy",
        "held_swaps",
        "location",
        "returned",
    )

    def __init__(
        self, correlation: str, location: str, account: int, returned: str | None, event_ms: int
    ) -> None:
        self.correlation = correlation
        self.location = location
        self.account = account
        self.returned = returned
        self.held_swaps = 0
        self.held_energy = 0
        self.attempt = 1
        self.event_ms = event_ms
        self.due_ms = 0

    def encode(self) -> bytes:
        """The session as it stands in its plan's state."""
        return b"".join(
            (
                text(self.correlation),
                text(self.location),
                uint(self.account),
                optional_text(self.returned),
                sint(self.held_swaps),
                sint(self.held_energy),
                uint(self.attempt),
                ALLOCATING,
                sint(self.event_ms),
                sint(self.due_ms),
            )
        )


class Plan:
    """A plan."""

    __slots__ = (
        "accounts",
        "applied",
        "cancel_requested",
        "clock_ms",
        "customer_id",
        "dirty",
        "grace_end_ms",
        "grace_enforced",
        "head",
        "initialized",
        "key",
        "order",
        "pair",
        "payments",
        "period_end_ms",
        "period_ended",
        "plan_id",
        "prev",
        "queued_ms",
        "seq",
        "session",
        "template",
        "window",
    )

    def __init__(self, plan_id: str, template: Template, customer_id: str, order: bytes) -> None:
        self.plan_id = plan_id
        self.key = plan_id.encode()
        self.order = int.from_bytes(order, "little")
        """Breaks ties between timers."""
        self.template = template
        self.customer_id = customer_id
        self.head = text(template.template_id) + uint(template.version) + text(customer_id)
        self.pair = template.model.initial
        self.initialized = False
        self.cancel_requested = False
        self.period_ended = False
        self.period_end_ms = 0
        self.grace_end_ms = 0
        self.grace_enforced = False
        self.accounts = [Account(service) for service in template.services]
        self.session: Session | None = None
        self.seq = 0
        self.prev = "0" * 64
        """Hash of the last ledger entry."""
        self.window: dict[bytes, tuple[int, int]] = {}
        """Seen signals: id to time and outcome."""
        self.payments: list[tuple[bytes, int, int]] = []
        """Digest, amount, and one more than the place of the account that it was for."""
        self.clock_ms = 0
        self.applied = -1
        self.dirty = False
        self.queued_ms: int | None = None

    def due_ms(self) -> int | None:
        """When the next timer is due."""
        due = [] if self.session is None else [self.session.due_ms]
        if self.period_end_ms > 0 and not self.period_ended:
            due.append(self.period_end_ms)
        if self.grace_end_ms > 0 and not self.grace_enforced:
            due.append(self.grace_end_ms)
        return min(due, default=None)

    def is_exhausted(self) -> bool:
        """Whether a service that swaps use up is used up, whatever is held."""
        template = self.template
        if not self.initialized:
            return False
        for at in (template.swap, template.energy):
            if at is not None and not template.services[at].overage_allowed:
                account = self.accounts[at]
                if account.quota is not None and account.quota <= account.used:
                    return True
        return False

    def encode(self) -> bytes:
        """The state bytes."""
        session, window = self.session, self.window
        flags = (
            self.initialized
            | self.cancel_requested << 1
            | self.period_ended << 2
            | (session is not None) << 3
            | self.grace_enforced << 4
        )
        parts = [
            b"\1",
            sint(self.applied),
            self.head,
            self.template.model.state_bytes[self.pair],
            LAST[flags],
            sint(self.clock_ms),
            sint(self.period_end_ms),
            sint(self.grace_end_ms),
            uint(self.seq),
            bytes.fromhex(self.prev),
            LAST[len(self.accounts)],
            *[account.bytes_ for account in self.accounts],
        ]
        if session is not None:
            parts.append(session.encode())
        parts.append(LAST[len(window)])
        before_ms = 0
        for signal_id, (at_ms, outcome) in window.items():
            parts += (signal_id, sint(at_ms - before_ms), LAST[outcome])
            before_ms = at_ms
        parts.append(uint(len(self.payments)))
        for digest, amount, account in self.payments:
            parts += (digest, sint(amount), b"\0", uint(account))
        return b"".join(parts)


def encode_window(window: dict[bytes, tuple[int, int]]) -> bytes:
    """The dedupe window as it stands in a station's state."""
    parts = [uint(len(window))]
    before_ms = 0
    for signal_id, (at_ms, outcome) in window.items():
        parts.append(signal_id + sint(at_ms - before_ms) + LAST[outcome])
        before_ms = at_ms
    return b"".join(parts)


COUNTED: Final = (
    "assignments",
    "returns",
    "inventory_empty",
    "station_not_ready",
    "allocation_denied",
    "allocation_timed_out",
)
NOTHING_ASIDE: Final = bytes(3)
"""The mix has no operator who puts batteries on chargers."""


class Stock:
    """One fleet at one station."""

    __slots__ = (
        "assignments",
        "current",
        "day_before",
        "promised",
        "restocks",
        "returns",
        "today",
        "warned",
    )

    def __init__(self, current: int) -> None:
        self.current = current
        self.promised = 0
        self.assignments = 0
        self.returns = 0
        self.restocks = 0
        self.warned = 0
        """Bits: empty, low, in high demand."""
        self.today = [0] * len(COUNTED)
        """By COUNTED."""
        self.day_before = [0] * len(COUNTED)


class Station:
    """A station."""

    __slots__ = ("answers", "applied", "day", "dirty", "intents", "is_told", "station_id", "stock")

    def __init__(self, station_id: str, stock: dict[str, int]) -> None:
        self.station_id = station_id
        self.stock = {fleet: Stock(current) for fleet, current in stock.items()}
        self.intents: list[tuple[str, str, str, int]] = []
        """(correlation id, plan id, fleet id, since when) of what ARM has not answered."""
        self.is_told = 0
        """The readiness that was broadcast last: ready, limited, not ready."""
        self.day = 0
        """The local day that is counted."""
        self.answers: dict[bytes, tuple[int, int]] = {}
        self.applied = -1
        self.dirty = False

    def turn_day(self, day: int) -> None:
        """Begins to count another day."""
        for stock in self.stock.values():
            counted, stock.today = stock.today, [0] * len(COUNTED)
            stock.day_before = counted if day == self.day + 1 else [0] * len(COUNTED)
        self.day = day

    def encode(self) -> bytes:
        """The state bytes."""
        parts = [b"\x02" + sint(self.applied) + LAST[self.is_told << 3] + sint(self.day)]
        # No incidents.
        parts.append(LAST[0] + uint(len(self.stock)))
        for fleet, stock in self.stock.items():
            parts.append(text(fleet) + sint(stock.current) + uint(stock.assignments))
            parts.append(uint(stock.returns) + uint(stock.restocks) + LAST[stock.warned])
            parts.append(NOTHING_ASIDE)
            parts += [uint(count) for count in stock.today]
            parts += [uint(count) for count in stock.day_before]
        parts.append(uint(len(self.intents)))
        for correlation, plan_id, fleet, since_ms in self.intents:
            parts.append(text(correlation) + text(plan_id) + text(fleet) + sint(since_ms))
        # No shift.
        parts.append(LAST[0])
        # No requests of operators.
        parts.append(encode_window(self.answers) + LAST[0])
        return b"".join(parts)


ASSIGNED: Final = text("ASSIGNED") + NO_ASSET
AVAILABLE: Final = text("AVAILABLE") + NO_ASSET
"""A battery's life, and that ARM has not said its fleet."""


class Asset:
    """A battery."""

    __slots__ = ("applied", "awaited_from", "dirty", "holder", "is_assigned", "location_id")

    def __init__(self) -> None:
        self.applied = -1
        self.holder: str | None = None
        self.awaited_from: str | None = None
        self.location_id: str | None = None
        self.is_assigned = False
        """Its life: assigned, or available."""
        self.dirty = False

    def encode(self) -> bytes:
        """The state bytes."""
        return (
            b"\x01"
            + sint(self.applied)
            + (ASSIGNED if self.is_assigned else AVAILABLE)
            + optional_text(self.holder)
            + optional_text(self.awaited_from)
            + optional_text(self.location_id)
        )
