"""Whatever the log holds becomes a row or a reject with its bytes; a damaged chunk is an error."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bss_stream import topics
from bss_stream._engine import pack
from bss_stream.errors import LogError
from bss_stream.log.protocol import Fetched
from bss_stream.sink.entry import decode_fetched
from tests.ledger_chain import whole_plan

KEY = b"plan-1"
ENTRY = json.loads(whole_plan().entries[1][1])

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
# Another version is no fault of an entry: tests/golden has what is said of it.
changed_entries = st.builds(
    lambda name, value: json.dumps({**ENTRY, name: value}).encode(),
    st.sampled_from(sorted(ENTRY.keys() - {"v"})),
    json_values,
)


def fetched(*values: bytes | None) -> Fetched:
    """Records with gaps between their offsets."""
    data = pack([(KEY, value) for value in values])
    return Fetched(topics.LEDGER_SERVICE, 2, range(5, 5 + 3 * len(values), 3), data, 99)


@given(st.lists(st.none() | st.binary() | changed_entries))
def test_every_record_is_a_row_or_a_reject_with_its_bytes(values: list[bytes | None]) -> None:
    batch = decode_fetched([fetched(*values)])
    rows = {
        position.offset: (position.topic, position.partition, row.entry.encode())
        for row, position in zip(batch.entries, batch.positions, strict=True)
    }
    rejects = {
        reject.offset: (reject.topic, reject.partition, reject.raw) for reject in batch.rejects
    }
    assert all(reject.error and reject.record_key == KEY for reject in batch.rejects)
    expected = {5 + 3 * at: (topics.LEDGER_SERVICE, 2, value) for at, value in enumerate(values)}
    assert rows | rejects == expected
    assert len(batch.entries) + len(batch.rejects) == len(values)


@given(changed_entries)
def test_a_row_fits_both_databases(value: bytes) -> None:
    for row in decode_fetched([fetched(value)]).entries:
        for field in row:
            if isinstance(field, int):
                assert -(2**63) <= field < 2**63
            elif field is not None:
                assert "\0" not in field
                field.encode("utf-8")


@pytest.mark.parametrize("data", [b"\1", pack([(KEY, b"{}")])[:-1]])
def test_a_damaged_chunk_names_its_place(data: bytes) -> None:
    part = fetched(b"{}")._replace(data=data)
    with pytest.raises(LogError, match=r"bss\.ledger\.service partition 2 before offset 99"):
        decode_fetched([part])


def test_offsets_and_records_must_match() -> None:
    with pytest.raises(LogError, match="holds 1 records: expected 2"):
        decode_fetched([fetched(b"{}")._replace(offsets=[5, 6])])
