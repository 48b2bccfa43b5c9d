"""JSON values as YAML 1.2 in block style; whatever could be read otherwise stands in quotes."""

import json
import re
from collections.abc import Iterator
from typing import Any, Final

_PLAIN: Final = re.compile(r"[A-Za-z](?:[\w./-]| (?=[\w(]))*")
_OTHER_THINGS: Final = frozenset(("true", "false", "null", "yes", "no", "on", "off", "y", "n"))
"""Words that some reader of YAML takes for something else than text."""


def dump(value: Any) -> str:
    """The document."""
    return "".join(f"{line}\n" for line in _lines(value))


def _lines(value: Any) -> Iterator[str]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _entry(f"{_scalar(key)}:", inner)
    elif isinstance(value, (list, tuple)) and value:
        for inner in value:
            first, *rest = _lines(inner)
            yield f"- {first}"
            yield from (f"  {line}" for line in rest)
    else:
        yield _scalar(value)


def _entry(key: str, value: Any) -> Iterator[str]:
    if isinstance(value, (dict, list, tuple)) and value:
        yield key
        yield from (f"  {line}" for line in _lines(value))
    else:
        yield f"{key} {_scalar(value)}"


def _scalar(value: Any) -> str:
    is_plain = (
        isinstance(value, str)
        and _PLAIN.fullmatch(value) is not None
        and value.lower() not in _OTHER_THINGS
    )
    return str(value) if is_plain else json.dumps(value, ensure_ascii=False)
