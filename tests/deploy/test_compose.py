"""docker-compose.yml, read by Compose's own loader and held against the program."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import yaml
from typer.main import get_command

from bss_stream.cli.main import app
from bss_stream.config import Config
from tests.deploy.compose import SECRETS, ours
from tests.deploy.tools import ROOT

PINNED: Final = re.compile(r"[^:]+:v?[0-9]+(\.[0-9]+)+")


def test_every_role_s_settings_are_settings_of_the_program(model: dict[str, Any]) -> None:
    roles = {one["command"][0] for one in ours(model).values()}
    assert roles >= {"bridge", "process", "publish", "sink", "query", "odoo", "simulate"}
    for name, service in ours(model).items():
        config = Config.load(env=service["environment"])
        assert config.log.backend == "kafka", name
        assert not config.mqtt.embedded, name


def test_every_command_is_one(model: dict[str, Any]) -> None:
    commands = get_command(app)
    for service in ours(model).values():
        name, *arguments = service["command"]
        command = commands.commands[name]  # type: ignore[attr-defined]
        command.make_context(name, list(arguments))


def test_a_role_has_the_secrets_that_it_reads_and_no_others(model: dict[str, Any]) -> None:
    for name, service in ours(model).items():
        given = {
            SECRETS + one["target"].removeprefix(SECRETS) for one in service.get("secrets", ())
        }
        settings = service["environment"].values()
        read = {value for value in settings if value.startswith(SECRETS)}
        broker = {value for value in read if value.endswith(".pem")}
        assert given <= read, name
        assert read - broker <= given, name
        if "BSS_MQTT__USERNAME" in service["environment"]:
            assert broker <= given, name


def test_the_secrets_are_those_that_the_script_makes(model: dict[str, Any], secrets: Path) -> None:
    used = {Path(one["file"]).name for one in model["secrets"].values()}
    # The key is Odoo's to give.
    assert used - {"odoo-key"} == {file.name for file in secrets.iterdir()}
    assert secrets.stat().st_mode & 0o077 == 0
    for one in (*model["secrets"].values(), *model["configs"].values()):
        file = Path(one["file"])
        assert file.parent.name == "secrets" or file.is_file(), file


def test_the_script_changes_no_secret(secrets: Path) -> None:
    before = {file: file.read_bytes() for file in secrets.iterdir()}
    script = ROOT / "deploy" / "compose" / "make_secrets.py"
    done = subprocess.run(
        [sys.executable, script, secrets], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "is there already" in done.stderr
    assert {file: file.read_bytes() for file in secrets.iterdir()} == before


def test_services_are_bounded_and_come_back(model: dict[str, Any]) -> None:
    for name, service in model["services"].items():
        limits = service["deploy"]["resources"]["limits"]
        assert limits["cpus"] and limits["memory"], name
        assert service["restart"] == ("no" if name == "simulator" else "unless-stopped"), name
        assert service["logging"]["options"]["max-size"], name
        assert PINNED.fullmatch(service["image"]), name
        for port in service.get("ports", ()):
            assert port["host_ip"] == "127.0.0.1", name


def test_a_role_is_given_the_time_that_its_end_takes(model: dict[str, Any]) -> None:
    for name, service in ours(model).items():
        config = Config.load(env=service["environment"])
        grace_s = float(service["stop_grace_period"].replace("1m0s", "60s").removesuffix("s"))
        assert grace_s * 1000 > 2 * config.log.kafka.commit_timeout_ms, name
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name


def test_prometheus_finds_every_role(model: dict[str, Any]) -> None:
    text = (ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text(encoding="utf-8")
    (scraped,) = yaml.safe_load(text)["scrape_configs"]
    (found,) = scraped["dns_sd_configs"]
    named = {
        alias: service
        for name, service in ours(model).items()
        for alias in (name, *((service["networks"]["default"] or {}).get("aliases", ())))
    }
    assert {named[name]["command"][0] for name in found["names"]} == {
        *("bridge", "process", "publish", "sink", "query", "odoo")
    }
    for name in found["names"]:
        config = Config.load(env=named[name]["environment"])
        assert (config.http.host, config.http.port) == ("0.0.0.0", found["port"])


def test_processors_have_names_and_checkpoints_of_their_own(model: dict[str, Any]) -> None:
    processors = [one for one in ours(model).values() if one["command"][0] == "process"]
    assert len({one["command"][2] for one in processors}) == len(processors) == 2
    places = [one["volumes"][0] for one in processors]
    assert len({one["source"] for one in places}) == len(processors)
    for one, place in zip(processors, places, strict=True):
        config = Config.load(env=one["environment"] | {"BSS_DATA_DIR": "/var/lib/bss"})
        assert config.checkpoint_directory.is_relative_to(place["target"])
        assert len(processors) <= config.partitions
