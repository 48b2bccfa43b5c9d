"""The topic table: data that says which MQTT topic is which external event, and where its key is.

`models/topics-v1.json` is the packaged one. A row's filter names its variable segments in braces;
a topic is matched by its fixed segments with one probe of a dict for each shape of filter.
"""

import importlib.resources
import operator
import re
from collections.abc import Callable, Sequence
from importlib.resources.abc import Traversable
from itertools import combinations
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec
from msgspec import Meta, Struct

from bss_stream import topics
from bss_stream.mqtt.messages import Subscription
from bss_stream.validation import Faults, convert, show

CLEAN_ID: Final = re.compile(r"[A-Za-z0-9._:@-]{1,64}")
"""What a key must be, whole: short enough for a record, harmless in a topic, a log and a shell."""

_SIGNALS: Final = dict(zip(("plan", "station", "asset"), topics.SIGNALS, strict=True))
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


class Route(NamedTuple):
    """A row made ready: what becomes of a message on its topics."""

    filter: str
    """With `+` for the variable segments, as it is subscribed to."""
    event: str
    log_topic: str
    key_of: Callable[[Sequence[str], bytes], str | None]
    """The key from a topic's segments and a payload; None if it is not there. It may be unclean."""


class _Shape(NamedTuple):
    """The filters of one length whose fixed segments stand at the same places."""

    fixed: Callable[[Sequence[str]], object]
    routes: dict[object, Route]


class TopicTable:
    """The compiled table."""

    def __init__(self, rows: Sequence[Row], sent: Sequence[Sent] = ()) -> None:
        """`rows` have passed `load`'s checks."""
        self.sent = tuple(sent)
        shapes: dict[tuple[int, tuple[int, ...]], _Shape] = {}
        self.routes: list[Route] = []
        for row in rows:
            segments = row.filter.split("/")
            places = tuple(i for i, s in enumerate(segments) if not _VARIABLE.fullmatch(s))
            by_shape = (len(segments), places)
            shape = shapes.setdefault(by_shape, _Shape(operator.itemgetter(*places), {}))
            route = _route(row, segments)
            shape.routes[shape.fixed(segments)] = route
            self.routes.append(route)
        self._by_length: dict[int, list[_Shape]] = {}
        for (length, _), shape in shapes.items():
            self._by_length.setdefault(length, []).append(shape)

    def match(self, topic: str) -> tuple[Route, list[str]] | None:
        """The route of a topic with the topic's segments, None if no row matches."""
        segments = topic.split("/")
        for fixed, routes in self._by_length.get(len(segments), ()):
            route = routes.get(fixed(segments))
            if route is not None:
                return route, segments
        return None

    def subscriptions(self, group: str | None = None) -> list[Subscription]:
        """What a bridge subscribes to, shared with the members of `group` if there is one."""
        plain = [Subscription(route.filter) for route in self.routes]
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


def _route(row: Row, segments: Sequence[str]) -> Route:
    subscribed = "/".join("+" if _VARIABLE.fullmatch(s) else s for s in segments)
    if row.key.topic is not None:
        key_of = _segment_key(segments.index("{" + row.key.topic + "}"))
    else:
        key_of = _payload_key(row.key.payload or "")
    return Route(subscribed, row.event, _SIGNALS[row.entity], key_of)


def _segment_key(place: int) -> Callable[[Sequence[str], bytes], str | None]:
    return lambda segments, payload: segments[place]


def _payload_key(name: str) -> Callable[[Sequence[str], bytes], str | None]:
    # Decodes that field alone; the rest is only scanned for being JSON.
    decode = msgspec.json.Decoder(msgspec.defstruct("Keyed", [(name, str)])).decode

    def key_of(segments: Sequence[str], payload: bytes) -> str | None:
        try:
            key: str = getattr(decode(payload), name)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None  # Not a key; the bridge says so in the dead letter.
        return key

    return key_of
