"""A process answers over HTTP: what its roles have counted, whether it lives, and is ready."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families

from bss_stream.config import Config, EmbeddedLog, Http, KafkaLog, Log, Mqtt
from bss_stream.errors import BssStreamError
from bss_stream.mqtt.client import MqttClient
from bss_stream.mqtt.messages import Message, MqttSettings
from bss_stream.observe import metrics
from bss_stream.observe.server import CONNECTIONS_MAX, HEAD_BYTES_MAX, observed
from bss_stream.roles import Platform
from bss_stream.setup import compile_setup, load_setup
from bss_stream.simulate import Simulation, SimulationConfig
from tests.eventually import eventually
from tests.servers.ports import free_port

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


EMBEDDED = Log(embedded=EmbeddedLog(durability="process"))


def config(folder: Path, log: Log = EMBEDDED) -> Config:
    return Config(data_dir=str(folder), mqtt=Mqtt(port=0), log=log, http=Http(port=0))


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def log(request: pytest.FixtureRequest) -> Log:
    """Each backend of the log."""
    if request.param == "embedded":
        return EMBEDDED
    kafka = KafkaLog(
        bootstrap_servers=(request.getfixturevalue("kafka"),),
        replication_factor=1,
        min_insync_replicas=1,
        topic_prefix="observe.",
    )
    return Log(backend="kafka", kafka=kafka)


async def ask(port: int, text: str) -> tuple[int, str, bytes]:
    """Status, head and body of the answer to a request; empty if there is none."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(text.encode("latin-1"))
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return int(head.split(b" ")[1]) if head else 0, head.decode(), body


async def until_well(port: int, path: str) -> None:
    """Return once a path answers that all is well."""
    for _ in range(3_000):
        if (await ask(port, f"GET {path} HTTP/1.1\r\n\r\n"))[0] == 200:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{path} does not become well")


async def get(port: int, path: str) -> tuple[int, Any]:
    status, head, body = await ask(port, f"GET {path} HTTP/1.1\r\nHost: bss\r\n\r\n")
    return status, orjson.loads(body) if "json" in head else body.decode()


async def scrape(port: int) -> tuple[Series, dict[str, str]]:
    """Every series, and the kind of every family, as Prometheus reads them."""
    status, text = await get(port, "/metrics")
    assert status == 200
    series: Series = {}
    kinds: dict[str, str] = {}
    for family in text_string_to_metric_families(text):
        kinds[family.name] = family.type
        for sample in family.samples:
            place = (sample.name, frozenset(sample.labels.items()))
            assert place not in series, place
            series[place] = sample.value
    return series, kinds


def value(series: Series, name: str, **labels: str) -> float:
    return series[name, frozenset(labels.items())]


async def test_a_platform_tells_what_it_has_done(tmp_path: Path, log: Log) -> None:
    settings = config(tmp_path, log)
    platform = Platform(settings)
    async with observed(settings.http, platform) as port:
        assert port is not None
        assert await get(port, "/readyz") == (
            503,
            {"ready": False, "missing": {role: ["its start"] for role in platform.roles}},
        )
        assert await get(port, "/healthz") == (200, {"alive": True, "ended": []})
        async with platform:
            assert platform.broker is not None
            await until_well(port, "/readyz")
            broker = MqttSettings(
                host="127.0.0.1", port=platform.broker.port, client_id="simulate-o"
            )
            riding = SimulationConfig(run_id="o", plans=60, rate=60, joining_rate=5_000)
            simulation = Simulation(compile_setup(load_setup()), broker, riding)
            async with asyncio.timeout(120):
                told = await simulation.run(3)
            assert told.swaps > 20
            async with MqttClient(broker) as client:
                await client.publish([Message(topic="emit/uxi/x", payload=b"{}")])
            bridge, processor = platform.bridge, platform.processor
            assert bridge is not None and processor is not None
            await eventually(lambda: bridge.counters.in_hand == 0)
            # The last of it may still be under way.
            before = processor.counters.outcomes.copy()
            series, kinds = await scrape(port)
            ended = outcomes(series)
            assert before <= ended <= processor.counters.outcomes
            assert value(series, "bss_processor_records_total") == ended.total()
            await check(series, platform)
            for metric in metrics.every():
                assert kinds.get(metric.name.removesuffix("_total"), metric.kind) == metric.kind
            await platform.drain()
            status, body = await get(port, "/readyz")
            assert (status, list(body["missing"])) == (503, list(platform.roles))
            status, body = await get(port, "/healthz")
            assert (status, body) == (503, {"alive": False, "ended": [*reversed(platform.roles)]})


