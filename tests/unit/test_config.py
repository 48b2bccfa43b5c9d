"""Configuration: defaults, one file, the environment over it, and faults that give nothing away."""

import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bss_stream import config_example, config_source
from bss_stream.config import Config, Engine, Mqtt, Queries, SetupFiles, Sink, read_secret
from bss_stream.errors import ConfigError
from bss_stream.odoo.from_config import connection
from bss_stream.roles import wanted_roles
from bss_stream.setup import packaged_markets, packaged_models
from bss_stream.validation import Secret

EXAMPLE = Path(__file__).parents[2] / "bss-stream.example.toml"
PASSWORD = "hunter2-in-the-clear"
DSN = f"postgresql://bss:{PASSWORD}@db.example:5432/ledger"


def load(tmp_path: Path, toml: str, **env: str) -> Config:
    file = tmp_path / "bss.toml"
    file.write_text(toml, encoding="utf-8")
    return Config.load(file, env)


def faults(tmp_path: Path, toml: str, **env: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, toml, **env)
    return [line.replace(f"{tmp_path}/", "") for line in caught.value.faults]


def test_without_a_file_no_server_is_needed() -> None:
    config = Config.load(env={})
    assert config == Config()
    assert (config.log.backend, config.mqtt.embedded, config.sink.backend) == (
        "embedded",
        True,
        "sqlite",
    )
    assert config.partitions == 4
    assert config.log_directory == Path("bss-data/log")
    assert config.ledger_url().reveal() == "sqlite:bss-data/ledger.db"
    assert config.mqtt_password() is None
    assert config.kafka_password() is None


def test_a_file_sets_what_it_names(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        """
        app = "nairobi"
        partitions = 12
        data_dir = "/srv/bss"
        [log]
        backend = "kafka"
        [log.kafka]
        bootstrap_servers = ["k1:9092", "k2:9092"]
        [sink]
        path = "/srv/ledger.db"
        [simulate.faults]
        garbage = 0.5
        """,
    )
    assert config.partitions == 12
    assert config.log.kafka.bootstrap_servers == ("k1:9092", "k2:9092")
    assert config.log.kafka.replication_factor == 3
    assert config.log_directory == Path("/srv/bss/log")
    assert config.ledger_url().reveal() == "sqlite:/srv/ledger.db"
    assert config.group("processor") == "nairobi-processor"
    assert config.transactional_id(11) == "nairobi-11"
    assert config.simulate.faults.garbage == 0.5


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Config().partitions = 8  # type: ignore[misc]


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        'partitions = 12\n[mqtt]\nembedded = true\nhost = "127.0.0.1"\n[sink]\nbackend = "sqlite"',
        BSS_PARTITIONS="2",
        BSS_MQTT__EMBEDDED="false",
        BSS_MQTT__HOST="broker.example",
        BSS_MQTT__TLS__ENABLED="true",
        BSS_LOG__KAFKA__BOOTSTRAP_SERVERS="a:1, b:2",
        BSS_SIMULATE__SPEED_UP="1440",
        BSS_SIMULATE__TEMPLATES='{"template-nairobi-basic": 1.5}',
        BSS_SINK__BACKEND="postgres",
        BSS_SINK__DSN=DSN,
        HOME="/root",
    )
    assert (config.partitions, config.mqtt.embedded, config.mqtt.host) == (
        2,
        False,
        "broker.example",
    )
    assert config.mqtt.tls.enabled
    assert config.log.kafka.bootstrap_servers == ("a:1", "b:2")
    assert config.simulate.speed_up == 1440.0
    assert config.simulate.templates == {"template-nairobi-basic": 1.5}
    assert config.ledger_url().reveal() == DSN


def test_an_empty_variable_unsets_what_may_be_unset(tmp_path: Path) -> None:
    toml = '[mqtt]\nembedded = false\nshared_group = "bridges"\n[setup]\ndirectories = ["/a"]'
    assert load(tmp_path, toml).mqtt.shared_group == "bridges"
    config = load(tmp_path, toml, BSS_MQTT__SHARED_GROUP="", BSS_SETUP__DIRECTORIES="")
    assert config.mqtt.shared_group is None
    assert config.setup.directories == ()


