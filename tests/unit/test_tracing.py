"""Who records spans: nobody unless told, and who is told needs the extra."""

import sys

import pytest

import bss_stream
from bss_stream.cli.running import tracing
from bss_stream.config import Config, Tracing
from bss_stream.errors import ConfigError
from bss_stream.tracing import OFF, properties, traceparent


def test_nobody_records_unless_told() -> None:
    assert tracing(Config(), ("bridge",), None) is OFF
    spans = OFF.spans("bss.bridge.append")
    assert (OFF.is_on, spans.begin("a trace", {})) == (False, "a trace")
    spans.end(ValueError("whatever"))


def test_without_the_extra_it_is_a_fault_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    monkeypatch.delitem(sys.modules, "bss_stream.otel", raising=False)
    monkeypatch.delattr(bss_stream, "otel", raising=False)
    with pytest.raises(ConfigError, match=r"\$\.tracing\.enabled: true: .* extra `otel`"):
        tracing(Config(tracing=Tracing(enabled=True)), ("bridge",), None)


def test_the_first_trace_of_a_message_counts() -> None:
    told = [("a", "b"), *properties("one"), *properties("other")]
    assert traceparent(told) == "one"
    assert traceparent([]) is None and properties("") == ()
