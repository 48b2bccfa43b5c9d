"""A real Kafka that asks who comes and what they may: TLS, SASL, certificates, authorizer."""

import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

from tests.servers.certificates import Certificate, Certificates
from tests.servers.kafka import Access, KafkaServer

ACLS: Final = Path(__file__).parents[2] / "deploy" / "kafka" / "acls.sh"

ROLES: Final = (
    "bss-bridge",
    "bss-processor",
    "bss-publisher",
    "bss-sink",
    "bss-odoo",
    "bss-auditor",
    "bss-console",
)
PASSWORDS: Final[Mapping[str, str]] = {role: f"{role}-in-the-clear" for role in ROLES}
"""By principal, with SCRAM-SHA-512; with PLAIN on the same listener for the user `plain`."""
PLAIN_PASSWORD: Final = "plain-in-the-clear"

PREFIX: Final = "access."
"""Of the topics that the roles have rights to."""

LISTENERS: Final = {
    "SASL": "SASL_SSL",
    "MUTUAL": "SSL",
    "ELSEWHERE": "SASL_SSL",
    "EXPIRED": "SASL_SSL",
}
"""By name; the last two show a certificate that no client may trust."""

_MODULES: Final = "org.apache.kafka.common.security"


def access(directory: Path, certificates: Certificates) -> Access:
    """The server's configuration; whoever is on the plain listener may do everything."""
    lines = [
        "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users=User:ANONYMOUS",
        "ssl.truststore.type=PEM",
        f"ssl.truststore.location={certificates.ca}",
        "ssl.principal.mapping.rules=RULE:^CN=(.*)$/$1/",
        "listener.name.mutual.ssl.client.auth=required",
        "sasl.enabled.mechanisms=SCRAM-SHA-512,PLAIN",
    ]
    shown = {
        "SASL": certificates.server,
        "MUTUAL": certificates.server,
        "ELSEWHERE": certificates.elsewhere,
        "EXPIRED": certificates.expired,
    }
    for name, protocol in LISTENERS.items():
        prefix = f"listener.name.{name.lower()}"
        keystore = _keystore(directory / f"{name.lower()}.pem", shown[name])
        lines += [
            f"{prefix}.ssl.keystore.type=PEM",
            f"{prefix}.ssl.keystore.location={keystore}",
        ]
        if protocol == "SASL_SSL":
            scram = f"{_MODULES}.scram.ScramLoginModule required;"
            user = f'user_plain="{PLAIN_PASSWORD}"'
            plain = f"{_MODULES}.plain.PlainLoginModule required {user};"
            lines += [
                f"{prefix}.scram-sha-512.sasl.jaas.config={scram}",
                f"{prefix}.plain.sasl.jaas.config={plain}",
            ]
    formatting = []
    for user, password in PASSWORDS.items():
        formatting += ["--add-scram", f"SCRAM-SHA-512=[name={user},password={password}]"]
    return Access(LISTENERS, lines, formatting)


def _keystore(file: Path, shown: Certificate) -> Path:
    file.write_text(shown.key.read_text() + shown.cert.read_text())
    return file


def _grant(server: KafkaServer, directory: Path) -> None:
    """Run deploy/kafka/acls.sh as a cluster's administrator does."""
    tool = directory / "kafka-acls"
    command = " ".join(f"'{part}'" for part in server.command("org.apache.kafka.tools.AclCommand"))
    tool.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    tool.chmod(0o700)
    settings = directory / "admin.properties"
    settings.touch()
    environment = {
        "BOOTSTRAP": server.bootstrap,
        "COMMAND_CONFIG": str(settings),
        "KAFKA_ACLS": str(tool),
        "PREFIX": PREFIX,
    }
    done = subprocess.run(
        [str(ACLS)], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0 or "Error" in done.stdout + done.stderr:
        raise RuntimeError(f"{ACLS.name} failed: {done.stdout}{done.stderr}")


@pytest.fixture(scope="session")
def kafka_access(
    tmp_path_factory: pytest.TempPathFactory, certificates: Certificates
) -> Iterator[KafkaServer]:
    """The session's broker of this kind, with the roles' rights granted."""
    directory = tmp_path_factory.mktemp("kafka-access")
    server = KafkaServer(directory, access(directory, certificates))
    server.start()
    try:
        _grant(server, directory)
        yield server
    finally:
        server.kill()
