"""Story files by name: read, joined to what they go on from, with the set-up that they play in."""

import copy
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import orjson
from msgspec import Struct

from bss_stream.errors import ConfigError
from bss_stream.setup import compile_setup, load_setup
from bss_stream.stories.differences import keyed
from bss_stream.stories.document import File, Step
from bss_stream.stories.repeat import each_time


class Story(Struct):
    """A story with all that went before it."""

    name: str
    title: str
    start: str | None
    setup: bytes
    before: list[Step]
    """What the stories before it do. They are checked as stories of their own."""
    steps: list[Step]


class Library:
    """Every story file in some directories, by its path below its directory without the suffix.

    A story may go on from a story in another of the directories.
    """

    def __init__(self, directories: Iterable[Path], setup: bytes | None = None) -> None:
        """`setup` is the compiled set-up that stories change, the packaged one by default.

        Raises ConfigError for a directory without stories, and for a name that two have.
        """
        self._files: dict[str, Path] = {}
        faults = []
        for directory in directories:
            files = sorted(directory.glob("**/*.toml"))
            if not files:
                faults.append(f"{directory}: has no story files, expected *.toml")
            for file in files:
                name = file.relative_to(directory).with_suffix("").as_posix()
                other = self._files.setdefault(name, file)
                if other != file:
                    faults.append(f"{file}: {other} is called {name}, too")
        if faults:
            raise ConfigError(faults)
        self._setup: dict[str, Any] = orjson.loads(setup or compile_setup(load_setup()))
        self._read_before: dict[str, File] = {}

    @property
    def names(self) -> list[str]:
        """Every story, the directories in the order given."""
        return list(self._files)

    def load(self, name: str) -> Story:
        """A story. Raises ConfigError that names the file and what is not as it must be."""
        files = list(self._chain(name))[::-1]
        file = self._files[name]
        starts = [one.start for one in files if one.start is not None]
        if len(starts) > 1:
            raise ConfigError([f"{file}: only the first story of a chain may say when it starts"])
        before = [step for one in files[:-1] for step in one.step]
        steps = files[-1].step
        faults = list(_unsent([*before, *steps]))
        try:
            setup = self._changed([one.setup for one in files])
        except ValueError as error:
            faults.append(str(error))
        if faults:
            raise ConfigError([f"{file}: {fault}" for fault in faults])
        return Story(
            name=name,
            title=files[-1].title,
            start=starts[0] if starts else None,
            setup=setup,
            before=before,
            steps=steps,
        )

    def _chain(self, name: str) -> Iterator[File]:
        """The story's file, then those of the stories before it."""
        seen: list[str] = []
        following: str | None = name
        while following is not None:
            if following in seen:
                way = " <- ".join(seen)
                raise ConfigError([f"{self._files[name]}: goes on from itself by way of {way}"])
            seen.append(following)
            if following not in self._files:
                at = self._files[seen[-2]] if len(seen) > 1 else "stories"
                raise ConfigError([f"{at}: after {following!r}: there is no such story"])
            file = self._read(following)
            yield file
            following = file.after

    def _read(self, name: str) -> File:
        file = self._read_before.get(name)
        if file is None:
            path = self._files[name]
            try:
                text = path.read_text(encoding="utf-8")
                file = msgspec.convert(tomllib.loads(text), File)
            except (ValueError, OSError) as error:
                raise ConfigError([f"{path}: {error}"]) from error
            self._read_before[name] = file
        return file

    def _changed(self, changes: list[dict[str, Any]]) -> bytes:
        """The set-up with the stories' changes. Raises ValueError where there is nothing to."""
        document = copy.deepcopy(self._setup)
        for change in changes:
            for table, entries in change.items():
                if table == "limits":
                    document["limits"].update(entries)
                else:
                    for key, fields in entries.items():
                        _merge(_entry(document, table, key), fields, f"setup.{table}.{key}")
        return orjson.dumps(document)


def _unsent(steps: list[Step]) -> Iterator[str]:
    """What is wrong with steps that send an earlier message again."""
    sent: set[str] = set()
    for step in steps:
        if step.send is not None and step.again is not None:
            yield f"step {step.say!r}: expected either send or again, found both"
        for once in each_time(step):
            if once.again is not None and once.again not in sent:
                yield f"step {step.say!r}: again {once.again!r}: was not sent before"
            name = once.name or once.id
            if name is not None and (once.send is not None or once.again is not None):
                sent.add(name)


def _entry(document: dict[str, Any], table: str, key: str) -> dict[str, Any]:
    """The market itself, or the template, location, … of any market."""
    id_field = f"{table.removesuffix('s')}_id"
    markets = document["markets"]
    rows = markets if table == "markets" else [r for m in markets for r in m.get(table, ())]
    for row in rows:
        if row.get(id_field) == key:
            found: dict[str, Any] = row
            return found
    raise ValueError(f"setup.{table}.{key}: the set-up that stories change has no such entry")


def _merge(into: dict[str, Any], fields: dict[str, Any], path: str) -> None:
    for name, value in fields.items():
        present = into.get(name)
        if isinstance(present, list) and isinstance(value, dict):
            rows = keyed(present)
            for key, inner in value.items():
                if key not in rows:
                    raise ValueError(f"{path}.{name}.{key}: expected one of {', '.join(rows)}")
                _merge(rows[key], inner, f"{path}.{name}.{key}")
        elif isinstance(present, dict) and isinstance(value, dict):
            _merge(present, value, f"{path}.{name}")
        else:
            into[name] = value
