"""The console's search of a ledger database, on both servers, against going through all entries."""

import itertools
from collections.abc import Iterator

import pytest

from bss_stream.ledger_kinds import RULES
from bss_stream.sink.entry import EntryRow
from bss_stream.sink.read_model import Place, ReadView, Search
from bss_stream.testing import Playground
from tests.read_model import Copied
from tests.rider_story import hand_over, paid_plan

KINDS = tuple(RULES)


@pytest.fixture
def copied(ledger_url: str) -> Iterator[Copied]:
    play = Playground()
    for number in (1, 2, 10):
        paid_plan(play, f"p-{number}")
    battery = None
    for number in range(6):
        hand_over(play, battery, f"bat-{number}", 1.5)
        battery = f"bat-{number}"
    with Copied(play, ledger_url) as copied:
        copied.take()
        yield copied


def is_meant(row: EntryRow, wanted: Search) -> bool:
    source = None
    if wanted.source is not None:
        source = "bss.signals.plan/{}/{}".format(*wanted.source)
    return (
        (not wanted.kinds or row.kind in wanted.kinds)
        and wanted.plan_id in (None, row.plan_id)
        and wanted.service_id in (None, row.service_id)
        and wanted.signal_id in (None, row.signal_id)
        and source in (None, row.source)
        and (wanted.since_ms is None or row.event_at_ms >= wanted.since_ms)
        and (wanted.until_ms is None or row.event_at_ms < wanted.until_ms)
    )


def pages(view: ReadView, wanted: Search, rows_max: int) -> list[EntryRow]:
    found: list[EntryRow] = []
    after = None
    while page := view.search(wanted, after, rows_max):
        assert len(page) <= rows_max
        found += page
        after = Place(page[-1].event_at_ms, page[-1].entry_id, page[-1].seq)
    return found


def test_every_search_finds_what_it_means_once_and_in_order(copied: Copied) -> None:
    with copied.model.view() as view:
        every = [row for number in (1, 2, 10) for row in view.plan(f"p-{number}")]
        swap = next(row for row in every if row.kind == "quota_used")
        _, partition, offset = swap.source.split("/")
        keys: list[dict[str, object]] = [
            {"plan_id": "p-1"},
            {"signal_id": swap.signal_id},
            {"source": (int(partition), int(offset))},
            {"kinds": KINDS},
            {"plan_id": "p-1", "signal_id": swap.signal_id},
            {"plan_id": "nobody"},
        ]
        filters: list[dict[str, object]] = [
            {},
            {"kinds": ("quota_used",)},
            {"service_id": swap.service_id},
            {"since_ms": swap.event_at_ms},
            {"until_ms": swap.event_at_ms},
            {"kinds": ("quota_granted", "deposit"), "until_ms": swap.event_at_ms + 1},
        ]
        for (key, more), rows_max in itertools.product(
            itertools.product(keys, filters), (1, 3, 100)
        ):
            wanted = Search(**{**key, **more})  # type: ignore[arg-type]
            found = pages(view, wanted, rows_max)
            assert set(found) == {row for row in every if is_meant(row, wanted)}, wanted
            assert len(found) == len(set(found))
            if wanted.plan_id is not None:
                assert [row.seq for row in found] == sorted((r.seq for r in found), reverse=True)
            else:
                order = [(row.event_at_ms, row.entry_id) for row in found]
                assert order == sorted(order, reverse=True)


def test_a_plan_is_read_whole_and_in_order(copied: Copied) -> None:
    with copied.model.view() as view:
        rows = view.plan("p-1")
    entries = [entry for entry in copied.play.entries() if entry["plan_id"] == "p-1"]
    assert [row.entry_id for row in rows] == [entry["entry_id"] for entry in entries]
    assert [row.seq for row in rows] == list(range(1, len(rows) + 1))
