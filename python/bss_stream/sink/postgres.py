"""The ledger database in PostgreSQL: COPY into a staging table, then one INSERT."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, Final

import psycopg
from psycopg import conninfo, errors

from bss_stream.clock import epoch_ms
from bss_stream.errors import ConfigError, SinkError
from bss_stream.log.protocol import Offsets, TopicPartition
from bss_stream.sink.entry import Batch, EntryRow, Reject, conflict
from bss_stream.sink.store import (
    ENTRY_COLUMNS,
    Snapshot,
    StoreUnavailableError,
    Written,
    schema_too_new,
)

Connection = psycopg.Connection[tuple[Any, ...]]

# Ids sort by bytes whatever the database's locale: the audit merges them with the states.
MIGRATIONS: Final = (
    (
        """CREATE TABLE ledger_entries (
             entry_id text COLLATE "C" NOT NULL PRIMARY KEY,
             ledger text COLLATE "C" NOT NULL CHECK (ledger IN ('payment', 'service')),
             plan_id text COLLATE "C" NOT NULL,
             seq bigint NOT NULL,
             kind text COLLATE "C" NOT NULL,
             service_id text COLLATE "C",
             signal_id text COLLATE "C",
             source text COLLATE "C" NOT NULL,
             event_at_ms bigint NOT NULL,
             recorded_at_ms bigint NOT NULL,
             units bigint NOT NULL,
             amount_minor bigint NOT NULL,
             currency text COLLATE "C" NOT NULL,
             entry text COLLATE "C" NOT NULL,
             UNIQUE (plan_id, seq)
           )""",
        "CREATE INDEX ledger_entries_kind_time ON ledger_entries (kind, event_at_ms)",
        "CREATE INDEX ledger_entries_signal ON ledger_entries (signal_id)",
        """CREATE TABLE sink_offsets (
             topic text COLLATE "C" NOT NULL,
             partition integer NOT NULL,
             next_offset bigint NOT NULL,
             PRIMARY KEY (topic, partition)
           )""",
        """CREATE TABLE sink_rejects (
             topic text COLLATE "C" NOT NULL,
             partition integer NOT NULL,
             "offset" bigint NOT NULL,
             reason text COLLATE "C" NOT NULL,
             error text NOT NULL,
             record_key bytea NOT NULL,
             raw bytea,
             PRIMARY KEY (topic, partition, "offset")
           )""",
    ),
    (
        "ALTER TABLE sink_offsets ADD COLUMN recorded_at_ms bigint",
        """UPDATE sink_offsets
             SET recorded_at_ms = (SELECT max(recorded_at_ms) FROM ledger_entries)
             WHERE topic LIKE 'bss.ledger.%'""",
        "CREATE INDEX ledger_entries_service ON ledger_entries (plan_id, service_id, seq)",
        """CREATE INDEX ledger_entries_payment ON ledger_entries (plan_id, seq)
             WHERE ledger = 'payment'""",
        """CREATE TABLE station_states (
             location_id text COLLATE "C" NOT NULL PRIMARY KEY,
             "offset" bigint NOT NULL,
             state bytea
           )""",
    ),
)
"""The statements that lead to each schema version, from 1 on. A released one never changes."""

_CREATE_STAGING: Final = """
    CREATE TEMPORARY TABLE IF NOT EXISTS ledger_staging
      (LIKE ledger_entries, position integer NOT NULL) ON COMMIT DELETE ROWS"""
_COPY_STAGING: Final = f"COPY ledger_staging ({ENTRY_COLUMNS}, position) FROM STDIN"
_INSERT_STAGED: Final = f"""
    INSERT INTO ledger_entries ({ENTRY_COLUMNS})
    SELECT {ENTRY_COLUMNS} FROM ledger_staging ORDER BY position ON CONFLICT DO NOTHING"""
_SELECT_CONFLICTS: Final = """
    SELECT staged.position, same_id.entry, same_seq.entry_id
    FROM ledger_staging AS staged
    LEFT JOIN ledger_entries AS same_id ON same_id.entry_id = staged.entry_id
    LEFT JOIN ledger_entries AS same_seq
      ON same_seq.plan_id = staged.plan_id AND same_seq.seq = staged.seq
    WHERE same_id.entry IS DISTINCT FROM staged.entry
    ORDER BY staged.position"""
_INSERT_REJECT: Final = (
    f"INSERT INTO sink_rejects VALUES ({', '.join(['%s'] * len(Reject._fields))}) "
    "ON CONFLICT DO NOTHING"
)
# Greatest, because a member that lost the partition may still write a batch that it had in hand.
_UPSERT_OFFSET: Final = """
    INSERT INTO sink_offsets AS held VALUES (%s, %s, %s, %s)
    ON CONFLICT (topic, partition) DO UPDATE SET
      next_offset = greatest(held.next_offset, excluded.next_offset),
      recorded_at_ms = greatest(held.recorded_at_ms, excluded.recorded_at_ms)"""
_UPSERT_STATION: Final = """
    INSERT INTO station_states AS held VALUES (%s, %s, %s)
    ON CONFLICT (location_id)
    DO UPDATE SET "offset" = excluded."offset", state = excluded.state
    WHERE held."offset" < excluded."offset"
