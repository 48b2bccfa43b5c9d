"""A shard's states: out of its checkpoint and changelogs into the engine, and into a checkpoint.

A checkpoint holds at least what is below the ends that it names; what comes behind them in the
changelogs is read over it, newest last. So its pages may be taken while the shard works on, each
between two transactions.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from bss_stream import _engine, topics
from bss_stream.checkpoint import (
    Changelog,
    CheckpointReader,
    CheckpointWriter,
    Header,
    misfit,
)
from bss_stream.errors import CheckpointError
from bss_stream.log.protocol import Extent, Log, TopicPartition

__all__ = ["Restored", "ShardStates"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

PAGE_BYTES: Final = 1024 * 1024
"""A page takes the engine about a millisecond, in which the shard waits."""

PROGRESS_S: Final = 5.0

InShard = Callable[[Callable[[], T]], Awaitable[T]]
"""Makes a call while the shard is owned, and between its transactions; raises what ends the work
when it is not owned any more."""


@dataclass(slots=True)
class Restored:
    """Where a shard's states came from."""

    checkpoint_records: int = 0
    changelog_records: int = 0
    taken_s: float = 0.0
    ends: dict[str, Changelog] = field(default_factory=dict)
    """The least that they hold of each changelog."""

    @property
    def records(self) -> int:
        """All that were read."""
        return self.checkpoint_records + self.changelog_records


class ShardStates:
    """Restores shards and saves them, of one engine and one log."""

    def __init__(self, log: Log, engine: _engine.Engine, directory: Path | None) -> None:
        """Without a `directory` there are no checkpoints."""
        self._log = log
        self._engine = engine
        self._directory = directory
        self._saved: dict[int, tuple[Changelog, ...]] = {}
        self.progress: dict[int, float] = {}
        """How much of its changelogs has been read, 0 to 1, by shard that is being restored."""

    def _path(self, directory: Path, shard: int) -> Path:
        return directory / f"shard-{shard}.checkpoint"

    async def restore(self, shard: int, in_shard: InShard[None]) -> Restored:
        """Fill an empty shard. Raises LogError, and whatever `in_shard` does."""
        started_s = asyncio.get_running_loop().time()
        extents = {topic: await self._log.extent(topic, shard) for topic in topics.STATES}
        restored = Restored()
        starts = await self._from_checkpoint(shard, extents, in_shard, restored)
        progress = _Progress(shard, restored, extents, starts)
        try:
            for topic in topics.STATES:
                async for fetched in self._log.replay(topic, shard, starts.get(topic, 0)):
                    await in_shard(partial(self._take, shard, topic, fetched.data))
                    restored.changelog_records += len(fetched.offsets)
                    progress.passed(topic, fetched.next_offset)
                    self.progress[shard] = progress.share
        finally:
            self.progress.pop(shard, None)
        restored.ends = {
            topic: Changelog(topic, extent.incarnation, extent.end)
            for topic, extent in extents.items()
        }
        restored.taken_s = asyncio.get_running_loop().time() - started_s
        progress.done()
        return restored

    def _take(self, shard: int, topic: str, data: bytes) -> None:
        self._engine.restore(shard, topic, data)

    async def _from_checkpoint(
        self,
        shard: int,
        extents: Mapping[str, Extent],
        in_shard: InShard[None],
        restored: Restored,
    ) -> dict[str, int]:
        """Take in the checkpoint if there is one that fits; returns where the changelogs go on."""
        if self._directory is None or not all(e.incarnation for e in extents.values()):
            return {}
        path = self._path(self._directory, shard)
        if not await asyncio.to_thread(path.exists):
            return {}
        try:
            reader = await asyncio.to_thread(CheckpointReader, path)
            try:
                why = misfit(reader.header, shard, self._log.partitions, extents)
                if why:
                    raise CheckpointError(f"checkpoint {path} does not fit: {why}")
                pages = reader.pages()
                while (page := await asyncio.to_thread(next, pages, None)) is not None:
                    topic, data = page
                    await in_shard(partial(self._take_page, path, shard, topic, data))
                    restored.checkpoint_records += _engine.measure(data)[0]
            finally:
                await asyncio.to_thread(reader.close)
        except CheckpointError as error:
            logger.warning(
                "shard %d is restored from the changelogs alone: %s",
                shard,
                error,
                extra={"shard": shard},
            )
            restored.checkpoint_records = 0
            await in_shard(partial(self._empty, shard))
            return {}
        return {log.topic: log.end for log in reader.header.changelogs}

    def _take_page(self, path: Path, shard: int, topic: str, data: bytes) -> None:
        try:
            self._take(shard, topic, data)
        except ValueError as error:
            raise CheckpointError(f"checkpoint {path}: {error}") from error

    def _empty(self, shard: int) -> None:
        self._engine.drop_shard(shard)
        self._engine.open_shard(shard)

    async def save(
        self,
        shard: int,
        restored: Restored,
        written: Mapping[TopicPartition, int],
        in_shard: InShard[tuple[int, bytes, int | None]],
    ) -> bool:
        """Write the shard's checkpoint; returns whether there was anything new to write.

        `written` has the ends that the shard's own transactions have told: an owner that was
        replaced meanwhile must not take the new one's records for its own. Raises
        CheckpointError, and whatever `in_shard` does; the old checkpoint stays then.
        """
        changelogs = tuple(
            Changelog(
                topic,
                known.incarnation,
                max(known.end, written.get(TopicPartition(topic, shard), 0)),
            )
            for topic, known in restored.ends.items()
        )
        if self._directory is None or not all(log.incarnation for log in changelogs):
            return False
        if self._saved.get(shard) == changelogs:
            return False
        path = self._path(self._directory, shard)
        header = Header(shard=shard, partitions=self._log.partitions, changelogs=changelogs)
        writer = await asyncio.to_thread(CheckpointWriter, path, header)
        try:
            for topic in topics.STATES:
                first: int | None = 0
                while first is not None:
                    take = partial(self._engine.snapshot, shard, topic, first, PAGE_BYTES)
                    records, data, first = await in_shard(take)
                    if records:
                        await asyncio.to_thread(writer.page, topic, data)
            await asyncio.to_thread(writer.finish)
        except BaseException:
            writer.abandon()
            raise
        self._saved[shard] = changelogs
        return True


