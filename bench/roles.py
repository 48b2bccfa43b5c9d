"""Each role beside the least that its work could cost: the roles of `python -m bench.report`.

The bridge beside a bare receive loop of the same MQTT client, the processor on the embedded log
beside bare SQLite inserts of the same bytes, the publisher beside the bare client, the sink beside
bare inserts of the same entries. Every contender meets the same broker, disk and records, in turns.
Mosquitto is used where it is installed, else the embedded broker. Figures are wall-clock time.
"""

import asyncio
import shutil
import sqlite3
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from bench.sheet import Sheet
from bench.traffic import Arrival, City
from bss_stream import topic_table, topics
from bss_stream._engine import pack, partition_for, unpack
from bss_stream.bridge import Bridge, BridgeSettings
from bss_stream.frames import decode_outbox, decode_signal
from bss_stream.log.embedded import EmbeddedLog
from bss_stream.log.protocol import Chunk, Log
from bss_stream.mqtt.broker import IN_FLIGHT_MAX, EmbeddedBroker
from bss_stream.mqtt.client import MqttClient
from bss_stream.mqtt.messages import SESSION_WEEK_S, Message, MqttSettings
from bss_stream.processor import Processor, ProcessorSettings
from bss_stream.publisher import Publisher, PublisherSettings, to_message
from bss_stream.setup import compile_setup, load_setup
from bss_stream.sink.loop import LedgerSink
from bss_stream.sink.sqlite import SqliteLedgerStore
from tests.servers.mosquitto import Mosquitto

PARTITIONS = 4
BATCH = 1_000
LOOK_S = 0.002
SCRATCH = "CREATE TABLE bare (id INTEGER PRIMARY KEY, data BLOB NOT NULL)"


class Size(NamedTuple):
    """How much is measured."""

    plans: int
    requests: int
    rounds: int


QUICK = Size(plans=500, requests=5_000, rounds=1)
FULL = Size(plans=5_000, requests=60_000, rounds=3)

Rates = dict[str, list[float]]
"""Of each contender, its rates."""


class Day(NamedTuple):
    """A city's traffic as it comes in from outside."""

    setup: bytes
    arrivals: list[Arrival]
    now_ms: int


def a_day(size: Size) -> Day:
    """What a city sends while its plans settle and then live."""
    setup = compile_setup(load_setup())
    city = City(setup, size.plans, partitions=PARTITIONS)
    arrivals = [a for a in [*city.settle(), *city.requests(size.requests)] if a.external]
    return Day(setup, arrivals, max(a.received_ms for a in arrivals))


# The bridge.


async def bridge_rates(port: int, inflight: int, day: Day, log: Log, rates: Rates) -> int:
    """A backlog of one broker taken by a bridge and by a bare loop; returns its size."""
    table = topic_table.load()

    def settings(name: str) -> MqttSettings:
        return MqttSettings(
            host="127.0.0.1",
            port=port,
            client_id=name,
            session_expiry_s=SESSION_WEEK_S,
            receive_max=inflight,
        )

    for name in ("bridge", "bare"):
        client = MqttClient(settings(name))
        await client.connect()
        await client.subscribe(*table.subscriptions())
        await client.close()
    signals = [decode_signal(arrival.value) for arrival in day.arrivals]
    messages = [Message(topic=signal.source, payload=signal.payload) for signal in signals]
    await publish(MqttSettings(host="127.0.0.1", port=port, client_id="riders"), messages)

    bare = MqttClient(settings("bare"))
    started_s = time.perf_counter()
    await bare.connect()
    await bare.subscribe(*table.subscriptions())
    taken = 0
    async for batch in bare.batches(BATCH, linger_s=0.005):
        taken += len(batch)
        bare.ack(batch)
        if taken >= len(messages):
            break
    rates["bare receive loop of the same client"].append(taken / (time.perf_counter() - started_s))
    await bare.close()

    bridge = Bridge(log, settings("bridge"), table, BridgeSettings())
    running = asyncio.create_task(bridge.run())
    taken_s = await _until(lambda: bridge.counters.acknowledged >= len(messages), running)
    rates["bridge: messages a second"].append(len(messages) / taken_s)
    bridge.stop()
    await running
    return len(messages)