"""

_DEFAULTS: Final = {
    "connect_timeout": "10",
    # A server that vanished without a word is noticed within about half a minute.
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}

_MIGRATION_LOCK: Final = 0x6273_735F_6C64_6772
"""The advisory lock that lets one sink migrate at a time ("bss_ldgr")."""

# Classes of SQLSTATE that waiting may mend: connection lost, transaction rolled back (deadlock),
# out of resources, object in use, operator intervention; and a standby that is not yet promoted.
_TRANSIENT_CLASSES: Final = ("08", "40", "53", "55", "57")
_TRANSIENT_STATES: Final = (errors.ReadOnlySqlTransaction.sqlstate,)

_SNAPSHOT_ROWS: Final = 2000
"""How many entries a snapshot fetches at once."""

_WRONG_USER: Final = "check the user and the password in the dsn"
_WRONG_FILE: Final = "check sslrootcert, sslcert and sslkey in the dsn"
_NOT_ACCEPTED: Final = (
    "the server wants another client's certificate, or one at all: check sslcert and sslkey in the "
    "dsn"
)
_REFUSALS: Final = {
    "password authentication failed": _WRONG_USER,
    "no password supplied": _WRONG_USER,
    "no pg_hba.conf entry": "the server lets this user in not at all, or with sslmode=verify-full "
    "in the dsn only",
    "certificate verify failed": "the server's certificate has expired, or is signed by nobody in "
    "sslrootcert",
    "does not match host name": "connect to a name that stands in the server's certificate",
    "root certificate file": _WRONG_FILE,
    "certificate file": _WRONG_FILE,
    "private key file": _WRONG_FILE,
    "server does not support SSL": "switch it on there, or trust the network with sslmode=disable",
    "requires a valid client certificate": _NOT_ACCEPTED,
    "certificate authentication failed": _NOT_ACCEPTED,
    "alert unknown ca": _NOT_ACCEPTED,
    "alert certificate": _NOT_ACCEPTED,
    "alert bad certificate": _NOT_ACCEPTED,
}
"""What to do where no further attempt to connect can do better, by a part of what is said.

