"""Log lines in JSON: one object a line, with the ids of what it is about."""

import asyncio
import io
import logging
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from bss_stream import logs


@pytest.fixture
def lines() -> Iterator[tuple[logging.Logger, io.StringIO]]:
    """A logger that writes JSON lines."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(logs.json_lines())
    logger = logging.getLogger("tests.logs")
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.INFO)
    yield logger, text
    logger.removeHandler(handler)


def read(text: io.StringIO) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in text.getvalue().splitlines()]


async def test_a_line_says_whose_it_is_and_what_it_is_about(
    lines: tuple[logging.Logger, io.StringIO],
) -> None:
    logger, text = lines

    async def role(name: str) -> None:
        logs.about(role=name, instance="7")
        logger.info("shard %d is %s", 3, "restored", extra={"shard": 3})

    await asyncio.gather(
        *(asyncio.create_task(role(name)) for name in ("bridge", "sink")), return_exceptions=False
    )
    logger.warning("of no role")
    *of_roles, last = read(text)
    assert [(one["role"], one["instance"]) for one in of_roles] == [("bridge", "7"), ("sink", "7")]
    for one in of_roles:
        assert (one["event"], one["shard"]) == ("shard 3 is restored", 3)
        assert (one["level"], one["logger"]) == ("info", "tests.logs")
        assert one["timestamp"].endswith("Z")
    assert last.keys() == {"event", "level", "logger", "timestamp"}


def test_whatever_is_logged_is_one_line(lines: tuple[logging.Logger, io.StringIO]) -> None:
    logger, text = lines
    hostile = 'a\nb\r\x1b[31m\u2028\x9b1m"}{'
    logger.info("topic %s", hostile, extra={"key": b"\xff", "topic": hostile})
    try:
        secret = "not to be seen"
        raise ValueError(len(secret))
    except ValueError:
        logger.exception("failed")
    first, second = text.getvalue().split("\n")[:2]
    assert orjson.loads(first)["event"] == f"topic {hostile}"
    assert first.isascii() and first.isprintable()
    assert "ValueError: 14" in orjson.loads(second)["exception"]
    # Neither a variable of the frame nor what stands in no line of the source.
    assert '"secret"' not in second and "locals" not in second


@pytest.mark.parametrize("format", ["text", "json"])
def test_the_level_counts_and_the_format_is_taken(
    format: logs.Format, capsys: pytest.CaptureFixture[str]
) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        logs.set_up("error", format)
        logging.getLogger("tests.level").warning("quiet")
        logging.getLogger("tests.level").error("loud")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    (line,) = capsys.readouterr().err.splitlines()
    assert "loud" in line and line.startswith("{") == (format == "json")
