"""The read model in the sink's PostgreSQL database, or in a replica of it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psycopg

from bss_stream.sink.postgres import (
    MIGRATIONS,
    Connection,
    connection_settings,
    faults,
    schema_version,
)
from bss_stream.sink.read_model import ReadView, Rows, check_schema


class PostgresReadModel:
    """A ReadModel in the database that `url` names. Raises ConfigError for a malformed url.

    The connection's role needs SELECT on the sink's tables, and nothing more.
    """

    def __init__(self, url: str) -> None:
        self._conninfo, self._name = connection_settings(url, "bss-stream-queries")
        self._connection: Connection | None = None

    @contextmanager
    def view(self) -> Iterator[ReadView]:
        with faults(self._name, self.close):
            connection = self._open()

            def query(sql: str, parameters: Sequence[object]) -> Rows:
                # None of the statements has a ? or a % of its own.
                return connection.execute(sql.replace("?", "%s").encode(), parameters).fetchall()

            with connection.transaction():
                yield ReadView(query)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _open(self) -> Connection:
        if self._connection is None:
            connection = psycopg.connect(self._conninfo, autocommit=True)
            try:
                connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
                connection.read_only = True
                check_schema(self._name, schema_version(connection), len(MIGRATIONS))
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection
