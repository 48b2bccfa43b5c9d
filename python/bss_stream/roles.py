"""The roles made from a configuration, run in one process, and drained in order."""

import asyncio
import contextlib
import contextvars
import dataclasses
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Protocol, Self

from bss_stream import _engine, dead_letters, logs, tls, topic_table
from bss_stream.bridge import Bridge, BridgeSettings
from bss_stream.clock import epoch_ms
from bss_stream.config import Config, Mqtt
from bss_stream.config import KafkaLog as KafkaSettings
from bss_stream.counters import RoleCounters
from bss_stream.errors import BssStreamError, LogInUseError, OdooError
from bss_stream.log.embedded import EmbeddedLog, Policy
from bss_stream.log.kafka import KafkaLog, KafkaOptions
from bss_stream.log.protocol import FollowableLog, Log, TopicPartition
from bss_stream.mqtt.broker import IN_FLIGHT_MAX, EmbeddedBroker
from bss_stream.mqtt.client import MqttClient
from bss_stream.mqtt.messages import MqttSettings
from bss_stream.odoo import extra
from bss_stream.odoo.billing import Measures
from bss_stream.processor import Processor, ProcessorSettings
from bss_stream.publisher import Publisher, PublisherSettings
from bss_stream.queries import Catalogue, Queries, QueriesSettings
from bss_stream.setup import Setup, compile_setup
from bss_stream.sink.loop import LedgerSink, SinkSettings
from bss_stream.sink.read_model import open_read_model
from bss_stream.sink.store import open_ledger_store
from bss_stream.tracing import OFF, Tracing

if TYPE_CHECKING:
    from bss_stream.odoo.adapter import OdooAdapter

__all__ = [
    "ROLES",
    "Platform",
    "Role",
    "mqtt_settings",
    "mqtt_tls_files",
    "open_log",
    "readable_log",
    "replay_letters",
]

logger = logging.getLogger(__name__)

Role = Literal["bridge", "processor", "publisher", "sink", "queries", "odoo"]

ROLES: tuple[Role, ...] = ("bridge", "processor", "publisher", "sink", "queries", "odoo")
"""In the order in which data passes them, which is the order in which they drain."""

MQTT_ROLES: frozenset[Role] = frozenset(("bridge", "publisher", "queries", "odoo"))
LOG_ROLES: frozenset[Role] = frozenset(("bridge", "processor", "publisher", "sink", "odoo"))

HOUR_MS = 3_600_000

Clock = Callable[[], int]
"""Epoch ms."""


def wanted_roles(config: Config) -> tuple[Role, ...]:
    """All roles that a configuration has a use for: Odoo's only with an Odoo."""
    return ROLES if config.odoo.url is not None else tuple(r for r in ROLES if r != "odoo")


class Runner(Protocol):
    """What every role is: something that runs until it is stopped."""

    @property
    def counters(self) -> RoleCounters: ...

    async def run(self) -> None: ...

    def missing(self) -> list[str]:
        """What it waits for before it can do its work."""


def make_log(config: Config, instance: str | None = None, clock_ms: Clock = epoch_ms) -> Log:
    """The log that a configuration names, not opened yet. Raises ConfigError for a secret.

    With an `instance` its members of consumer groups are static ones.
    """
    if config.log.backend == "embedded":
        embedded = config.log.embedded
        return EmbeddedLog(
            config.log_directory,
            partitions=config.partitions,
            durability=embedded.durability,
            policy=Policy(keep_consumed_ms=embedded.keep_consumed_hours * HOUR_MS),
            clock_ms=clock_ms,
        )
    return KafkaLog(_kafka_options(config, instance), partitions=config.partitions)


def _kafka_options(config: Config, instance: str | None) -> KafkaOptions:
    kafka, password = config.log.kafka, config.kafka_password()
    return KafkaOptions(
        bootstrap_servers=",".join(kafka.bootstrap_servers),
        security_protocol=kafka.security_protocol,
        sasl_mechanism=kafka.sasl_mechanism,
        sasl_username=kafka.username,
        sasl_password=None if password is None else password.reveal(),
        tls=_kafka_tls(kafka),
        replication_factor=kafka.replication_factor,
        min_insync_replicas=kafka.min_insync_replicas,
        client_id=config.app,
        session_timeout_ms=kafka.session_timeout_ms,
        topic_prefix=kafka.topic_prefix,
        commit_timeout_ms=kafka.commit_timeout_ms,
        cloudevents=kafka.cloudevents,
        instance=instance,
    )


