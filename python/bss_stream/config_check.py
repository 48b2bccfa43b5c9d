"""What must hold between settings, beyond the bounds of each."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, TypeAlias, get_args

from bss_stream.errors import ConfigError
from bss_stream.odoo.config import InvoiceField
from bss_stream.simulate.config import check_config
from bss_stream.validation import Faults, show

if TYPE_CHECKING:
    from bss_stream.config import Config, KafkaLog, Mqtt, Sink
    from bss_stream.odoo.config import Odoo

LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
"""What names this machine to itself."""

Found: TypeAlias = tuple[str, str]
"""The JSON path of a setting, and what is wrong."""


def check(config: "Config", place: str, faults: Faults) -> None:
    """Note every contradiction between settings."""
    checks = (
        *_of_engine(config),
        *_of_kafka(config.log.kafka),
        *_of_mqtt(config.mqtt),
        *_of_bridge(config),
        *_of_sink(config.sink),
        *_of_queries(config),
        *_of_odoo(config.odoo),
        *_of_console(config),
    )
    for path, message in checks:
        faults.add(place, path, message)
    try:
        check_config(config.simulate)
    except ConfigError as error:
        faults.lines.extend(f"{place}: {line}" for line in error.faults)


def _of_engine(config: "Config") -> Iterator[Found]:
    threads = config.engine.threads
    if threads > config.partitions:
        yield (
            "$.engine.threads",
            f"{threads}: expected at most partitions, {config.partitions}: more would idle",
        )


def _of_kafka(kafka: "KafkaLog") -> Iterator[Found]:
    if kafka.min_insync_replicas > kafka.replication_factor:
        yield (
            "$.log.kafka.min_insync_replicas",
            f"{kafka.min_insync_replicas}: expected at most replication_factor, "
            f"{kafka.replication_factor}, or nothing can be written",
        )
    sasl = kafka.security_protocol.startswith("SASL")
    for name, value in (("username", kafka.username), ("password_file", kafka.password_file)):
        if sasl and value is None:
            protocol = kafka.security_protocol
            yield f"$.log.kafka.{name}", f"not set, expected one with security_protocol {protocol}"
        if not sasl and value is not None:
            yield f"$.log.kafka.{name}", "is set, expected a security_protocol with SASL then"
    named = [name for name in ("ca_file", "cert_file", "key_file") if getattr(kafka, name)]
    if named and not kafka.security_protocol.endswith("SSL"):
        yield (
            "$.log.kafka.security_protocol",
            f"{show(kafka.security_protocol)}: expected SSL or SASL_SSL, as {named[0]} is set",
        )
    if (kafka.cert_file is None) != (kafka.key_file is None):
        yield "$.log.kafka.cert_file", "expected cert_file and key_file together or neither"


def _of_mqtt(mqtt: "Mqtt") -> Iterator[Found]:
    if mqtt.embedded:
        if mqtt.host not in ("127.0.0.1", "localhost"):
            yield "$.mqtt.host", f"{show(mqtt.host)}: expected 127.0.0.1 for the embedded broker"
        for name, value in (
            ("username", mqtt.username),
            ("password_file", mqtt.password_file),
            ("shared_group", mqtt.shared_group),
        ):
            if value is not None:
                yield f"$.mqtt.{name}", "is set, expected none with the embedded broker"
        if mqtt.tls.enabled:
            yield "$.mqtt.tls.enabled", "true: expected false with the embedded broker"
    elif mqtt.port == 0:
        yield "$.mqtt.port", "0: expected the broker's port, as it is not the embedded one"
    if not mqtt.embedded and mqtt.password_file is not None and mqtt.username is None:
        yield "$.mqtt.username", "not set, expected one with password_file"
    tls = mqtt.tls
    if not tls.enabled and any((tls.ca_file, tls.cert_file, tls.key_file)):
        yield "$.mqtt.tls.enabled", "false: expected true, as TLS files are named"
    if (tls.cert_file is None) != (tls.key_file is None):
        yield "$.mqtt.tls.cert_file", "expected cert_file and key_file together or neither"


def _of_bridge(config: "Config") -> Iterator[Found]:
    bridge = config.bridge
    for what, batch, buffer in (
        ("records", bridge.batch_records_max, bridge.buffer_records_max),
        ("bytes", bridge.batch_bytes_max, bridge.buffer_bytes_max),
    ):
        if batch > buffer:
            yield (
                f"$.bridge.batch_{what}_max",
                f"{batch}: expected at most buffer_{what}_max, {buffer}",
            )

    receive_max = config.mqtt.receive_max
    if receive_max > bridge.buffer_records_max:
        yield (
            "$.mqtt.receive_max",
            f"{receive_max}: expected at most bridge.buffer_records_max, "
            f"{bridge.buffer_records_max}, which holds what the broker sends ahead",
        )


def _of_sink(sink: "Sink") -> Iterator[Found]:
    dsns = (sink.dsn is not None) + (sink.dsn_file is not None)
    if sink.backend == "postgres" and dsns != 1:
        yield "$.sink.dsn_file", f"{dsns} of dsn and dsn_file are set, expected one of them"
    if sink.backend == "sqlite" and dsns:
        yield "$.sink.backend", '"sqlite": expected "postgres", as a dsn is set'


def _of_queries(config: "Config") -> Iterator[Found]:
    if config.queries.dsn_file is not None and config.sink.backend == "sqlite":
        yield "$.sink.backend", '"sqlite": expected "postgres", as $.queries.dsn_file is set'


def _of_odoo(odoo: "Odoo") -> Iterator[Found]:
    if odoo.url is not None and odoo.api_key_file is None:
        yield "$.odoo.api_key_file", "not set, expected one with $.odoo.url"
    if odoo.url is not None and odoo.api == "jsonrpc" and odoo.username is None:
        yield "$.odoo.username", 'not set, expected one with $.odoo.api "jsonrpc"'
    if odoo.ca_file is not None and not (odoo.url or "").startswith("https:"):
        yield "$.odoo.url", f"{show(odoo.url)}: expected https, as $.odoo.ca_file is set"
    for name in ("plan_id", "payment_id"):
        if name not in odoo.payment.fields:
            yield "$.odoo.payment.fields", f"{name} is missing: payments are matched by it"
    for name in get_args(InvoiceField):
        if name not in odoo.invoice.fields:
            yield "$.odoo.invoice.fields", f"{name} is missing: all of an invoice's are read"
    if not odoo.subscription.key and "plan_id" not in odoo.subscription.fields:
        yield (
            "$.odoo.subscription.fields",
            "plan_id is missing: without a key nothing else says whose record it is",
        )
    for section in ("subscription", "payment", "usage"):
        if not getattr(odoo, section).fields:
            yield f"$.odoo.{section}.fields", "{}: expected at least one field to write"


def _of_console(config: "Config") -> Iterator[Found]:
    console = config.console
    tokens = (console.token is not None) + (console.token_file is not None)
    if tokens == 2:
        yield "$.console.token_file", "2 of token and token_file are set, expected one of them"
    if (console.cert_file is None) != (console.key_file is None):
        yield "$.console.cert_file", "expected cert_file and key_file together or neither"
    if console.host not in LOOPBACK:
        if tokens == 0:
            what = f"not set, expected one as $.console.host is {show(console.host)}"
            yield "$.console.token_file", f"{what}: what is shown is not for everybody"
        if console.cert_file is None and not console.behind_https:
            yield (
                "$.console.host",
                f"{show(console.host)}: expected 127.0.0.1, or HTTPS (cert_file and key_file, or "
                "behind_https): a token must not travel in the clear",
            )
    if console.dsn_file is not None and config.sink.backend == "sqlite":
        yield "$.sink.backend", '"sqlite": expected "postgres", as $.console.dsn_file is set'
