"""The stories of this folder."""

from pathlib import Path

from bss_stream.stories import Library

STORIES = Library([Path(__file__).parent])
