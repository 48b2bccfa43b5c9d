"""Records into Odoo, each once however often it is written: found again by external id, or by key.

`load` takes all rows of a call or none, and says of refused ones which they are and why. So rows
that are named are tried alone and the others again together, until every row is in or refused
by itself.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, Final, NamedTuple

from bss_stream.errors import OdooAccessError, OdooRefusedError, OdooUnavailableError
from bss_stream.odoo.billing import Kind, Record
from bss_stream.odoo.client import MESSAGE_SHOWN_MAX, OdooClient, Operation, is_passing
from bss_stream.odoo.config import Odoo

TYPES: Final[Mapping[str, frozenset[str]]] = {
    "seq": frozenset(("integer",)),
    "amount": frozenset(("float", "monetary")),
    "units": frozenset(("float",)),
    "used": frozenset(("float",)),
    "granted": frozenset(("float",)),
    "day": frozenset(("date",)),
    "event_at": frozenset(("datetime",)),
    "period_end": frozenset(("datetime",)),
}
"""What a field's type in Odoo must be so that nothing is lost; others are text or selections."""

_TEXT: Final = frozenset(("char", "text", "selection"))
_PLAIN: Final = re.compile(r"[A-Za-z0-9-]")


class Target(NamedTuple):
    """Where records of one kind go."""

    model: str
    key: str
    """The field that holds the plan's id, empty for records that have external ids."""
    fields: Mapping[str, str]


class Refused(NamedTuple):
    """A record that Odoo does not take, and what it says."""

    record: Record
    error: str


def targets(config: Odoo) -> dict[Kind, Target]:
    """Where records of each kind go."""
    # By their plain names here: the configuration has checked them.
    subscription: Mapping[Any, str] = config.subscription.fields
    payment: Mapping[Any, str] = config.payment.fields
    usage: Mapping[Any, str] = config.usage.fields
    return {
        Kind.SUBSCRIPTION: Target(config.subscription.model, config.subscription.key, subscription),
        Kind.PAYMENT: Target(config.payment.model, "", payment),
        Kind.USAGE: Target(config.usage.model, "", usage),
    }


def external_id(module: str, record: Record) -> str:
    """The name under which Odoo finds a record again: no two records share it."""
    name = "".join(c if _PLAIN.match(c) else f"_{ord(c):02X}" for c in record.key)
    return f"{module}.{record.kind}_{name}"


