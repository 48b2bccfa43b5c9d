"""How log lines look: text for people, or one JSON object a line with the ids of what it is about.

Everything logs by the standard library; structlog only renders. What a line tells beside its text
comes from `extra=` where it is logged, and from `about`, which holds for a task and all its calls.
"""

import json
import logging
from collections.abc import MutableMapping
from typing import Any, Final, Literal

import structlog

Format = Literal["text", "json"]
Level = Literal["debug", "info", "warning", "error"]

TEXT: Final = "%(asctime)s %(levelname)s %(name)s %(message)s"


class OneLine(logging.Formatter):
    """A message on one line whatever is in it: what a client sends must not look like a log line
    of its own, or steer a terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        message = record.message
        if not message.isprintable():
            shown = (c if c.isprintable() else ascii(c)[1:-1] for c in message)
            record.message = "".join(shown)
        return super().formatMessage(record)


def about(**ids: str) -> None:
    """What the lines of this task, and of the tasks that it starts, are about."""
    structlog.contextvars.bind_contextvars(**ids)


def set_up(level: Level, format: Format) -> None:
    """Log to standard error, from a level on."""
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine(TEXT) if format == "text" else json_lines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def json_lines() -> logging.Formatter:
    """One JSON object a line: `timestamp`, `level`, `logger`, `event`, ids."""
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.ExtraAdder(),
            structlog.processors.TimeStamper(fmt="iso", utc=True),
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            # The text of a traceback and no more: its frames' variables may hold secrets.
            structlog.processors.format_exc_info,
            _rendered,
        ],
    )


def _rendered(logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
    # What JSON has no form for is told as it shows itself, which a secret does not. All but ASCII
    # is escaped: what a client sends must not steer a terminal.
    return json.dumps(event, default=repr, ensure_ascii=True)
