"""A ledger database in a temporary directory, open to tampering, and its audit."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from bss_stream.audit import AuditReport, audit
from bss_stream.sink.entry import EntryRow
from bss_stream.sink.sqlite import SqliteLedgerStore
from tests.ledger_chain import PlanLedger, batch_of


class Ledgers:
    """A ledger database with a plan in it, open to tampering."""

    def __init__(self, path: Path, *plans: PlanLedger) -> None:
        self.path = path / "ledgers.db"
        self.store = SqliteLedgerStore(self.path)
        self.store.open()
        self.write(*(row for plan in plans for row in plan.rows()))

    def write(self, *rows: EntryRow) -> None:
        written = self.store.write(batch_of(rows), {})
        assert written.inserted == len(rows)

    def execute(self, sql: str, *parameters: object) -> None:
        with closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            assert connection.execute(sql, parameters).rowcount > 0

    def audit(self, *states: dict[str, Any], drained: bool = True) -> AuditReport:
        return audit(self.store, [(state["plan_id"], state) for state in states], drained=drained)
