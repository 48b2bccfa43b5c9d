"""What a client reads in an echo: its correlation id, whether it succeeded, and why.

The rules are those of the clients in the field, so an echo that they would misread counts as a
failure here too.
"""

from typing import Final

from msgspec import Struct
from msgspec.json import Decoder

from bss_stream.contract.echoes import ServiceState
from bss_stream.contract.fields import SUCCESS

INFINITE_FROM: Final = 100_000
"""Clients read a quota of this many units or more as infinite."""


class ServicePlan(Struct, frozen=True, rename="camel"):
    """What identify_customer tells of a plan."""

    status: str | None = None
    payment_state: str | None = None
    service_states: tuple[ServiceState, ...] = ()


class Metadata(Struct, frozen=True):
    """The part of an echo's metadata that riders look at."""

    reason: str | None = None
    first_reason: str | None = None
    asset_id: str | None = None
    service_plan_data: ServicePlan | None = None


class _Data(Struct, frozen=True):
    success: bool
    signals: tuple[str, ...]
    metadata: Metadata


class Echo(Struct, frozen=True):
    """An echo as far as riders read it."""

    correlation_id: str
    data: _Data

    def succeeded(self) -> bool:
        """Whether a client in the field would go on."""
        signals = self.data.signals
        return self.data.success and (not signals or not SUCCESS.isdisjoint(signals))

    def is_repeat(self) -> bool:
        """Whether it answers a request that was seen before."""
        return self.data.metadata.first_reason is not None

    def reason(self) -> str:
        """The outcome by name: `ok`, or why not.

        `contradiction` is an echo whose success, signals and reason do not fit together.
        """
        reason = self.data.metadata.reason
        if self.succeeded():
            return reason or "ok"
        if self.data.success or reason in (None, "ok"):
            return "contradiction"
        return reason


_DECODER: Final = Decoder(Echo)


def read_echo(payload: bytes) -> Echo:
    """Raises msgspec.DecodeError or msgspec.ValidationError (a kind of it)."""
    return _DECODER.decode(payload)
