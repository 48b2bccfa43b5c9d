"""What the adapter counts, in all that it does."""

from collections import Counter
from dataclasses import dataclass, field

from bss_stream.counters import RoleCounters, unbalanced


@dataclass(slots=True)
class OdooCounters(RoleCounters):
    """What an adapter has done since it was made."""

    records: int = 0
    """Records of the log that are settled; those that come again after a crash count again."""
    written: Counter[str] = field(default_factory=Counter)
    """Records that Odoo has taken, by kind."""
    refused: Counter[str] = field(default_factory=Counter)
    """Records that Odoo will never take as they are, by kind; the log lists them."""
    no_billing: int = 0
    """Entries that are none of Odoo's business, and states of plans that are gone."""
    unchanged: int = 0
    """States that say what Odoo has already, or that a later one in the batch has overtaken."""
    queries: int = 0
    """Payment status queries."""
    answers: Counter[str] = field(default_factory=Counter)
    """Of these, by outcome: `ok`, the reason of a refusal, or why no echo went out."""
    in_hand: int = 0
    """Of these, not answered yet."""
    echoes_refused: int = 0
    """Echoes that the broker did not take."""
    invoices: Counter[str] = field(default_factory=Counter)
    """Paid invoices by what the ledgers say: `applied`, `missed`, `replayed`, `ambiguous` or
    `unusable`. Each round looks at the whole window."""
    rounds: int = 0
    batches: int = 0
    unavailable: int = 0
    """Attempts that found Odoo away or busy."""
    rejoined: int = 0

    def balance(self) -> list[str]:
        """Read is written, refused or nothing to Odoo; asked is answered or in hand."""
        parts = {
            "written": self.written.total(),
            "refused": self.refused.total(),
            "no_billing": self.no_billing,
            "unchanged": self.unchanged,
        }
        answers = {"answers": self.answers.total(), "in_hand": self.in_hand}
        return [
            *unbalanced("records", self.records, parts),
            *unbalanced("queries", self.queries, answers),
        ]