def test_a_text_setting_keeps_its_digits(tmp_path: Path) -> None:
    assert load(tmp_path, "", BSS_APP="007").app == "007"
    env = {"BSS_MQTT__EMBEDDED": "false", "BSS_MQTT__USERNAME": "null"}
    assert load(tmp_path, "", **env).mqtt.username == "null"


def test_the_environment_is_the_process_s_unless_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BSS_PARTITIONS", "7")
    monkeypatch.setenv("BSS_REQUIRE_SERVERS", "1")  # the test suite's own, not a setting
    monkeypatch.delenv("BSS_CONFIG", raising=False)
    assert Config.load().partitions == 7


def test_there_are_no_more_threads_than_shards() -> None:
    assert Config(partitions=1).engine_threads == 1
    assert Config(partitions=64, engine=Engine(threads=3)).engine_threads == 3


def test_setup_comes_from_where_the_configuration_says(tmp_path: Path) -> None:
    assert [market.folder for market in Config().load_setup().markets] == [
        "Kenya_Nairobi",
        "Togo_Lome",
    ]
    lome = str(packaged_markets() / "Togo_Lome")
    shutil.copytree(lome, tmp_path / "markets" / "Togo_Lome")
    shutil.copytree(str(packaged_models()), tmp_path / "models")
    (tmp_path / "models" / "bss-fsm-asset-flow.json").unlink()
    setup = SetupFiles(directories=(str(tmp_path / "markets"),), models=str(tmp_path / "models"))
    loaded = Config(setup=setup).load_setup()
    assert [market.folder for market in loaded.markets] == ["Togo_Lome"]
    assert [model.model_id for model in loaded.models if model.kind == "plan"] == ["bss-fsm-v1"]


def test_a_variable_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "named.toml"
    file.write_text("partitions = 3")
    assert Config.load(env={"BSS_CONFIG": str(file)}).partitions == 3


def test_every_setting_has_a_variable_of_its_own() -> None:
    paths = [path for path, _ in config_source.settings(Config)]
    assert len({config_source.variable(path) for path in paths}) == len(paths)
    assert ("log", "kafka", "bootstrap_servers") in paths


def defaults(section: msgspec.Struct, path: tuple[str, ...] = ()) -> Iterator[Any]:
    for name in section.__struct_fields__:
        value = getattr(section, name)
        if isinstance(value, msgspec.Struct):
            yield from defaults(value, (*path, name))
        else:
            yield (*path, name), value


def test_the_settings_are_all_fields() -> None:
    assert [p for p, _ in config_source.settings(Config)] == [p for p, _ in defaults(Config())]