async def publish(settings: MqttSettings, messages: Sequence[Message]) -> None:
    """All messages by one client, acknowledged."""
    client = MqttClient(settings)
    await client.connect()
    for first in range(0, len(messages), BATCH):
        await client.publish(messages[first : first + BATCH])
    await client.close()


async def _until(holds: Callable[[], bool], running: asyncio.Task[None]) -> float:
    """Seconds until a role has done its work; raises what the role raises."""
    started_s = time.perf_counter()
    while not holds():
        if running.done():
            await running
            raise RuntimeError("the role has ended before its work was done")
        await asyncio.sleep(LOOK_S)
    return time.perf_counter() - started_s


# The processor.


async def append(log: Log, day: Day) -> None:
    """Bring a day's signals into a log, as a bridge does."""
    appender = await log.appender()
    for first in range(0, len(day.arrivals), BATCH):
        placed: dict[tuple[str, int], list[tuple[bytes, bytes | None]]] = {}
        for arrival in day.arrivals[first : first + BATCH]:
            place = (arrival.topic, partition_for(arrival.key, PARTITIONS))
            placed.setdefault(place, []).append((arrival.key, arrival.value))
        await appender.append([Chunk(t, p, len(r), pack(r)) for (t, p), r in placed.items()])
    await appender.close()


async def processor_rates(directory: Path, log: Log, day: Day, rates: Rates) -> int:
    """A day's signals through a processor, beside bare inserts of the bytes it wrote.

    Returns how many records the processor took in, with all that followed from the signals.
    """
    settings = ProcessorSettings(
        group="bench", transactional_id=lambda shard: f"bench-{shard}", threads=2
    )
    processor = Processor(log, day.setup, settings, clock_ms=lambda: day.now_ms)
    started_s = time.perf_counter()
    processor.stop(drain=True)
    await processor.run()
    taken_s = time.perf_counter() - started_s
    records, transactions = processor.counters.records, processor.counters.transactions
    rates["processor: records a second"].append(records / taken_s)
    written = [
        fetched.data
        for topic in (*topics.LEDGERS, *topics.STATES, topics.OUTBOX, topics.DEAD_LETTER)
        for partition in range(PARTITIONS)
        async for fetched in log.replay(topic, partition)
    ]
    seconds = await asyncio.to_thread(_insert, directory / "bare-log.db", written, transactions)
    rates["bare SQLite inserts of what it wrote"].append(records / seconds)
    return records


