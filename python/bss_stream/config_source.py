"""Where settings come from: a TOML file, and environment variables laid over it.

A variable is `BSS_` and the setting's path in capitals, its parts joined by two underscores:
`BSS_PARTITIONS`, `BSS_LOG__KAFKA__BOOTSTRAP_SERVERS`. A list is written with commas, a table as
JSON, and nothing at all for a setting that may be unset.
"""

import difflib
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, Final, get_args, get_origin

import msgspec

from bss_stream.validation import Faults, convert, hints, unwrap

PREFIX: Final = "BSS_"
FILE_VARIABLE: Final = "BSS_CONFIG"
"""Names the TOML file."""

_OTHERS: Final = (FILE_VARIABLE, "BSS_REQUIRE_SERVERS")
"""Variables with the prefix that are no settings; the second belongs to the test suite."""


def read_toml(path: Path, faults: Faults) -> dict[str, Any]:
    """The table in a TOML file, empty after noting a fault."""
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        faults.add(str(path), "", f"cannot be read: {error.strerror}")
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        # A TOML error names line and column and never the value, which may be a secret.
        faults.add(str(path), "", f"is no TOML: {error}")
    return {}


def settings(struct: type[msgspec.Struct], path: tuple[str, ...] = ()) -> Iterator[Any]:
    """(path, type) of every setting below `struct`, in the order of the fields."""
    for name, to in hints(struct).items():
        _, bare = unwrap(to)
        if isinstance(bare, type) and issubclass(bare, msgspec.Struct):
            yield from settings(bare, (*path, name))
        elif name in struct.__struct_fields__:
            yield (*path, name), to


def variable(path: tuple[str, ...]) -> str:
    """The environment variable of a setting."""
    return PREFIX + "__".join(path).upper()


def overlay(
    table: dict[str, Any], struct: type[msgspec.Struct], env: Mapping[str, str], faults: Faults
) -> None:
    """Write what the environment sets into `table`, which a TOML file has filled or not."""
    known = {variable(path): (path, to) for path, to in settings(struct)}
    for name in sorted(env):
        if not name.startswith(PREFIX) or name in _OTHERS:
            continue
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1) or [variable(("section", "field"))]
            faults.add(f"environment variable {name}", "", f"unknown, expected such as {near[0]}")
            continue
        path, to = known[name]
        before = len(faults.lines)
        value = _value(env[name], to)
        convert(value, to, faults, f"environment variable {name}", "$")
        if len(faults.lines) == before:
            _put(table, path, value)


def _value(text: str, to: Any) -> Any:
    """The value that a variable's text stands for, as TOML would have given it."""
    _, bare = unwrap(to)
    kinds = {unwrap(one)[1] for one in (get_args(bare) or (bare,))}
    if text == "" and NoneType in kinds:
        return None
    if get_origin(bare) is tuple:
        return [part.strip() for part in text.split(",") if part.strip()]
    if get_origin(bare) is dict:
        return _lenient(text, lambda: msgspec.json.decode(text))
    if kinds & {int, float, bool}:
        return _lenient(text, lambda: msgspec.convert(text, bare, strict=False))
    return text


def _lenient(text: str, read: Any) -> Any:
    """What `read` makes of the text, or the text itself: `convert` then says what is wrong."""
    try:
        return read()
    except (msgspec.ValidationError, msgspec.DecodeError):
        return text


def _put(table: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for name in path[:-1]:
        inner = table.setdefault(name, {})
        if not isinstance(inner, dict):
            return  # The file has no table here, which is a fault that `convert` notes.
        table = inner
    if value is None:
        table.pop(path[-1], None)
    else:
        table[path[-1]] = value
