"""Today's code reads what every version has written, writes it as the newest one did, and refuses
what a later one writes."""

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from bss_stream import _engine, topics
from bss_stream.audit import audit
from bss_stream.errors import LogError, NewerVersionError, SinkError
from bss_stream.frames import decode_dead_letter, decode_outbox, decode_signal
from bss_stream.ledger_kinds import RULES
from bss_stream.log.protocol import Fetched
from bss_stream.log.sqlite_file import FILE
from bss_stream.sink.entry import decode_fetched, decode_row
from bss_stream.sink.sqlite import MIGRATIONS, SqliteLedgerStore
from bss_stream.testing import Playground, Produced
from tests.golden import files
from tests.golden.records import (
    TEXT,
    Golden,
    Version,
    goldens,
    market_setup,
    meaning,
    play,
    read,
    versions,
)

WHAT_TO_DO = "tests/golden/README.md says what to do"


@pytest.fixture(scope="module", params=versions(), ids=lambda folder: folder.name)
def version(request: pytest.FixtureRequest) -> Version:
    return read(request.param)


@pytest.fixture(scope="module")
def newest() -> Version:
    return read(versions()[-1])


def of_first_story(version: Version) -> list[Golden]:
    return [golden for golden in version.records if golden.story == version.stories[0].name]


def last_states(records: list[Golden]) -> dict[tuple[str, bytes], Golden]:
    return {(g.topic, g.key.encode(TEXT)): g for g in records if g.topic in topics.STATES}


# What every version has written.


def test_records_mean_what_they_meant(version: Version) -> None:
    playground = Playground(market_setup(version.folder))
    for golden in version.records:
        found = meaning(playground, golden.produced)
        # Today's code may tell more of a record.
        told = {name: found.get(name) for name in golden.meaning}
        assert told == golden.meaning, (golden.topic, golden.key)


def test_a_processor_goes_on_from_its_states(version: Version) -> None:
    """Restored in the middle of each story, it comes to the same end as one that was there."""
    setup = market_setup(version.folder)
    for story in version.stories:
        told = play(story, setup)
        resumed = Playground(setup)
        resumed.states = {
            place: golden.produced.value
            for place, golden in last_states(
                [g for g in version.records if g.story == story.name]
            ).items()
        }
        # What it writes comes behind what the log has.
        resumed._offsets.update(told._offsets)
        resumed.restart()
        for place in resumed.states:
            assert resumed.state(place[0], place[1].decode()) == told.state(
                place[0], place[1].decode()
            )
        # Whoever reads it as another layout would not fire the same timers.
        told.now_ms = resumed.now_ms = max(told.now_ms, story.steps[-1].now_ms)
        told.produced.clear()
        told.advance(40 * 86_400_000)
        resumed.advance(40 * 86_400_000)
        assert resumed.produced == told.produced, story.name


def test_a_log_file_is_read_and_written_on(version: Version, tmp_path: Path) -> None:
    shutil.copy(version.folder / files.LOG, tmp_path / FILE)
    found = files.read_log(tmp_path)
    key = lambda record: (record.topic, record.partition)  # noqa: E731
    assert sorted(found, key=key) == sorted((g.produced for g in of_first_story(version)), key=key)
    files.write_log(tmp_path, [Produced(topics.OUTBOX, 0, b"key", b"value")])
    assert len(files.read_log(tmp_path)) == len(found) + 1


def test_a_ledger_database_is_read_and_audited(version: Version, tmp_path: Path) -> None:
    shutil.copy(version.folder / files.LEDGERS, tmp_path / files.LEDGERS)
    store = SqliteLedgerStore(tmp_path / files.LEDGERS)
    records = of_first_story(version)
    with store.snapshot() as snapshot:
        found = {row.entry.encode() for row in snapshot.entries()}
    assert found == {g.produced.value for g in records if g.topic in topics.LEDGERS}
    states = [
        (key.decode(), golden.meaning)
        for (topic, key), golden in last_states(records).items()
        if topic == topics.STATE_PLAN
    ]
    report = audit(store, states, drained=True)
    assert report.ok and report.entries and report.states, report.differences
    store.close()


# What today's code writes.


def test_bytes_are_as_the_newest_version_wrote_them(newest: Version) -> None:
    setup = market_setup(newest.folder)
    made = [golden for story in newest.stories for golden in goldens(story, setup)]
    for was, now in zip(newest.records, made, strict=True):
        assert now.produced == was.produced, f"{now.story}: {WHAT_TO_DO}"


