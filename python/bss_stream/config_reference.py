"""Writes the configuration's page out of the configuration's own types and docstrings.

`python -m bss_stream.config_reference` prints docs/configuration.md, which is that output.
"""

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from bss_stream.config import Config
from bss_stream.config_example import docstrings, toml
from bss_stream.config_source import variable
from bss_stream.validation import expected, hints

_HEAD: Final = """\
# Configuration

Every setting has a default; the defaults are the mode without servers. A TOML file names what
differs (`--config FILE`, or the variable `BSS_CONFIG`), and the environment wins over the file:
`BSS_` and the setting's path in capitals, its parts joined by two underscores. A list is written
with commas, a table as JSON, and nothing at all unsets what may be unset. A variable with the
prefix that is no setting is a fault.

`bss-stream config check --config FILE` names every fault at once. Settings do not change while
the program runs; markets and models are read again on SIGHUP. Relative paths start at the working
directory, except where it says data_dir. The same as a file to copy from:
[bss-stream.example.toml](../bss-stream.example.toml).
"""


def render() -> str:
    """The page's text."""
    return "\n".join([_HEAD, *_section(Config(), ())]).rstrip() + "\n"


def _section(section: msgspec.Struct, path: tuple[str, ...]) -> Iterator[str]:
    kind = type(section)
    docs = docstrings(kind)
    plain, inner = [], []
    for name, to in hints(kind).items():
        value = getattr(section, name)
        if isinstance(value, msgspec.Struct):
            inner.append((name, value))
        else:
            plain.append(_row(path, name, to, value, docs.get(name, "")))
    if plain:
        yield f"## [{'.'.join(path)}]" if path else "## The file's first lines"
        yield ""
        about, first = " ".join((kind.__doc__ or "").split()), variable((*path, plain[0][0]))
        yield f"{about} As a variable, the first is `{first}`."
        yield ""
        yield "| setting | default | expected | |"
        yield "|---|---|---|---|"
        yield from (row for _, row in plain)
        yield ""
    for name, value in inner:
        yield from _section(value, (*path, name))


def _row(path: tuple[str, ...], name: str, to: Any, value: object, doc: str) -> tuple[str, str]:
    default = "not set" if value is None else f"`{toml(value)}`"
    cells = (f"`{name}`", default, expected(to) or "", " ".join(doc.split()))
    return name, "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    print(render(), end="")
