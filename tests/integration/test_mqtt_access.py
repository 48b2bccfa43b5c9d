"""Who gets in at a real Mosquitto by TLS, password or certificate, and what others are told."""

import asyncio
from pathlib import Path

import pytest

from bss_stream.config import Config
from bss_stream.errors import MqttError
from bss_stream.mqtt.client import MqttClient
from bss_stream.mqtt.messages import Message, Subscription
from bss_stream.roles import mqtt_settings
from tests.integration.command import gives_up
from tests.servers.certificates import Certificate, Certificates
from tests.servers.mosquitto import Mosquitto, MosquittoFactory, password_file

pytestmark = pytest.mark.mosquitto

PASSWORD = "hunter2-in-the-clear"
WRONG_PASSWORD = "hunter3-in-the-clear"


def listener(certificates: Certificates, shown: Certificate, *lines: str) -> list[str]:
    """A mosquitto listener that speaks TLS and shows a certificate."""
    files = (f"cafile {certificates.ca}", f"certfile {shown.cert}", f"keyfile {shown.key}")
    return [*files, *lines]


def configuration(
    folder: Path,
    port: int,
    *,
    host: str = "127.0.0.1",
    password: str | None = None,
    ca: Path,
    shows: Certificate | None = None,
) -> Path:
    """A configuration of a role that needs MQTT and nothing else."""
    lines = ["[mqtt]", "embedded = false", f'host = "{host}"', f"port = {port}"]
    if password is not None:
        (folder / "password").write_text(f"{password}\n")
        lines += ['username = "queries"', f'password_file = "{folder / "password"}"']
    lines += ["[mqtt.tls]", "enabled = true", f'ca_file = "{ca}"']
    if shows is not None:
        lines += [f'cert_file = "{shows.cert}"', f'key_file = "{shows.key}"']
    file = folder / "bss.toml"
    file.write_text("\n".join(lines))
    return file


async def exchange(config: Path) -> None:
    """Send a message through the broker and back."""
    async with MqttClient(mqtt_settings(Config.load(config, {}), "both", None)) as client:
        await client.subscribe(Subscription("echo/x"))
        assert await client.publish([Message(topic="echo/x", payload=b"1")]) == []
        [message] = await client.receive(1, timeout_s=10)
        assert message.payload == b"1"


@pytest.fixture
def users(tmp_path: Path) -> list[str]:
    """The lines of a listener that knows one user."""
    file = password_file(tmp_path / "users", {"queries": PASSWORD})
    return ["allow_anonymous false", f"password_file {file}"]


async def test_a_password_over_tls(
    tmp_path: Path,
    certificates: Certificates,
    start_mosquitto: MosquittoFactory,
    users: list[str],
) -> None:
    broker = start_mosquitto(lines=listener(certificates, certificates.server, *users))
    config = configuration(tmp_path, broker.port, password=PASSWORD, ca=certificates.ca)
    await exchange(config)
    config = configuration(tmp_path, broker.port, password=WRONG_PASSWORD, ca=certificates.ca)
    said = await asyncio.to_thread(gives_up, "query", config, WRONG_PASSWORD)
    assert "NOT_AUTHORIZED (135): check the user name and the password" in said


async def test_a_client_s_certificate_instead_of_a_password(
    tmp_path: Path, certificates: Certificates, start_mosquitto: MosquittoFactory
) -> None:
    identity = ("require_certificate true", "use_identity_as_username true")
    broker = start_mosquitto(lines=listener(certificates, certificates.server, *identity))
    known = certificates.client("mqtt-client")
    await exchange(configuration(tmp_path, broker.port, ca=certificates.ca, shows=known))

    config = configuration(tmp_path, broker.port, ca=certificates.ca)
    said = await asyncio.to_thread(gives_up, "query", config)
    assert "the server wants a client's certificate: set cert_file and key_file" in said

    unknown = certificates.stranger.issue("mqtt-client")
    config = configuration(tmp_path, broker.port, ca=certificates.ca, shows=unknown)
    said = await asyncio.to_thread(gives_up, "query", config)
    assert "the server does not accept this client's certificate" in said


@pytest.mark.parametrize(
    ("shown", "host", "trusted", "told"),
    [
        ("server", "127.0.0.1", "stranger", "signed by nobody who is trusted here"),
        ("elsewhere", "localhost", "authority", "certificate is for another name"),
        ("elsewhere", "127.0.0.1", "authority", "certificate is for another address"),
        ("expired", "127.0.0.1", "authority", "certificate has expired: renew it on the server"),
    ],
)
async def test_a_server_that_cannot_prove_itself_is_given_up_at_once(
    tmp_path: Path,
    certificates: Certificates,
    start_mosquitto: MosquittoFactory,
    shown: str,
    host: str,
    trusted: str,
    told: str,
) -> None:
    broker = start_mosquitto(lines=listener(certificates, getattr(certificates, shown)))
    ca = getattr(certificates, trusted).ca
    config = configuration(tmp_path, broker.port, host=host, ca=ca)
    assert told in await asyncio.to_thread(gives_up, "query", config)


async def test_a_server_without_tls_gets_no_password(
    tmp_path: Path, certificates: Certificates, mosquitto: Mosquitto
) -> None:
    config = configuration(tmp_path, mosquitto.port, password=PASSWORD, ca=certificates.ca)
    client = MqttClient(mqtt_settings(Config.load(config, {}), "both", None))
    with pytest.raises(MqttError, match="cannot be reached") as caught:
        await client.connect(patience_s=0)
    assert PASSWORD not in str(caught.value)