def test_schemas_are_as_the_newest_version_made_them(newest: Version, tmp_path: Path) -> None:
    files.write_log(tmp_path, [newest.records[0].produced])
    assert files.schema(tmp_path / FILE) == files.schema(newest.folder / files.LOG), WHAT_TO_DO
    files.write_ledgers(tmp_path / files.LEDGERS, [g.produced for g in of_first_story(newest)])
    is_same = files.schema(tmp_path / files.LEDGERS) == files.schema(newest.folder / files.LEDGERS)
    assert is_same, WHAT_TO_DO


def test_there_is_something_of_everything(newest: Version) -> None:
    for topic in (topics.SIGNALS_STATION, topics.OUTBOX, topics.STATE_PLAN):
        produced = [golden.produced.value for golden in newest.records if golden.topic == topic]
        # With a trace and without one.
        assert len({value[:1] for value in produced}) == 2, topic
    assert {golden.topic for golden in newest.records} == set(topics.ENGINE)
    kinds = {g.meaning["kind"] for g in newest.records if g.topic in topics.LEDGERS}
    # Two of them need templates that the market does not have.
    assert kinds >= RULES.keys() - {"quota_shortfall", "overage_charge"}


# What a later version writes.


def first(version: Version, topic: str) -> Produced:
    return next(golden.produced for golden in version.records if golden.topic == topic)


@pytest.mark.parametrize("topic", topics.STATES)
def test_a_newer_state_is_refused(newest: Version, topic: str) -> None:
    engine = _engine.Engine(market_setup(newest.folder), partitions=1)
    engine.open_shard(0)
    state = first(newest, topic)
    newer = bytes([9]) + state.value[1:] + b"more"
    with pytest.raises(ValueError, match=r"state version 9 is unknown.*upgrade"):
        engine.restore(0, topic, _engine.pack([(state.key, newer)]))


def test_a_newer_signal_stops_the_processor_and_is_no_dead_letter(newest: Version) -> None:
    engine = _engine.Engine(market_setup(newest.folder), partitions=1)
    engine.open_shard(0)
    signal = first(newest, topics.SIGNALS_PLAN)
    records = [(signal.key, signal.value), (signal.key, b"3" + signal.value[1:])]
    with pytest.raises(
        ValueError, match=r"bss\.signals\.plan/0/8 has a frame of version 3.*upgrade"
    ):
        engine.process([(topics.SIGNALS_PLAN, 0, [7, 8], _engine.pack(records))], 0)
    # Nothing of the batch was applied.
    assert engine.entities(0) == [0, 0, 0]


@pytest.mark.parametrize(
    ("topic", "decode"),
    [
        (topics.SIGNALS_PLAN, decode_signal),
        (topics.OUTBOX, decode_outbox),
        (topics.DEAD_LETTER, decode_dead_letter),
    ],
)
def test_a_newer_frame_is_refused(
    newest: Version, topic: str, decode: Callable[[bytes], object]
) -> None:
    with pytest.raises(NewerVersionError, match=r"frame of version 3.*upgrade"):
        decode(b"3" + first(newest, topic).value[1:])


def test_a_newer_ledger_entry_stops_the_sink_and_is_no_reject(newest: Version) -> None:
    entry = first(newest, topics.LEDGER_SERVICE)
    for newer in (entry.value.replace(b'{"v":1,', b'{"v":2,'), b'{"v":2,"other":"fields"}'):
        with pytest.raises(NewerVersionError, match=r"ledger entry of version 2.*upgrade"):
            decode_row("service", newer)
        data = _engine.pack([(entry.key, newer)])
        with pytest.raises(NewerVersionError):
            decode_fetched([Fetched(topics.LEDGER_SERVICE, 0, [0], data, 1)])


def test_newer_files_are_refused(newest: Version, tmp_path: Path) -> None:

    shutil.copy(newest.folder / files.LOG, tmp_path / FILE)
    with closing(sqlite3.connect(tmp_path / FILE)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(LogError, match=r"layout 99.*upgrade"):
        files.read_log(tmp_path)
    shutil.copy(newest.folder / files.LEDGERS, tmp_path / files.LEDGERS)
    with closing(sqlite3.connect(tmp_path / files.LEDGERS)) as connection:
        connection.execute("INSERT INTO sink_migrations VALUES (?, 0)", (len(MIGRATIONS) + 1,))
        connection.commit()
    with pytest.raises(SinkError, match=r"schema version .*upgrade"):
        SqliteLedgerStore(tmp_path / files.LEDGERS).open()
