"""Both ledger databases keep the same promises: all or nothing, nothing twice, nothing changed."""

import resource
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib import import_module
from pathlib import Path

import pytest

from bss_stream import topics
from bss_stream.audit import audit
from bss_stream.errors import ConfigError, SinkError
from bss_stream.log.protocol import TopicPartition
from bss_stream.sink import LedgerStore, StoreUnavailableError, open_ledger_store
from bss_stream.sink.entry import Batch, EntryRow, Position, Reject, RejectReason, StationRow
from bss_stream.sink.sqlite import SqliteLedgerStore
from tests.integration.databases import execute, locked, query
from tests.ledger_chain import PlanLedger, batch_of

HERE = TopicPartition(topics.LEDGER_SERVICE, 3)
EMPTY = Batch([], [], [])


@pytest.fixture
def store(ledger_url: str) -> Iterator[LedgerStore]:
    opened = open_ledger_store(ledger_url)
    opened.open()
    yield opened
    opened.close()


def rows_of(plan_id: str, uses: int = 3) -> list[EntryRow]:
    plan = PlanLedger(plan_id)
    plan.grant("swap-count", uses)
    for _ in range(uses):
        plan.use("swap-count", 1)
    return plan.rows()


def stored(store: LedgerStore) -> list[EntryRow]:
    with store.snapshot() as snapshot:
        return list(snapshot.entries())


def test_a_batch_that_comes_again_changes_nothing(store: LedgerStore) -> None:
    rows = rows_of("plan-1")
    assert store.write(batch_of(rows), {HERE: 4}) == (4, 0, {})
    assert store.write(batch_of(rows), {HERE: 4}) == (0, 4, {})
    more = rows_of("plan-2")
    assert store.write(batch_of([rows[2], *more, more[0]]), {HERE: 9}) == (4, 2, {})
    assert stored(store) == [*rows, *more]
    assert store.offsets() == {HERE: 9}


def test_the_widest_values_come_back(store: LedgerStore) -> None:
    widest = rows_of("plan-1")[0]._replace(
        units=2**63 - 1,
        amount_minor=-(2**63),
        service_id=None,
        signal_id="",
        source="é\t\\N\n\\.",
        entry='{"detail":"\u2028 𝄞 \\u0000 \\\\"}',
    )
    store.write(batch_of([widest]), {})
    assert stored(store) == [widest]


def test_a_contradiction_within_a_batch_is_rejected(store: LedgerStore, ledger_url: str) -> None:
    first, second, *_ = rows_of("plan-1")
    rewritten = first._replace(entry=first.entry + " ")
    usurper = second._replace(entry_id="usurper")
    batch = batch_of([first, rewritten, second, usurper, first])
    assert store.write(batch, {HERE: 5}) == (2, 1, {"entry_id_conflict": 1, "seq_conflict": 1})
    assert stored(store) == [first, second]
    found = query(ledger_url, 'SELECT "offset", reason, raw FROM sink_rejects ORDER BY "offset"')
    assert found == [
        (1, "entry_id_conflict", rewritten.entry.encode()),
        (3, "seq_conflict", usurper.entry.encode()),
    ]
    with store.snapshot() as snapshot:
        assert snapshot.rejects() == {"entry_id_conflict": 1, "seq_conflict": 1}


def test_a_reject_is_kept_once(store: LedgerStore, ledger_url: str) -> None:
    position = Position(topics.LEDGER_PAYMENT, 0, 7)
    reject = Reject(*position, RejectReason.UNDECODABLE, "why", b"key", None)
    for _ in range(2):
        store.write(EMPTY._replace(rejects=[reject]), {HERE: 8})
    assert query(ledger_url, "SELECT * FROM sink_rejects") == [
        (topics.LEDGER_PAYMENT, 0, 7, "undecodable", "why", b"key", None)
    ]


def test_offsets_never_go_back(store: LedgerStore) -> None:
    store.write(EMPTY, {HERE: 9})
    store.write(EMPTY, {HERE: 4, HERE._replace(partition=1): 2})
    assert store.offsets() == {HERE: 9, HERE._replace(partition=1): 2}


