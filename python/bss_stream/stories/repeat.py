"""A step that is taken many times: each time with its own number in its texts."""

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from bss_stream.stories.document import Step

_NUMBER = re.compile(r"\{n([+-]\d+)?\}")


def each_time(step: Step) -> Iterator[Step]:
    """The step as often as it says, `{n}`, `{n+1}`, `{n-1}` and so on replaced by numbers.

    A step that is taken once keeps its texts as they are.
    """
    if step.repeat == 1:
        yield step
        return
    fields = msgspec.to_builtins(step) | {"repeat": 1}
    for n in range(1, step.repeat + 1):
        yield msgspec.convert(_numbered(fields, n), Step)


def _numbered(value: Any, n: int) -> Any:
    if isinstance(value, str):
        return _NUMBER.sub(lambda match: str(n + int(match[1] or 0)), value)
    if isinstance(value, dict):
        return {_numbered(name, n): _numbered(inner, n) for name, inner in value.items()}
    if isinstance(value, list):
        return [_numbered(inner, n) for inner in value]
    return value
