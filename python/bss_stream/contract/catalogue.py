"""Every payload by name, and which one a topic carries."""

import inspect
from typing import Any, Final, NamedTuple

from bss_stream import _engine
from bss_stream.contract.echoes import ACCEPTED, echo_types
from bss_stream.contract.queries import QUERIES, answer_types
from bss_stream.contract.records import BETWEEN, FRAMES, LEDGERS, STATES
from bss_stream.contract.requests import REQUESTS
from bss_stream.contract.sent import SENT
from bss_stream.odoo.refusals import Refusal
from bss_stream.queries.wire import FILTERS, PAYMENT_FILTERS, Query, Route, echo_topic, route


class Payload(NamedTuple):
    """One kind of body: any of its types."""

    name: str
    """Group and name, joined by a slash: `request/identify_customer`."""
    types: tuple[Any, ...]
    description: str


ECHO_TOPICS: Final = tuple(
    (event, address)
    for at, (event, address) in enumerate(_engine.echo_topics())
    # A tap is answered as what it asks for is.
    if address not in [other for _, other in _engine.echo_topics()[:at]]
)
"""The event and the topic of each echo, its variable segment in braces."""

_NAMED: Final = "correlation_id"


def _query_topics() -> tuple[tuple[Query, str], ...]:
    found = []
    for address in (*FILTERS, *PAYMENT_FILTERS):
        asked = route(address.replace("+", "id"))
        assert asked is not None, address  # Whatever is subscribed to is a query.
        found.append((asked.query, address.replace("+", f"{{{asked.id_field}}}")))
    return tuple(found)


QUERY_TOPICS: Final = _query_topics()
"""Each query and its topic, the variable segment in braces."""


def answer_topic(query: Query) -> str:
    """Where a query's echo goes, its variable segment in braces."""
    about = None if query is Query.NEARBY else f"{{{Route(query, None).id_field}}}"
    topic = echo_topic(Route(query, about), _NAMED)
    return topic.replace(f"/{_NAMED}", f"/{{{_NAMED}}}")


def echo_event(topic: str) -> str | None:
    """The event whose echo comes on a topic."""
    return next((event for event, address in ECHO_TOPICS if carries(address, topic)), None)


def carries(address: str, topic: str) -> bool:
    """Whether a topic is one of an address with variables."""
    fixed, segments = address.split("/"), topic.split("/")
    return len(fixed) == len(segments) and all(
        a.startswith("{") or a == b for a, b in zip(fixed, segments, strict=True)
    )


def _payloads() -> list[Payload]:
    groups: dict[str, dict[str, tuple[Any, ...]]] = {
        "request": {event: (kind,) for event, kind in REQUESTS.items()},
        "echo": {event: echo_types(event) for event in ACCEPTED if event != "station_tap"},
        "sent": {name: (kind,) for name, kind in SENT.items()},
        "query": {str(query): (kind,) for query, kind in QUERIES.items()},
        "answer": {str(query): answer_types(query) for query in QUERIES},
        "ledger": {ledger: (kind,) for ledger, kind in LEDGERS.items()},
        "record": {event: (kind,) for event, kind in BETWEEN.items()},
        "frame": {frame: (kind,) for frame, kind in FRAMES.items()},
        "odoo": {"refused": (Refusal,)},
        "state": {entity: (kind,) for entity, kind in STATES.items()},
    }
    return [
        Payload(f"{group}/{name}", types, _description(group, types[0]))
        for group, payloads in groups.items()
        for name, types in payloads.items()
    ]


def _description(group: str, kind: Any) -> str:
    """What the type says of itself; of an envelope, what its data or metadata says."""
    inner = getattr(kind, "__args__", (kind,))[0]
    told = inspect.cleandoc(inner.__doc__ or "")
    return told if group not in ("echo", "answer") else f"{told} Or a refusal."


PAYLOADS: Final = tuple(_payloads())
