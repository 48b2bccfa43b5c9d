"""What must hold of a log once processors, whatever befell them, have done all there was to do."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from bench.traffic import Arrival
from bss_stream import _engine, topics
from bss_stream.audit import audit, balance_log
from bss_stream.audit_states import collect_states
from bss_stream.log.protocol import Log
from bss_stream.sink.loop import LedgerSink, SinkSettings
from bss_stream.sink.store import open_ledger_store
from tests.effects import check_at_rest, twice
from tests.integration.processing import SETUP, running
from tests.logs import IN_VAIN_S, PARTITIONS
from tests.undisturbed import check_contents, is_internal, read_log, undisturbed

HOUR_MS = 3_600_000


async def finish_and_check(log: Log, arrivals: Sequence[Arrival], folder: Path) -> None:
    """Have a processor finish `arrivals` and the timers of an hour after them, and check it all.

    The city of this traffic repeats requests after hours, when they are judged anew, and sends what
    nobody can answer: that every echo is as it should be, the undisturbed engine says.
    """
    end_ms = max(arrival.received_ms for arrival in arrivals) + HOUR_MS
    async with running(log, lambda: end_ms, drain=True) as last, asyncio.timeout(IN_VAIN_S):
        while not await _is_at_rest(log):
            assert not last.task.done(), last.task
            await asyncio.sleep(0.2)
    contents = await read_log(log)
    values = [record.value for topic in topics.SIGNALS for record in contents[topic]]
    assert sum(not is_internal(value) for value in values) == len(arrivals)
    expected = undisturbed(contents, SETUP, partitions=PARTITIONS, now_ms=end_ms)
    check_contents(contents, expected)
    assert twice(contents) == []
    check_at_rest(contents, SETUP, partitions=PARTITIONS)
    await check_audit(log, folder)


async def _is_at_rest(log: Log) -> bool:
    contents = await read_log(log)
    try:
        check_at_rest(contents, SETUP, partitions=PARTITIONS)
    except AssertionError:
        return False
    return True


async def check_audit(log: Log, folder: Path) -> None:
    """Copy the ledgers to a database and audit them against the states, with nothing under way."""
    store = open_ledger_store(f"sqlite:{folder / 'ledgers.db'}")
    sink = LedgerSink(log, store, SinkSettings(drain_timeout_s=IN_VAIN_S))
    sink.stop()
    await sink.run()
    engine = _engine.Engine(SETUP, partitions=PARTITIONS)
    store.open()
    try:
        with await collect_states(log, engine.describe_state) as states:
            report = await asyncio.to_thread(audit, store, states, drained=True)
    finally:
        store.close()
    report.log = await balance_log(log, drained=True, at_rest=True)
    assert report.ok, (report, report.log.faults)
    assert report.entries > 0
