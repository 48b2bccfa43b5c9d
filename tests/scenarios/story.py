"""A scenario as data: what a story file may say, and the set-up that it plays in.

tests/scenarios/README.md explains the format to people who write stories.
"""

import copy
import functools
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import orjson
from msgspec import Struct

from bss_stream.setup import compile_setup, load_setup

FOLDER = Path(__file__).parent

_DURATION = re.compile(r"(-?)((?:\d+(?:d|h|min|s|ms) ?)+)")
_UNIT_MS = {"d": 86_400_000, "h": 3_600_000, "min": 60_000, "s": 1_000, "ms": 1}


class Echo(Struct, forbid_unknown_fields=True):
    """An echo that must come: all but `metadata` exactly, of that the fields named."""

    topic: str
    success: bool
    signals: list[str]
    reason: str
    """`metadata.reason`."""
    correlation_id: str | None = None
    """By default the one of the step's message."""
    metadata: dict[str, Any] = {}


class Message(Struct, forbid_unknown_fields=True):
    """A command or an event that must be published."""

    topic: str
    body: dict[str, Any] = {}


class DeadLetter(Struct, forbid_unknown_fields=True):
    """A dead letter that must be kept; its raw bytes must be the record that came in."""

    reason: str
    detail: str | None = None


class Step(Struct, forbid_unknown_fields=True):
    """One step: time passes, something is sent, and exactly this comes out."""

    say: str
    # Time.
    wait: str | None = None
    wait_unseen: str | None = None
    """Time that passes without a look at the timers."""
    until: str | None = None
    restart: bool = False
    # What is sent.
    send: str | None = None
    again: str | None = None
    """The name of an earlier message, sent once more byte for byte, or as new under `id`."""
    id: str | None = None
    """The correlation id."""
    name: str | None = None
    """What `again` calls the message: by default its id."""
    actor: str = "attendant"
    data: dict[str, Any] | None = None
    body: dict[str, Any] = {}
    without: list[str] = []
    clock_off_by: str | None = None
    raw: str | None = None
    raw_hex: str | None = None
    correlation_data: str = ""
    # What must come of it, in order; what is not named must not come.
    echo: list[Echo] = []
    command: list[Message] = []
    emit: list[Message] = []
    ledger: list[dict[str, Any]] = []
    dead_letter: list[DeadLetter] = []
    # What must be true afterwards.
    plan: dict[str, dict[str, Any]] = {}
    station: dict[str, dict[str, Any]] = {}
    asset: dict[str, dict[str, Any]] = {}


class File(Struct, forbid_unknown_fields=True):
    """A story file."""

    title: str
    story: str
    step: list[Step]
    after: str | None = None
    """The story that this one goes on from."""
    start: str | None = None
    setup: dict[str, Any] = {}


class Story(Struct):
    """A story with all that went before it."""

    name: str
    title: str
    start: str | None
    setup: bytes
    before: list[Step]
    """What the stories before it do. They are checked as stories of their own."""
    steps: list[Step]


def names() -> list[str]:
    """Every story file, as its path below this folder without the suffix."""
    files = sorted(FOLDER.glob("**/*.toml"))
    return [str(file.relative_to(FOLDER).with_suffix("")) for file in files]


def load(name: str) -> Story:
    """A story; raises ValueError that names the file and the path where it is not as it must be."""
    files = list(_chain(name))[::-1]
    starts = [file.start for file in files if file.start is not None]
    if len(starts) > 1:
        raise ValueError(f"{name}: only the first story of a chain may say when it starts")
    return Story(
        name=name,
        title=files[-1].title,
        start=starts[0] if starts else None,
        setup=_setup([file.setup for file in files]),
        before=[step for file in files[:-1] for step in file.step],
        steps=files[-1].step,
    )


def has_own_setup(name: str) -> bool:
    """Whether a story plays in another set-up than the packaged one."""
    return any(file.setup for file in _chain(name))


def _chain(name: str) -> Iterator[File]:
    seen: list[str] = []
    following: str | None = name
    while following is not None:
        if following in seen:
            raise ValueError(f"{name}: goes on from itself by way of {' <- '.join(seen)}")
        seen.append(following)
        file = _read(following)
        yield file
        following = file.after


@functools.cache
def _read(name: str) -> File:
    path = FOLDER / f"{name}.toml"
    try:
        return msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), File)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path.name}: {error}") from error


@functools.cache
def _packaged() -> dict[str, Any]:
    document: dict[str, Any] = orjson.loads(compile_setup(load_setup()))
    return document


def _setup(changes: list[dict[str, Any]]) -> bytes:
    document = copy.deepcopy(_packaged())
    for change in changes:
        for table, entries in change.items():
            if table == "limits":
                document["limits"].update(entries)
            else:
                for key, fields in entries.items():
                    _merge(_entry(document, table, key), fields)
    return orjson.dumps(document)


def _entry(document: dict[str, Any], table: str, key: str) -> dict[str, Any]:
    """The market itself, or the template, location, … of any market."""
    id_field = f"{table.removesuffix('s')}_id"
    markets = document["markets"]
    rows = markets if table == "markets" else [r for m in markets for r in m.get(table, ())]
    for row in rows:
        if row.get(id_field) == key:
            found: dict[str, Any] = row
            return found
    raise ValueError(f"setup.{table}.{key}: the packaged set-up has no such entry")


def _merge(into: dict[str, Any], fields: dict[str, Any]) -> None:
    for name, value in fields.items():
        present = into.get(name)
        if isinstance(present, list) and isinstance(value, dict):
            for key, inner in value.items():
                _merge(keyed(present)[key], inner)
        elif isinstance(present, dict) and isinstance(value, dict):
            _merge(present, value)
        else:
            into[name] = value


def keyed(rows: list[Any]) -> dict[str, Any]:
    """Objects in a list by the first of their fields that is an id."""
    return {
        next(str(value) for name, value in row.items() if name.lower().endswith("id")): row
        for row in rows
    }


def duration_ms(text: str) -> int:
    """Milliseconds of a duration such as `3d 12h` or `-30min`. Raises ValueError."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no duration: expected such as 3d 12h or -30min")
    parts = re.findall(r"(\d+)(d|h|min|s|ms)(?![a-z])", match[2])
    total = sum(int(number) * _UNIT_MS[unit] for number, unit in parts)
    return -total if match[1] else total
