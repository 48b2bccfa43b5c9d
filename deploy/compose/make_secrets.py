"""Makes what `docker compose up` needs to know and nobody else may: passwords and certificates.

`python3 deploy/compose/make_secrets.py` writes deploy/compose/secrets/ (or the directory that it is
given), once: it changes nothing that is there. Needs the `openssl` command. The directory is its
owner's alone; the files in it can be read by anybody, since a container's user is another one than
the host's.
"""

import base64
import hashlib
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
BROKER: Final = "mosquitto"
CONSOLE: Final = "console"
DATABASE: Final = "postgres:5432/bss"
MQTT_USERS: Final = ("bss-bridge", "bss-publisher", "bss-queries", "bss-odoo", "simulator")
DATABASE_USERS: Final = ("bss_sink", "bss_queries")
ITERATIONS: Final = 10_000
DAYS: Final = "3650"
KEY: Final = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")

SIMULATOR: Final = """
# Of the simulator, which is rider, station, attendant, ARM and Odoo at once.

user simulator
topic readwrite emit/#
topic readwrite echo/#
topic readwrite cmd/#
"""


def write(directory: Path) -> None:
    """Fill a directory that is not there yet."""
    directory.mkdir(mode=0o700)
    mqtt = {user: secrets.token_urlsafe(24) for user in MQTT_USERS}
    database = {user: secrets.token_urlsafe(24) for user in ("postgres", *DATABASE_USERS)}
    for name, text in _files(mqtt, database):
        (directory / name).write_text(text, encoding="utf-8")
    _certificates(directory)
    for file in directory.iterdir():
        file.chmod(0o644)


def _files(mqtt: Mapping[str, str], database: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The name and the text of each file but the certificates."""
    for user, password in mqtt.items():
        yield f"mqtt-{user}", password
    yield "mosquitto-passwords", "".join(_mosquitto_line(*one) for one in mqtt.items())
    acl = (HERE.parent / "mosquitto" / "acl").read_text(encoding="utf-8")
    yield "mosquitto-acl", acl + SIMULATOR
    for user, password in database.items():
        yield f"postgres-{user}", password
    yield "grafana-admin", secrets.token_urlsafe(24)
    yield "console-token", secrets.token_urlsafe(24)
    for user in DATABASE_USERS:
        # Between containers of one host, on a network of their own.
        dsn = f"postgresql://{user}:{database[user]}@{DATABASE}?sslmode=disable"
        yield f"dsn-{user}", dsn


def _mosquitto_line(user: str, password: str) -> str:
    """A line of a password file, as mosquitto_passwd writes it: PBKDF2 with SHA-512."""
    salt = secrets.token_bytes(12)
    key = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, ITERATIONS)
    parts = (base64.b64encode(part).decode() for part in (salt, key))
    return f"{user}:$7${ITERATIONS}${'$'.join(parts)}\n"


def _certificates(directory: Path) -> None:
    """An authority of this installation, whose key is thrown away, and what it vouches for."""
    ca, ca_key = directory / "ca.pem", directory / "ca.key"
    _openssl("req", "-x509", *KEY, "-days", DAYS, "-subj", "/CN=bss", "-keyout", ca_key, "-out", ca)
    for host in (BROKER, CONSOLE):
        _certificate(directory, host, ("-CA", ca, "-CAkey", ca_key, "-CAcreateserial"))
    for name in ("ca.key", "ca.srl", "server.csr", "server.ext"):
        (directory / name).unlink(missing_ok=True)


def _certificate(directory: Path, host: str, signed_by: Sequence[str | Path]) -> None:
    request, extensions = directory / "server.csr", directory / "server.ext"
    key, certificate = directory / f"{host}.key", directory / f"{host}.pem"
    _openssl("req", *KEY, "-subj", f"/CN={host}", "-keyout", key, "-out", request)
    extensions.write_text(f"subjectAltName = DNS:{host},DNS:localhost,IP:127.0.0.1\n")
    issued = (*signed_by, "-days", DAYS, "-extfile", extensions)
    _openssl("x509", "-req", *issued, "-in", request, "-out", certificate)


def _openssl(*arguments: str | Path) -> None:
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"openssl {arguments[0]} failed: {done.stderr}")


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "secrets"
    if target.exists():
        sys.exit(f"{target} is there already; remove it to make all secrets anew")
    write(target)
