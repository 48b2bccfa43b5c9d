"""Makes golden records: stories played on a playground, and what each record of them means."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
import orjson

from bss_stream import frames, topics
from bss_stream.setup import compile_setup, load_setup
from bss_stream.sink.entry import LEDGER_NAMES, decode_row
from bss_stream.testing import Playground, Produced

T = TypeVar("T", bound=msgspec.Struct)

FOLDER: Final = Path(__file__).parent

TEXT: Final = "latin-1"
"""Every byte is a character of it."""


_PASSED_ON: Final = frozenset({"payload", "raw", "entry"})


class Step(msgspec.Struct, frozen=True, omit_defaults=True):
    """Something that came in, or time that passed until `now_ms`."""

    now_ms: int
    topic: str = ""
    key: str = ""
    value: str = ""
    ticks: bool = False
    """Whether timers were looked at, at that time."""


class Story(msgspec.Struct, frozen=True):
    """Steps on a playground of their own."""

    name: str
    start_ms: int
    steps: list[Step]


class Golden(msgspec.Struct, frozen=True):
    """One record that the engine made of a story."""

    story: str
    topic: str
    partition: int
    key: str
    value: str
    meaning: dict[str, Any]

    @property
    def produced(self) -> Produced:
        """The record as the engine gave it."""
        return Produced(self.topic, self.partition, self.key.encode(TEXT), self.value.encode(TEXT))


class Recorder(Playground):
    """A playground that notes what it is given."""

    def __init__(self, setup: bytes) -> None:
        super().__init__(setup)
        self.steps: list[Step] = []

    def record(self, topic: str, key: bytes, value: bytes) -> None:
        self.steps.append(Step(self.now_ms, topic, key.decode(TEXT), value.decode(TEXT)))
        super().record(topic, key, value)

    def advance(self, ms: int) -> None:
        super().advance(ms)
        self.steps.append(Step(self.now_ms, ticks=True))


def market_setup(version: Path) -> bytes:
    """The compiled set-up of a version's market, by today's code."""
    return compile_setup(load_setup([version / "markets"]))


def play(story: Story, setup: bytes) -> Playground:
    """What today's engine makes of a story."""
    playground = Playground(setup)
    playground.now_ms = story.start_ms
    for step in story.steps:
        if step.ticks:
            playground.advance(step.now_ms - playground.now_ms)
        else:
            playground.now_ms = step.now_ms
            playground.record(step.topic, step.key.encode(TEXT), step.value.encode(TEXT))
    return playground


def meaning(playground: Playground, record: Produced) -> dict[str, Any]:
    """What today's code reads in a record, without the payload and the like that it passes on."""
    value = record.value
    if record.topic in topics.STATES:
        described = playground.engine.describe_state(record.topic, record.key, value)
        found: dict[str, Any] = orjson.loads(described)
        return found
    if record.topic in topics.LEDGERS:
        read: NamedTuple = decode_row(LEDGER_NAMES[record.topic], value)
    elif record.topic in topics.SIGNALS:
        read = frames.decode_signal(value)
    elif record.topic == topics.OUTBOX:
        read = frames.decode_outbox(value)
    else:
        read = frames.decode_dead_letter(value)
    return {name: said for name, said in read._asdict().items() if name not in _PASSED_ON}


def goldens(story: Story, setup: bytes) -> Iterator[Golden]:
    """A story's records and their meanings, in order."""
    playground = play(story, setup)
    for record in playground.produced:
        yield Golden(
            story.name,
            record.topic,
            record.partition,
            record.key.decode(TEXT),
            record.value.decode(TEXT),
            meaning(playground, record),
        )


class Version(NamedTuple):
    """One folder, read."""

    folder: Path
    manifest: dict[str, Any]
    stories: list[Story]
    records: list[Golden]


def versions() -> list[Path]:
    """Every version's folder, the newest last."""
    return sorted(FOLDER.glob("v*"), key=lambda folder: int(folder.name[1:]))


def read(folder: Path) -> Version:
    """What a folder holds."""
    return Version(
        folder,
        orjson.loads((folder / "manifest.json").read_bytes()),
        _lines(folder / "stories.jsonl", Story),
        _lines(folder / "records.jsonl", Golden),
    )


def _lines(file: Path, kind: type[T]) -> list[T]:
    return [msgspec.json.decode(line, type=kind) for line in file.read_bytes().splitlines()]


def write_lines(file: Path, structs: Iterable[msgspec.Struct]) -> None:
    """One JSON object a line."""
    file.write_bytes(b"".join(msgspec.json.encode(one) + b"\n" for one in structs))
