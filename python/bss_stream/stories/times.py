"""Times as stories write them."""

import re
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DURATION = re.compile(r"(-?)((?:\d+(?:d|h|min|s|ms) ?)+)")
_UNIT_MS = {"d": 86_400_000, "h": 3_600_000, "min": 60_000, "s": 1_000, "ms": 1}


def duration_ms(text: str) -> int:
    """Milliseconds of a duration such as `3d 12h` or `-30min`. Raises ValueError."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no duration: expected such as 3d 12h or -30min")
    parts = re.findall(r"(\d+)(d|h|min|s|ms)(?![a-z])", match[2])
    total = sum(int(number) * _UNIT_MS[unit] for number, unit in parts)
    return -total if match[1] else total


def epoch_ms(text: str) -> int:
    """Milliseconds since the epoch of an RFC 3339 time. Raises ValueError."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no zone: expected such as 2026-11-24T06:00:00Z")
    return (moment - _EPOCH) // timedelta(milliseconds=1)


def rfc3339(ms: int) -> str:
    """The RFC 3339 time, in UTC, of milliseconds since the epoch."""
    moment = _EPOCH + timedelta(milliseconds=ms)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
