"""A trace over a real Mosquitto: the echo has the trace of its request, and spans tell the way."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, Final

import orjson
import pytest

from bss_stream.clock import epoch_ms
from bss_stream.config import Config, EmbeddedLog, Log, Mqtt
from bss_stream.mqtt.client import MqttClient
from bss_stream.mqtt.messages import Message, MqttSettings, Received, Subscription
from bss_stream.roles import Platform
from bss_stream.tracing import OFF, Tracing, traceparent
from tests.servers.mosquitto import Mosquitto
from tests.unit.histories import rfc3339

pytestmark = pytest.mark.mosquitto

TRACE_ID: Final = "0af7651916cd43dd8448eb211c80319c"
SPAN_ID: Final = "b7ad6b7169203331"
SAMPLED: Final = f"00-{TRACE_ID}-{SPAN_ID}-01"
UNSAMPLED: Final = f"00-{TRACE_ID}-{SPAN_ID}-00"

PLAN, STATION = "plan-t-1", "station-nbi-003"
SYNCED: Final = {
    "odoo_subscription_id": 7,
    "odoo_payment_state": "paid",
    "odoo_subscription_state": "in_progress",
    "odoo_currency_id": "KES",
    "odoo_amount_total": 1500,
    "template_id": "template-nairobi-basic",
    "customer_id": "cust-1",
}


class Field:
    """A rider and ARM, on one client."""

    def __init__(self, client: MqttClient) -> None:
        self._client = client
        self._unseen: list[Received] = []

    async def send(self, topic: str, body: dict[str, Any], trace: str | None) -> None:
        properties = (("app", "rider"), ("traceparent", trace)) if trace else ()
        stamped = {"timestamp": rfc3339(epoch_ms()), "plan_id": PLAN, **body}
        message = Message(topic=topic, payload=orjson.dumps(stamped), user_properties=properties)
        assert not await self._client.publish([message])

    async def heard(self, topic: str) -> Received:
        """The next message on a topic."""
        async with asyncio.timeout(20):
            while True:
                for at, message in enumerate(self._unseen):
                    if message.topic == topic:
                        return self._unseen.pop(at)
                batch = await self._client.receive(100)
                self._client.ack(batch)
                self._unseen += batch

    async def ask(
        self, topic: str, echo: str, correlation_id: str, data: dict[str, Any], trace: str | None
    ) -> Received:
        body = {"correlation_id": correlation_id, "data": data}
        await self.send(topic.format(PLAN), body, trace)
        return await self.heard(echo.format(PLAN))

    async def swap(self, trace: str | None) -> tuple[Received, Received]:
        """A first battery, issued by an ARM that knows nothing of traces: command and echo."""
        await self.ask(
            "emit/odo/subscription/plan/{}/sync",
            "echo/odo/subscription/plan/{}/sync",
            "c-1",
            SYNCED,
            None,
        )
        await self.ask(
            "emit/uxi/service/plan/{}/initialize_states",
            "echo/abs/service/plan/{}/initialize_states_result",
            "c-2",
            {"action": "INITIALIZE_SERVICE_PLAN_STATES"},
            None,
        )
        binding = {"correlation_id": "c-3", "data": {"location_id": STATION}}
        await self.send(f"emit/uxi/service/plan/{PLAN}/customer_binding", binding, trace)
        command = await self.heard(f"cmd/ABS/EPS/{STATION}/allocate")
        asked = orjson.loads(command.payload)
        issued = {
            "asset_id": "bat-9",
            "status": "issued",
            "correlation_id": asked["correlation_id"],
            "fleet_id": asked["fleet_id"],
        }
        await self.send(f"echo/ABS/EPS/{STATION}/allocate", issued, None)
        echo = await self.heard(f"echo/abs/service/plan/{PLAN}/customer_binding")
        assert orjson.loads(echo.payload)["data"]["success"]
        return command, echo


@asynccontextmanager
async def field(folder: Path, broker: Mosquitto, tracing: Tracing) -> AsyncIterator[Field]:
    """A whole platform on a broker, and who uses it; drained at the end."""
    config = Config(
        data_dir=str(folder),
        mqtt=Mqtt(embedded=False, port=broker.port),
        log=Log(embedded=EmbeddedLog(durability="process")),
    )
    settings = MqttSettings(host="127.0.0.1", port=broker.port, client_id="field")
    async with Platform(config, tracing=tracing) as platform, MqttClient(settings) as client:
        await client.subscribe(Subscription("echo/#"), Subscription("cmd/#"))
        yield Field(client)
        await platform.drain()
    await asyncio.to_thread(tracing.close)


def parts(message: Received) -> tuple[str, str, str]:
    """Trace id, span id and flags of a message's trace."""
    _, trace_id, span_id, flags = (traceparent(message.user_properties) or "---").split("-")
    return trace_id, span_id, flags


