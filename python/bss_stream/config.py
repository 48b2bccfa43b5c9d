"""The program's configuration: one TOML file and the environment into one frozen, checked value.

Every field has a default, and the defaults are the mode without any server: the embedded log, the
embedded MQTT broker and a SQLite ledger below `./bss-data`.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

from bss_stream import config_check, config_source
from bss_stream.errors import ConfigError
from bss_stream.odoo.config import Odoo
from bss_stream.setup import Setup, load_setup
from bss_stream.simulate.config import SimulationConfig
from bss_stream.validation import Faults, Secret, convert

ClientName = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9._-]{1,48}\Z",
        description="1 to 48 characters out of A-Z a-z 0-9 . _ -",
    ),
]
File = Annotated[str, Meta(min_length=1, description="a path")]
Text = Annotated[str, Meta(min_length=1, description="text")]
Records = Annotated[int, Meta(ge=1, le=1_000_000, description="records, 1 to 1000000")]
Bytes = Annotated[int, Meta(ge=65_536, le=2**34, description="bytes, 65536 to 17179869184")]
BatchRecords = Annotated[int, Meta(ge=1, le=10_000, description="records, 1 to 10000")]
BatchBytes = Annotated[int, Meta(ge=65_536, le=2**25, description="bytes, 65536 to 33554432")]
InFlight = Annotated[int, Meta(ge=1, le=65_535, description="messages, 1 to 65535")]
Millis = Annotated[int, Meta(ge=0, le=3_600_000, description="milliseconds, 0 to 3600000")]
MillisOfWait = Annotated[int, Meta(ge=1, le=3_600_000, description="milliseconds, 1 to 3600000")]

TOKEN_LENGTH_MIN = 16
"""Of the console's token."""


class Tls(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Encryption of the connection, and with a certificate the client's own identity."""

    enabled: bool = False
    ca_file: File | None = None
    """Whom to trust, in PEM; not set: whom the system trusts."""
    cert_file: File | None = None
    key_file: File | None = None


class Engine(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The Rust engine."""

    threads: Annotated[int, Meta(ge=0, le=256, description="threads, 0 to 256")] = 0
    """Shards processed side by side; 0 takes one thread a CPU."""


class EmbeddedLog(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The log in a directory of this machine, for one process."""

    path: File = "log"
    """Below data_dir unless absolute."""
    durability: Literal["power", "process"] = "power"
    """What a record survives: a power cut, or only a killed process, which is faster."""
    keep_consumed_hours: Annotated[int, Meta(ge=0, le=8_760, description="hours, 0 to 8760")] = 24
    """Signals and outbox records that have been processed are dropped past this age."""


class KafkaLog(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The log in Apache Kafka."""

    bootstrap_servers: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^\S+:[0-9]{1,5}\Z", description="host:port")], ...],
        Meta(min_length=1),
    ] = ("127.0.0.1:9092",)
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    username: Text | None = None
    password_file: File | None = None
    ca_file: File | None = None
    """Whom to trust, in PEM; not set: whom the system trusts."""
    cert_file: File | None = None
    """This client's own certificate and key, in PEM, for a cluster that asks for one."""
    key_file: File | None = None
    replication_factor: Annotated[int, Meta(ge=1, le=16, description="replicas, 1 to 16")] = 3
    """Of topics that the program creates, as is min_insync_replicas."""
    min_insync_replicas: Annotated[int, Meta(ge=1, le=16, description="replicas, 1 to 16")] = 2
    session_timeout_ms: Annotated[
        int, Meta(ge=1_000, le=900_000, description="milliseconds, 1000 to 900000")
    ] = 10_000
    """A group gives a dead member's partitions to the others after this."""
    commit_timeout_ms: Annotated[
        int, Meta(ge=100, le=30_000, description="milliseconds, 100 to 30000")
    ] = 10_000
    """A transaction that is not committed by then is given up; so a processor that has to let go
    of its shards does so no later."""
    topic_prefix: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z0-9._-]{0,48}\Z",
            description="up to 48 characters out of A-Z a-z 0-9 . _ -",
        ),
    ] = ""
    """Stands before every topic, group and transactional id: several logs on one cluster."""
    cloudevents: bool = False
    """Records have CloudEvents headers (ce_id, ce_source, ce_type, ce_time, …) for other readers of
    the topics: some 170 bytes each that this program has no use for."""


