"""Where what was found is not what a story expects."""

import json
from typing import Any

_MISSING = object()


class Differences:
    """Lines that say where what was found is not what was expected."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, path: str, expected: object, found: object) -> None:
        self.lines.append(f"    {path}: expected {_text(expected)}, found {_text(found)}")

    def list(self, path: str, expected: list[Any], found: list[Any]) -> None:
        """Lists have to be as long as expected, and alike place by place."""
        if len(expected) != len(found):
            self.add(path, f"{len(expected)} in all", f"{len(found)}")
        for at, (one, other) in enumerate(zip(expected, found, strict=False)):
            self.compare(f"{path}[{at}]", one, other)

    def compare(self, path: str, expected: Any, found: Any) -> None:
        """Of objects, the fields that are named; of a list of objects, those with the ids named."""
        if isinstance(expected, dict) and isinstance(found, list):
            found = keyed(found)
        if isinstance(expected, dict) and isinstance(found, dict):
            for name, value in expected.items():
                inner = found.get(name, _MISSING)
                if inner is _MISSING:
                    if value != "absent":
                        self.add(f"{path}.{name}", value, "nothing")
                elif value == "null":
                    if inner is not None:
                        self.add(f"{path}.{name}", None, inner)
                else:
                    self.compare(f"{path}.{name}", value, inner)
        elif isinstance(expected, list) and isinstance(found, list):
            self.list(path, expected, found)
        elif expected != found or isinstance(expected, bool) != isinstance(found, bool):
            self.add(path, expected, found)


def keyed(rows: list[Any]) -> dict[str, Any]:
    """Objects in a list by the first of their fields that is an id."""
    return {
        next(str(value) for name, value in row.items() if name.lower().endswith("id")): row
        for row in rows
    }


def _text(value: object) -> str:
    return repr(value) if isinstance(value, bytes) else json.dumps(value, ensure_ascii=False)
