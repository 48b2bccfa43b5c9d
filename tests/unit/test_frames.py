"""Frames: what is encoded comes back, and what is not a frame is an error."""

import string
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bss_stream.errors import FrameError, NewerVersionError
from bss_stream.frames import (
    DeadLetter,
    OutboxKind,
    OutboxMessage,
    Signal,
    decode_dead_letter,
    decode_outbox,
    decode_signal,
    encode_dead_letter,
    encode_outbox,
    encode_signal,
)

clean = st.text(string.printable.strip() + " éü漢🔋", max_size=60)
number = st.integers(-(2**63), 2**63 - 1)
body = st.binary(max_size=200) | st.just(b"1\ta\tb\n\n\t\x00")

signals = st.builds(Signal, clean, number, clean, clean, body, clean)
messages = st.builds(
    OutboxMessage,
    st.sampled_from(OutboxKind),
    st.integers(0, 1),
    st.booleans(),
    st.integers(0, 2**32 - 1),
    clean,
    clean,
    body,
    clean,
)
letters = st.builds(DeadLetter, clean, clean, number, number, number, clean, body)


@given(signals)
def test_signals_come_back(signal: Signal) -> None:
    assert decode_signal(encode_signal(signal)) == signal


@given(messages)
def test_outbox_messages_come_back(message: OutboxMessage) -> None:
    assert decode_outbox(encode_outbox(message)) == message


@given(letters)
def test_dead_letters_come_back(letter: DeadLetter) -> None:
    assert decode_dead_letter(encode_dead_letter(letter)) == letter


@given(st.text(max_size=60), st.text(max_size=60), body)
def test_no_text_breaks_the_header(correlation: str, source: str, payload: bytes) -> None:
    encoded = encode_signal(Signal("event", 1, correlation, source, payload))
    decoded = decode_signal(encoded)
    assert decoded.payload == payload
    head = encoded[: len(encoded) - len(payload)]
    assert head.count(b"\n") == 1
    assert not any(byte < 0x20 and byte not in b"\t\n" for byte in head)


@given(st.binary(max_size=200))
@pytest.mark.parametrize("decode", [decode_signal, decode_outbox, decode_dead_letter])
def test_other_bytes_are_a_frame_error(decode: Callable[[bytes], object], value: bytes) -> None:
    with pytest.raises(FrameError):
        decode(b"0\t" + value)


@given(st.binary(max_size=200))
@pytest.mark.parametrize("decode", [decode_signal, decode_outbox, decode_dead_letter])
def test_a_later_version_is_no_fault_of_the_frame(
    decode: Callable[[bytes], object], value: bytes
) -> None:
    with pytest.raises(NewerVersionError, match="upgrade"):
        decode(b"3\t" + value)


def test_only_a_trace_makes_a_frame_of_version_2() -> None:
    signal = Signal("event", 1, "c", "s", b"{}")
    assert encode_signal(signal) == b"1\tevent\t1\tc\ts\n{}"
    assert encode_signal(signal._replace(trace="t")) == b"2\tevent\t1\tc\ts\tt\n{}"
    with pytest.raises(NewerVersionError):
        decode_dead_letter(b"2\treason\ts\t0\t0\t1\td\tt\n")


@pytest.mark.parametrize(
    ("value", "wrong"),
    [
        (b"", "expected version 1"),
        (b"1\techo\t1\t0\t300\tc\ttopic", "expected version 1 and 6 fields"),
        (b"1\techo\t1\t0\t300\tc\n", "6 fields"),
        (b"1\tshout\t1\t0\t300\tc\ttopic\n", "kind 'shout'"),
        (b"1\techo\tone\t0\t300\tc\ttopic\n", "'one' where a whole number belongs"),
    ],
)
def test_a_fault_names_what_is_wrong(value: bytes, wrong: str) -> None:
    with pytest.raises(FrameError, match=wrong):
        decode_outbox(value)
