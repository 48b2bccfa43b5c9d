"""What no engine could beat: the same bytes merely copied, hashed or scanned.

Each limit does one part of the engine's work for a batch, in one call of C code over all its bytes.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from bench.recording import Call, Recording, settled_engine
from bench.traffic import Batch
from bss_stream import _engine, topics

HASH_FIELD_BYTES = len(',"hash":""') + 64
"""What a ledger entry has beside the bytes that were hashed."""


class Bytes(NamedTuple):
    """What one call of the engine takes in, gives out and hashes."""

    taken: bytes
    given: bytes
    hashed: bytes
    payloads: bytes
    """The payloads that are JSON, as one array."""


def batch_bytes(recording: Recording, traffic: Sequence[Batch]) -> list[Bytes]:
    """The bytes of each batch, from an engine that processes them all."""
    engine = settled_engine(recording)
    found = []
    for batch in traffic:
        chunks = engine.process(batch.inputs, batch.now_ms).chunks
        entries = [
            (value or b"")[:-HASH_FIELD_BYTES]
            for chunk in chunks
            if chunk.topic in topics.LEDGERS
            for _, value in _engine.unpack(chunk.data)
        ]
        taken = b"".join(data for _, _, _, data in batch.inputs)
        given = b"".join(chunk.data for chunk in chunks)
        found.append(Bytes(taken, given, b"".join(entries), _payloads(batch)))
    return found


def _payloads(batch: Batch) -> bytes:
    return b"[" + b",".join(_valid_payloads(batch)) + b"]"


def _valid_payloads(batch: Batch) -> Iterator[bytes]:
    for arrival in batch.arrivals:
        payload = arrival.value.partition(b"\n")[2]
        try:
            msgspec.json.decode(payload, type=msgspec.Raw)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        yield payload


def copy_calls(batches: Sequence[Bytes]) -> Iterator[Call]:
    """Copies what goes in and what comes out once."""
    for one in batches:
        yield lambda b=one: (bytearray(b.taken), bytearray(b.given))  # type: ignore[misc]


def hash_calls(batches: Sequence[Bytes]) -> Iterator[Call]:
    """SHA-256 of what the ledgers' chains hash, as one text."""
    for one in batches:
        yield lambda b=one: hashlib.sha256(b.hashed)  # type: ignore[misc]


def scan_calls(batches: Sequence[Bytes]) -> Iterator[Call]:
    """Finds the end of each payload's JSON, and makes nothing of it."""
    for one in batches:
        yield lambda b=one: msgspec.json.decode(b.payloads, type=msgspec.Raw)  # type: ignore[misc]
