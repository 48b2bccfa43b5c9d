"""What MQTT 5 says of every echo beside its payload, whichever role sends it."""

from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import Final

from bss_stream.tracing import properties

ECHO_EXPIRY_S: Final = 300
"""A client has given up on its request by then (it waits 30 s and asks again)."""

ECHO_PROPERTIES: Final = (
    ("agent_type", "BSS_AGENT_V2"),
    ("response_type", "AGENT_CALCULATION_RESULT"),
    ("response_pattern", "echo"),
    ("platform_version", version("bss_stream")),
    ("application", "abs-platform"),
)
"""User properties."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def rfc3339(ms: int) -> str:
    """A time as the wire has it."""
    moment = _EPOCH + timedelta(milliseconds=ms)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def echo_properties(trace: str) -> tuple[tuple[str, str], ...]:
    """The user properties of an echo of a request with this trace, or without one."""
    return ECHO_PROPERTIES + properties(trace)