def _insert(file: Path, rows: Sequence[bytes], commits: int) -> float:
    """Seconds that SQLite takes for these rows in so many durable commits."""
    file.unlink(missing_ok=True)
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute(SCRATCH)
    each = max(1, -(-len(rows) // max(1, commits)))
    started_s = time.perf_counter()
    for first in range(0, len(rows), each):
        connection.execute("BEGIN")
        part = [(row,) for row in rows[first : first + each]]
        connection.executemany("INSERT INTO bare (data) VALUES (?)", part)
        connection.execute("COMMIT")
    seconds = time.perf_counter() - started_s
    connection.close()
    file.unlink()
    return seconds


# The publisher and the sink, on what the processor has written.


async def records_of(log: Log, *of_topics: str) -> list[bytes]:
    """The values of all records of some topics."""
    return [
        value or b""
        for topic in of_topics
        for partition in range(PARTITIONS)
        async for fetched in log.replay(topic, partition)
        for _, value in unpack(fetched.data)
    ]


async def publisher_rates(port: int, log: Log, rates: Rates) -> int:
    """The outbox onto MQTT, beside the bare client with the same messages; how many there are."""
    messages = [to_message(decode_outbox(v)) for v in await records_of(log, topics.OUTBOX)]
    started_s = time.perf_counter()
    await publish(MqttSettings(host="127.0.0.1", port=port, client_id="bare-out"), messages)
    taken_s = time.perf_counter() - started_s
    rates["bare publish by the same client"].append(len(messages) / taken_s)
    settings = MqttSettings(host="127.0.0.1", port=port, client_id="publisher")
    publisher = Publisher(log, settings, PublisherSettings(group="bench-publishers"))
    counters = publisher.counters
    running = asyncio.create_task(publisher.run())
    taken_s = await _until(lambda: counters.published >= len(messages), running)
    rates["publisher: outbox messages a second"].append(len(messages) / taken_s)
    publisher.stop()
    await running
    return len(messages)


async def sink_rates(directory: Path, log: Log, rates: Rates) -> int:
    """The ledgers into SQLite, beside bare inserts of the same entries; how many there are."""
    entries = await records_of(log, *topics.LEDGERS)
    sink = LedgerSink(log, SqliteLedgerStore(directory / "ledgers.db"))
    running = asyncio.create_task(sink.run())
    taken_s = await _until(lambda: sink.counters.entries >= len(entries), running)
    rates["sink: entries a second"].append(len(entries) / taken_s)
    sink.stop()
    await running
    seconds = await asyncio.to_thread(
        _insert, directory / "bare-ledgers.db", entries, sink.counters.batches
    )
    rates["bare SQLite inserts of the entries"].append(len(entries) / seconds)
    return len(entries)


# All together.


@asynccontextmanager
async def broker(directory: Path) -> AsyncIterator[tuple[int, int, str]]:
    """Port, messages in flight and name of a broker: Mosquitto if there is one."""
    binary = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if binary is None:
        async with EmbeddedBroker(kept_bytes_max=512 * 1024 * 1024) as embedded:
            yield embedded.port, IN_FLIGHT_MAX, "embedded broker"
        return
    mosquitto = Mosquitto(binary, directory, persistence=False, lines=[])
    mosquitto.start()
    try:
        yield mosquitto.port, MqttSettings(host="", client_id="").receive_max, "Mosquitto"
    finally:
        mosquitto.stop()


async def one_round(day: Day, rates: Rates, counts: Counter[str]) -> str:
    """Every contender once, on a fresh broker and fresh files; returns the broker's name."""
    with TemporaryDirectory() as name:
        directory = Path(name)
        async with broker(directory / "broker") as (port, inflight, broker_name):
            bridged = EmbeddedLog(directory / "bridged", partitions=PARTITIONS)
            await bridged.open()
            counts["messages"] = await bridge_rates(port, inflight, day, bridged, rates)
            await bridged.close()
            log = EmbeddedLog(directory / "log", partitions=PARTITIONS)
            await log.open()
            await append(log, day)
            counts["records"] = await processor_rates(directory, log, day, rates)
            counts["outbox messages"] = await publisher_rates(port, log, rates)
            counts["ledger entries"] = await sink_rates(directory, log, rates)
            await log.close()
    return broker_name


PAIRS = (
    ("bridge: messages a second", "bare receive loop of the same client"),
    ("processor: records a second", "bare SQLite inserts of what it wrote"),
    ("publisher: outbox messages a second", "bare publish by the same client"),
    ("sink: entries a second", "bare SQLite inserts of the entries"),
)


async def compare(sheet: Sheet, size: Size) -> None:
    """Measure; medians of all rounds, with the share of the limit that each role reaches."""
    day = a_day(size)
    rates: Rates = defaultdict(list)
    counts: Counter[str] = Counter()
    broker_name = ""
    for _ in range(size.rounds):
        broker_name = await one_round(day, rates, counts)
    amounts = ", ".join(f"{count:,} {what}" for what, count in counts.items())
    sheet.note(f"roles: {amounts}; {broker_name}, embedded log on disk, elapsed time")
    for role, limit in PAIRS:
        sheet.add(f"limit: {limit}", statistics.median(rates[limit]))
        share = statistics.median(r / b for r, b in zip(rates[role], rates[limit], strict=True))
        what = role.removesuffix(" a second")
        sheet.add(what, statistics.median(rates[role]), share, to="its limit")