@pytest.mark.parametrize("trace", [SAMPLED, UNSAMPLED])
async def test_a_trace_goes_through_where_nobody_records_spans(
    mosquitto: Mosquitto, tmp_path: Path, trace: str
) -> None:
    async with field(tmp_path, mosquitto, OFF) as rider:
        command, echo = await rider.swap(trace)
    assert traceparent(command.user_properties) == traceparent(echo.user_properties) == trace
    assert ("agent_type", "BSS_AGENT_V2") in echo.user_properties


async def test_who_sends_no_trace_gets_none(mosquitto: Mosquitto, tmp_path: Path) -> None:
    async with field(tmp_path, mosquitto, OFF) as rider:
        for message in await rider.swap(None):
            assert traceparent(message.user_properties) is None


async def test_spans_tell_the_way_from_the_request_to_the_echo(
    mosquitto: Mosquitto, tmp_path: Path
) -> None:
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from bss_stream.otel import OtelTracing

    exporter = InMemorySpanExporter()
    tracing = OtelTracing(SimpleSpanProcessor(exporter), "test")
    async with field(tmp_path, mosquitto, tracing) as rider:
        command, echo = await rider.swap(SAMPLED)
    spans = exporter.get_finished_spans()
    by_id = {f"{span.context.span_id:016x}": span for span in spans if span.context}
    for message in (command, echo):
        trace_id, span_id, flags = parts(message)
        assert (trace_id, flags) == (TRACE_ID, "01")
        # What goes out goes on from the span of its publication.
        assert by_id[span_id].name == "bss.publisher.publish"
        assert (by_id[span_id].attributes or {})["messaging.destination.name"] == message.topic
    [append] = [span for span in spans if span.name == "bss.bridge.append"]
    assert append.parent is not None
    assert f"{append.parent.span_id:016x}" == SPAN_ID
    assert {f"{span.context.trace_id:032x}" for span in spans if span.context} == {TRACE_ID}
    decided = [span for span in spans if span.name == "bss.processor.decide"]
    assert append.context is not None
    for span in decided:
        assert span.parent is not None and span.parent.span_id == append.context.span_id
    events = [str((span.attributes or {})["bss.event"]) for span in decided]
    # ARM's answer has no trace; what the station makes of it goes to the plan without one, too.
    assert events[:2] == ["customer_binding", "allocate"]
    assert "allocation_issued" not in events
    assert {(span.attributes or {})["bss.correlation_id"] for span in decided} == {"c-3"}


async def test_a_trace_that_is_not_sampled_has_no_spans(
    mosquitto: Mosquitto, tmp_path: Path
) -> None:
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from bss_stream.otel import OtelTracing

    exporter = InMemorySpanExporter()
    tracing = OtelTracing(SimpleSpanProcessor(exporter), "test")
    async with field(tmp_path, mosquitto, tracing) as rider:
        _, echo = await rider.swap(UNSAMPLED)
    assert traceparent(echo.user_properties) == UNSAMPLED
    assert exporter.get_finished_spans() == ()


@contextmanager
def collector() -> Iterator[tuple[str, Sequence[bytes]]]:
    """An OTLP endpoint, and the bodies that it is sent."""
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/traces", bodies
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def test_spans_are_sent_by_otlp(
    mosquitto: Mosquitto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    from bss_stream.otel import exporting

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with collector() as (endpoint, bodies):
        async with field(tmp_path, mosquitto, exporting(endpoint, "sink-7")) as rider:
            await rider.swap(SAMPLED)
        requests = [ExportTraceServiceRequest.FromString(body) for body in bodies]
    sent = [resource for request in requests for resource in request.resource_spans]
    named = {a.key: a.value.string_value for one in sent for a in one.resource.attributes}
    assert (named["service.name"], named["service.instance.id"]) == ("bss_stream", "sink-7")
    spans = [span for one in sent for scope in one.scope_spans for span in scope.spans]
    assert {span.name for span in spans} == {
        "bss.bridge.append",
        "bss.processor.decide",
        "bss.publisher.publish",
    }
    assert {span.trace_id.hex() for span in spans} == {TRACE_ID}
