"""Writes the seeds of the Rust fuzzer out of the stories: `python -m tests.fuzz_corpus`.

Each folder of rust/engine/corpus belongs to one target of rust/engine/tests/fuzz.rs. The files
named `seed-*` come from here and may be written anew whenever a format changes; all others are
cases that were found, and stay.
"""

from collections import Counter, defaultdict
from pathlib import Path
from typing import Final

from bss_stream import _engine, topics
from bss_stream.frames import decode_signal
from bss_stream.stories import Stage
from bss_stream.testing import Consumed
from tests.golden.records import read, versions
from tests.scenarios import STORIES

CORPUS: Final = Path(__file__).parents[1] / "rust" / "engine" / "corpus"
STATES_MAX: Final = 8
"""Of each kind: the smallest, the largest, and some between."""
KINDS: Final = ("plan", "station", "asset")


def main() -> None:
    """Write every seed."""
    for seed in CORPUS.glob("*/seed-*"):
        seed.unlink()
    plays = {name: Stage(STORIES.load(name)).perform().play for name in STORIES.names}
    # Stories may change the set-up; most leave it as it is.
    [(setup, _)] = Counter(play.setup for play in plays.values()).most_common(1)
    CORPUS.mkdir(exist_ok=True)
    (CORPUS / "setup.json").write_bytes(setup)
    frames: dict[str, bytes] = {}
    states: dict[str, set[bytes]] = defaultdict(set)
    for name, play in plays.items():
        if play.setup != setup or name.startswith("bad_input"):
            continue
        for record in play.consumed:
            frames.setdefault(decode_signal(record.value).event, record.value)
        for kind, topic in zip(KINDS, topics.STATES, strict=True):
            states[kind].update(r.value for r in play.produced if r.topic == topic)
            inputs = [r for r in play.consumed if r.topic == topics.SIGNALS[KINDS.index(kind)]]
            if name.endswith(("swap_w1_to_w5", "swap_and_suspension", "settled")):
                _write(f"engine_{kind}", name.replace("/", "-"), _chunk(inputs))
    for event, frame in frames.items():
        _write("frame", event, frame)
        _write("request", event, decode_signal(frame).payload)
    for traced in read(versions()[-1]).records:
        value = traced.produced.value
        if traced.topic == topics.SIGNALS_STATION and value.startswith(b"2"):
            _write("frame", "traced", value)
        elif traced.topic == topics.STATE_PLAN and value[0] == 2:
            _write("plan", "traced", value)
    for kind, found in states.items():
        for number, state in enumerate(_spread(sorted(found, key=lambda s: (len(s), s)))):
            _write(kind, f"{number:02}", state)
    _write("chunk", "signals", _engine.pack([(b"p", frame) for frame in frames.values()]))
    _write("chunk", "tombstone", _engine.pack([(b"plan-1", None), (b"", b""), (b"k", b"v")]))


def _spread(found: list[bytes]) -> list[bytes]:
    step = max(1, (len(found) - 1) // (STATES_MAX - 1))
    return found[::step][: STATES_MAX - 1] + found[-1:]


def _chunk(records: list[Consumed]) -> bytes:
    return _engine.pack([(record.key, record.value) for record in records])


def _write(target: str, name: str, data: bytes) -> None:
    if data:
        folder = CORPUS / target
        folder.mkdir(exist_ok=True)
        (folder / f"seed-{name}").write_bytes(data)


if __name__ == "__main__":
    main()
