"""Writes the page of topics and reasons out of the topic table and the engine's vocabulary.

`python -m bss_stream.topics_reference` prints docs/topics.md, which is that output.
"""

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from bss_stream import _engine, topic_table

_HEAD: Final = """\
# Topics and reasons

MQTT topics that the platform takes in and sends, and the reasons with which a signal ends. They
are data (`python/bss_stream/models/topics-v1.json`) and the engine's closed list; this page is
written from both.
"""

_IN: Final = """\
## What comes in

A variable segment of the topic, or a field of the payload, is the key: the entity whose state it
concerns, 1 to 64 characters of `A-Z a-z 0-9 . _ : @ -`. Riders' queries are not signals and are
on a page of their own: [rider-queries.md](rider-queries.md).
"""

_OUT: Final = """\
## What goes out

Every request gets an echo: on `echo/` and the rest of its topic, with `abs` in the place of
`uxi`. Two differ: `initialize_states` is answered on `.../initialize_states_result`, and
`identify_customer` on `echo/abs/service/plan/{plan_id}/identify_customer` as well, where older
clients listen. What the platform sends beside echoes:
"""

_REASONS: Final = """\
## Reasons

In an echo `metadata.reason` is the code, `metadata.message` the text, `metadata.action_required`
what somebody can do. With a dead letter the message is kept with its raw bytes (`bss-stream
dead-letters list`).
"""


def render() -> str:
    """The page's text."""
    table = msgspec.json.decode(
        topic_table.packaged_table().read_bytes(), type=topic_table.Document
    )
    came = ((f"`{r.filter}`", f"`{r.event}`", r.entity, _key(r.key)) for r in table.rows)
    sent = ((f"`{one.topic}`", one.to, one.when) for one in table.sent)
    reasons = (
        (f"`{code}`", message, action or "", "yes" if dead else "")
        for code, message, action, dead in _engine.reasons()
    )
    return (
        "\n".join(
            (
                _HEAD,
                _IN,
                *_rows(("topic", "event", "entity", "key"), came),
                _OUT,
                *_rows(("topic", "to", "when"), sent),
                _REASONS,
                *_rows(("reason", "message", "action", "dead letter"), reasons),
            )
        ).rstrip()
        + "\n"
    )


def _key(place: topic_table.KeyPlace) -> str:
    if place.topic is not None:
        return f"`{{{place.topic}}}`"
    return f"`{place.payload}` of the payload"


def _rows(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |"
    yield ""


if __name__ == "__main__":
    print(render(), end="")