class Log(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where records live between the roles."""

    backend: Literal["embedded", "kafka"] = "embedded"
    embedded: EmbeddedLog = EmbeddedLog()
    kafka: KafkaLog = KafkaLog()


class Mqtt(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The MQTT 5 broker that clients, stations, ARM and Odoo use."""

    embedded: bool = True
    """Start a broker inside the program, on a loopback address, for one process alone."""
    host: Text = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_535, description="a port, 0 to 65535")] = 1883
    """0 has the embedded broker take a free one."""
    client_id_prefix: ClientName = "bss"
    """Client ids are the prefix, the role, and a number that tells processes apart."""
    username: Text | None = None
    password_file: File | None = None
    tls: Tls = Tls()
    shared_group: ClientName | None = None
    """Bridges that name the same group share the messages (MQTT 5 shared subscriptions)."""
    receive_max: InFlight = 2_000
    """Messages that the broker may send ahead of their acknowledgement."""
    publish_max: InFlight = 2_000
    """Messages sent ahead of the broker's acknowledgement."""
    keep_alive_s: Annotated[int, Meta(ge=1, le=65_535, description="seconds, 1 to 65535")] = 30
    session_expiry_s: Annotated[
        int, Meta(ge=0, le=2**32 - 2, description="seconds, 0 to 4294967294")
    ] = 604_800
    """How long the broker keeps messages for a bridge that is away."""


