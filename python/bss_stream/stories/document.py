"""What a story file may say."""

from typing import Annotated, Any

from msgspec import Meta, Struct


class Echo(Struct, forbid_unknown_fields=True):
    """An echo that must come: all but `metadata` exactly, of that the fields named."""

    topic: str
    success: bool
    signals: list[str]
    reason: str
    """`metadata.reason`."""
    correlation_id: str | None = None
    """By default the one of the step's message."""
    metadata: dict[str, Any] = {}


class Message(Struct, forbid_unknown_fields=True):
    """A command or an event that must be published."""

    topic: str
    body: dict[str, Any] = {}


class DeadLetter(Struct, forbid_unknown_fields=True):
    """A dead letter that must be kept; its raw bytes must be the record that came in."""

    reason: str
    detail: str | None = None


class Step(Struct, forbid_unknown_fields=True):
    """One step: time passes, something is sent, and exactly this comes out."""

    say: str
    repeat: Annotated[int, Meta(ge=1, le=10_000)] = 1
    """How often, one after the other; `{n}` in its texts is then 1, 2, 3 and so on."""
    # Time.
    wait: str | None = None
    wait_unseen: str | None = None
    """Time that passes without a look at the timers."""
    until: str | None = None
    restart: bool = False
    # What is sent.
    send: str | None = None
    again: str | None = None
    """The name of an earlier message, sent once more byte for byte, or as new under `id`."""
    id: str | None = None
    """The correlation id."""
    name: str | None = None
    """What `again` calls the message: by default its id."""
    actor: str = "attendant"
    data: dict[str, Any] | None = None
    body: dict[str, Any] = {}
    without: list[str] = []
    clock_off_by: str | None = None
    raw: str | None = None
    raw_hex: str | None = None
    correlation_data: str = ""
    # What must come of it, in order; what is not named must not come.
    echo: list[Echo] = []
    command: list[Message] = []
    emit: list[Message] = []
    ledger: list[dict[str, Any]] = []
    dead_letter: list[DeadLetter] = []
    # What must be true afterwards.
    plan: dict[str, dict[str, Any]] = {}
    station: dict[str, dict[str, Any]] = {}
    asset: dict[str, dict[str, Any]] = {}


class File(Struct, forbid_unknown_fields=True):
    """A story file."""

    title: str
    story: str
    step: list[Step]
    after: str | None = None
    """The story that this one goes on from."""
    start: str | None = None
    setup: dict[str, Any] = {}
