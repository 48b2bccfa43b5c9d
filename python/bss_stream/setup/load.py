"""Reads market folders and models from disk, and refuses them with every fault named."""

import importlib.resources
import json
from collections.abc import Iterator, Sequence
from importlib.resources.abc import Traversable
from typing import Any

import orjson

from bss_stream.setup import check
from bss_stream.setup.documents import ENTITY_TYPES, Document
from bss_stream.setup.market import Market, Model, Setup, Source
from bss_stream.validation import Faults, convert, show

FILE_BYTES_MAX = 4 * 1024 * 1024
"""A larger file is a mistake; the largest real one, a market's stations, has tens of KiB."""

MODEL_PREFIX = "bss-fsm-"

PLAN_KIND = "plan"
"""What a model describes if it does not say; templates name models of this kind."""

SINGLE_KINDS = ("asset", "session")
"""What one model each describes for all plans."""


def packaged_markets() -> Traversable:
    """The directory of market folders that comes with the package."""
    return importlib.resources.files("bss_stream") / "setup_data"


def packaged_models() -> Traversable:
    """The directory of models that comes with the package."""
    return importlib.resources.files("bss_stream") / "models"


def load_setup(directories: Sequence[Traversable] = (), models: Traversable | None = None) -> Setup:
    """Every market below `directories` and every model in `models`, by default the packaged ones.

    Raises ConfigError with all faults of all files.
    """
    faults = Faults()
    found_models = _load_models(packaged_models() if models is None else models, faults)
    markets = [
        market
        for directory in directories or (packaged_markets(),)
        for market in _load_markets(directory, faults)
    ]
    plan_models = {model.model_id for model in found_models if model.kind == PLAN_KIND}
    check.check(markets, plan_models, faults)
    faults.raise_if_any()
    return Setup(models=tuple(found_models), markets=tuple(markets))


def _load_models(directory: Traversable, faults: Faults) -> list[Model]:
    models: dict[str, Model] = {}
    if not directory.is_dir():
        faults.add(str(directory), "", "is no directory, expected one with models")
        return []
    for file in _entries(directory):
        if not (file.name.startswith(MODEL_PREFIX) and file.name.endswith(".json")):
            continue
        raw = _read(file, faults)
        document = None if raw is None else _parse(raw, str(file), faults)
        if raw is None or document is None:
            continue
        model_id = document.get("model")
        if not isinstance(model_id, str):
            faults.add(str(file), "$.model", f"{show(model_id)}: expected the model's id")
        elif model_id in models:
            faults.add(str(file), "$.model", f"{show(model_id)}: a model of this id exists already")
        else:
            kind = str(document.get("kind", PLAN_KIND))
            models[model_id] = Model(model_id=model_id, kind=kind, raw=raw)
    for kind in SINGLE_KINDS:
        count = sum(model.kind == kind for model in models.values())
        if count != 1:
            what = f"{count} models of kind {kind}: expected exactly one"
            faults.add(str(directory), "", what)
    return list(models.values())


def _load_markets(directory: Traversable, faults: Faults) -> Iterator[Market]:
    if not directory.is_dir():
        faults.add(str(directory), "", "is no directory, expected one of market folders")
        return
    folders = 0
    for entry in _entries(directory):
        if entry.is_dir():
            folders += 1
            yield Market(folder=entry.name, place=str(entry), sources=_load_folder(entry, faults))
        else:
            faults.add(str(entry), "", "expected market folders here, and files inside of them")
    if not folders:
        faults.add(str(directory), "", "holds no market folder, expected at least one")


def _load_folder(folder: Traversable, faults: Faults) -> tuple[Source, ...]:
    sources = []
    for entry in _entries(folder):
        if entry.is_dir() or not entry.name.endswith(".json"):
            faults.add(str(entry), "", "expected only .json files in a market folder")
            continue
        raw = _read(entry, faults)
        data = None if raw is None else _parse(raw, str(entry), faults)
        if data is not None:
            sources.append(_source(entry, data, faults))
    return tuple(sources)


def _entries(directory: Traversable) -> list[Traversable]:
    """What a directory holds, sorted; hidden files and README.md are passed over."""
    passed_over = ("README.md", "__pycache__")
    entries = (e for e in directory.iterdir() if not e.name.startswith("."))
    return sorted((e for e in entries if e.name not in passed_over), key=lambda e: e.name)


def _read(file: Traversable, faults: Faults) -> bytes | None:
    try:
        with file.open("rb") as stream:
            raw: bytes = stream.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        faults.add(str(file), "", f"cannot be read: {error.strerror}")
        return None
    if len(raw) > FILE_BYTES_MAX:
        faults.add(str(file), "", f"is larger than {FILE_BYTES_MAX} bytes")
        return None
    return raw


def _parse(raw: bytes, file: str, faults: Faults) -> dict[str, Any] | None:
    """The JSON object in `raw`. A key that stands twice is a fault: one of them would be lost."""
    twice: list[str] = []

    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        built = dict(pairs)
        if len(built) < len(pairs):
            keys = [key for key, _ in pairs]
            twice.extend(sorted(key for key in built if keys.count(key) > 1))
        return built

    try:
        # orjson is the stricter of the two (no NaN, no lone surrogate) and json sees double keys.
        orjson.loads(raw)
        data = json.loads(raw, object_pairs_hook=build)
    except (ValueError, RecursionError) as error:
        faults.add(file, "", f"is no JSON: {error}")
        return None
    for key in twice:
        faults.add(file, "", f"{show(key)} stands twice in one object")
    if not isinstance(data, dict):
        faults.add(file, "$", f"{show(data)}: expected an object")
        return None
    return data


def _source(entry: Traversable, data: dict[str, Any], faults: Faults) -> Source:
    entity_type = data.get("entity_type")
    kind = ENTITY_TYPES.get(entity_type) if isinstance(entity_type, str) else None
    document: Document | None = None
    if kind is None:
        known = ", ".join(ENTITY_TYPES)
        faults.add(str(entry), "$.entity_type", f"{show(entity_type)}: expected one of {known}")
    else:
        document = convert(data, kind, faults, str(entry))
    if document is not None:
        _check_name(entry, document, faults)
    return Source(file=str(entry), kind=kind, data=data, document=document)


def _check_name(entry: Traversable, document: Document, faults: Faults) -> None:
    stem = f"bss-{document.market}-{document.entity_type}-{document.entity_name}"
    right = [f"{stem}-{document.version}.json"]
    if document.version == "v1":
        right.append(f"{stem}.json")
    if entry.name not in right:
        faults.add(
            str(entry),
            "$.entity_name",
            f"the file name does not match its content: expected {' or '.join(right)}",
        )
