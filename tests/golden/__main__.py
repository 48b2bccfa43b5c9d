"""Writes the golden files of today's formats: `python -m tests.golden`. README.md says when."""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
import orjson

from bss_stream import __version__, topics
from bss_stream.errors import ConfigError
from bss_stream.frames import (
    VERSION,
    decode_dead_letter,
    decode_outbox,
    decode_signal,
    encode_signal,
)
from bss_stream.log.sqlite_file import FILE, LAYOUT
from bss_stream.setup.load import packaged_markets
from bss_stream.sink.entry import ENTRY_VERSION
from bss_stream.sink.sqlite import MIGRATIONS
from bss_stream.stories import Library, Stage
from bss_stream.testing import Produced
from tests.golden import files
from tests.golden.records import (
    FOLDER,
    TEXT,
    Golden,
    Recorder,
    Step,
    Story,
    goldens,
    market_setup,
    read,
    versions,
    write_lines,
)

MARKET: Final = "Kenya_Nairobi"
SCENARIOS: Final = FOLDER.parent / "scenarios"
STORIES_MAX: Final = 24
SWAP: Final = "self_service/swap_w1_to_w5"
TRACE: Final = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def main() -> int:
    """Write a folder; tells which."""
    folders = versions()
    if folders and read(folders[-1]).manifest["program"] == __version__:
        folder = folders[-1]
        shutil.rmtree(folder)
    else:
        folder = FOLDER / f"v{len(folders) + 1}"
    folder.mkdir()
    shutil.copytree(str(packaged_markets() / MARKET), folder / "markets" / MARKET)
    setup = market_setup(folder)
    library = Library([SCENARIOS], setup)
    stories = [*_chosen(library, setup), _traced(library, setup)]
    records = [golden for told in stories for golden in goldens(told, setup)]
    write_lines(folder / "stories.jsonl", stories)
    write_lines(folder / "records.jsonl", records)
    with tempfile.TemporaryDirectory() as scratch:
        files.write_log(Path(scratch), _first_story(records))
        shutil.copy(Path(scratch) / FILE, folder / files.LOG)
    files.write_ledgers(folder / files.LEDGERS, _first_story(records))
    manifest = {
        "program": __version__,
        "states": {topic: _version_of(topic, records) for topic in topics.STATES},
        "frame": int(VERSION),
        "ledger entry": ENTRY_VERSION,
        "embedded log": LAYOUT,
        "ledger database": len(MIGRATIONS),
    }
    (folder / "manifest.json").write_bytes(orjson.dumps(manifest, option=orjson.OPT_INDENT_2))
    print(f"{folder}: {len(stories)} stories, {len(records)} records")
    return 0


def _version_of(topic: str, records: list[Golden]) -> int:
    """The highest first byte of a state."""
    return max(golden.produced.value[0] for golden in records if golden.topic == topic)


def _first_story(records: list[Golden]) -> list[Produced]:
    """What the databases hold: stories share their plans' names."""
    return [golden.produced for golden in records if golden.story == records[0].story]


def _traced(library: Library, setup: bytes) -> Story:
    """A swap that has been asked for under a trace, and is not over."""
    recorded = _recorded(library, SWAP, setup)
    assert recorded is not None, "the scenario of a swap plays in the market of the golden files"
    steps: list[Step] = []
    for step in recorded[0].steps:
        signal = decode_signal(step.value.encode(TEXT)) if step.value else None
        if signal is not None:
            value = encode_signal(signal._replace(trace=TRACE)).decode(TEXT)
            step = msgspec.structs.replace(step, value=value)
        steps.append(step)
        if signal is not None and signal.event == "customer_binding":
            break
    return Story(f"{SWAP}, traced", recorded[0].start_ms, steps)


def _chosen(library: Library, setup: bytes) -> list[Story]:
    """The scenarios that show the most, until there is nothing new to see."""
    played = [recorded for name in library.names if (recorded := _recorded(library, name, setup))]
    chosen: list[Story] = []
    seen: set[tuple[str, ...]] = set()
    while played and len(chosen) < STORIES_MAX:
        played.sort(key=lambda one: len(one[1] - seen), reverse=True)
        first, shows = played.pop(0)
        if not shows - seen:
            break
        seen |= shows
        chosen.append(first)
    return chosen


def _recorded(
    library: Library, name: str, setup: bytes
) -> tuple[Story, set[tuple[str, ...]]] | None:
    """A scenario's story and the kinds of records in it; None if it needs another set-up."""
    try:
        told = library.load(name)
        stage = Stage(told)
    except ConfigError:
        return None
    recorder = Recorder(setup)
    start_ms = recorder.now_ms = stage.play.now_ms
    stage.play = recorder
    if orjson.loads(told.setup) != orjson.loads(setup) or stage.perform().faults:
        return None
    return Story(name, start_ms, recorder.steps), set(_kinds(recorder.produced))


def _kinds(records: list[Produced]) -> Iterator[tuple[str, ...]]:
    for topic, _, _, value in records:
        if topic in topics.LEDGERS:
            yield topic, orjson.loads(value)["kind"]
        elif topic in topics.SIGNALS:
            yield topic, decode_signal(value).event
        elif topic == topics.OUTBOX:
            message = decode_outbox(value)
            yield topic, message.kind, message.topic.rsplit("/", 1)[-1]
        elif topic == topics.DEAD_LETTER:
            yield topic, decode_dead_letter(value).reason
        else:
            yield (topic,)


if __name__ == "__main__":
    sys.exit(main())
