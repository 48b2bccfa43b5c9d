"""Who gets in at a real PostgreSQL by password or certificate over TLS; what others are told."""

import asyncio
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bss_stream.errors import SinkError
from bss_stream.sink.read_model import open_read_model
from bss_stream.sink.store import StoreUnavailableError, open_ledger_store
from tests.integration.command import gives_up
from tests.integration.databases import execute, query
from tests.servers.certificates import Certificate, Certificates
from tests.servers.postgres import PostgresServer

pytestmark = pytest.mark.postgres

PASSWORD = "hunter2-in-the-clear"
WRONG_PASSWORD = "hunter3-in-the-clear"

ROLES = f"""
    CREATE ROLE certified;
    CREATE USER bss_sink PASSWORD '{PASSWORD}';
    CREATE USER bss_queries IN ROLE certified;
"""
RIGHTS = """
    GRANT CREATE ON SCHEMA public TO bss_sink;
    ALTER DEFAULT PRIVILEGES FOR ROLE bss_sink GRANT SELECT ON TABLES TO bss_queries;
"""


@pytest.fixture(scope="module")
def server(certificates: Certificates) -> Iterator[PostgresServer]:
    """A server that lets these users in over TLS only; a database `ledger` with their rights."""
    directory = Path(tempfile.mkdtemp(prefix="bss-postgres-tls-"))
    try:
        server = PostgresServer(directory, certificates)
        server.start()
        try:
            server.create_database("ledger")
            execute(server.dsn("ledger"), ROLES + RIGHTS)
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(directory)


def dsn(
    server: PostgresServer,
    user: str = "bss_sink",
    *,
    password: str = PASSWORD,
    host: str = "127.0.0.1",
    ca: Path | None = None,
    shows: Certificate | None = None,
    sslmode: str = "verify-full",
) -> str:
    parts = [f"sslmode={sslmode}"]
    if ca is not None:
        parts.append(f"sslrootcert={ca}")
    if shows is not None:
        parts += [f"sslcert={shows.cert}", f"sslkey={shows.key}"]
    return f"postgresql://{user}:{password}@{host}:{server.port}/ledger?{'&'.join(parts)}"


def test_the_sink_by_password_and_the_queries_by_certificate(
    server: PostgresServer, certificates: Certificates
) -> None:
    """The one makes the tables, the other reads them and can do nothing else."""
    url = dsn(server, ca=certificates.ca)
    store = open_ledger_store(url)
    store.open()
    store.close()
    encrypted = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
    assert query(url, encrypted) == [(True,)]

    shown = certificates.client("bss_queries")
    reader = dsn(server, "bss_queries", password="", ca=certificates.ca, shows=shown)
    model = open_read_model(reader)
    with model.view() as view:
        assert view.recorded_at_ms() is None
    model.close()
    for forbidden in (
        "DELETE FROM ledger_entries",
        "INSERT INTO sink_offsets VALUES ('t', 0, 0, 0)",
        "CREATE TABLE own (x int)",
    ):
        with pytest.raises(Exception, match="permission denied"):
            execute(reader, forbidden)


def gives_up_with(config: Path, url: str) -> str:
    """What the role that reads the database says at its end."""
    (config.parent / "dsn").write_text(f"{url}\n")
    return gives_up("run", config, PASSWORD, WRONG_PASSWORD)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration that needs a dsn and no other server."""
    file = tmp_path / "bss.toml"
    file.write_text(
        f"""
data_dir = "{tmp_path / "data"}"
[mqtt]
port = 0
[sink]
backend = "postgres"
dsn_file = "{tmp_path / "dsn"}"
"""
    )
    return file


async def test_a_wrong_password_is_given_up_at_once(
    config: Path, server: PostgresServer, certificates: Certificates
) -> None:
    url = dsn(server, password=WRONG_PASSWORD, ca=certificates.ca)
    said = await asyncio.to_thread(gives_up_with, config, url)
    assert "check the user and the password in the dsn" in said


def told(url: str) -> str:
    """Why a store cannot be opened, which no further attempt would mend."""
    store = open_ledger_store(url)
    with pytest.raises(SinkError) as caught:
        store.open()
    assert not isinstance(caught.value, StoreUnavailableError), caught.value
    assert PASSWORD not in str(caught.value) + repr(caught.value) + repr(vars(store)["_name"])
    return str(caught.value)


def test_what_only_a_person_can_mend_is_final(
    server: PostgresServer, certificates: Certificates, tmp_path: Path
) -> None:
    ca, stranger = certificates.ca, certificates.stranger
    assert "signed by nobody in sslrootcert" in told(dsn(server, ca=stranger.ca))
    assert "lets this user in not at all" in told(dsn(server, sslmode="disable"))
    assert "check sslrootcert" in told(dsn(server, ca=tmp_path / "absent.pem"))
    asked = dsn(server, "bss_queries", ca=ca)
    assert "wants another client's certificate" in told(asked)
    unknown = dsn(server, "bss_queries", ca=ca, shows=stranger.issue("bss_queries"))
    assert "wants another client's certificate" in told(unknown)
    other = dsn(server, "bss_queries", ca=ca, shows=certificates.client("somebody"))
    assert "wants another client's certificate" in told(other)


def test_a_server_without_tls_is_sent_no_password(
    postgres: str, certificates: Certificates
) -> None:
    assert "switch it on there" in told(
        f"{postgres}?sslmode=verify-full&sslrootcert={certificates.ca}"
    )


@pytest.mark.parametrize(
    ("shown", "advice"),
    [
        ("elsewhere", "connect to a name that stands in the server's certificate"),
        ("expired", "the server's certificate has expired"),
    ],
)
def test_a_server_that_cannot_prove_itself_is_given_up_at_once(
    server: PostgresServer, certificates: Certificates, shown: str, advice: str
) -> None:
    server.show(getattr(certificates, shown))
    try:
        assert advice in told(dsn(server, ca=certificates.ca))
    finally:
        server.show(certificates.server)


def test_a_server_that_is_away_is_waited_for(certificates: Certificates) -> None:
    url = f"postgresql://u:{PASSWORD}@127.0.0.1:9/ledger?sslmode=verify-full"
    store = open_ledger_store(f"{url}&sslrootcert={certificates.ca}")
    with pytest.raises(StoreUnavailableError, match="refused"):
        store.open()
