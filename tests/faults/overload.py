"""Twice as many requests as the platform can take, for as long as is asked for.

    python -m tests.faults.overload --seconds 600

starts Mosquitto and `bss-stream run` with the embedded log, measures how many requests a second it
answers when it has more than enough of them, then brings twice as many, and prints the memory that
the platform's process had at most, what was lost (0) and what it has counted. What is too much
waits with the broker, which here keeps all of it. Exit code 1 if a check fails.
"""

import argparse
import asyncio
import contextlib
import re
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import orjson

from bss_stream.config import Config
from bss_stream.log.sqlite_file import FILE, connect_reader
from bss_stream.mqtt.client import MqttClient
from bss_stream.mqtt.messages import Message, MqttSettings
from tests.eventually import eventually
from tests.platform_processes import PlatformProcess, audit
from tests.servers.mosquitto import Mosquitto, mosquitto_server

PLANS = 500
PADDING = "x" * 200
"""Makes a request as large as clients' larger ones."""

WARM_UP_S = 3.0
BEAT_S = 0.02
LOOK_S = 0.2
TELL_S = 10.0
PER_REQUEST = 2
"""Echoes of an identification: one on the topic of each generation of clients."""

DRAIN_TIMEOUT_S = 900.0
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an overload has shown."""

    capacity_per_s: float
    rate_per_s: float
    """What was brought in fact."""
    sent: int
    backlog_max: int
    """Requests that were sent and not answered, at most."""
    drain_s: float
    memory_before: int
    memory_max: int
    """Resident bytes of the platform's process, which has all roles."""
    counted: str
    """What the roles have counted, as they say at their end."""
    exit_code: int
    audit_code: int

    def count(self, role: str, name: str) -> int:
        """One number of theirs, 0 if it is not there."""
        found = re.search(rf" {role}: .*?\b{re.escape(name)}=([0-9]+)", self.counted)
        return 0 if found is None else int(found[1])

    @property
    def lost(self) -> int:
        """Requests that were sent, and not appended or not applied."""
        ends = self.count("bridge", "appended"), self.count("processor", "outcomes.ok")
        return self.sent + 2 * PLANS - min(ends)

    @property
    def unpublished(self) -> int:
        """Echoes that the broker has not been given."""
        owed = 2 * PLANS + PER_REQUEST * self.sent
        return owed - self.count("publisher", "published")

    @property
    def ok(self) -> bool:
        """Whether all came to its end."""
        unbalanced = "do not add up" in self.counted
        return not (
            self.lost or self.unpublished or unbalanced or self.exit_code or self.audit_code
        )


def _config(folder: Path, port: int) -> Path:
    file = folder / "bss.toml"
    file.write_text(
        f"""
data_dir = "{folder / "data"}"
[log.embedded]
durability = "process"
# Ten minutes of this fill a disk otherwise.
keep_consumed_hours = 0
[mqtt]
embedded = false
port = {port}
"""
    )
    return file


def _request(plan: int, number: str, event: str, topic: str, **data: object) -> Message:
    plan_id = f"plan-{plan}"
    body = {
        "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "plan_id": plan_id,
        "correlation_id": f"{event}-{number}",
        "actor": {"type": "system", "id": "overload"},
        "data": data,
    }
    correlation = f"{event}-{number}".encode()
    return Message(topic=topic.format(plan_id), payload=orjson.dumps(body), correlation=correlation)


def _settings(plan: int) -> Iterator[Message]:
    """What makes a plan that can be used."""
    yield _request(
        *(plan, str(plan), "sync", "emit/odo/subscription/plan/{}/sync"),
        odoo_subscription_id=plan,
        odoo_payment_state="paid",
        odoo_subscription_state="in_progress",
        odoo_currency_id="KES",
        odoo_amount_total=8000,
        template_id="template-nairobi-basic",
        customer_id=f"customer-{plan}",
    )
    yield _request(plan, str(plan), "init", "emit/uxi/service/plan/{}/initialize_states")


def _identification(number: int) -> Message:
    topic = "emit/uxi/attendant/plan/{}/identify_customer"
    plan = number % PLANS
    data = {"qr_code_data": f"plan-{plan}", "note": PADDING}
    return _request(plan, str(number), "identify", topic, **data)


class _Outbox:
    """How many messages have been published, read in another process's log."""

    def __init__(self, config: Config) -> None:
        self._connection = connect_reader(config.log_directory / FILE)
        self._group = config.group("publisher")

    def published(self) -> int:
        """The sum of the offsets up to which the broker has acknowledged everything."""
        sums = "SELECT sum(next_offset) FROM committed WHERE group_name = ?"
        (found,) = self._connection.execute(sums, (self._group,)).fetchone()
        return found or 0

    def close(self) -> None:
        self._connection.close()


