"""SQL on the ledger databases that does not go through the sink."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any


def query(url: str, sql: str) -> list[tuple[Any, ...]]:
    """A statement's rows."""
    if url.startswith("sqlite:"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:"))) as connection:
            return connection.execute(sql).fetchall()
    # Where PostgreSQL is missing, its driver may be too.
    import psycopg

    with psycopg.connect(url) as postgres:
        return postgres.execute(sql.encode()).fetchall()


def execute(url: str, sql: str) -> None:
    """Run a statement that has no rows, and commit."""
    if url.startswith("sqlite:"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:"))) as connection, connection:
            connection.execute(sql)
        return
    import psycopg

    with psycopg.connect(url) as postgres:
        postgres.execute(sql.encode())


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a SQLite file's write lock."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
