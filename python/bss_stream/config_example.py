"""Writes the annotated example file out of the configuration's own types and docstrings.

`python -m bss_stream.config_example` prints it; the committed file is that output.
"""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from bss_stream.config import Config
from bss_stream.validation import expected, hints

_HEAD: Final = """\
Every setting of bss-stream with its default: a file needs only what differs.
A setting that stands behind a # is not set by default.

The environment wins over the file: BSS_ and the path in capitals, its parts joined by two
underscores, such as BSS_PARTITIONS=8 or BSS_LOG__KAFKA__BOOTSTRAP_SERVERS=a:9092,b:9092 (a list
with commas). BSS_CONFIG names the file itself. Relative paths start at the working directory,
except where a comment says data_dir.
"""

_WIDTH: Final = 98


def render() -> str:
    """The example file's text."""
    lines = [*_comment(_HEAD), ""]
    lines.extend(_section(Config(), ()))
    return "\n".join(lines).rstrip() + "\n"


def _comment(text: str) -> Iterator[str]:
    for line in text.rstrip().splitlines():
        yield f"# {line}".rstrip()


def _section(section: msgspec.Struct, path: tuple[str, ...]) -> Iterator[str]:
    """Plain settings first: in TOML they would belong to a table that stands above them."""
    kind = type(section)
    docs = docstrings(kind)
    inner = []
    if path:
        yield from _comment(kind.__doc__ or "")
        yield f"[{'.'.join(path)}]"
    for name, to in hints(kind).items():
        value = getattr(section, name)
        if isinstance(value, msgspec.Struct):
            inner.append((name, value))
            continue
        for line in textwrap.wrap(" ".join(_notes(docs.get(name), to)), _WIDTH):
            yield f"# {line}"
        yield f"# {name} = ..." if value is None else f"{name} = {toml(value)}"
    yield ""
    for name, value in inner:
        yield from _section(value, (*path, name))


def _notes(doc: str | None, to: Any) -> Iterator[str]:
    if doc:
        yield " ".join(doc.split())
    wanted = expected(to)
    if wanted:
        yield f"Expected: {wanted}."


def docstrings(kind: type[msgspec.Struct]) -> dict[str, str]:
    """The text under each field in the source: it is written once, for readers of both."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    docs = {}
    for field, after in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
            and isinstance(after.value.value, str)
        ):
            docs[field.target.id] = after.value.value
    return docs


def toml(value: object) -> str:
    """A value as TOML has it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(key)} = {toml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(map(toml, value)) + "]"
    return msgspec.json.encode(value).decode()


if __name__ == "__main__":
    print(render(), end="")
