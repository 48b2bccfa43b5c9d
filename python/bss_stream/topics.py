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

SIGNALS: Final = (SIGNALS_PLAN, SIGNALS_STATION, SIGNALS_ASSET)
"""What the processor consumes. Partition i of all three is shard i."""

STATES: Final = (STATE_PLAN, STATE_STATION, STATE_ASSET)
"""Compacted changelogs, in the order of SIGNALS."""

LEDGERS: Final = (LEDGER_PAYMENT, LEDGER_SERVICE)
"""Append-only, never compacted."""

ALL: Final = (*SIGNALS, *STATES, *LEDGERS, OUTBOX, DEAD_LETTER)