@pytest.mark.parametrize(
    ("toml", "fault"),
    [
        ("partitions = 0", "bss.toml: $.partitions: 0: expected partitions, 1 to 1024"),
        ('partitions = "4"', 'bss.toml: $.partitions: "4": expected partitions, 1 to 1024'),
        ("partitions = true", "bss.toml: $.partitions: true: expected partitions, 1 to 1024"),
        (
            '[log]\nbackend = "redis"',
            'bss.toml: $.log.backend: "redis": expected one of "embedded", "kafka"',
        ),
        (
            "[bridge]\nlinger = 5",
            "bss.toml: $.bridge.linger: unknown field, expected one of linger_ms, "
            "batch_records_max, batch_bytes_max, buffer_records_max, buffer_bytes_max",
        ),
        ("log = 5", "bss.toml: $.log: expected `object`, got `int`"),
        (
            '[log.kafka]\nbootstrap_servers = ["k1"]',
            'bss.toml: $.log.kafka.bootstrap_servers[0]: "k1": expected host:port',
        ),
        (
            "[log.kafka]\nbootstrap_servers = []",
            "bss.toml: $.log.kafka.bootstrap_servers: has 0 entries, expected at least 1",
        ),
        (
            "[engine]\nthreads = 9",
            "bss.toml: $.engine.threads: 9: expected at most partitions, 4: more would idle",
        ),
        (
            "[log.kafka]\nreplication_factor = 1",
            "bss.toml: $.log.kafka.min_insync_replicas: 2: expected at most replication_factor, "
            "1, or nothing can be written",
        ),
        (
            '[log.kafka]\nsecurity_protocol = "SASL_SSL"\nusername = "u"',
            "bss.toml: $.log.kafka.password_file: not set, expected one with security_protocol "
            "SASL_SSL",
        ),
        (
            '[log.kafka]\nusername = "u"',
            "bss.toml: $.log.kafka.username: is set, expected a security_protocol with SASL then",
        ),
        (
            '[log.kafka]\nca_file = "/ca"',
            'bss.toml: $.log.kafka.security_protocol: "PLAINTEXT": expected SSL or SASL_SSL, as '
            "ca_file is set",
        ),
        (
            '[log.kafka]\nsecurity_protocol = "SSL"\nkey_file = "/k"',
            "bss.toml: $.log.kafka.cert_file: expected cert_file and key_file together or neither",
        ),
        (
            '[mqtt]\nhost = "0.0.0.0"',
            'bss.toml: $.mqtt.host: "0.0.0.0": expected 127.0.0.1 for the embedded broker',
        ),
        (
            '[mqtt]\nhost = "broker.example"',
            'bss.toml: $.mqtt.host: "broker.example": expected 127.0.0.1 for the embedded broker',
        ),
        (
            '[mqtt]\nshared_group = "g"',
            "bss.toml: $.mqtt.shared_group: is set, expected none with the embedded broker",
        ),
        (
            "[mqtt]\nembedded = false\nport = 0",
            "bss.toml: $.mqtt.port: 0: expected the broker's port, as it is not the embedded one",
        ),
        (
            "[mqtt.tls]\nenabled = true",
            "bss.toml: $.mqtt.tls.enabled: true: expected false with the embedded broker",
        ),
        (
            '[mqtt]\nembedded = false\npassword_file = "/p"',
            "bss.toml: $.mqtt.username: not set, expected one with password_file",
        ),
        (
            '[mqtt]\nembedded = false\n[mqtt.tls]\nca_file = "/ca"',
            "bss.toml: $.mqtt.tls.enabled: false: expected true, as TLS files are named",
        ),
        (
            '[mqtt]\nembedded = false\n[mqtt.tls]\nenabled = true\ncert_file = "/c"',
            "bss.toml: $.mqtt.tls.cert_file: expected cert_file and key_file together or neither",
        ),
        (
            '[queries]\ndsn_file = "/dsn"',
            'bss.toml: $.sink.backend: "sqlite": expected "postgres", as $.queries.dsn_file is set',
        ),
        (
            "[bridge]\nbatch_records_max = 10001",
            "bss.toml: $.bridge.batch_records_max: 10001: expected records, 1 to 10000",
        ),
        (
            "[mqtt]\nreceive_max = 30000",
            "bss.toml: $.mqtt.receive_max: 30000: expected at most bridge.buffer_records_max, "
            "20000, which holds what the broker sends ahead",
        ),
        (
            "[bridge]\nbatch_records_max = 9000\nbuffer_records_max = 8000",
            "bss.toml: $.bridge.batch_records_max: 9000: expected at most buffer_records_max, 8000",
        ),
        (
            "[bridge]\nbuffer_bytes_max = 65536",
            "bss.toml: $.bridge.batch_bytes_max: 1048576: expected at most buffer_bytes_max, 65536",
        ),
        (
            '[sink]\nbackend = "postgres"',
            "bss.toml: $.sink.dsn_file: 0 of dsn and dsn_file are set, expected one of them",
        ),
        (
            f'[sink]\nbackend = "postgres"\ndsn = "{DSN}"\ndsn_file = "/dsn"',
            "bss.toml: $.sink.dsn_file: 2 of dsn and dsn_file are set, expected one of them",
        ),
        (
            '[sink]\ndsn_file = "/dsn"',
            'bss.toml: $.sink.backend: "sqlite": expected "postgres", as a dsn is set',
        ),
        ("partitions = \n", "bss.toml: is no TOML: Invalid value (at line 1, column 14)"),
    ],
)
def test_a_fault_is_named_with_file_and_path(tmp_path: Path, toml: str, fault: str) -> None:
    assert faults(tmp_path, toml) == [fault]


