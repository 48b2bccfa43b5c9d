"""JSON Schemas of every payload, made of the types."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import msgspec

from bss_stream.contract.catalogue import PAYLOADS, Payload
from bss_stream.contract.examples import examples
from bss_stream.contract.fields import Reason
from bss_stream.contract.requests import CONDITIONS

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"

Schema = dict[str, Any]

_REF: Final = "$ref"


def components(
    payloads: Iterable[Payload], place: str
) -> tuple[dict[str, Schema], dict[str, Schema]]:
    """Each payload's schema by its name, and the types that they refer to below `place`."""
    chosen = list(payloads)
    types = [kind for payload in chosen for kind in payload.types]
    found, named = msgspec.json.schema_components(types, ref_template=place + "{name}")
    schemas = iter(found)
    by_payload = {}
    for payload in chosen:
        several = [next(schemas) for _ in payload.types]
        by_payload[payload.name] = several[0] if len(several) == 1 else {"anyOf": several}
    types_by_name = {
        _tidy(name): _described(name, schema | CONDITIONS.get(_tidy(name), {}))
        for name, schema in named.items()
    }
    return _tidied(by_payload), _tidied(types_by_name)


def documents() -> dict[str, Schema]:
    """A schema document of its own for each payload, by the payload's name."""
    shown = examples()
    made = {}
    for payload in PAYLOADS:
        schemas, named = components([payload], "#/$defs/")
        document: Schema = {
            "$schema": DIALECT,
            "title": payload.name,
            "description": payload.description,
        }
        document |= schemas[payload.name] | {"$defs": named}
        if payload.name in shown:
            document["examples"] = [shown[payload.name]]
        made[payload.name] = document
    return made


def text(document: Schema) -> str:
    """A document as a file has it."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def write(directory: Path) -> list[Path]:
    """Write every document below a directory; returns the files."""
    files = []
    for name, document in documents().items():
        file = directory / f"{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text(document), encoding="utf-8")
        files.append(file)
    return files


def _described(name: str, schema: Schema) -> Schema:
    if name != Reason.__name__:
        return schema
    return {**schema, "x-enum-descriptions": {reason: reason.message for reason in Reason}}


def _tidy(name: str) -> str:
    """msgspec ends the names of generic types in an underscore."""
    return name.rstrip("_")


def _tidied(value: Any) -> Any:
    if isinstance(value, dict):
        if value.get("format") == "decimal":
            # msgspec would have decimals as text; on the wire they are numbers.
            value = {key: inner for key, inner in value.items() if key != "format"}
            value["type"] = "number"
        return {
            key: _tidy(inner) if key == _REF else _tidied(inner) for key, inner in value.items()
        }
    if isinstance(value, list):
        return [_tidied(inner) for inner in value]
    return value
