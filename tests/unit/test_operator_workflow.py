"""docs/operator-workflow.md is held to what there is: stories, rules, topics."""

import re
from pathlib import Path
from typing import Final

from bss_stream import topic_table
from bss_stream.queries.wire import FILTERS
from tests.scenarios import STORIES

ROOT: Final = Path(__file__).parents[2]
TEXT: Final = (ROOT / "docs" / "operator-workflow.md").read_text(encoding="utf-8")
RULES: Final = {".rs": ROOT / "rust/engine/src/swap", ".py": ROOT / "python/bss_stream/reports"}
FUNCTIONS: Final = {
    cells[0]: cells[1:]
    for line in TEXT.splitlines()
    if (cells := [cell.strip() for cell in line.strip("|").split("|")])
    and re.fullmatch(r"(OP|AM)\d", cells[0])
}


def test_every_function_has_its_row() -> None:
    assert list(FUNCTIONS) == [f"{who}{n}" for who in ("OP", "AM") for n in range(1, 7)]
    assert all(len(cells) == 6 and all(cells) for cells in FUNCTIONS.values())


def test_every_story_is_there() -> None:
    for cells in FUNCTIONS.values():
        named = re.findall(r"`(\w+/\w+)`", cells[5])
        assert named
        assert set(named) <= set(STORIES.names)


def test_every_rule_is_there() -> None:
    for cells in FUNCTIONS.values():
        source = ""
        for name in re.findall(r"`([\w.]+)`", cells[4]):
            if (folder := RULES.get(name[-3:])) is not None:
                source = (folder / name).read_text(encoding="utf-8")
            else:
                assert re.search(rf"\b(fn|def) {name}\(", source), (name, cells[4])
        assert source


def test_every_topic_is_there() -> None:
    table = topic_table.load()
    known = {*table.filters, *FILTERS, *(re.sub(r"\{\w+\}", "+", one.topic) for one in table.sent)}
    named = {re.sub(r"\{\w+\}", "+", one) for one in re.findall(r"`(emit/[\w/{}]+)`", TEXT)}
    assert len(named) == 11
    assert named <= known
    # And nothing of the operator's is left out.
    assert {one for one in known if "/operator/" in one or "/manager/" in one} <= named