class Overload:
    """A platform under load, its memory, and how far it has come."""

    def __init__(self, process: PlatformProcess, outbox: _Outbox, sender: MqttClient) -> None:
        self.sent = 0
        self.backlog_max = 0
        self.memory_max = 0
        self._process = process
        self._outbox = outbox
        self._sender = sender
        self._settled = 0
        self._publishing: set[asyncio.Task[object]] = set()

    def memory(self) -> int:
        """Resident bytes of the platform's process now."""
        status = Path(f"/proc/{self._process.process.pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("VmRSS:")]
        now = int(line.split()[1]) * 1024
        self.memory_max = max(self.memory_max, now)
        return now

    def answered(self) -> int:
        """Requests whose echoes the broker has."""
        done = (self._outbox.published() - self._settled) // PER_REQUEST
        self.backlog_max = max(self.backlog_max, self.sent - done)
        self.memory()
        return done

    async def settle(self) -> None:
        """Make the plans."""
        await self._sender.publish([one for plan in range(PLANS) for one in _settings(plan)])
        while self._settled < 2 * PLANS:
            await asyncio.sleep(0.5)
            self._settled = self._outbox.published()
        assert self._settled == 2 * PLANS, "each of a plan's first requests has one echo"

    async def bring(self, rate_per_s: float, seconds: float) -> float:
        """Bring so many requests a second, whatever becomes of them; how many it were."""
        began_s, first = time.monotonic(), self.sent
        looked_s = told_s = began_s
        while (now_s := time.monotonic()) < began_s + seconds:
            due = int((now_s - began_s) * rate_per_s) - (self.sent - first)
            if due > 0:
                batch = [_identification(self.sent + i) for i in range(due)]
                self.sent += due
                task: asyncio.Task[object] = asyncio.create_task(self._sender.publish(batch))
                self._publishing.add(task)
                task.add_done_callback(self._publishing.discard)
            if now_s > looked_s + 1.0:
                looked_s = now_s
                waiting = self.sent - self.answered()
                if now_s > told_s + TELL_S:
                    told_s = now_s
                    memory = self.memory() / MIB
                    print(
                        f"{now_s - began_s:5.0f} s: {waiting:,} wait, {memory:.0f} MiB", flush=True
                    )
            await asyncio.sleep(BEAT_S)
        return (self.sent - first) / (time.monotonic() - began_s)

    async def capacity(self, seconds: float) -> float:
        """Requests answered a second while more than enough of them wait."""
        await self.bring(20_000, seconds / 2)
        began_s, before = time.monotonic(), self.answered()
        for _ in range(int(seconds / LOOK_S)):
            await asyncio.sleep(LOOK_S)
            if self.answered() == self.sent:
                break
        return (self.answered() - before) / (time.monotonic() - began_s)

    async def drain(self) -> float:
        """Wait until every request is answered; how long that took."""
        began_s = time.monotonic()
        await asyncio.gather(*self._publishing)
        await eventually(lambda: self.answered() >= self.sent, DRAIN_TIMEOUT_S)
        return time.monotonic() - began_s


@contextlib.asynccontextmanager
async def _started(
    folder: Path, broker: Mosquitto
) -> AsyncIterator[tuple[Path, PlatformProcess, Overload]]:
    file = _config(folder, broker.port)
    settings = MqttSettings(
        host="127.0.0.1", port=broker.port, client_id="overload", publish_max=10_000
    )
    async with PlatformProcess(file, "run") as process, MqttClient(settings) as sender:
        outbox = _Outbox(Config.load(file))
        with contextlib.closing(outbox):
            yield file, process, Overload(process, outbox, sender)


async def overload(folder: Path, seconds: float) -> Outcome:
    """Overload a platform in a folder of its own."""
    broker = mosquitto_server(folder / "mosquitto", persistence=False)
    broker.start()
    try:
        async with _started(folder, broker) as (file, process, load):
            await load.settle()
            before = load.memory()
            capacity_per_s = await load.capacity(2 * WARM_UP_S)
            await load.drain()
            print(f"answers {capacity_per_s:,.0f} requests/s; now twice as many", flush=True)
            rate_per_s = await load.bring(2 * capacity_per_s, seconds)
            drain_s = await load.drain()
            exit_code = await process.end()
        audit_code, _ = await audit(file)
    finally:
        broker.kill()
    return Outcome(
        capacity_per_s,
        rate_per_s,
        load.sent,
        load.backlog_max,
        drain_s,
        before,
        load.memory_max,
        process.log,
        exit_code,
        audit_code,
    )


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bss-overload-") as folder:
        outcome = asyncio.run(overload(Path(folder), chosen.seconds))
    print(f"brought {outcome.rate_per_s:,.0f} requests/s for {chosen.seconds:.0f} s")
    print(f"requests {outcome.sent:,}, waiting at most {outcome.backlog_max:,}")
    print(f"answered {outcome.drain_s:.1f} s after the last")
    before, most = outcome.memory_before / MIB, outcome.memory_max / MIB
    print(f"memory of the platform: {before:.0f} MiB before, {most:.0f} MiB at most")
    print(f"lost {outcome.lost}, echoes not published {outcome.unpublished}")
    print(f"exit code {outcome.exit_code}, audit {outcome.audit_code}")
    print(outcome.counted)
    return 0 if outcome.ok else 1


if __name__ == "__main__":
    sys.exit(main())
