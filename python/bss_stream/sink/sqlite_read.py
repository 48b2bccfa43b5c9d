"""The read model in the sink's SQLite file, opened read-only."""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bss_stream.sink.read_model import ReadView, Rows, check_schema
from bss_stream.sink.sqlite import MIGRATIONS, faults, transaction
from bss_stream.sink.store import StoreUnavailableError


class SqliteReadModel:
    """A ReadModel in the file at `path`, which the sink makes.

    The user needs the right to write to the file's directory: SQLite shares memory with the
    writer in a file beside it.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._connection: sqlite3.Connection | None = None

    @contextmanager
    def view(self) -> Iterator[ReadView]:
        with faults(str(self._path)):
            connection = self._open()

            def query(sql: str, parameters: Sequence[object]) -> Rows:
                return connection.execute(sql, parameters).fetchall()

            try:
                with transaction(connection, "DEFERRED"):
                    yield ReadView(query)
            except sqlite3.Error:
                self.close()
                raise

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            connection = self._connect()
            try:
                check_schema(str(self._path), _schema_version(connection), len(MIGRATIONS))
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _connect(self) -> sqlite3.Connection:
        uri = f"{self._path.absolute().as_uri()}?mode=ro"
        try:
            # One thread makes all calls, but another may close what it left open.
            return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_CANTOPEN:
                message = f"ledger database {self._path}: {error}: waiting for the sink to make it"
                raise StoreUnavailableError(message) from error
            raise


def _schema_version(connection: sqlite3.Connection) -> int:
    exists = connection.execute(
        "SELECT 1 FROM sqlite_schema WHERE name = 'sink_migrations'"
    ).fetchone()
    if exists is None:
        return 0
    (version,) = connection.execute(
        "SELECT coalesce(max(version), 0) FROM sink_migrations"
    ).fetchone()
    return int(version)
