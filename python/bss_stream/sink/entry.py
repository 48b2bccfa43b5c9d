"""A record becomes one SQL row, or a reject that keeps its bytes."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Final, NamedTuple

import msgspec

from bss_stream import topics
from bss_stream._engine import unpack
from bss_stream.errors import LogError, NewerVersionError
from bss_stream.log.protocol import Fetched
from bss_stream.setup.documents import is_id

LEDGER_NAMES: Final = {topics.LEDGER_PAYMENT: "payment", topics.LEDGER_SERVICE: "service"}
"""The `ledger` column by topic."""

ENTRY_VERSION: Final = 1

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)

Bigint = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Seq = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
Instant = Annotated[datetime, msgspec.Meta(tz=True)]


class RejectReason(StrEnum):
    """Why a record is in sink_rejects and not in ledger_entries."""

    UNDECODABLE = "undecodable"
    """The value is no ledger entry."""
    KEY_MISMATCH = "key_mismatch"
    """The entry's plan is not the record's key."""
    ENTRY_ID_CONFLICT = "entry_id_conflict"
    """Another entry, with other bytes, holds this entry_id."""
    SEQ_CONFLICT = "seq_conflict"
    """An entry with another entry_id holds this plan and seq."""


class EntryRow(NamedTuple):
    """One row of ledger_entries, its fields in the order of the columns."""

    entry_id: str
    ledger: str
    plan_id: str
    seq: int
    kind: str
    service_id: str | None
    signal_id: str | None
    source: str
    event_at_ms: int
    recorded_at_ms: int
    units: int
    amount_minor: int
    currency: str
    entry: str
    """The record's exact bytes as text: the hash chain is over them."""


class Position(NamedTuple):
    """Where in the log a record stands."""

    topic: str
    partition: int
    offset: int


class Reject(NamedTuple):
    """One row of sink_rejects, its fields in the order of the columns."""

    topic: str
    partition: int
    offset: int
    reason: RejectReason
    error: str
    record_key: bytes
    raw: bytes | None
    """The record's value, None if it had none."""


class StationRow(NamedTuple):
    """One row of station_states, its fields in the order of the columns."""

    location_id: str
    offset: int
    """In the partition of the station's changelog: the later record wins."""
    state: bytes | None
    """The changelog's bytes as they are, None once the station is forgotten."""


class Batch(NamedTuple):
    """What one SQL transaction takes; `positions` runs parallel to `entries`."""

    entries: list[EntryRow]
    positions: list[Position]
    rejects: list[Reject]
    stations: Sequence[StationRow] = ()
    """The newest state of each station concerned."""

    def newest_ms(self) -> dict[tuple[str, int], int]:
        """The newest recorded time of each topic's and partition's entries, in epoch ms."""
        newest: dict[tuple[str, int], int] = {}
        for row, position in zip(self.entries, self.positions, strict=True):
            place = position[:2]
            newest[place] = max(row.recorded_at_ms, newest.get(place, row.recorded_at_ms))
        return newest


class _Entry(msgspec.Struct, frozen=True, gc=False):
    """The fields that have a column; the others are skipped unread."""

    v: int
    entry_id: str
    plan_id: str
    seq: Seq
    kind: str
    source: str
    event_at: Instant
    recorded_at: Instant
    units: Bigint
    amount_minor: Bigint
    currency: str
    service_id: str | None = None
    signal_id: str | None = None


_decoder: Final = msgspec.json.Decoder(_Entry)


def epoch_ms(instant: datetime) -> int:
    """Whole milliseconds since 1970 of an instant with a time zone."""
    return (instant - _EPOCH) // _MILLISECOND


class _Versioned(msgspec.Struct, frozen=True):
    v: int


_version_decoder: Final = msgspec.json.Decoder(_Versioned)


def check_version(value: bytes | str) -> None:
    """Raise NewerVersionError for the entry of a later program; whatever else it is, return."""
    try:
        version = _version_decoder.decode(value).v
    except (ValueError, RecursionError):
        return
    if version > ENTRY_VERSION:
        raise NewerVersionError("ledger entry", version, ENTRY_VERSION)


def decode_row(ledger: str, value: bytes) -> EntryRow:
    """The row of an entry's bytes.

    Raises ValueError (msgspec's and Unicode's errors are such) or RecursionError when they are
    no entry of version 1, NewerVersionError when a later program has written them.
    """
    text = value.decode("utf-8")
    try:
        entry = _decoder.decode(value)
    except msgspec.ValidationError:
        # Another version may well lack what this one asks for.
        check_version(value)
        raise
    if entry.v != ENTRY_VERSION:
        check_version(value)
        raise ValueError(f"v is {entry.v}: expected {ENTRY_VERSION}")
    row = EntryRow(
        entry.entry_id,
        ledger,
        entry.plan_id,
        entry.seq,
        entry.kind,
        entry.service_id,
        entry.signal_id,
        entry.source,
        epoch_ms(entry.event_at),
        epoch_ms(entry.recorded_at),
        entry.units,
        entry.amount_minor,
        entry.currency,
        text,
    )
    # PostgreSQL's text has no U+0000, and both stores have to agree on what is an entry.
    if b"\\u0000" in value and any(isinstance(field, str) and "\0" in field for field in row):
        raise ValueError("a field holds U+0000: expected printable text")
    return row


def decode_fetched(fetched: Sequence[Fetched]) -> Batch:
    """The rows and rejects of what the log returned, in order.

    Raises LogError when a chunk is damaged: its records cannot even be told apart;
    NewerVersionError when a later program has written an entry, which is none to reject.
    """
    batch = Batch([], [], [])
    stations: dict[bytes, Position] = {}
    states: dict[bytes, bytes | None] = {}
    for part in fetched:
        for offset, (key, value) in zip(part.offsets, _records(part), strict=True):
            position = Position(part.topic, part.partition, offset)
            if part.topic == topics.STATE_STATION:
                # A busy station has many records in a batch, and only the last one counts.
                stations[key], states[key] = position, value
            else:
                _decode_into(batch, position, key, value)
    return batch._replace(stations=_station_rows(batch, stations, states))


def _station_rows(
    batch: Batch, stations: Mapping[bytes, Position], states: Mapping[bytes, bytes | None]
) -> list[StationRow]:
    rows = []
    for key, position in stations.items():
        location_id = key.decode("utf-8", "replace")
        if is_id(location_id):
            rows.append(StationRow(location_id, position.offset, states[key]))
        else:
            error = f"the key is {key!r}: expected a location id"
            _reject(batch, position, RejectReason.UNDECODABLE, error, key, states[key])
    return rows


def _records(part: Fetched) -> list[tuple[bytes, bytes | None]]:
    chunk = f"{part.topic} partition {part.partition} before offset {part.next_offset}: the chunk"
    try:
        records = unpack(part.data)
    except ValueError as error:
        raise LogError(f"{chunk} is damaged: {error}") from error
    if len(records) != len(part.offsets):
        raise LogError(f"{chunk} holds {len(records)} records: expected {len(part.offsets)}")
    return records


def _decode_into(batch: Batch, position: Position, key: bytes, value: bytes | None) -> None:
    if value is None:
        _reject(batch, position, RejectReason.UNDECODABLE, "the record has no value", key, None)
        return
    try:
        row = decode_row(LEDGER_NAMES[position.topic], value)
    except (ValueError, msgspec.DecodeError, RecursionError) as error:
        _reject(batch, position, RejectReason.UNDECODABLE, str(error), key, value)
        return
    if row.plan_id.encode("utf-8") != key:
        error_text = f"plan_id is {row.plan_id!r}: expected the record's key {key!r}"
        _reject(batch, position, RejectReason.KEY_MISMATCH, error_text, key, value)
        return
    batch.entries.append(row)
    batch.positions.append(position)


def _reject(
    batch: Batch,
    position: Position,
    reason: RejectReason,
    error: str,
    key: bytes,
    raw: bytes | None,
) -> None:
    batch.rejects.append(Reject(*position, reason, error.replace("\0", "\ufffd"), key, raw))


def conflict(
    batch: Batch, index: int, stored_by_id: str | None, holder_of_seq: str | None
) -> Reject | None:
    """Why entry `index` was not inserted, or None when the same entry is there already.

    `stored_by_id` is the stored entry with its entry_id, `holder_of_seq` the entry_id stored at
    its plan and seq.
    """
    row, position = batch.entries[index], batch.positions[index]
    if stored_by_id == row.entry:
        return None
    if stored_by_id is not None:
        reason = RejectReason.ENTRY_ID_CONFLICT
        error = f"entry_id {row.entry_id!r} is stored already with other bytes"
    else:
        reason = RejectReason.SEQ_CONFLICT
        error = (
            f"plan {row.plan_id!r} seq {row.seq} is stored already as entry {holder_of_seq!r}: "
            f"entry {row.entry_id!r} has the same seq"
        )
    raw = row.entry.encode("utf-8")
    return Reject(*position, reason, error, row.plan_id.encode("utf-8"), raw)
