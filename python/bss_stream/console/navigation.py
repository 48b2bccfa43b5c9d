"""The pages that the console's head leads to: a new page is a line here and a route."""

from typing import Final, NamedTuple


class Entry(NamedTuple):
    """One page of the navigation."""

    name: str
    path: str


ENTRIES: Final = (
    Entry("Live", "/"),
    Entry("Stations", "/stations"),
    Entry("Operator", "/operator"),
    Entry("Fleets", "/fleets"),
    Entry("Plans", "/plans"),
    Entry("Ledger", "/ledger"),
    Entry("Dead letters", "/dead-letters"),
)


def current(path: str) -> str:
    """The path of the entry that a page belongs to, empty for one that belongs to none."""
    for entry in ENTRIES:
        if path == entry.path or (entry.path != "/" and path.startswith(f"{entry.path}/")):
            return entry.path
    return ""
