"""Secrets: from files and the environment to the one who needs them, and seen nowhere else."""

import logging
from pathlib import Path

import msgspec
import pytest
import typer
from typer.core import TyperGroup

from bss_stream import logs
from bss_stream.cli.main import app
from bss_stream.config import Config
from bss_stream.errors import ConfigError, SinkError
from bss_stream.log.kafka import KafkaOptions
from bss_stream.mqtt.client import MqttClient
from bss_stream.roles import make_log, mqtt_settings
from bss_stream.sink.store import open_ledger_store

MQTT, KAFKA, DSN = "mqtt-in-the-clear", "kafka-in-the-clear", "dsn-in-the-clear"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A configuration with every secret there is."""
    for name, secret in (("mqtt", MQTT), ("kafka", KAFKA)):
        (tmp_path / name).write_text(f"{secret}\n")
    file = tmp_path / "bss.toml"
    file.write_text(
        f"""
[log]
backend = "kafka"
[log.kafka]
security_protocol = "SASL_PLAINTEXT"
username = "u"
password_file = "{tmp_path / "kafka"}"
[mqtt]
embedded = false
username = "u"
password_file = "{tmp_path / "mqtt"}"
[sink]
backend = "postgres"
"""
    )
    return Config.load(file, {"BSS_SINK__DSN": f"postgresql://u:{DSN}@127.0.0.1:9/ledger"})


def check_hidden(thing: object) -> None:
    shown = f"{thing!r} {thing}"
    for secret in (MQTT, KAFKA, DSN):
        assert secret not in shown


def test_each_secret_reaches_who_needs_it_and_no_repr(config: Config) -> None:
    check_hidden(config)
    settings = mqtt_settings(config, "bridge-0", None)
    assert settings.password == MQTT
    check_hidden(settings)
    check_hidden(MqttClient(settings))
    log = make_log(config)
    check_hidden(log)
    [options] = [value for value in vars(log).values() if isinstance(value, KafkaOptions)]
    assert options.sasl_password == KAFKA
    check_hidden(options)
    assert DSN in config.ledger_url().reveal()
    check_hidden(config.ledger_url())


@pytest.mark.postgres
def test_no_error_of_the_database_shows_its_dsn(config: Config) -> None:
    pytest.importorskip("psycopg")
    store = open_ledger_store(config.ledger_url().reveal())
    with pytest.raises(SinkError) as caught:
        store.open()
    error: BaseException | None = caught.value
    while error is not None:
        check_hidden(error)
        error = error.__cause__ or error.__context__
    # A port that is part of a password, as an @ in it makes of it.
    with pytest.raises(ConfigError) as refused:
        open_ledger_store(f"postgresql://u:p@{DSN}:{DSN}/ledger")
    check_hidden(refused.value)


def test_a_secret_that_stands_where_its_file_belongs_is_not_shown(config: Config) -> None:
    mqtt = msgspec.structs.replace(config.mqtt, password_file=MQTT)
    with pytest.raises(ConfigError) as caught:
        msgspec.structs.replace(config, mqtt=mqtt).mqtt_password()
    check_hidden(caught.value)


def test_no_command_takes_a_secret() -> None:
    """A command line is there for every user of the machine to read."""
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    names = {
        option
        for command in group.commands.values()
        for parameter in command.params
        for option in parameter.opts
    }
    assert "--config" in names
    assert not [n for n in names if any(word in n for word in ("pass", "secret", "dsn", "user"))]


def test_no_log_line_shows_a_secret(config: Config) -> None:
    record = logging.LogRecord("l", logging.ERROR, "f", 1, "%s", (config.ledger_url(),), None)
    record.config, record.dsn = config, config.ledger_url()
    line = logs.json_lines().format(record)
    check_hidden(line)
    assert "dsn" in line
