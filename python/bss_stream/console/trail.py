"""What the log still tells of one plan: its signals, and the messages that went out about it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import msgspec

from bss_stream import topics
from bss_stream._engine import partition_for, unpack
from bss_stream.dead_letters.letters import correlation_id
from bss_stream.errors import FrameError
from bss_stream.frames import ENGINE, REPLAY, decode_outbox, decode_signal
from bss_stream.log.protocol import FollowableLog
from bss_stream.sink.entry import epoch_ms

RECORDS_MAX: Final = 20_000
"""Of each topic's end, in the plan's partition: what is older is told by the ledgers alone."""

FOUND_MAX: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened to a plan."""

    at_ms: int
    type: str
    """signal, echo, cmd, emit or entry."""
    what: str
    detail: str
    correlation_id: str
    is_refusal: bool = False
    link: str = ""


class _Metadata(msgspec.Struct, frozen=True):
    reason: str = ""


class _Data(msgspec.Struct, frozen=True):
    success: bool = True
    signals: list[str] = []
    metadata: _Metadata = _Metadata()


class _Message(msgspec.Struct, frozen=True):
    timestamp: datetime | None = None
    correlation_id: str = ""
    data: _Data = _Data()


_message: Final = msgspec.json.Decoder(_Message)


async def trail(log: FollowableLog, plan_id: str) -> list[Event]:
    """The newest signals and messages of a plan, oldest first of each. Raises LogError."""
    key = plan_id.encode()
    partition = partition_for(key, log.partitions)
    events: list[Event] = []
    for topic, read in ((topics.SIGNALS_PLAN, _signal), (topics.OUTBOX, _sent)):
        end = (await log.extent(topic, partition)).end
        found: list[Event] = []
        async for fetched in log.replay(topic, partition, max(end - RECORDS_MAX, 0)):
            for own_key, value in unpack(fetched.data):
                if own_key == key and value is not None:
                    found.append(read(value))
        events += found[-FOUND_MAX:]
    return events


def _signal(value: bytes) -> Event:
    try:
        signal = decode_signal(value)
    except FrameError as error:
        return _unreadable(str(error))
    if signal.source == ENGINE:
        came = "from another entity"
    elif signal.source.startswith(REPLAY):
        came = f"replayed by an operator, first by {signal.source.removeprefix(REPLAY)}"
    else:
        came = f"by {signal.source}"
    return Event(
        at_ms=signal.received_ms,
        type="signal",
        what=signal.event,
        detail=came,
        correlation_id=correlation_id(signal),
    )


def _sent(value: bytes) -> Event:
    try:
        message = decode_outbox(value)
    except FrameError as error:
        return _unreadable(str(error))
    told = _told(message.payload)
    reason = told.data.metadata.reason
    parts: Sequence[str] = (*told.data.signals, reason) if reason else (message.topic,)
    return Event(
        at_ms=0 if told.timestamp is None else epoch_ms(told.timestamp),
        type=str(message.kind),
        what=message.topic.rpartition("/")[2],
        detail=" · ".join(filter(None, parts)),
        correlation_id=told.correlation_id or message.correlation,
        is_refusal=not told.data.success,
    )


def _told(payload: bytes) -> Any:
    try:
        return _message.decode(payload)
    except (ValueError, RecursionError):
        return _Message()  # A message of another form says at least on which topic it went.


def _unreadable(why: str) -> Event:
    return Event(at_ms=0, type="signal", what="unreadable", detail=why, correlation_id="")
