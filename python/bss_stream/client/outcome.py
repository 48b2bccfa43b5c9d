"""What a request came to, as the echo says it."""

from typing import Generic, TypeVar

from msgspec import Struct

from bss_stream.contract.fields import Reason

M = TypeVar("M")


class Accepted(Struct, Generic[M], frozen=True, kw_only=True):
    """It was done, now or when it was asked for the first time."""

    correlation_id: str
    reason: Reason
    """`ok`, or `duplicate` where nothing was left to do."""
    signals: tuple[str, ...]
    metadata: M | None
    """None in the answer to a repeat, which says no more than how the first one ended."""
    is_repeat: bool


class Refused(Struct, Generic[M], frozen=True, kw_only=True):
    """It was understood and refused; nothing of it was applied."""

    correlation_id: str
    reason: Reason
    signals: tuple[str, ...]
    message: str
    detail: str | None
    """Which field, state or value."""
    action_required: str | None
    """What somebody can do about it."""
    metadata: M | None
    """Only of `validate`: what each check has found."""
    is_repeat: bool


Outcome = Accepted[M] | Refused[M]
"""An echo's answer."""
