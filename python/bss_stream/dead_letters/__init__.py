"""Dead letters as work: read from the log, told apart, and replayed where that is right."""

from bss_stream.dead_letters.desk import Order, ReplayDesk, ask
from bss_stream.dead_letters.letters import REPLAYED, Filter, Letter, letters
from bss_stream.dead_letters.replay import (
    NOW,
    Judgement,
    Listing,
    Rules,
    Standing,
    Verdict,
    judged,
    newest,
    replay,
)

__all__ = [
    "NOW",
    "REPLAYED",
    "Filter",
    "Judgement",
    "Letter",
    "Listing",
    "Order",
    "ReplayDesk",
    "Rules",
    "Standing",
    "Verdict",
    "ask",
    "judged",
    "letters",
    "newest",
    "replay",
]
