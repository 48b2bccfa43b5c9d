"""Plain data into msgspec types, with every fault reported rather than the first.

msgspec stops at the first fault of a document; whoever edits a file by hand wants the whole list.
So structs, lists and tables are walked here, entry by entry, and only the leaves are left to
msgspec. Setup data (JSON) and configuration (TOML) share this walk.
"""

import functools
import math
import operator
import re
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from bss_stream.errors import ConfigError

_SHOWN_LENGTH_MAX = 80
"""A longer value is cut in a fault: the message is for a terminal."""

_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Secret:
    """Text that no repr, log line or fault shows; `reveal` gives it out on purpose."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(hidden)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)


class Faults:
    """Collects faults, one line each: `file: path: what is there and what would be right`."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, file: str, path: str, message: str) -> None:
        """Note one fault. `path` is a JSON path, empty for the file as a whole."""
        self.lines.append(f"{file}: {path}: {message}" if path else f"{file}: {message}")

    def raise_if_any(self) -> None:
        """Raise ConfigError with every fault noted so far."""
        if self.lines:
            raise ConfigError(self.lines)


def key_path(path: str, key: str) -> str:
    """The JSON path of `key` in the object at `path`."""
    return f"{path}.{key}" if _PLAIN_KEY.fullmatch(key) else f"{path}[{show(key)}]"


def show(value: object) -> str:
    """A value as a fault names it: in JSON's spelling, cut when long."""
    try:
        text = msgspec.json.encode(value).decode()
    except (TypeError, ValueError, OverflowError, RecursionError):
        text = repr(type(value))
    return text if len(text) <= _SHOWN_LENGTH_MAX else text[:_SHOWN_LENGTH_MAX] + "..."


def convert(data: object, to: Any, faults: Faults, file: str, path: str = "$") -> Any:
    """`data` as a `to`, or None after noting every fault.

    Strict: a string is no number, and a field that the type does not have is a fault. A leaf may
    say in `msgspec.Meta(description=...)` what would be right; a Secret's value is never shown.
    """
    if data is not None:
        to = _without_none(to)
    metas, bare = unwrap(to)
    origin, args = get_origin(bare), get_args(bare)
    if data is None and NoneType in args:
        return None
    if isinstance(bare, type) and issubclass(bare, msgspec.Struct):
        if isinstance(data, dict):
            return _convert_struct(data, bare, faults, file, path)
    elif origin is tuple and isinstance(data, list):
        return _convert_list(data, args[0], metas, faults, file, path)
    elif origin is dict and isinstance(data, dict):
        return _convert_table(data, args, metas, faults, file, path)
    return _convert_leaf(data, to, faults, file, path)


def unwrap(to: Any) -> tuple[tuple[msgspec.Meta, ...], Any]:
    """(what a type's annotations say, the bare type). An optional type says what its value says."""
    if get_origin(to) is Annotated:
        bare, *metas = get_args(to)
        return tuple(meta for meta in metas if isinstance(meta, msgspec.Meta)), bare
    if get_origin(to) in (Union, UnionType):
        return tuple(meta for one in get_args(to) for meta in unwrap(one)[0]), to
    return (), to


def _without_none(to: Any) -> Any:
    """An optional type as its value's: bounds may stand around a number, not around a union."""
    if get_origin(to) is Annotated:
        return Annotated[(_without_none(get_args(to)[0]), *to.__metadata__)]
    if get_origin(to) in (Union, UnionType):
        return functools.reduce(operator.or_, (one for one in get_args(to) if one is not NoneType))
    return to


def expected(to: Any) -> str | None:
    """What would be right for a leaf, in words; None if its type has nothing to say."""
    metas, bare = unwrap(to)
    described = next((meta.description for meta in metas if meta.description), None)
    if described is not None:
        return described
    if get_origin(bare) is Literal:
        return "one of " + ", ".join(map(show, get_args(bare)))
    return None


@functools.cache
def hints(struct: type[msgspec.Struct]) -> dict[str, Any]:
    """The types of a struct's fields, with their annotations."""
    return get_type_hints(struct, include_extras=True)


def _convert_struct(
    data: dict[str, Any], struct: type[msgspec.Struct], faults: Faults, file: str, path: str
) -> Any:
    before = len(faults.lines)
    types = hints(struct)
    values: dict[str, Any] = {}
    fields = {field.encode_name: field for field in msgspec.structs.fields(struct)}
    for key in (key for key in data if key not in fields):
        known = ", ".join(fields)
        faults.add(file, key_path(path, key), f"unknown field, expected one of {known}")
    for key, field in fields.items():
        if key in data:
            at = key_path(path, key)
            values[field.name] = convert(data[key], types[field.name], faults, file, at)
        elif field.required:
            faults.add(file, key_path(path, key), "missing field")
    return struct(**values) if len(faults.lines) == before else None


def _convert_list(
    data: list[Any],
    item: Any,
    metas: tuple[msgspec.Meta, ...],
    faults: Faults,
    file: str,
    path: str,
) -> Any:
    before = len(faults.lines)
    items = [convert(one, item, faults, file, f"{path}[{i}]") for i, one in enumerate(data)]
    _check_length(len(data), metas, faults, file, path)
    return tuple(items) if len(faults.lines) == before else None


def _convert_table(
    data: dict[str, Any],
    args: tuple[Any, ...],
    metas: tuple[msgspec.Meta, ...],
    faults: Faults,
    file: str,
    path: str,
) -> Any:
    before = len(faults.lines)
    table = {}
    for key, value in data.items():
        at = key_path(path, key)
        table[convert(key, args[0], faults, file, at)] = convert(value, args[1], faults, file, at)
    _check_length(len(data), metas, faults, file, path)
    return table if len(faults.lines) == before else None


def _check_length(
    length: int, metas: tuple[msgspec.Meta, ...], faults: Faults, file: str, path: str
) -> None:
    for meta in metas:
        if meta.min_length is not None and length < meta.min_length:
            faults.add(file, path, f"has {length} entries, expected at least {meta.min_length}")


def _convert_leaf(data: object, to: Any, faults: Faults, file: str, path: str) -> Any:
    if isinstance(data, float) and not math.isfinite(data):
        # TOML has nan, and nan is inside of any bounds.
        faults.add(file, path, f"{data}: expected {expected(to) or 'a finite number'}")
        return None
    try:
        return msgspec.convert(data, to, strict=True, dec_hook=_decode)
    except msgspec.ValidationError as error:
        message, _, inner = str(error).partition(" - at `$")
        wanted = expected(to)
        if wanted is not None:
            message = f"expected {wanted}"
        shown = "" if _hides(to) else f"{show(data)}: "
        faults.add(file, path + inner.rstrip("`"), f"{shown}{message[0].lower()}{message[1:]}")
        return None


def _hides(to: Any) -> bool:
    """Whether a fault must not show the value: a secret, or where a table with one belongs."""
    _, bare = unwrap(to)
    is_table = isinstance(bare, type) and issubclass(bare, msgspec.Struct)
    return is_table or Secret in (bare, *get_args(bare))


def _decode(to: type, data: object) -> object:
    if to is Secret and isinstance(data, str):
        return Secret(data)
    raise msgspec.ValidationError(f"Expected `str`, got `{type(data).__name__}`")