def test_a_simulation_out_of_bounds_is_refused(tmp_path: Path) -> None:
    found = faults(tmp_path, "[simulate.faults]\ngarbage = 0.9\nduplicate = 0.9")
    assert len(found) == 1
    assert found[0].startswith("bss.toml: ")
    assert "$.faults" in found[0]


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
def test_a_number_that_is_none_is_refused(tmp_path: Path, number: str) -> None:
    toml = f"[simulate]\nstaffed_share = {number}"
    fault = f"$.simulate.staffed_share: {number}: expected a share from 0 to 1"
    assert faults(tmp_path, toml) == [f"bss.toml: {fault}"]
    assert len(faults(tmp_path, "", BSS_SIMULATE__STAFFED_SHARE=number)) == 1


def test_a_file_that_cannot_be_read_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.toml: cannot be read: No such file"):
        Config.load(tmp_path / "gone.toml", {})


def test_a_file_that_is_no_text_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "bss.toml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"bss\.toml: is no TOML: "):
        Config.load(tmp_path / "bss.toml", {})


def test_all_faults_come_at_once(tmp_path: Path) -> None:
    toml = 'partitions = -1\ncolour = "red"\n[log]\nbackend = 3\n[mqtt]\nport = -1'
    found = faults(tmp_path, toml, BSS_PARTITION="3", BSS_BRIDGE__LINGER_MS="soon")
    assert found == [
        'environment variable BSS_BRIDGE__LINGER_MS: $: "soon": expected milliseconds, 0 to '
        "3600000",
        "environment variable BSS_PARTITION: unknown, expected such as BSS_PARTITIONS",
        found[2],
        "bss.toml: $.partitions: -1: expected partitions, 1 to 1024",
        'bss.toml: $.log.backend: 3: expected one of "embedded", "kafka"',
        "bss.toml: $.mqtt.port: -1: expected a port, 0 to 65535",
    ]
    assert found[2].startswith("bss.toml: $.colour: unknown field, expected one of app, data_dir")


def test_a_variable_for_a_section_that_the_file_has_wrong(tmp_path: Path) -> None:
    assert faults(tmp_path, "log = 5", BSS_LOG__BACKEND="kafka") == [
        "bss.toml: $.log: expected `object`, got `int`"
    ]


# Secrets.


def test_no_repr_shows_a_secret() -> None:
    config = Config(sink=Sink(backend="postgres", dsn=Secret(DSN)))
    assert PASSWORD not in repr(config)
    assert PASSWORD not in str(config.sink)
    assert PASSWORD not in f"{config.ledger_url()}"
    assert config.ledger_url().reveal() == DSN


def test_secrets_compare_by_their_text() -> None:
    assert Secret("a") == Secret("a")
    assert hash(Secret("a")) == hash(Secret("a"))
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"


@pytest.mark.parametrize(
    "toml",
    [
        f'sink = "{DSN}"',
        f'[sink]\ndsn = ["{DSN}"]',
        f'[sink]\ndsn = {{url = "{DSN}"}}',
        f'[sink]\ndsn = "{DSN}"',
        f'[sink]\nbackend = "postgres"\ndsn = "{DSN}"\ndsn_file = "/dsn"',
        f'[sink]\ndsn = "{DSN}',
        f'[sink]\nbackend = "postgres"\ndsn = "{DSN}"\ndsn = "{DSN}"',
    ],
)
def test_no_fault_shows_a_secret(tmp_path: Path, toml: str) -> None:
    assert PASSWORD not in "\n".join(faults(tmp_path, toml))


def test_a_secret_set_where_its_file_belongs_is_not_shown() -> None:
    config = Config(mqtt=Mqtt(embedded=False, username="u", password_file=PASSWORD))
    with pytest.raises(ConfigError, match="No such file") as caught:
        config.mqtt_password()
    assert PASSWORD not in str(caught.value)
    assert str(caught.value).startswith("$.mqtt.password_file: ")


def test_a_secret_comes_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(f"{DSN}\n")
    config = Config(sink=Sink(backend="postgres", dsn_file=str(file)))
    assert config.ledger_url().reveal() == DSN
    file.write_text(" \n")
    with pytest.raises(ConfigError, match="the file it names is empty"):
        config.ledger_url()
    with pytest.raises(ConfigError, match=r"\$\.sink\.dsn_file: the file it names is empty"):
        config.queries_url()
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"is no UTF-8 text"):
        read_secret(file, "$.x")


