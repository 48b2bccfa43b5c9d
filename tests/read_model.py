"""A playground's records brought to a ledger database as the sink brings them, and read there."""

from collections import Counter
from itertools import groupby
from types import TracebackType
from typing import Self

from bss_stream._engine import pack
from bss_stream.log.protocol import Fetched, TopicPartition
from bss_stream.queries import Catalogue
from bss_stream.setup import load_setup
from bss_stream.sink import open_ledger_store
from bss_stream.sink.entry import decode_fetched
from bss_stream.sink.loop import COPIED
from bss_stream.sink.read_model import open_read_model
from bss_stream.testing import Playground

SETUP = load_setup()


class Copied:
    """What a playground has produced so far, in the database of a url."""

    def __init__(self, play: Playground, url: str) -> None:
        self.play = play
        self.model = open_read_model(url)
        self.catalogue = Catalogue.of(SETUP, play.engine.describe_state)
        self._store = open_ledger_store(url)
        self._store.open()
        self._taken = 0
        self._ends: Counter[TopicPartition] = Counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.model.close()
        self._store.close()

    def take(self) -> set[str]:
        """Copy what is new, in one transaction; the plans that it is about."""
        produced = [one for one in self.play.produced[self._taken :] if one.topic in COPIED]
        self._taken = len(self.play.produced)
        fetched = []
        for (topic, partition), records in groupby(produced, lambda one: one[:2]):
            keyed = [(record.key, record.value) for record in records]
            place = TopicPartition(topic, partition)
            first = self._ends[place]
            self._ends[place] += len(keyed)
            offsets = range(first, self._ends[place])
            fetched.append(Fetched(*place, offsets, pack(keyed), self._ends[place]))
        batch = decode_fetched(fetched)
        self._store.write(batch, dict(self._ends))
        return {row.plan_id for row in batch.entries}
