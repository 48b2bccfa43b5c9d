"""A real Apache Kafka for tests: one KRaft node as a process on free loopback ports.

The jars come from Maven (kafka/pom.xml beside this file) into the user's cache, once for each pom.
`python -m tests.servers.kafka prepare` fetches them and does nothing else.
"""

import asyncio
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import pytest
from aiokafka.admin import AIOKafkaAdminClient  # type: ignore[import-untyped]
from aiokafka.errors import KafkaError  # type: ignore[import-untyped]

from tests.servers.ports import free_port
from tests.servers.requirement import missing

POM: Final = Path(__file__).parent / "kafka" / "pom.xml"
START_TIMEOUT_S: Final = 60
STOP_TIMEOUT_S: Final = 20
ATTEMPT_PAUSE_S: Final = 0.1
FETCH_TIMEOUT_S: Final = 900
STAMP: Final = "complete"

JVM: Final = (
    "-Xmx512m",
    "-Xms256m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Xshare:auto",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
)

CONFIGURATION: Final = """
process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers=127.0.0.1:{controller}
listeners={listeners},CONTROLLER://127.0.0.1:{controller}
advertised.listeners={advertised}
listener.security.protocol.map={protocols},CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
log.dirs={data}
auto.create.topics.enable=false
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
offsets.topic.replication.factor=1
offsets.topic.num.partitions=2
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=2
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1
num.network.threads=2
num.io.threads=2
num.recovery.threads.per.data.dir=1
background.threads=2
log.cleaner.threads=1
controlled.shutdown.enable=false
# A killed broker may register again only once its old session is over.
broker.session.timeout.ms=1500
broker.heartbeat.interval.ms=300
"""


PLAIN_LISTENERS: Final[Mapping[str, str]] = {"PLAINTEXT": "PLAINTEXT", "PROXIED": "PLAINTEXT"}


def version() -> str:
    """The Kafka version that the pom names."""
    found = ET.parse(POM).find(".//{*}kafka.version")
    if found is None or not found.text:
        raise RuntimeError(f"{POM} names no kafka.version")
    return found.text


def jars_directory() -> Path:
    """Where Kafka's jars are kept, if they are there: complete once it holds STAMP."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    wanted = hashlib.sha256(POM.read_bytes()).hexdigest()
    return cache / "bss_stream" / f"kafka-{version()}-{wanted[:8]}"


def jars() -> Path:
    """The directory of Kafka's jars, fetched at the first use; skips or fails without Maven."""
    directory = jars_directory()
    stamp = directory / STAMP
    if stamp.is_file():
        return directory
    maven = shutil.which("mvn")
    if maven is None:
        missing("Kafka", f"no `mvn` on PATH to fetch its jars into {directory}")
    shutil.rmtree(directory, ignore_errors=True)
    goal = ("dependency:copy-dependencies", "-DincludeScope=runtime")
    done = subprocess.run(
        [maven, "-B", "-q", "-f", POM, *goal, f"-DoutputDirectory={directory}"],
        capture_output=True,
        timeout=FETCH_TIMEOUT_S,
    )
    if done.returncode != 0:
        missing("Kafka", f"Maven failed: {done.stdout.decode('utf-8', 'replace')[-2000:]}")
    stamp.touch()
    return directory


def _listed(form: str, pairs: Mapping[str, object]) -> str:
    return ",".join(form.format(*pair) for pair in pairs.items())


class Access(NamedTuple):
    """Who gets in besides everybody on the plain listener."""

    listeners: Mapping[str, str] = {}
    """Further listeners, by name their security protocol."""
    lines: Sequence[str] = ()
    """Of the server's configuration."""
    formatting: Sequence[str] = ()
    """Arguments of the formatting of its storage."""


