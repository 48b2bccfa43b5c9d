"""Every id of the setup data, with the entity behind it: what cross references are looked up in."""

from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar

from bss_stream.setup.documents import (
    BundleFile,
    Document,
    Fleet,
    FleetFile,
    LocationFile,
    MarketFile,
    PlanFile,
    ServiceFile,
    Station,
    TermsFile,
    is_id,
)
from bss_stream.setup.market import Market, Source
from bss_stream.validation import Faults, show

E = TypeVar("E")

_SHOWN_MAX = 8
"""How many known ids a fault names."""


class Table(Generic[E]):
    """The entities of one type in one market.

    An id whose file has faults is known without its entity, and where an id itself cannot be read
    nothing is called unknown, so that a broken file draws no faults about references to it.
    """

    def __init__(self, noun: str) -> None:
        self.noun = noun
        self.by_id: dict[str, E | None] = {}
        self.has_unreadable_ids = False

    def find(self, key: str, faults: Faults, file: str, path: str) -> E | None:
        """The entity, or None if its file has faults or (after noting that) there is none."""
        if key not in self.by_id and not self.has_unreadable_ids:
            known = sorted(self.by_id)
            more = ", ..." if len(known) > _SHOWN_MAX else ""
            listed = (", ".join(known[:_SHOWN_MAX]) or "none") + more
            faults.add(file, path, f"{show(key)}: unknown {self.noun}, expected one of {listed}")
        return self.by_id.get(key)


class Index:
    """The tables of one market."""

    def __init__(self) -> None:
        self.markets: Table[MarketFile] = Table("market")
        self.services: Table[ServiceFile] = Table("service")
        self.fleets: Table[Fleet] = Table("fleet")
        self.stations: Table[Station] = Table("location")
        self.bundles: Table[BundleFile] = Table("bundle")
        self.terms: Table[TermsFile] = Table("terms")
        self.plans: Table[PlanFile] = Table("template")

    def of(self, kind: type[Document]) -> Table[Any]:
        """The table of the entities in files of one kind."""
        tables: dict[type[Document], Table[Any]] = {
            MarketFile: self.markets,
            ServiceFile: self.services,
            FleetFile: self.fleets,
            LocationFile: self.stations,
            BundleFile: self.bundles,
            TermsFile: self.terms,
            PlanFile: self.plans,
        }
        return tables[kind]


def build(markets: Sequence[Market], faults: Faults) -> list[Index]:
    """One index a market. Notes every id that stands twice, in whichever market."""
    first: dict[tuple[str, str], tuple[str, Source]] = {}
    indexes = []
    for market in markets:
        index = Index()
        for source in market.sources:
            if source.kind is None:
                continue
            table = index.of(source.kind)
            for path, key, entity in _entities(source):
                if not is_id(key):
                    table.has_unreadable_ids = True
                    continue
                table.by_id[key] = entity
                place, other = first.setdefault((table.noun, key), (path, source))
                if (place, other) != (path, source) and not _is_next_version(other, source):
                    message = f"{show(key)}: a {table.noun} of this id exists already at "
                    faults.add(source.file, path, f"{message}{other.file}: {place}")
        indexes.append(index)
    return indexes


def _is_next_version(earlier: Source, later: Source) -> bool:
    """Whether two files are versions of one template, which stand side by side.

    Running plans keep the version that they signed, so the engine needs all of them.
    """
    if not later.kind is earlier.kind is PlanFile:
        return False
    same = ("market", "entity_name")
    versions = [source.data.get("version", "v1") for source in (earlier, later)]
    return versions[0] != versions[1] and all(
        earlier.data.get(field) == later.data.get(field) for field in same
    )


def _entities(source: Source) -> Iterator[tuple[str, Any, Any]]:
    """(JSON path of the id, what stands there, entity or None) of what one file defines."""
    kind: type[Document] = source.kind
    if kind.ROWS is None:
        yield f"$.{kind.ID}", source.data.get(kind.ID), source.document
        return
    rows = source.data.get(kind.ROWS)
    built = None if source.document is None else getattr(source.document, kind.ROWS)
    for i, row in enumerate(rows if isinstance(rows, list) else [None]):
        key = row.get(kind.ID) if isinstance(row, dict) else None
        yield f"$.{kind.ROWS}[{i}].{kind.ID}", key, None if built is None else built[i]
