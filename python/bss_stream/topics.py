"""The names of the log's topics: every one has the same number of partitions."""

from typing import Final

SIGNALS_PLAN: Final = "bss.signals.plan"
SIGNALS_STATION: Final = "bss.signals.station"
SIGNALS_ASSET: Final = "bss.signals.asset"
STATE_PLAN: Final = "bss.state.plan"
STATE_STATION: Final = "bss.state.station"
STATE_ASSET: Final = "bss.state.asset"
LEDGER_PAYMENT: Final = "bss.ledger.payment"
LEDGER_SERVICE: Final = "bss.ledger.service"
OUTBOX: Final = "bss.outbox"
DEAD_LETTER: Final = "bss.dead-letter"
ODOO_REFUSED: Final = "bss.odoo.refused"
"""The Odoo adapter's own dead letters."""

SIGNALS: Final = (SIGNALS_PLAN, SIGNALS_STATION, SIGNALS_ASSET)
"""What the processor consumes. Partition i of all three is shard i."""

STATES: Final = (STATE_PLAN, STATE_STATION, STATE_ASSET)
"""Compacted changelogs, in the order of SIGNALS."""

LEDGERS: Final = (LEDGER_PAYMENT, LEDGER_SERVICE)
"""Append-only, never compacted."""

ENGINE: Final = (*SIGNALS, *STATES, *LEDGERS, OUTBOX, DEAD_LETTER)
"""What the engine's records are of."""

ALL: Final = (*ENGINE, ODOO_REFUSED)
