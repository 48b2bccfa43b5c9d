"""A market as loaded: its files, and the entities in them by id."""

from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

from bss_stream.setup.documents import Document, MarketFile

D = TypeVar("D", bound=Document)


class Source(msgspec.Struct, frozen=True):
    """One file: its document, or None when the file has faults (`data` is what stood there)."""

    file: str
    kind: Any
    data: dict[str, Any]
    document: Document | None


class Model(msgspec.Struct, frozen=True):
    """A model document, byte for byte: the engine is its reader."""

    model_id: str
    kind: str
    """plan, asset or session: what it describes."""
    raw: bytes


class Market(msgspec.Struct, frozen=True):
    """The files of one market folder, in the order of their names."""

    folder: str
    place: str
    sources: tuple[Source, ...]

    def of(self, kind: type[D]) -> Iterator[tuple[str, D]]:
        """(file, document) of every faultless file of one kind."""
        for source in self.sources:
            if isinstance(source.document, kind):
                yield source.file, source.document

    def documents(self, kind: type[D]) -> list[D]:
        """Every document of one kind."""
        return [document for _, document in self.of(kind)]

    def settings(self) -> MarketFile | None:
        """The market file, None if there is no faultless one."""
        return next(iter(self.documents(MarketFile)), None)


class Setup(msgspec.Struct, frozen=True):
    """All markets and models, checked: `compile_setup` cannot fail on it."""

    models: tuple[Model, ...]
    markets: tuple[Market, ...]
