"""The topic table: data that says which MQTT topic is which external event, and where its key is.

`models/topics-v1.json` is the packaged one. A row's filter names its variable segments in braces.
The engine's crate matches topics and makes records of messages (`rust/engine/src/swap/router.rs`).
"""

import importlib.resources
import re
from collections.abc import Sequence
from importlib.resources.abc import Traversable
from itertools import combinations
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec
from msgspec import Meta, Struct

from bss_stream._engine import Router
from bss_stream.log.protocol import Chunk
from bss_stream.mqtt.messages import Subscription
from bss_stream.validation import Faults, convert, show

CLEAN_ID: Final = re.compile(r"[A-Za-z0-9._:@-]{1,64}")
"""What a key must be, whole: short enough for a record, harmless in a topic, a log and a shell."""

_NAME: Final = r"[a-z][a-z0-9_]{0,63}"
_VARIABLE: Final = re.compile(r"\{(" + _NAME + r")\}")
_FIXED: Final = re.compile(r"[^+#{}\0/]+")

Name = Annotated[str, Meta(pattern=rf"^{_NAME}\Z", description="a name of a-z, 0-9 and _")]


class KeyPlace(Struct, frozen=True, forbid_unknown_fields=True):
    """Where the key is: a variable segment of the topic, or a field of the payload's top level."""

    topic: Name | None = None
    payload: Name | None = None


class Row(Struct, frozen=True, forbid_unknown_fields=True):
    """One row as the file has it."""

    filter: Annotated[str, Meta(min_length=1, description="a topic filter")]
    event: Name
    entity: Literal["plan", "station", "asset"]
    key: KeyPlace


class Sent(Struct, frozen=True, forbid_unknown_fields=True):
    """What the platform sends beside echoes, for those who listen: the engine needs no telling."""

    topic: Annotated[str, Meta(min_length=1, description="a topic with variables in braces")]
    to: str
    when: str


class Document(Struct, frozen=True, forbid_unknown_fields=True):
    """The file."""

    version: Literal[1]
    rows: Annotated[tuple[Row, ...], Meta(min_length=1)]
    sent: tuple[Sent, ...] = ()


class Routed(NamedTuple):
    """What a message is."""

    event: str
    log_topic: str
    key: str | None
    """The entity's id, clean or not; None if it is not there."""
    filter: str
    """The row's, as it is subscribed to."""


class TopicTable:
    """The compiled table."""

    def __init__(self, rows: Sequence[Row], sent: Sequence[Sent] = ()) -> None:
        """`rows` have passed `load`'s checks."""
        self.rows = tuple(rows)
        self.sent = tuple(sent)
        self.filters = [_subscribed(row.filter) for row in rows]
        """With `+` for the variable segments."""
        self._router = Router(
            [(row.filter, row.event, row.entity, row.key.topic, row.key.payload) for row in rows]
        )

    def route(self, topic: str, payload: bytes) -> Routed | None:
        """What a message on a topic is, None if no row matches."""
        found = self._router.route(topic, payload)
        if found is None:
            return None
        row, event, log_topic, key = found
        return Routed(event, log_topic, key, self.filters[row])

    def pack(
        self,
        messages: Sequence[tuple[str, bytes, bytes | None, str | None]],
        *,
        partitions: int,
        received_ms: int,
        payload_bytes_max: int,
    ) -> tuple[list[Chunk], list[tuple[int, str, str | None]]]:
        """Messages (topic, payload, correlation data, trace) as signal records in their partitions.

        Also those that are none: position, reason (`unknown_topic`, `payload_too_large`,
        `bad_key`), and the key if it was there.
        """
        lanes, unroutable = self._router.pack(messages, partitions, received_ms, payload_bytes_max)
        return [Chunk(*lane) for lane in lanes], unroutable

    def subscriptions(self, group: str | None = None) -> list[Subscription]:
        """What a bridge subscribes to, shared with the members of `group` if there is one."""
        plain = [Subscription(filter) for filter in self.filters]
        return plain if group is None else [one.shared(group) for one in plain]


def packaged_table() -> Traversable:
    """The table that comes with the package."""
    return importlib.resources.files("bss_stream") / "models" / "topics-v1.json"


def load(file: Traversable | None = None) -> TopicTable:
    """The table in a file, the packaged one by default. Raises ConfigError with every fault."""
    file = file or packaged_table()
    faults = Faults()
    document = _read(file, faults)
    if document is not None:
        _check(document.rows, str(file), faults)
    faults.raise_if_any()
    assert document is not None
    return TopicTable(document.rows, document.sent)


def _read(file: Traversable, faults: Faults) -> Document | None:
    try:
        data: Any = msgspec.json.decode(file.read_bytes())
    except OSError as error:
        faults.add(str(file), "", f"cannot be read: {error.strerror}")
        return None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        faults.add(str(file), "", f"is no JSON: {error}")
        return None
    document: Document | None = convert(data, Document, faults, str(file))
    return document


def _check(rows: Sequence[Row], file: str, faults: Faults) -> None:
    for number, row in enumerate(rows):
        path = f"$.rows[{number}]"
        segments = row.filter.split("/")
        variables = [found[1] for s in segments if (found := _VARIABLE.fullmatch(s))]
        for segment in segments:
            if not _VARIABLE.fullmatch(segment) and not _FIXED.fullmatch(segment):
                what = "expected a fixed segment, or a name in braces"
                faults.add(file, f"{path}.filter", f"segment {show(segment)}: {what}")
        if len(variables) == len(segments) or segments[0].startswith("$"):
            what = "expected a fixed segment at least, and none of the broker's own topics"
            faults.add(file, f"{path}.filter", f"{show(row.filter)}: {what}")
        if (row.key.topic is None) == (row.key.payload is None):
            faults.add(file, f"{path}.key", "expected either `topic` or `payload`")
        elif row.key.topic is not None and variables.count(row.key.topic) != 1:
            what = f"expected a segment of {show(row.filter)} that stands there once"
            faults.add(file, f"{path}.key.topic", f"{show(row.key.topic)}: {what}")
    for (a, first), (b, second) in combinations(enumerate(rows), 2):
        if _overlap(first.filter.split("/"), second.filter.split("/")):
            # A broker would deliver such a message once for each, or once for both.
            what = f"{show(second.filter)} matches topics that $.rows[{a}] matches, too"
            faults.add(file, f"$.rows[{b}].filter", what)


def _overlap(one: Sequence[str], other: Sequence[str]) -> bool:
    return len(one) == len(other) and all(
        a == b or _VARIABLE.fullmatch(a) or _VARIABLE.fullmatch(b)
        for a, b in zip(one, other, strict=True)
    )


def _subscribed(filter: str) -> str:
    return "/".join("+" if _VARIABLE.fullmatch(s) else s for s in filter.split("/"))