async def open_log(config: Config, instance: str | None = None, clock_ms: Clock = epoch_ms) -> Log:
    """The log that a configuration names. Raises ConfigError, LogError."""
    log = make_log(config, instance, clock_ms)
    await log.open()
    return log


@contextlib.asynccontextmanager
async def readable_log(config: Config) -> AsyncIterator[FollowableLog]:
    """The log that a configuration names, to be read, also while the platform runs.

    Raises ConfigError, and LogError when it is not there.
    """
    log: FollowableLog
    if config.log.backend == "embedded":
        log = EmbeddedLog.read_only(config.log_directory)
    else:
        log = KafkaLog(_kafka_options(config, None), partitions=config.partitions)
    await log.open()
    try:
        yield log
    finally:
        await log.close()


async def replay_letters(config: Config, order: dead_letters.Order) -> dead_letters.Judgement:
    """Replay dead letters; where another process has the embedded log, it is asked to.

    Raises ConfigError, LogError. A log that is not there is not made.
    """
    async with readable_log(config):
        pass
    try:
        log = await open_log(config)
    except LogInUseError:
        return await dead_letters.ask(config.log_directory, order)
    try:
        return await dead_letters.replay(
            log,
            config.replay_id,
            order.wanted,
            dead_letters.Rules.present(epoch_ms(), again=order.again),
            limit=order.limit,
            note=order.note,
        )
    finally:
        await log.close()


def mqtt_settings(config: Config, client: str, broker: EmbeddedBroker | None) -> MqttSettings:
    """How to reach the broker under a client id made of the prefix and `client`."""
    mqtt, password = config.mqtt, config.mqtt_password()
    return MqttSettings(
        host=mqtt.host if broker is None else broker.host,
        port=mqtt.port if broker is None else broker.port,
        client_id=f"{mqtt.client_id_prefix}-{client}",
        username=mqtt.username,
        password=None if password is None else password.reveal(),
        tls=_mqtt_tls(mqtt),
        keep_alive_s=mqtt.keep_alive_s,
        # Asked for more, a bridge would linger for messages that the embedded broker holds back.
        receive_max=mqtt.receive_max if broker is None else min(mqtt.receive_max, IN_FLIGHT_MAX),
        publish_max=mqtt.publish_max,
        inbox_messages_max=config.bridge.buffer_records_max,
        inbox_bytes_max=config.bridge.buffer_bytes_max,
    )


def _mqtt_tls(mqtt: Mqtt) -> ssl.SSLContext | None:
    files = mqtt_tls_files(mqtt)
    return None if files is None else files.context()


def mqtt_tls_files(mqtt: Mqtt) -> tls.ClientFiles | None:
    """The files of the connection to the broker, None if it is not encrypted."""
    files = mqtt.tls
    if not files.enabled:
        return None
    return tls.ClientFiles("$.mqtt.tls", files.ca_file, files.cert_file, files.key_file)


def _kafka_tls(kafka: KafkaSettings) -> ssl.SSLContext | None:
    if not kafka.security_protocol.endswith("SSL"):
        return None
    return tls.client_context("$.log.kafka", kafka.ca_file, kafka.cert_file, kafka.key_file)


def _catalogue(markets: Setup, compiled: bytes) -> Catalogue:
    return Catalogue.of(markets, _describe(compiled))


def _describe(compiled: bytes) -> Callable[[str, bytes, bytes], bytes]:
    return _engine.Engine(compiled, partitions=1).describe_state