class Upserts:
    """Writes records to the models of a configuration."""

    def __init__(self, client: OdooClient, config: Odoo) -> None:
        self._client = client
        self._module = config.external_ids
        self._rows_max = config.batch_records_max
        self._targets = targets(config)

    async def check(self) -> None:
        """Raise OdooAccessError with all that the models, their fields or the rights lack."""
        faults = [
            line for kind, to in self._targets.items() for line in await self._faults(kind, to)
        ]
        if faults:
            raise OdooAccessError(
                "Odoo is not set up for this (docs/odoo.md): " + "; ".join(faults)
            )

    async def _faults(self, kind: Kind, to: Target) -> list[str]:
        section = f"odoo.{kind}"
        try:
            fields = await self._client.call(to.model, "fields_get", attributes=["type"])
        except OdooRefusedError as error:
            return [f"{section}.model: {to.model}: {error}"]
        wanted = {**to.fields, **({"key": to.key} if to.key else {})}
        faults = []
        for ours, name in wanted.items():
            types = TYPES.get(ours, _TEXT)
            found = fields.get(name, {}).get("type")
            if found not in types:
                shown = "is not there" if found is None else f"is of type {found}"
                place = f"{section}.{'key' if ours == 'key' else f'fields.{ours}'}"
                faults.append(
                    f"{place}: {to.model}.{name} {shown}, expected {' or '.join(sorted(types))}"
                )
        operations: tuple[Operation, ...] = ("read", "write") if to.key else ("create", "write")
        rights = [one for one in operations if not await self._client.may(to.model, one)]
        return faults + [f"{section}.model: the user may not {one} {to.model}" for one in rights]

    async def write(self, records: Sequence[Record]) -> list[Refused]:
        """Have Odoo take records, in order within a kind; what it refuses for good comes back.

        Raises OdooUnavailableError and OdooAccessError, after which some are in and some are not:
        write them all again.
        """
        refused: list[Refused] = []
        for kind, group in groupby(sorted(records, key=lambda one: one.kind), lambda one: one.kind):
            waiting = list(group)
            for first in range(0, len(waiting), self._rows_max):
                refused += await self._write(self._targets[kind], waiting[first:][: self._rows_max])
        return refused

    async def _write(self, to: Target, records: Sequence[Record]) -> list[Refused]:
        refused: list[Refused] = []
        if to.key:
            column, refused, records, ids = await self._found(to, records)
        else:
            column, ids = "id", [external_id(self._module, record) for record in records]
        columns = [column, *to.fields.values()]
        rows = [
            [identity, *(record.values.get(name, "") for name in to.fields)]
            for identity, record in zip(ids, records, strict=True)
        ]
        errors = await load(self._client, to.model, columns, rows)
        return refused + [Refused(records[at], error) for at, error in sorted(errors.items())]

    async def _found(
        self, to: Target, records: Sequence[Record]
    ) -> tuple[str, list[Refused], list[Record], list[str]]:
        """Records with the database ids of those that have their keys, and those without one."""
        keys = sorted({record.key for record in records})
        rows = await self._client.call(
            to.model, "search_read", domain=[[to.key, "in", keys]], fields=[to.key]
        )
        ids: dict[str, list[int]] = {}
        for row in rows:
            ids.setdefault(row[to.key], []).append(row["id"])
        refused, kept = [], []
        for record in records:
            found = len(ids.get(record.key, ()))
            if found == 1:
                kept.append(record)
            else:
                shown = f"{found} records of {to.model} have {to.key} = {record.key}"
                refused.append(Refused(record, f"{shown}, expected one"))
        return ".id", refused, kept, [str(ids[record.key][0]) for record in kept]


async def load(
    client: OdooClient, model: str, columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> dict[int, str]:
    """Write rows; those that Odoo refuses, by their place in `rows`, and why."""
    refused: dict[int, str] = {}
    waiting = [list(range(len(rows)))] if rows else []
    while waiting:
        group = waiting.pop()
        errors, suspects = await _load_once(client, model, columns, [rows[at] for at in group])
        if not errors:
            continue
        if len(group) == 1:
            refused[group[0]] = errors[0][:MESSAGE_SHOWN_MAX]
            continue
        alone = [group[at] for at in sorted(suspects) if at < len(group)]
        rest = [at for at in group if at not in alone]
        if alone:
            waiting += [rest] * bool(rest) + [[at] for at in reversed(alone)]
        else:
            half = len(group) // 2
            waiting += [group[half:], group[:half]]
    return refused


async def _load_once(
    client: OdooClient, model: str, columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[list[str], set[int]]:
    """What is wrong, nothing if all rows are in; and the rows that are named for it."""
    try:
        answer = await client.call(model, "load", fields=columns, data=rows)
    except OdooRefusedError as error:
        return [str(error)], set()
    errors = [one for one in answer["messages"] if one.get("type") == "error"]
    if not errors and answer["ids"]:
        return [], set()
    texts = [str(one.get("message", "")) for one in errors] or ["refused without a reason"]
    # In the midst of a batch Odoo tells of other transactions as if the row were to blame.
    passing = next(filter(is_passing, texts), None)
    if passing is not None:
        raise OdooUnavailableError(f"{model}: {passing}")
    return texts, set(_named(errors))


def _named(errors: Iterable[Mapping[str, Any]]) -> Iterable[int]:
    for error in errors:
        rows = error.get("rows")
        if isinstance(rows, dict) and isinstance(rows.get("from"), int):
            yield rows["from"]
        elif isinstance(error.get("record"), int):
            yield error["record"]