class KafkaServer:
    """A broker with a data directory of its own; `start`, `stop` and `kill` as a test likes."""

    def __init__(self, directory: Path, access: Access | None = None) -> None:
        java = shutil.which("java")
        if java is None:
            missing("Kafka", "no `java` on PATH (Java 17 or later)")
        self._java = java
        self._classpath = f"{jars()}/*"
        self._directory = directory
        self._configuration = directory / "server.properties"
        self._process: subprocess.Popen[bytes] | None = None
        self._access = access or Access()
        protocols = {**PLAIN_LISTENERS, **self._access.listeners}
        self.ports = {name: free_port() for name in protocols}
        self.proxy_port = free_port()
        """Where clients that come over `port_behind_proxy` are told to find the broker."""
        told = self.ports | {"PROXIED": self.proxy_port}
        text = CONFIGURATION.format(
            controller=free_port(),
            listeners=_listed("{}://127.0.0.1:{}", self.ports),
            advertised=_listed("{}://127.0.0.1:{}", told),
            protocols=_listed("{}:{}", protocols),
            data=directory / "data",
        )
        self._configuration.write_text("\n".join((text, *self._access.lines)))
        self._format()

    @property
    def port(self) -> int:
        """The port of the plain listener."""
        return self.ports["PLAINTEXT"]

    @property
    def port_behind_proxy(self) -> int:
        """The port of the listener that a proxy stands before."""
        return self.ports["PROXIED"]

    @property
    def bootstrap(self) -> str:
        """The address for clients of the plain listener."""
        return f"127.0.0.1:{self.port}"

    def _format(self) -> None:
        storage = [*self.command("kafka.tools.StorageTool"), "format", "--standalone"]
        done = subprocess.run(
            [
                *storage,
                *("-t", "bss0stream0tests0node1w"),
                *("-c", str(self._configuration)),
                *self._access.formatting,
            ],
            capture_output=True,
            timeout=START_TIMEOUT_S,
        )
        if done.returncode != 0:
            raise RuntimeError(f"cannot format Kafka's storage: {done.stderr.decode()[-2000:]}")

    def command(self, main: str) -> list[str]:
        """How to run one of Kafka's programs, its arguments still to come."""
        return [self._java, *JVM, "-cp", self._classpath, main]

    def start(self) -> None:
        """Start, and return once a client has been answered."""
        with (self._directory / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self.command("kafka.Kafka"), str(self._configuration)],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                # A Ctrl-C at the tests must not end the server before their clean-up.
                start_new_session=True,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            if self._process.poll() is not None:
                raise RuntimeError(f"Kafka ended at its start\n{self.log()}")
            if time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"Kafka does not answer on {self.bootstrap}\n{self.log()}")
            time.sleep(ATTEMPT_PAUSE_S)

    def _answers(self) -> bool:
        # The port first: aiokafka logs an error for each attempt before it is open.
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", self.port)) != 0:
                return False
        return asyncio.run(_describes_cluster(self.bootstrap))

    def stop(self) -> None:
        """Stop in order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Stop as a crash does: kill -9."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Kill and start again, on the same ports and data."""
        self.kill()
        self.start()

    def freeze(self) -> None:
        """Let it do nothing, with its connections open (SIGSTOP)."""
        assert self._process is not None, "start it first"
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process is not None, "start it first"
        self._process.send_signal(signal.SIGCONT)

    @property
    def running(self) -> bool:
        """Whether its process is there."""
        return self._process is not None and self._process.poll() is None

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(how)
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def log(self) -> str:
        """The end of what the server has written to its log."""
        path = self._directory / "server.log"
        return path.read_text("utf-8", "replace")[-4000:] if path.exists() else ""


async def _describes_cluster(bootstrap: str) -> bool:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap, request_timeout_ms=2000)
    try:
        await admin.start()
        return bool((await admin.describe_cluster())["brokers"])
    except (KafkaError, OSError, TimeoutError):
        return False
    finally:
        await admin.close()


@pytest.fixture(scope="session")
def kafka_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    """The session's broker. A test that kills it makes one of its own instead."""
    server = KafkaServer(tmp_path_factory.mktemp("kafka"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def kafka(kafka_server: KafkaServer) -> str:
    """The bootstrap address of a real broker; keep tests apart by a topic prefix."""
    return kafka_server.bootstrap


if __name__ == "__main__":
    if sys.argv[1:] != ["prepare"]:
        sys.exit("usage: python -m tests.servers.kafka prepare")
    print(jars())