def test_queries_read_the_ledger_s_database_or_have_a_dsn_of_their_own(tmp_path: Path) -> None:
    assert Config().queries_url().reveal() == "sqlite:bss-data/ledger.db"
    file = tmp_path / "reader"
    file.write_text(f"{DSN}?application_name=reader\n")
    sink = Sink(backend="postgres", dsn=Secret(DSN))
    assert Config(sink=sink).queries_url().reveal() == DSN
    config = Config(sink=sink, queries=Queries(dsn_file=str(file)))
    assert config.queries_url().reveal() == f"{DSN}?application_name=reader"
    assert config.group("queries") == "bss-queries"
    file.unlink()
    with pytest.raises(ConfigError, match=r"\$\.queries\.dsn_file: cannot read"):
        config.queries_url()


# The example file.


def test_the_example_file_is_up_to_date() -> None:
    assert EXAMPLE.read_text(encoding="utf-8") == config_example.render(), (
        "write it anew: python -m bss_stream.config_example > bss-stream.example.toml"
    )


def test_the_example_file_equals_the_defaults() -> None:
    assert Config.load(EXAMPLE, {}) == Config()


def test_the_example_file_has_every_setting() -> None:
    """What has no default stands behind a #; put in force it is where TOML expects it."""
    text = EXAMPLE.read_text(encoding="utf-8").replace("= ...", '= "here"')
    lines = [line.removeprefix("# ") if '= "here"' in line else line for line in text.splitlines()]
    table = tomllib.loads("\n".join(lines))
    for path, default in defaults(Config()):
        found: Any = table
        for name in path:
            found = found[name]
        if isinstance(default, tuple):
            found = tuple(found)
        assert found == ("here" if default is None else default), path


ODOO_SET = """
[odoo]
url = "https://odoo.example.net"
username = "bss"
api_key_file = "/run/secrets/odoo"
"""


def test_an_odoo_is_wanted_where_it_is_named(tmp_path: Path) -> None:
    assert "odoo" not in wanted_roles(Config())
    config = load(tmp_path, ODOO_SET, BSS_ODOO__SUBSCRIPTION__FIELDS='{"status": "x_state"}')
    assert wanted_roles(config)[-1] == "odoo"
    assert config.group("odoo") == "bss-odoo"
    assert config.odoo.subscription.fields == {"status": "x_state"}
    key = tmp_path / "key"
    key.write_text(f"{PASSWORD}\n")
    with_key = load(tmp_path, ODOO_SET, BSS_ODOO__API_KEY_FILE=str(key))
    assert with_key.odoo_key().reveal() == PASSWORD
    assert PASSWORD not in repr(connection(with_key))


@pytest.mark.parametrize(
    ("toml", "fault"),
    [
        ('[odoo]\nurl = "https://u:p@odoo"', "$.odoo.url"),
        ('[odoo]\nurl = "https://odoo"', "$.odoo.api_key_file: not set"),
        ('[odoo]\nurl = "https://odoo"', "$.odoo.username: not set"),
        ('[odoo]\nurl = "http://odoo"\nca_file = "ca"', "expected https, as $.odoo.ca_file"),
        ('[odoo.payment]\nfields = {plan_id = "x_p"}', "payment_id is missing"),
        ('[odoo.invoice]\nfields = {id = "id"}', "subscription_state is missing"),
        ("[odoo.usage]\nfields = {}", "$.odoo.usage.fields: {}"),
        ('[odoo.usage]\nfields = {colour = "x_c"}', "expected one of"),
        ('[odoo.usage]\nfields = {used = "X Used"}', "a technical name"),
        ('[odoo.subscription]\nkey = "a.b"', "or nothing"),
        ('[odoo.subscription]\nkey = ""', "plan_id is missing"),
    ],
)
def test_what_is_wrong_with_an_odoo_is_said(tmp_path: Path, toml: str, fault: str) -> None:
    assert any(fault in line for line in faults(tmp_path, toml))