def test_a_write_that_fails_leaves_nothing(store: LedgerStore, ledger_url: str) -> None:
    execute(ledger_url, "ALTER TABLE sink_offsets RENAME TO elsewhere")
    with pytest.raises(SinkError, match="sink_offsets"):
        store.write(batch_of(rows_of("plan-1")), {HERE: 4})
    assert stored(store) == []
    execute(ledger_url, "ALTER TABLE elsewhere RENAME TO sink_offsets")
    assert store.write(batch_of(rows_of("plan-1")), {HERE: 4}) == (4, 0, {})
    assert store.offsets() == {HERE: 4}


@contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """No file of this process grows past the largest one in `folder`: its writes are refused."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    largest = max(file.stat().st_size for file in folder.iterdir())
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_waited_for_and_leaves_nothing(tmp_path: Path) -> None:
    """As PostgreSQL's is: whoever frees space need not start the sink again."""
    with closing(SqliteLedgerStore(tmp_path / "ledgers.db")) as store:
        store.open()
        store.write(batch_of(rows_of("plan-1")), {HERE: 4})
        many = rows_of("plan-2", uses=2_000)
        with full_disk(tmp_path):
            for _ in range(2):
                with pytest.raises(StoreUnavailableError, match=r"ledgers\.db"):
                    store.write(batch_of(many), {HERE: 9})
        assert store.offsets() == {HERE: 4}
        assert store.write(batch_of(many), {HERE: 9}) == (len(many), 0, {})


def test_a_snapshot_does_not_move(store: LedgerStore) -> None:
    store.write(batch_of(rows_of("plan-1")), {})
    with store.snapshot() as snapshot:
        entries = snapshot.entries()
        assert next(entries) == rows_of("plan-1")[0]
        store.write(batch_of(rows_of("plan-2")), {})
        assert len(list(entries)) == 3
        assert len(list(snapshot.entries())) == 4
    assert len(stored(store)) == 8


def test_plans_come_in_the_order_of_their_bytes(store: LedgerStore) -> None:
    """Also in a database that sorts by language: the states are merged in this order."""
    names = ["p", "plan-a", "Plan-b", "plan_c", "plan-é", "plan-𝄞", "plan-\uffff", "plan.a"]
    plans = []
    for name in names:
        plans.append(PlanLedger(name))
        plans[-1].deposit(10)
    store.write(batch_of(row for plan in plans for row in plan.rows()), {})
    assert [row.plan_id for row in stored(store)] == sorted(names, key=str.encode)
    report = audit(store, [(plan.plan_id, plan.state()) for plan in plans], drained=True)
    assert report.ok
    assert (report.plans, report.states) == (8, 8)


