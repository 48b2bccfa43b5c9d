"""Spans by OpenTelemetry's SDK, sent by OTLP over HTTP: the extra `otel`.

Only a trace that its sender samples gets spans, so what tracing costs is the sender's choice.
"""

from typing import Final

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from bss_stream import __version__
from bss_stream.tracing import PROPERTY, Attributes, Spans, Tracing

_PROPAGATOR: Final = TraceContextTextMapPropagator()

_KINDS: Final = {
    "bss.bridge.append": SpanKind.CONSUMER,
    "bss.publisher.publish": SpanKind.PRODUCER,
}


class OtelTracing(Tracing):
    """Spans of one process; the instance's name tells it from its likes."""

    is_on = True

    def __init__(self, processor: SpanProcessor, instance: str) -> None:
        resource = Resource.create(
            {
                "service.name": "bss_stream",
                "service.version": __version__,
                "service.instance.id": instance,
            }
        )
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("bss_stream", __version__)

    def spans(self, name: str) -> Spans:
        return OtelSpans(self, name)

    def begin(self, name: str, trace: str, attributes: Attributes) -> Span | None:
        """Begin a span; None for what is no trace, or is not sampled by its sender."""
        context = _PROPAGATOR.extract({PROPERTY: trace})
        kind = _KINDS.get(name, SpanKind.INTERNAL)
        span = self._tracer.start_span(name, context, kind, attributes)
        is_sampled = span.get_span_context().trace_flags.sampled
        return span if isinstance(span, Span) and is_sampled and span.parent else None

    def close(self) -> None:
        self._provider.shutdown()


class OtelSpans(Spans):
    """The spans of one batch."""

    def __init__(self, tracing: OtelTracing, name: str) -> None:
        self._tracing = tracing
        self._name = name
        self._begun: list[Span] = []

    def begin(self, trace: str, attributes: Attributes) -> str:
        span = self._tracing.begin(self._name, trace, attributes)
        if span is None:
            return trace
        self._begun.append(span)
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, set_span_in_context(span))
        return carrier[PROPERTY]

    def end(self, failure: BaseException | None = None) -> None:
        for span in self._begun:
            if failure is not None:
                span.set_status(Status(StatusCode.ERROR, type(failure).__name__))
            span.end()
        self._begun.clear()


def exporting(endpoint: str, instance: str) -> OtelTracing:
    """Spans that are sent to a collector; OTEL_EXPORTER_OTLP_HEADERS may hold what it asks for."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    exporter: SpanExporter = OTLPSpanExporter(endpoint=endpoint)
    return OtelTracing(BatchSpanProcessor(exporter), instance)
