"""Consumer groups within one process: who reads which partition, and when that changes.

A change of members goes as Kafka's range assignor has it: every member lets go of everything,
then every member is told what it has. All listeners have returned from `on_revoked` before the
first one hears `on_assigned`.
"""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from bss_stream.log.protocol import TopicPartition


class Member(Protocol):
    """One consumer, as its group sees it."""

    topics: Sequence[str]

    async def revoke(self) -> None:
        """Let go of everything; never raises."""

    async def assign(self, parts: Sequence[TopicPartition]) -> None:
        """Own these partitions; never raises."""


def assign_ranges(
    topics_by_member: Sequence[Sequence[str]], partitions: int
) -> list[list[TopicPartition]]:
    """Each member's partitions: a contiguous range of every topic that it reads.

    Members that read the same topics get equal partition numbers of all of them.
    """
    assigned: list[list[TopicPartition]] = [[] for _ in topics_by_member]
    for topic in sorted({topic for topics in topics_by_member for topic in topics}):
        readers = [i for i, topics in enumerate(topics_by_member) if topic in topics]
        share, rest = divmod(partitions, len(readers))
        first = 0
        for nth, reader in enumerate(readers):
            count = share + (nth < rest)
            assigned[reader] += (TopicPartition(topic, first + i) for i in range(count))
            first += count
    return assigned


class Group:
    """The members of one group, and the task that moves partitions between them."""

    def __init__(self, partitions: int) -> None:
        self._partitions = partitions
        self._members: list[Member] = []
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def join(self, member: Member) -> None:
        """Add a member; it owns partitions once the others have let go of them."""
        self._members.append(member)
        self._changed.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="bss-log-group")

    def leave(self, member: Member) -> None:
        """Remove a member that has already let go of its partitions."""
        if member in self._members:
            self._members.remove(member)
            self._changed.set()

    async def close(self) -> None:
        """Stop moving partitions."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def _run(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            await asyncio.gather(*(member.revoke() for member in self._members))
            if self._changed.is_set():
                continue
            members = list(self._members)
            shares = assign_ranges([member.topics for member in members], self._partitions)
            await asyncio.gather(
                *(member.assign(share) for member, share in zip(members, shares, strict=True))
            )