class _Progress:
    """Says how far a restore is, every few seconds and at its end."""

    def __init__(
        self,
        shard: int,
        restored: Restored,
        extents: Mapping[str, Extent],
        starts: Mapping[str, int],
    ) -> None:
        self._shard = shard
        self._restored = restored
        self._left = {
            topic: (max(extent.start, starts.get(topic, 0)), extent.end)
            for topic, extent in extents.items()
        }
        self._passed = dict.fromkeys(extents, 0)
        self._started_s = self._told_s = asyncio.get_running_loop().time()

    def passed(self, topic: str, offset: int) -> None:
        """A changelog has been read up to an offset."""
        start, end = self._left[topic]
        self._passed[topic] = min(offset, end) - start
        now_s = asyncio.get_running_loop().time()
        if now_s - self._told_s < PROGRESS_S:
            return
        self._told_s = now_s
        logger.info(
            "shard %d: restored %d records in %.1f s, %.0f %% of its changelogs",
            self._shard,
            self._restored.records,
            now_s - self._started_s,
            100 * self.share,
            extra={"shard": self._shard},
        )

    @property
    def share(self) -> float:
        """How much of the changelogs has been read, 0 to 1."""
        total = sum(max(0, end - start) for start, end in self._left.values())
        return sum(self._passed.values()) / max(1, total)

    def done(self) -> None:
        """All is read."""
        logger.info(
            "shard %d restored: %d records of its checkpoint and %d of its changelogs in %.2f s",
            self._shard,
            self._restored.checkpoint_records,
            self._restored.changelog_records,
            self._restored.taken_s,
            extra={"shard": self._shard},
        )