libpq keeps the server's SQLSTATE to itself while it connects. What a server says in another
language is not known here: then it is tried again, and logged each time.
"""


def _refusal(error: psycopg.Error) -> str | None:
    if error.sqlstate is not None:
        return None
    text = str(error)
    return next((advice for part, advice in _REFUSALS.items() if part in text), None)


def _is_transient(error: psycopg.Error) -> bool:
    if error.sqlstate is None:
        return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    return error.sqlstate[:2] in _TRANSIENT_CLASSES or error.sqlstate in _TRANSIENT_STATES


class PostgresLedgerStore:
    """A LedgerStore in the database that `url` names. Raises ConfigError for a malformed url.

    The connection's role needs CREATE on its schema until the first `open` has migrated it.
    """

    def __init__(self, url: str) -> None:
        self._conninfo, self._name = connection_settings(url, "bss-stream-sink")
        self._connection: Connection | None = None

    def open(self) -> None:
        with self._faults():
            self._open()

    def offsets(self) -> dict[TopicPartition, int]:
        with self._faults():
            rows = self._open().execute("SELECT topic, partition, next_offset FROM sink_offsets")
            return {TopicPartition(topic, partition): offset for topic, partition, offset in rows}

    def write(self, batch: Batch, offsets: Offsets) -> Written:
        with self._faults():
            connection = self._open()
            with connection.transaction(), connection.cursor() as cursor:
                inserted = _insert(cursor, batch)
                conflicts: list[Reject] = []
                if inserted < len(batch.entries):
                    conflicts = _conflicts(cursor, batch)
                rejects = batch.rejects + conflicts
                if rejects:
                    cursor.executemany(_INSERT_REJECT, rejects)
                # In one order in every sink, or two could wait for each other.
                if batch.stations:
                    cursor.executemany(_UPSERT_STATION, sorted(batch.stations))
                if offsets:
                    newest_ms = batch.newest_ms()
                    rows = [(*place, offsets[place], newest_ms.get(place)) for place in offsets]
                    cursor.executemany(_UPSERT_OFFSET, sorted(rows))
        duplicates = len(batch.entries) - inserted - len(conflicts)
        return Written(inserted, duplicates, Counter(reject.reason.value for reject in rejects))

    @contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        with self._faults():
            self._open()
            with psycopg.connect(self._conninfo) as connection:
                connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
                connection.read_only = True
                yield _PostgresSnapshot(connection)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _open(self) -> Connection:
        if self._connection is None:
            connection = psycopg.connect(self._conninfo, autocommit=True)
            try:
                _migrate(connection)
                connection.execute(_CREATE_STAGING)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _faults(self) -> AbstractContextManager[None]:
        return faults(self._name, self.close)


@contextmanager
def faults(name: str, close: Callable[[], None]) -> Iterator[None]:
    """Turn psycopg's errors into the sink's; `close` has the next call connect anew."""
    try:
        yield
    except psycopg.Error as error:
        close()
        # The text may come from the server, but never holds the password.
        message = f"ledger database {name}: {str(error).strip()}"
        refusal = _refusal(error)
        if refusal is not None:
            raise SinkError(f"{message}; {refusal}") from error
        if _is_transient(error):
            raise StoreUnavailableError(message) from error
        raise SinkError(message) from error


def connection_settings(url: str, application: str) -> tuple[str, str]:
    """What libpq connects with, and what messages call the database. Raises ConfigError."""
    given = _parsed(url)
    defaults = {"application_name": application, **_DEFAULTS}
    missing = {name: value for name, value in defaults.items() if name not in given}
    name = f"{given.get('dbname')} on {given.get('host')}:{given.get('port')}"
    return conninfo.make_conninfo(url, **missing), name


def _parsed(url: str) -> dict[str, str | int | None]:
    given: dict[str, str | int | None] = {"port": "none"}
    with suppress(psycopg.ProgrammingError):
        given = conninfo.conninfo_to_dict(url)
    # libpq looks at the port only when it connects, and then quotes what may be a piece of the
    # password; so does its message about the url, which is not passed on either.
    if not all(port.isdecimal() for port in str(given.get("port") or "0").split(",") if port):
        raise ConfigError(
            [
                "ledger database: the url cannot be read: expected "
                "postgresql://USER:PASSWORD@HOST:PORT/DATABASE, special characters of the "
                "password percent-encoded"
            ]
        )
    return given


class _PostgresSnapshot:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def entries(self) -> Iterator[EntryRow]:
        with self._connection.cursor(name="ledger_entries") as cursor:
            cursor.itersize = _SNAPSHOT_ROWS
            cursor.execute(f"SELECT {ENTRY_COLUMNS} FROM ledger_entries ORDER BY plan_id, seq")
            yield from map(EntryRow._make, cursor)

    def rejects(self) -> dict[str, int]:
        rows = self._connection.execute(
            "SELECT reason, count(*) FROM sink_rejects GROUP BY reason ORDER BY reason"
        )
        return dict(rows.fetchall())


def _migrate(connection: Connection) -> None:
    if schema_version(connection) == len(MIGRATIONS):
        return
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_MIGRATION_LOCK,))
        connection.execute(
            "CREATE TABLE IF NOT EXISTS sink_migrations "
            "(version integer PRIMARY KEY, applied_at_ms bigint NOT NULL)"
        )
        version = schema_version(connection)
        for number, statements in enumerate(MIGRATIONS[version:], version + 1):
            for statement in statements:
                connection.execute(statement)
            applied_at_ms = epoch_ms()
            connection.execute(
                "INSERT INTO sink_migrations VALUES (%s, %s)", (number, applied_at_ms)
            )


def schema_version(connection: Connection) -> int:
    """The schema's version, 0 before the first one. Raises SinkError for a later one."""
    exists = connection.execute("SELECT to_regclass('sink_migrations') IS NOT NULL").fetchone()
    if exists is None or not exists[0]:
        return 0
    row = connection.execute("SELECT coalesce(max(version), 0) FROM sink_migrations").fetchone()
    version = int(row[0]) if row else 0
    if version > len(MIGRATIONS):
        raise schema_too_new(version, len(MIGRATIONS))
    return version


def _insert(cursor: psycopg.Cursor[tuple[Any, ...]], batch: Batch) -> int:
    if not batch.entries:
        return 0
    with cursor.copy(_COPY_STAGING) as copy:
        for position, row in enumerate(batch.entries):
            copy.write_row((*row, position))
    cursor.execute(_INSERT_STAGED)
    return cursor.rowcount


def _conflicts(cursor: psycopg.Cursor[tuple[Any, ...]], batch: Batch) -> list[Reject]:
    cursor.execute(_SELECT_CONFLICTS)
    found = (conflict(batch, *row) for row in cursor.fetchall())
    return [reject for reject in found if reject is not None]
