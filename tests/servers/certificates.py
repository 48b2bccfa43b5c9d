"""Certificates for tests, made with the `openssl` command, which comes along with the servers."""

import functools
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.servers.requirement import missing

LOOPBACK: Final = ("DNS:localhost", "IP:127.0.0.1")
CURVE: Final = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
VALID: Final = ("20200101000000Z", "20491231235959Z")
EXPIRED: Final = ("20200101000000Z", "20200102000000Z")

CONFIGURATION: Final = """
[ca]
default_ca = here
[here]
database = {directory}/index.txt
rand_serial = yes
new_certs_dir = {directory}
certificate = {directory}/ca.pem
private_key = {directory}/ca.key
default_md = sha256
policy = names
unique_subject = no
[names]
commonName = supplied
"""


class Certificate(NamedTuple):
    """A certificate and its key, both PEM, the key as PKCS #8."""

    cert: Path
    key: Path


class Authority:
    """One that signs certificates; `ca` is what those who trust it name."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        self.ca = directory / "ca.pem"
        self._directory = directory
        (directory / "index.txt").touch()
        (directory / "ca.cnf").write_text(CONFIGURATION.format(directory=directory))
        key = directory / "ca.key"
        subject = ("-subj", f"/CN={directory.name}", "-days", "2")
        _openssl("req", "-x509", *CURVE, *subject, "-keyout", key, "-out", self.ca)

    def issue(
        self, name: str, *, hosts: tuple[str, ...] = LOOPBACK, validity: tuple[str, str] = VALID
    ) -> Certificate:
        """A certificate for `name`, as a server good for `hosts`. Each name once."""
        key, request = self._directory / f"{name}.key", self._directory / f"{name}.csr"
        cert, extensions = self._directory / f"{name}.pem", self._directory / f"{name}.ext"
        _openssl("req", *CURVE, "-subj", f"/CN={name}", "-keyout", key, "-out", request)
        extensions.write_text(f"subjectAltName = {','.join(hosts)}\n")
        sign = ("ca", "-batch", "-notext", "-config", self._directory / "ca.cnf")
        dates = ("-startdate", validity[0], "-enddate", validity[1])
        _openssl(*sign, *dates, "-extfile", extensions, "-in", request, "-out", cert)
        return Certificate(cert, key)


def _openssl(*arguments: str | Path) -> None:
    binary = shutil.which("openssl")
    if binary is None:
        missing("openssl", "install the Debian package `openssl`")
    done = subprocess.run([binary, *arguments], capture_output=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"openssl {arguments[0]} failed: {done.stderr.decode()}")


class Certificates(NamedTuple):
    """What the tests of TLS need: a trusted authority, its certificates, and another authority."""

    authority: Authority
    server: Certificate
    elsewhere: Certificate
    """A server's, for another host."""
    expired: Certificate
    stranger: Authority

    @property
    def ca(self) -> Path:
        """Whom clients trust."""
        return self.authority.ca

    @property
    def client(self) -> Callable[[str], Certificate]:
        """Issue a client's certificate."""
        return functools.partial(self.authority.issue, hosts=("DNS:client",))


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Made once a session."""
    directory = tmp_path_factory.mktemp("certificates")
    authority = Authority(directory / "authority")
    return Certificates(
        authority,
        authority.issue("server"),
        authority.issue("elsewhere", hosts=("DNS:elsewhere.example",)),
        authority.issue("expired", validity=EXPIRED),
        Authority(directory / "stranger"),
    )
