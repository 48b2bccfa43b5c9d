"""The one exception hierarchy: a fault is an error, a rejected signal never is."""

from typing import Final


class BssStreamError(Exception):
    """Base of every error that bss_stream raises on purpose."""


class ConfigError(BssStreamError):
    """A configuration, model, setup-data or story file cannot be used.

    `faults` holds one line per fault, each naming the file, the path inside it, the value and
    what would be right.
    """

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class LogError(BssStreamError):
    """The log cannot be read or written: unreachable, fenced, full or damaged."""


class FencedError(LogError):
    """Another owner of the same shard has taken over; this one must drop the shard."""


class LogInUseError(LogError):
    """Another process has the embedded log."""


class LogAccessError(LogError):
    """The log refuses this client: its certificate, user, password or rights. Trying again is no
    use."""


RECORDS_GONE: Final = (
    "records that this group has not read are gone, and it skips nothing by itself: stop its "
    "processes, set its offset to the log's start, start them again, and audit"
)
"""What an OffsetOutOfRangeError says to do."""


class OffsetOutOfRangeError(LogError):
    """A committed offset lies below the start of the log: records were lost to retention."""


class CheckpointError(BssStreamError):
    """A shard's checkpoint cannot be written or read; the changelog has all that it has."""


class FrameError(BssStreamError):
    """A record's value does not follow its frame's layout."""


class NewerVersionError(BssStreamError):
    """A newer program has written a record: no fault of the record, so nothing may pass it over."""

    def __init__(self, what: str, version: int, known: int) -> None:
        super().__init__(
            f"{what} of version {version}, this program reads up to {known}: "
            "upgrade bss_stream here before whatever writes it"
        )


class MqttError(BssStreamError):
    """The MQTT broker cannot be reached or refused an operation."""


class NoEchoError(BssStreamError):
    """No echo came in time: nobody knows whether the request was applied. Asking again under its
    correlation id tells, and applies it once."""

    def __init__(self, request: str, correlation_id: str, attempts: int) -> None:
        super().__init__(
            f"no echo of {request} under {correlation_id!r} after {attempts} attempts: ask again "
            "under the same correlation id"
        )
        self.correlation_id = correlation_id


class SinkError(BssStreamError):
    """The ledger database cannot be reached or refused a write."""


class OdooError(BssStreamError):
    """Odoo cannot be worked with: another attempt at the same is no use."""


class OdooUnavailableError(OdooError):
    """Odoo is away, busy or blocked by another transaction: the same call may succeed later."""


class OdooRefusedError(OdooError):
    """Odoo has understood a call and refuses it, by its rules or because of what is in it."""


class OdooAccessError(OdooError):
    """Odoo does not let this user in, or lacks what the configuration names. Trying again is no
    use."""
