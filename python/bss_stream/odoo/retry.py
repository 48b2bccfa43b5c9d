"""Refused records once more, after an operator has mended what Odoo complained about."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from bss_stream import topics
from bss_stream._engine import partition_for, unpack
from bss_stream.log.protocol import Log, ReadableLog
from bss_stream.odoo import refusals
from bss_stream.odoo.billing import Kind, Measures, Record, UnmappableError, of_entry
from bss_stream.odoo.outbound import UNMAPPED, Describe, state_record
from bss_stream.odoo.refusals import Refusal
from bss_stream.odoo.upsert import Upserts

AT_ONCE: Final = 200

States = Mapping[str, tuple[bytes, str]]
"""The newest value of each plan's changelog, and where it stands."""


class Retrial(NamedTuple):
    """What another attempt came to."""

    taken: int
    refused: Sequence[Refusal]
    """With what is said now."""


class Retrier:
    """Writes what stands refused in a log; what is taken no longer stands."""

    def __init__(
        self,
        log: Log,
        upserts: Upserts,
        measures: Measures,
        describe: Describe,
        *,
        clock_ms: Callable[[], int],
    ) -> None:
        self._log = log
        self._upserts = upserts
        self._measures = measures
        self._describe = describe
        self._clock_ms = clock_ms

    async def run(self) -> Retrial:
        """Raises OdooError and LogError; what was taken by then is on record, or is taken once
        more the next time."""
        waiting, _ = await refusals.standing(self._log)
        settled: list[Refusal] = []
        appender = await self._log.appender()
        try:
            for first in range(0, len(waiting), AT_ONCE):
                group = await self._settled(waiting[first : first + AT_ONCE])
                await appender.append(refusals.chunks(group, self._log.partitions))
                settled += group
        finally:
            await appender.close()
        refused = [one for one in settled if one.error]
        return Retrial(len(settled) - len(refused), refused)

    async def _settled(self, group: Sequence[Refusal]) -> list[Refusal]:
        plans = {one.plan_id for one in group if one.kind is Kind.SUBSCRIPTION}
        states = await latest(self._log, plans)
        while True:
            outcome = await self._attempt(group, states)
            now = await latest(self._log, plans)
            if now == states:
                return outcome
            # The adapter at work may have written a newer state, and this an older one over it.
            states = now

    async def _attempt(self, group: Sequence[Refusal], states: States) -> list[Refusal]:
        made: list[tuple[Refusal, Record]] = []
        errors: dict[int, str] = {}
        for one in group:
            try:
                made.append((one, self._record(one, states)))
            except UnmappableError as error:
                errors[id(one)] = str(error)
        refused = await self._upserts.write([record for _, record in made])
        said = {one.record[:2]: one.error for one in refused}
        errors |= {id(one): said.get(record[:2], "") for one, record in made}
        now_ms = self._clock_ms()
        return [msgspec.structs.replace(one, at_ms=now_ms, error=errors[id(one)]) for one in group]

    def _record(self, refusal: Refusal, states: States) -> Record:
        if refusal.kind is Kind.SUBSCRIPTION:
            if refusal.plan_id not in states:
                raise UnmappableError(f"plan {refusal.plan_id} has no state any more")
            value, source = states[refusal.plan_id]
            return state_record(self._describe, refusal.plan_id, value, source)
        if UNMAPPED not in refusal.values:
            return refusal.record
        record = of_entry(refusal.values[UNMAPPED].encode(), refusal.source, self._measures)
        if record is None:
            raise UnmappableError("is about no billing")
        return record


async def latest(log: ReadableLog, plan_ids: Iterable[str]) -> States:
    """The newest states of plans, by reading their changelogs. Raises LogError."""
    wanted = {plan_id.encode() for plan_id in plan_ids}
    found: dict[str, tuple[bytes, str]] = {}
    for partition in sorted({partition_for(key, log.partitions) for key in wanted}):
        async for fetched in log.replay(topics.STATE_PLAN, partition):
            for offset, (key, value) in zip(fetched.offsets, unpack(fetched.data), strict=True):
                if key in wanted:
                    found.pop(key.decode(), None)
                    if value is not None:
                        place = f"{topics.STATE_PLAN}/{partition}/{offset}"
                        found[key.decode()] = value, place
    return found
