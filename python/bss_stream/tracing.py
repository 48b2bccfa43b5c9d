"""Traces: a sender's `traceparent` goes with its signal through the log to the echo.

It is carried along whether anybody records spans or not; `Tracing` is who records none, and
`otel.py` has the one that does.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

PROPERTY: Final = "traceparent"
"""The MQTT 5 user property, as W3C Trace Context names it."""

Attributes = Mapping[str, Any]


def traceparent(user_properties: Iterable[tuple[str, str]]) -> str | None:
    """The first trace among the user properties of a message; whether it is one is not checked."""
    return next((value for name, value in user_properties if name == PROPERTY), None)


def properties(trace: str) -> tuple[tuple[str, str], ...]:
    """The user properties that carry a trace on; none for an empty one."""
    return ((PROPERTY, trace),) if trace else ()


class Spans:
    """The spans of one batch, which end together."""

    def begin(self, trace: str, attributes: Attributes) -> str:
        """Begin a span of a trace; returns what is to go on in its place."""
        return trace

    def end(self, failure: BaseException | None = None) -> None:
        """End them all, as failed if there is a reason."""


class Tracing:
    """Records spans, or, as this one, none."""

    is_on: bool = False

    def spans(self, name: str) -> Spans:
        """Spans of one name, none of them begun yet."""
        return _NONE

    def close(self) -> None:
        """Send what is recorded and not sent yet. May wait for the network."""


_NONE: Final = Spans()

OFF: Final = Tracing()
