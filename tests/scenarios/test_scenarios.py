"""Every story file in this folder, played: a new file is a new test, no code needed."""

import pytest

from bss_stream.stories import Stage
from tests.scenarios import STORIES


@pytest.mark.parametrize("name", STORIES.names)
def test_the_story_goes_as_it_is_told(name: str) -> None:
    told = STORIES.load(name)
    stage = Stage(told).perform()
    assert not stage.faults, "\n".join([f"{told.title!r}", *stage.faults])
    report = stage.play.audit()
    assert report.ok, report.differences

    again = Stage(told, restarts=True).perform()
    assert not again.faults, "\n".join(["With a restart after every step:", *again.faults])
    assert again.play.produced == stage.play.produced


def test_there_are_stories() -> None:
    assert len(STORIES.names) > 30