class Platform:
    """Some of the roles in one process, with the embedded broker if the configuration wants it.

    An asynchronous context manager: entered, its roles run. `drain` ends them so that nothing is
    left half done: intake first, then each role as soon as the one before it has nothing more.
    """

    def __init__(
        self,
        config: Config,
        roles: Collection[Role] | None = None,
        *,
        instance: str | None = None,
        clock_ms: Clock = epoch_ms,
        tracing: Tracing = OFF,
    ) -> None:
        """All roles that the configuration wants, unless some are named.

        `instance` tells processes of one role apart; a bridge's must be the same every time.

        Given, it also has the process's consumers keep their partitions while it restarts.
        `clock_ms` is what all roles tell the time by; it may go back and jump.
        """
        self.config = config
        self._markets = config.load_setup()
        self.setup = compile_setup(self._markets)
        self.broker: EmbeddedBroker | None = None
        self.bridge: Bridge | None = None
        self.processor: Processor | None = None
        self.publisher: Publisher | None = None
        self.sink: LedgerSink | None = None
        self.queries: Queries | None = None
        self.odoo: OdooAdapter | None = None
        chosen = wanted_roles(config) if roles is None else roles
        self._roles = [role for role in ROLES if role in chosen]
        self._instance = "0" if instance is None else instance
        self._static_instance = instance
        self._clock_ms = clock_ms
        self._tracing = tracing
        self._is_draining = False
        self._log: Log | None = None
        self._desk: dead_letters.ReplayDesk | None = None
        self._tasks: dict[Role, asyncio.Task[None]] = {}

    @property
    def log(self) -> Log:
        """The open log."""
        assert self._log is not None, "the platform has not been entered"
        return self._log

    async def __aenter__(self) -> Self:
        try:
            if self.config.mqtt.embedded and MQTT_ROLES.intersection(self._roles):
                self.broker = EmbeddedBroker(port=self.config.mqtt.port)
                await self.broker.start()
            await asyncio.to_thread(Path(self.config.data_dir).mkdir, parents=True, exist_ok=True)
            if LOG_ROLES.intersection(self._roles):
                self._log = await open_log(self.config, self._static_instance, self._clock_ms)
                if isinstance(self._log, EmbeddedLog):
                    self._desk = dead_letters.ReplayDesk(
                        self._log, self.config.log_directory, self.config.replay_id, self._clock_ms
                    )
                    await self._desk.open()
            # The last first: whoever reads is there before whoever writes.
            for role in reversed(self._roles):
                self._start(role)
            await self._until_intake()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._close()

    def _start(self, role: Role) -> None:
        make: dict[Role, Callable[[], Runner]] = {
            "bridge": self._make_bridge,
            "processor": self._make_processor,
            "publisher": self._make_publisher,
            "sink": self._make_sink,
            "queries": self._make_queries,
            "odoo": self._make_odoo,
        }
        made = make[role]()
        work = self._run_odoo() if role == "odoo" else made.run()
        # What the role's tasks log says whose it is.
        context = contextvars.copy_context()
        context.run(logs.about, role=role, instance=self._instance)
        self._tasks[role] = asyncio.create_task(work, name=f"bss-{role}", context=context)

    def _make_bridge(self) -> Runner:
        config = self.config
        settings = BridgeSettings(
            linger_s=config.bridge.linger_ms / 1000,
            batch_records_max=config.bridge.batch_records_max,
            batch_bytes_max=config.bridge.batch_bytes_max,
            shared_group=config.mqtt.shared_group,
        )
        mqtt = dataclasses.replace(
            mqtt_settings(config, f"bridge-{self._instance}", self.broker),
            session_expiry_s=config.mqtt.session_expiry_s,
        )
        self.bridge = Bridge(
            self.log,
            mqtt,
            topic_table.load(),
            settings,
            clock_ms=self._clock_ms,
            tracing=self._tracing,
        )
        return self.bridge

    def _make_processor(self) -> Runner:
        config = self.config
        settings = ProcessorSettings(
            group=config.group("processor"),
            transactional_id=config.transactional_id,
            threads=config.engine_threads,
            batch_records_max=config.processor.batch_records_max,
            tick_interval_s=config.processor.tick_interval_ms / 1000,
            timer_slack_s=config.processor.timer_slack_ms / 1000,
            checkpoint_directory=config.checkpoint_directory,
            checkpoint_interval_s=config.processor.checkpoint_interval_s,
        )
        self.processor = Processor(
            self.log, self.setup, settings, clock_ms=self._clock_ms, tracing=self._tracing
        )
        return self.processor

    def _make_publisher(self) -> Runner:
        config = self.config
        settings = PublisherSettings(
            group=config.group("publisher"),
            batch_records_max=config.publisher.batch_records_max,
        )
        mqtt = mqtt_settings(config, f"publisher-{self._instance}", self.broker)
        self.publisher = Publisher(
            self.log, mqtt, settings, clock_ms=self._clock_ms, tracing=self._tracing
        )
        return self.publisher

    def _make_sink(self) -> Runner:
        config = self.config
        settings = SinkSettings(
            group=config.group("sink"), records_max=config.sink.batch_records_max
        )
        store = open_ledger_store(config.ledger_url().reveal())
        self.sink = LedgerSink(self.log, store, settings, clock_ms=self._clock_ms)
        return self.sink

    def _make_queries(self) -> Runner:
        config = self.config
        settings = QueriesSettings(
            # rumqttd does not survive the return of a member of a shared subscription.
            shared_group=None if config.mqtt.embedded else config.group("queries"),
            batch_requests_max=config.queries.batch_requests_max,
        )
        mqtt = dataclasses.replace(
            mqtt_settings(config, f"queries-{self._instance}", self.broker), clean_start=True
        )
        model = open_read_model(config.queries_url().reveal())
        self.queries = Queries(mqtt, model, _catalogue(self._markets, self.setup), settings)
        return self.queries

    def _make_odoo(self) -> Runner:
        try:
            from bss_stream.odoo.from_config import make_adapter
        except ImportError as error:
            raise extra.missing(error) from error
        config = self.config
        mqtt = dataclasses.replace(
            mqtt_settings(config, f"odoo-{self._instance}", self.broker), clean_start=True
        )
        measures = Measures.of(self._markets)
        self.odoo = make_adapter(
            config, self.log, mqtt, measures, _describe(self.setup), self._clock_ms
        )
        return self.odoo

    async def _run_odoo(self) -> None:
        """The adapter. An Odoo that lets it in no more does not end the other roles here."""
        assert self.odoo is not None
        try:
            await self.odoo.run()
        except OdooError as error:
            if self._roles == ["odoo"]:
                raise
            logger.error("the odoo adapter has ended, and the other roles go on: %s", error)
            await self.odoo.stopped.wait()

    async def _until_intake(self) -> None:
        """Wait until whoever subscribes has its subscriptions, or a role has failed."""
        for role in (self.odoo, self.queries, self.bridge):
            if role is not None:
                await self._until_ready(role.ready)

    async def _until_ready(self, event: asyncio.Event) -> None:
        ready = asyncio.create_task(event.wait())
        try:
            await asyncio.wait((ready, *self._tasks.values()), return_when=asyncio.FIRST_COMPLETED)
            self._raise_first()
        finally:
            ready.cancel()

    async def run(self, stop: asyncio.Event) -> None:
        """Run until `stop` is set, then drain. Raises what a role or the broker failed with."""
        waiting: list[asyncio.Task[object]] = [asyncio.create_task(stop.wait())]
        if self.broker is not None:
            waiting.append(asyncio.create_task(self.broker.watch()))
        try:
            await asyncio.wait(
                (*waiting, *self._tasks.values()), return_when=asyncio.FIRST_COMPLETED
            )
            self._raise_first()
            if stop.is_set():
                await self.drain()
            else:
                await waiting[-1]
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    def _raise_first(self) -> None:
        for role, task in self._tasks.items():
            if task.done():
                task.result()
                raise BssStreamError(f"the {role} ended without being told to")

    async def reload(self) -> None:
        """Read the markets and models again; running plans keep the template that they signed.

        Raises ConfigError, or ValueError if running plans have signed what is gone; then nothing
        has changed.
        """
        markets = await asyncio.to_thread(self.config.load_setup)
        setup = compile_setup(markets)
        if self.processor is not None:
            await self.processor.reload(setup)
        if self.queries is not None:
            self.queries.reload(_catalogue(markets, setup))
        if self.odoo is not None:
            self.odoo.reload(Measures.of(markets), _describe(setup))
        self._markets, self.setup = markets, setup

    async def drain(self) -> None:
        """Stop intake, finish what has been taken in, end every role."""
        self._is_draining = True
        ends: dict[Role, Callable[[], None] | None] = {
            "bridge": None if self.bridge is None else self.bridge.stop,
            "processor": self._drain_processor,
            "publisher": self._drain_publisher,
            "sink": None if self.sink is None else self.sink.stop,
            "queries": None if self.queries is None else self.queries.stop,
            "odoo": None if self.odoo is None else self.odoo.stop,
        }
        if self._desk is not None:
            await self._desk.close()
        for role in self._roles:
            end = ends[role]
            if end is not None:
                end()
            await self._tasks[role]
            logger.info("%s drained: %s", role, self.counters().get(role))
        for line in self.balance():
            logger.error("the counters do not add up: %s", line)

    def counters(self) -> dict[Role, RoleCounters]:
        """What each role that runs here has counted."""
        return {role: one.counters for role, one in self._made().items()}

    def _made(self) -> dict[Role, Runner]:
        made: dict[Role, Runner | None] = {
            "bridge": self.bridge,
            "processor": self.processor,
            "publisher": self.publisher,
            "sink": self.sink,
            "queries": self.queries,
            "odoo": self.odoo,
        }
        return {role: one for role, one in made.items() if one is not None}

    @property
    def roles(self) -> tuple[Role, ...]:
        """The roles of this process, in the order in which data passes them."""
        return tuple(self._roles)

    @property
    def instance(self) -> str:
        """What tells this process from others of its roles."""
        return self._instance

    def ended(self) -> list[Role]:
        """The roles that have been started and run no more."""
        return [role for role, task in self._tasks.items() if task.done()]

    def missing(self) -> dict[Role, list[str]]:
        """What each role waits for before it can do its work; a role that has all is left out."""
        made, ended = self._made(), self.ended()
        found: dict[Role, list[str]] = {}
        for role in self._roles:
            if role not in made:
                found[role] = ["its start"]
            elif self._is_draining or role in ended:
                found[role] = ["another start: it is ending or has ended"]
            elif waits := made[role].missing():
                found[role] = waits
        return found

    def clients(self) -> dict[Role, MqttClient]:
        """The roles' clients of the broker."""
        made: dict[Role, Bridge | Publisher | Queries | OdooAdapter | None] = {
            "bridge": self.bridge,
            "publisher": self.publisher,
            "queries": self.queries,
            "odoo": self.odoo,
        }
        return {role: one.client for role, one in made.items() if one is not None}

    def lags(self) -> dict[Role, Callable[[], Awaitable[dict[TopicPartition, int]]]]:
        """How to ask each reader of the log for what it has not read yet."""
        readers: dict[Role, Processor | Publisher | LedgerSink | OdooAdapter | None] = {
            "processor": self.processor,
            "publisher": self.publisher,
            "sink": self.sink,
            "odoo": self.odoo,
        }
        return {role: one.lag for role, one in readers.items() if one is not None}

    def balance(self) -> list[str]:
        """What does not add up in the roles' counters, a line each: nothing, if all is well."""
        return [f"{role}: {line}" for role, of in self.counters().items() for line in of.balance()]

    def _drain_processor(self) -> None:
        if self.processor is not None:
            # With others on the log it need not wait for what they go on bringing.
            self.processor.stop(drain=self._is_alone)

    def _drain_publisher(self) -> None:
        if self.publisher is not None:
            self.publisher.stop(drain=self._is_alone)

    @property
    def _is_alone(self) -> bool:
        return self.config.log.backend == "embedded"

    async def _close(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        if self._desk is not None:
            await self._desk.close()
        closing: list[Awaitable[None]] = []
        if self._log is not None:
            closing.append(self._log.close())
        if self.broker is not None:
            closing.append(self.broker.stop())
        for outcome in await asyncio.gather(*closing, return_exceptions=True):
            if isinstance(outcome, Exception):
                logger.warning("closing: %s", outcome)