def outcomes(series: Series) -> Counter[str]:
    """How signals ended, by reason."""
    return Counter(
        {
            dict(labels)["reason"]: int(count)
            for (name, labels), count in series.items()
            if name == "bss_processor_outcomes_total"
        }
    )


async def check(series: Series, platform: Platform) -> None:
    """What is told is what was counted, and what each role has is there."""
    assert platform.processor is not None and platform.bridge is not None
    assert value(series, "bss_processor_outcomes_total", ending="applied", reason="ok") > 50
    for shard in range(platform.config.partitions):
        assert value(series, "bss_processor_entities", shard=str(shard), entity="plan") > 0
        lag = value(
            series,
            "bss_lag_records",
            role="processor",
            topic="bss.signals.plan",
            partition=str(shard),
        )
        assert lag >= 0
    assert value(series, "bss_processor_shards", state="ready") == platform.config.partitions
    for histogram in ("bss_processor_age_seconds", "bss_bridge_append_seconds"):
        assert value(series, f"{histogram}_bucket", le="+Inf") == value(
            series, f"{histogram}_count"
        )
    received = platform.bridge.counters.received
    assert value(series, "bss_bridge_append_seconds_count") == received
    assert value(series, "bss_bridge_messages_total") == received
    assert value(series, "bss_publisher_echo_age_seconds_count") > 0
    assert value(series, "bss_sink_age_seconds_count") > 0
    assert sum(v for (name, _), v in series.items() if name == "bss_processor_stock_batteries") > 0
    for role in platform.roles:
        assert value(series, "bss_role_ready", role=role) == 1
        assert value(series, "bss_counters_unbalanced", role=role) == 0
    assert value(series, "bss_mqtt_connected", role="bridge") == 1
    assert value(series, "bss_scrape_parts_missing") == 0
    assert any(name == "process_cpu_seconds_total" for name, _ in series)


async def test_who_does_not_ask_properly_gets_no_answer_and_disturbs_nobody(
    tmp_path: Path,
) -> None:
    settings = config(tmp_path)
    async with observed(settings.http, Platform(settings)) as port:
        assert port is not None
        assert (await ask(port, "POST /metrics HTTP/1.1\r\n\r\n"))[0] == 405
        assert (await get(port, "/secrets"))[0] == 404
        status, head, body = await ask(port, "HEAD /healthz HTTP/1.1\r\n\r\n")
        assert (status, body) == (200, b"") and "Content-Length: 2" in head
        assert (await ask(port, "GET /healthz?deep=1 HTTP/1.0\r\n\r\n"))[0] == 200
        assert (await ask(port, "\x00\xff\r\n\r\n"))[0] == 405
        assert await ask(port, "GET /" + "a" * 2 * HEAD_BYTES_MAX) == (0, "", b"")
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(CONNECTIONS_MAX)]
        assert await ask(port, "GET /healthz HTTP/1.1\r\n\r\n") == (0, "", b"")
        for _, writer in silent:
            writer.close()
        await until_well(port, "/healthz")


async def test_nobody_listens_unless_told_and_a_taken_port_is_an_error(tmp_path: Path) -> None:
    platform = Platform(config(tmp_path))
    async with observed(Http(), platform) as port:
        assert port is None
    taken = free_port()
    async with observed(Http(port=taken), platform):
        with pytest.raises(BssStreamError, match=rf"\$\.http: cannot listen on .*:{taken}"):
            async with observed(Http(port=taken), platform):
                pass