class Bridge(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """MQTT to log. A message is acknowledged once the log has it."""

    linger_ms: Millis = 5
    """How long a batch waits for more messages."""
    batch_records_max: BatchRecords = 1_000
    batch_bytes_max: BatchBytes = 1_048_576
    buffer_records_max: Records = 20_000
    """Messages held in memory; past it or buffer_bytes_max the bridge stops reading."""
    buffer_bytes_max: Bytes = 67_108_864


class Processor(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Signals to ledgers, echoes and state."""

    group: ClientName = "processor"
    """The consumer group is app and group joined by a hyphen, as in all roles."""
    batch_records_max: BatchRecords = 5_000
    """Records in one transaction of one shard."""
    tick_interval_ms: MillisOfWait = 200
    """How often timers are looked at while no signal comes."""
    timer_slack_ms: MillisOfWait = 500
    """How far the clock runs ahead of timers: what came in before one was due, and is still on its
    way into the log, goes first."""
    checkpoints: File = "checkpoints"
    """Below data_dir unless absolute: where a processor on Kafka keeps its shards' states, so that
    it need not read whole changelogs when it comes back."""
    checkpoint_interval_s: Annotated[
        int, Meta(ge=1, le=86_400, description="seconds, 1 to 86400")
    ] = 60
    """How often they are written; also at a clean stop."""


class Publisher(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Outbox to MQTT."""

    group: ClientName = "publisher"
    batch_records_max: BatchRecords = 1_000


class Sink(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Ledgers to SQL."""

    group: ClientName = "sink"
    backend: Literal["sqlite", "postgres"] = "sqlite"
    path: File = "ledger.db"
    """Of SQLite: below data_dir unless absolute."""
    dsn: Secret | None = None
    """Of PostgreSQL: postgresql://USER:PASSWORD@HOST:PORT/DATABASE. Better kept in dsn_file."""
    dsn_file: File | None = None
    """A file that holds nothing but the dsn."""
    batch_records_max: BatchRecords = 4_096


class Queries(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Riders' queries, answered out of the database that the sink writes."""

    group: ClientName = "queries"
    """Processes share the requests (MQTT 5 shared subscription of app and group)."""
    dsn_file: File | None = None
    """Of PostgreSQL: a file that holds the dsn of a role that may only read, or of a replica;
    not set: the sink's own."""
    batch_requests_max: Annotated[
        int, Meta(ge=1, le=10_000, description="requests, 1 to 10000")
    ] = 256
    """Requests that are answered out of one view of the database."""


class Console(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The operators' console: a web application of its own process."""

    host: Text = "127.0.0.1"
    """Where it listens; beyond this machine only with a token and HTTPS."""
    port: Annotated[int, Meta(ge=0, le=65_535, description="a port, 0 to 65535")] = 8_480
    token: Secret | None = None
    """What operators log in with, 16 characters or more. Better kept in token_file."""
    token_file: File | None = None
    """A file that holds nothing but the token. Without a token whoever is on this machine may
    read, and nobody can replay."""
    session_hours: Annotated[int, Meta(ge=1, le=168, description="hours, 1 to 168")] = 12
    """How long a login lasts."""
    cert_file: File | None = None
    """The server's own certificate and key, in PEM, to speak HTTPS."""
    key_file: File | None = None
    behind_https: bool = False
    """Whether a proxy speaks HTTPS for it: browsers then send the session over HTTPS alone."""
    dsn_file: File | None = None
    """Of PostgreSQL: a file that holds the dsn of a role that may only read, or of a replica;
    not set: that of the queries."""


class Http(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a process tells of itself: /metrics, /healthz, /readyz. For your network alone."""

    host: Text = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_535, description="a port, 0 to 65535")] | None = None
    """Not set: nobody listens. 0 takes a free one, which the log names."""


class Logging(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Log lines, on standard error."""

    format: Literal["text", "json"] = "text"
    """JSON has one object a line, with the ids of what the line is about."""
    level: Literal["debug", "info", "warning", "error"] = "warning"
    """From which on lines are written; --verbose makes it info."""


class Tracing(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """OpenTelemetry spans of what comes with a sampled `traceparent`."""

    enabled: bool = False
    """Needs the extra `otel`. A trace goes from the request to the echo in any case."""
    endpoint: Annotated[
        str, Meta(pattern=r"^https?://\S+\Z", description="an http or https URL")
    ] = "http://127.0.0.1:4318/v1/traces"
    """Where spans are sent, by OTLP over HTTP; the environment's OTEL_EXPORTER_OTLP_HEADERS has
    what the collector asks for."""


class SetupFiles(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where markets and models come from; read again on SIGHUP."""

    directories: tuple[File, ...] = ()
    """Directories of market folders; empty takes the markets that come with the program."""
    models: File | None = None
    """A directory of bss-fsm-*.json; not set: the models that come with the program."""


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings of the program."""

    app: ClientName = "bss"
    """Names this installation to Kafka: consumer groups and transactional ids begin with it."""
    data_dir: File = "./bss-data"
    """Where the embedded log and ledger keep their files."""
    partitions: Annotated[int, Meta(ge=1, le=1_024, description="partitions, 1 to 1024")] = 4
    """Of every topic, and so the most shards. Cannot change once the log exists."""
    engine: Engine = Engine()
    log: Log = Log()
    mqtt: Mqtt = Mqtt()
    bridge: Bridge = Bridge()
    processor: Processor = Processor()
    publisher: Publisher = Publisher()
    sink: Sink = Sink()
    queries: Queries = Queries()
    console: Console = Console()
    http: Http = Http()
    logging: Logging = Logging()
    tracing: Tracing = Tracing()
    odoo: Odoo = Odoo()
    setup: SetupFiles = SetupFiles()
    simulate: SimulationConfig = SimulationConfig()

    @classmethod
    def load(cls, path: Path | None = None, env: Mapping[str, str] | None = None) -> "Config":
        """The configuration of a TOML file (or of none) with the environment over it.

        `env` is the process's environment if not given. Without `path`, BSS_CONFIG may name the
        file. Raises ConfigError with every fault; no message shows a secret.
        """
        faults = Faults()
        environment = os.environ if env is None else env
        named = environment.get(config_source.FILE_VARIABLE)
        if path is None and named:
            path = Path(named)
        place = "configuration" if path is None else str(path)
        table = {} if path is None else config_source.read_toml(path, faults)
        config_source.overlay(table, cls, environment, faults)
        config: Config | None = convert(table, cls, faults, place)
        if config is not None:
            config_check.check(config, place, faults)
        faults.raise_if_any()
        assert config is not None  # convert returns None with a fault only
        return config

    @property
    def log_directory(self) -> Path:
        """The directory of the embedded log."""
        return Path(self.data_dir) / self.log.embedded.path

    @property
    def checkpoint_directory(self) -> Path:
        """Where the shards' checkpoints are kept."""
        return Path(self.data_dir) / self.processor.checkpoints

    @property
    def engine_threads(self) -> int:
        """The threads to give the engine: never more than there are shards."""
        return min(self.engine.threads or os.cpu_count() or 1, self.partitions)

    def load_setup(self) -> Setup:
        """The markets and models that [setup] names. Raises ConfigError with every fault."""
        models = None if self.setup.models is None else Path(self.setup.models)
        return load_setup([Path(one) for one in self.setup.directories], models)

    def group(self, role: Literal["processor", "publisher", "sink", "queries", "odoo"]) -> str:
        """The consumer group of a role, and that of its shared subscription if it has one."""
        groups = {
            "processor": self.processor.group,
            "publisher": self.publisher.group,
            "sink": self.sink.group,
            "queries": self.queries.group,
            "odoo": self.odoo.group,
        }
        return f"{self.app}-{groups[role]}"

    def transactional_id(self, partition: int) -> str:
        """The transactional id of a shard's producer: who opens it next fences who had it."""
        return f"{self.app}-{partition}"

    @property
    def replay_id(self) -> str:
        """The transactional id of whoever replays dead letters: one at a time."""
        return f"{self.app}-replay"

    def ledger_url(self) -> Secret:
        """What the ledger store opens: `sqlite:PATH` or `postgresql://...`.

        Raises ConfigError when dsn_file cannot be read.
        """
        if self.sink.backend == "sqlite":
            return Secret(f"sqlite:{Path(self.data_dir) / self.sink.path}")
        if self.sink.dsn is not None:
            return self.sink.dsn
        assert self.sink.dsn_file is not None  # checked at load
        return read_secret(Path(self.sink.dsn_file), "$.sink.dsn_file")

    def queries_url(self) -> Secret:
        """What the queries read: the ledger's database, by a dsn of their own if there is one.

        Raises ConfigError when a dsn_file cannot be read.
        """
        if self.queries.dsn_file is None:
            return self.ledger_url()
        return read_secret(Path(self.queries.dsn_file), "$.queries.dsn_file")

    def console_url(self) -> Secret:
        """What the console reads: the ledger's database, by a dsn of its own if there is one.

        Raises ConfigError when a dsn_file cannot be read.
        """
        if self.console.dsn_file is None:
            return self.queries_url()
        return read_secret(Path(self.console.dsn_file), "$.console.dsn_file")

    def console_token(self) -> Secret | None:
        """What operators log in with, None if nobody can. Raises ConfigError."""
        token, path = self.console.token, "$.console.token"
        if token is None:
            path = "$.console.token_file"
            token = _optional_secret(self.console.token_file, path)
        if token is not None and len(token.reveal()) < TOKEN_LENGTH_MIN:
            what = f"shorter than {TOKEN_LENGTH_MIN} characters, expected one that nobody guesses"
            raise ConfigError([f"{path}: the token is {what}"])
        return token

    def mqtt_password(self) -> Secret | None:
        """The broker's password, None if there is none. Raises ConfigError."""
        return _optional_secret(self.mqtt.password_file, "$.mqtt.password_file")

    def kafka_password(self) -> Secret | None:
        """Kafka's SASL password, None if there is none. Raises ConfigError."""
        return _optional_secret(self.log.kafka.password_file, "$.log.kafka.password_file")

    def odoo_key(self) -> Secret:
        """The API key of the user in Odoo. Raises ConfigError."""
        assert self.odoo.api_key_file is not None  # checked at load
        return read_secret(Path(self.odoo.api_key_file), "$.odoo.api_key_file")


def _optional_secret(file: str | None, path: str) -> Secret | None:
    return None if file is None else read_secret(Path(file), path)


def read_secret(file: Path, path: str) -> Secret:
    """The text of a file without the white space around it. Raises ConfigError.

    The message does not show the file's name: it might be the secret, set in the wrong place.
    Read by the role that needs it when it needs it, so that a role can run without the right to
    read the others' secrets.
    """
    try:
        text = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is no UTF-8 text"
        message = f"{path}: cannot read what it names: {reason}, expected a file with the secret"
        raise ConfigError([message]) from None
    if not text:
        raise ConfigError([f"{path}: the file it names is empty, expected the secret"])
    return Secret(text)
