"""Stories: signals in, and what the platform answers, orders, books and remembers, as data.

    library = Library([Path("my-stories")])
    for name in library.names:
        assert not Stage(library.load(name)).perform().faults

`tests/scenarios/README.md` of the repository explains the format to people who write stories.
"""

from bss_stream.stories.document import Step
from bss_stream.stories.library import Library, Story
from bss_stream.stories.stage import Stage

__all__ = ["Library", "Stage", "Step", "Story"]