def test_sinks_that_start_together_make_one_schema(ledger_url: str) -> None:
    stores = [open_ledger_store(ledger_url) for _ in range(4)]
    together = threading.Barrier(len(stores))
    failures: list[BaseException] = []

    def start(store: LedgerStore) -> None:
        together.wait()
        try:
            store.open()
        except SinkError as error:
            failures.append(error)

    threads = [threading.Thread(target=start, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for store in stores:
        store.close()
    assert failures == []
    assert query(ledger_url, "SELECT version FROM sink_migrations") == [(1,), (2,)]


def test_a_schema_from_a_later_program_is_refused(store: LedgerStore, ledger_url: str) -> None:
    execute(ledger_url, "INSERT INTO sink_migrations VALUES (3, 0)")
    with (
        closing(open_ledger_store(ledger_url)) as later,
        pytest.raises(SinkError, match="version 3"),
    ):
        later.open()


def test_a_database_of_the_first_schema_is_brought_on(ledger_url: str) -> None:
    server = "sqlite" if ledger_url.startswith("sqlite:") else "postgres"
    first, *_ = import_module(f"bss_stream.sink.{server}").MIGRATIONS
    rows, columns = rows_of("plan-1"), ", ".join(EntryRow._fields)
    for statement in (
        *first,
        "CREATE TABLE sink_migrations (version INTEGER PRIMARY KEY, applied_at_ms BIGINT NOT NULL)"
        if server == "postgres"
        else "CREATE TABLE sink_migrations (version INTEGER PRIMARY KEY, applied_at_ms INTEGER)",
        "INSERT INTO sink_migrations VALUES (1, 0)",
        f"INSERT INTO sink_offsets VALUES ('{HERE.topic}', {HERE.partition}, 4)",
        *(f"INSERT INTO ledger_entries ({columns}) VALUES {tuple(row)}" for row in rows),
    ):
        execute(ledger_url, statement)
    with closing(open_ledger_store(ledger_url)) as store:
        store.open()
        assert stored(store) == rows
        assert store.offsets() == {HERE: 4}
    newest = max(row.recorded_at_ms for row in rows)
    assert query(ledger_url, "SELECT recorded_at_ms FROM sink_offsets") == [(newest,)]


def test_the_newest_recorded_time_is_kept_with_each_offset(
    store: LedgerStore, ledger_url: str
) -> None:
    rows = rows_of("plan-1")
    there = TopicPartition(topics.STATE_STATION, 0)
    for offset, batch in enumerate((rows[2:3], rows[1:2], []), 1):
        positions = [Position(*HERE, offset)] * len(batch)
        store.write(Batch(batch, positions, []), {HERE: offset, there: offset})
    assert query(ledger_url, "SELECT recorded_at_ms FROM sink_offsets ORDER BY topic") == [
        (rows[2].recorded_at_ms,),
        (None,),
    ]


def test_a_station_s_state_never_goes_back(store: LedgerStore, ledger_url: str) -> None:
    def write(*stations: StationRow) -> list[tuple[object, ...]]:
        store.write(EMPTY._replace(stations=stations), {})
        return query(ledger_url, "SELECT * FROM station_states ORDER BY location_id")

    first = StationRow("station-b", 7, b"\x00\xff")
    assert write(first, StationRow("station-a", 9, b"a")) == [("station-a", 9, b"a"), first]
    assert write(first._replace(state=b"again"), first._replace(offset=6)) == [
        ("station-a", 9, b"a"),
        first,
    ]
    forgotten = first._replace(offset=8, state=None)
    assert write(forgotten)[1] == forgotten
    assert write(first)[1] == forgotten


def test_a_closed_store_opens_again(store: LedgerStore) -> None:
    store.write(batch_of(rows_of("plan-1")), {HERE: 4})
    store.close()
    store.close()
    assert store.offsets() == {HERE: 4}


def test_a_locked_file_is_unavailable_for_now(tmp_path: Path) -> None:
    path = tmp_path / "ledgers.db"
    with closing(SqliteLedgerStore(path, busy_timeout_s=0.0)) as store:
        store.open()
        with locked(path), pytest.raises(StoreUnavailableError, match=r"ledgers\.db"):
            store.write(batch_of(rows_of("plan-1")), {HERE: 4})
        assert store.write(batch_of(rows_of("plan-1")), {HERE: 4}).inserted == 4


def test_a_file_that_cannot_be_made_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(SinkError, match="nowhere") as raised:
        SqliteLedgerStore(tmp_path / "nowhere" / "ledgers.db").open()
    assert not isinstance(raised.value, StoreUnavailableError)


@pytest.mark.parametrize("url", ["", "ledgers.db", "sqlite:", "mysql://localhost/bss"])
def test_another_database_is_a_fault_of_the_configuration(url: str) -> None:
    with pytest.raises(ConfigError, match="sqlite:PATH"):
        open_ledger_store(url)


@pytest.mark.parametrize("rest", ["sink:sec/ret@127.0.0.1/bss", "sink:sec%zz@127.0.0.1/bss"])
def test_a_malformed_url_does_not_show_its_password(rest: str) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(ConfigError, match="percent-encoded") as raised:
        open_ledger_store(f"postgresql://{rest}")
    assert "sec" not in str(raised.value)
    assert raised.value.__context__ is None


def test_a_missing_driver_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "bss_stream.sink.postgres", raising=False)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"bss_stream\[postgres\]"):
        open_ledger_store("postgresql://127.0.0.1/bss")


@pytest.mark.postgres
def test_a_wrong_database_name_is_told(postgres: str) -> None:
    with pytest.raises(SinkError, match="test_nowhere"):
        open_ledger_store(postgres.rpartition("/")[0] + "/test_nowhere").open()
