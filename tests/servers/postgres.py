"""A real PostgreSQL server for tests, started as a process on a free loopback port.

PostgreSQL refuses to run as root, so a root's test run starts it as `postgres` or `nobody`, in a
directory of that user's own.
"""

import importlib.util
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.certificates import Certificate, Certificates
from tests.servers.ports import free_port
from tests.servers.requirement import missing

START_TIMEOUT_S = 60
ATTEMPT_PAUSE_S = 0.05

CONFIGURATION = """
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
# The tests kill the server, never the machine, so nothing has to reach the disk.
fsync = off
max_connections = 40
shared_buffers = 32MB
log_min_messages = fatal
"""


TLS_CONFIGURATION = """
ssl = on
ssl_ca_file = 'ca.pem'
ssl_cert_file = 'server.pem'
ssl_key_file = 'key.pem'
"""

TLS_RULES = """
host all tester 127.0.0.1/32 trust
hostssl all +certified 127.0.0.1/32 cert
hostssl all all 127.0.0.1/32 scram-sha-256
"""


def _binaries() -> Path:
    """The newest installed server's directory of programs."""
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda p: float(p.parts[-3])
    )
    if found:
        return found[-1].parent
    on_path = shutil.which("postgres")
    if on_path is None:
        missing("PostgreSQL", "no /usr/lib/postgresql/*/bin/postgres and no `postgres` on PATH")
    return Path(on_path).resolve().parent


def _user() -> pwd.struct_passwd | None:
    """Whom the server has to run as, None for the present user."""
    if os.geteuid() != 0:
        return None
    names = {user.pw_name: user for user in pwd.getpwall()}
    user = names.get("postgres") or names.get("nobody")
    if user is None:
        missing("PostgreSQL", "the tests run as root and there is no user postgres or nobody")
    return user


class PostgresServer:
    """A server with a data directory of its own; `start` and `kill` as often as a test likes."""

    def __init__(self, directory: Path, tls: Certificates | None = None) -> None:
        """With `tls`, clients other than `tester` get in over TLS only: members of `certified` by
        their certificate, all others by password.
        """
        self._binaries = _binaries()
        self._user = _user()
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        if self._user is not None:
            os.chown(directory, self._user.pw_uid, self._user.pw_gid)
        self._initialise()
        if tls is not None:
            self._secure(tls)

    def dsn(self, database: str) -> str:
        """The URL of a database on this server."""
        return f"postgresql://tester@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start, and return once the server answers; a crash before is recovered from."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            if self._process is None or self._process.poll() is not None:
                # After a kill the old backends hold the data directory until they notice.
                self._process = self._spawn()
            if self._client("pg_isready", "--dbname=postgres").returncode == 0:
                return
            if time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL does not answer on port {self.port}\n{self.log()}")
            time.sleep(ATTEMPT_PAUSE_S)

    def stop(self) -> None:
        """Stop in order, ending open sessions."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """Stop as a crash does: kill -9, nothing flushed, no session told."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Kill and start again, on the same port and data."""
        self.kill()
        self.start()

    def create_database(self, name: str) -> str:
        """Make an empty database and return its URL."""
        done = self._client("createdb", "--maintenance-db=postgres", name)
        if done.returncode != 0:
            raise RuntimeError(f"createdb failed: {done.stderr.decode('utf-8', 'replace')}")
        return self.dsn(name)

    def log(self) -> str:
        """What the server has written to its log."""
        path = self._directory / "server.log"
        return path.read_text("utf-8", "replace") if path.exists() else ""

    def _initialise(self) -> None:
        data = self._directory / "data"
        # Not the C locale: ids must sort by bytes in a database that sorts by language.
        initdb = [
            *self._as_user(),
            str(self._binaries / "initdb"),
            f"--pgdata={data}",
            "--username=tester",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--locale-provider=icu",
            "--icu-locale=en",
            "--no-sync",
        ]
        done = subprocess.run(initdb, cwd=self._directory, capture_output=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"initdb failed: {done.stderr.decode('utf-8', 'replace')}")
        with (data / "postgresql.conf").open("a", encoding="utf-8") as file:
            file.write(CONFIGURATION)

    def _secure(self, tls: Certificates) -> None:
        data = self._directory / "data"
        self._put("ca", tls.ca)
        self._put("server", tls.server.cert)
        self._put("key", tls.server.key)
        with (data / "postgresql.conf").open("a", encoding="utf-8") as file:
            file.write(TLS_CONFIGURATION)
        (data / "pg_hba.conf").write_text(TLS_RULES)

    def _put(self, name: str, source: Path) -> None:
        copy = self._directory / "data" / f"{name}.pem"
        shutil.copy(source, copy)
        copy.chmod(0o600)
        if self._user is not None:
            os.chown(copy, self._user.pw_uid, self._user.pw_gid)

    def show(self, certificate: Certificate) -> None:
        """Show another certificate from now on."""
        self._put("server", certificate.cert)
        self._put("key", certificate.key)
        self.restart()

    def _spawn(self) -> subprocess.Popen[bytes]:
        command = [
            *self._as_user(),
            str(self._binaries / "postgres"),
            "-D",
            str(self._directory / "data"),
            "-p",
            str(self.port),
        ]
        with (self._directory / "server.log").open("ab") as log:
            return subprocess.Popen(
                command, cwd=self._directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def _client(self, program: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        where = ["--host=127.0.0.1", f"--port={self.port}", "--username=tester"]
        command = [str(self._binaries / program), *where, *arguments]
        return subprocess.run(command, capture_output=True, check=False)

    def _as_user(self) -> list[str]:
        if self._user is None:
            return []
        # setpriv becomes the server, so the process id is the server's; a test run that is
        # killed takes the server with it.
        ids = [f"--reuid={self._user.pw_uid}", f"--regid={self._user.pw_gid}"]
        return ["setpriv", *ids, "--clear-groups", "--pdeathsig=INT"]

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(START_TIMEOUT_S)
            self._process = None


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A running server; a test that stops it starts it again."""
    if importlib.util.find_spec("psycopg") is None:
        missing("PostgreSQL", "its driver is not installed: pip install 'bss_stream[postgres]'")
    directory = Path(tempfile.mkdtemp(prefix="bss-postgres-"))
    try:
        server = PostgresServer(directory)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(directory)


_numbers = itertools.count(1)


@pytest.fixture
def postgres(postgres_server: PostgresServer) -> str:
    """The URL of a fresh database."""
    postgres_server.start()
    return postgres_server.create_database(f"test_{next(_numbers)}")


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty ledger database, on SQLite and on PostgreSQL."""
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres"))
    return f"sqlite:{tmp_path / 'ledgers.db'}"
