"""Dead letters told apart, and the commands that show and replay them."""

import asyncio
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import typer

from bss_stream import topic_table, topics
from bss_stream.cli.dead_letters import moment_ms
from bss_stream.clock import epoch_ms
from bss_stream.dead_letters import Filter, Letter, ReplayDesk, Rules, Standing
from bss_stream.dead_letters.letters import correlation_id
from bss_stream.dead_letters.replay import judge
from bss_stream.frames import decode_signal
from bss_stream.log.embedded import EmbeddedLog
from bss_stream.setup import compile_setup, load_setup
from bss_stream.setup.compile import Limits
from bss_stream.stories import Stage
from bss_stream.testing import Playground
from tests.logs import chunk
from tests.scenarios import STORIES
from tests.unit.test_cli import cli

RULES = Rules(
    table=topic_table.load(),
    now_ms=0,
    age_ms_max=Limits().skew_past_ms,
    dedupe_window_ms=Limits().dedupe_window_ms,
)


def letters_of(play: Playground) -> list[Letter]:
    """A playground's dead letters as they would stand in a log."""
    found = []
    for offset, body in enumerate(play.dead_letters):
        try:
            signal = decode_signal(body.raw)
        except ValueError:
            signal = None
        key = next(
            one.key
            for one in play.consumed
            if (one.topic, one.partition, one.offset)
            == (body.source_topic, body.partition, body.offset)
        )
        found.append(
            Letter(
                partition=0,
                offset=offset,
                key=key,
                body=body,
                signal=signal,
                correlation_id="" if signal is None else correlation_id(signal),
                raw_bytes=len(body.raw),
            )
        )
    return found


def test_what_can_be_replayed_has_left_nothing_in_the_ledgers() -> None:
    """Over all stories; and what has, like a battery that contradicts the records, cannot be."""
    recorded = kept = 0
    for name in STORIES.names:
        play = Stage(STORIES.load(name)).perform().play
        sources = {entry["source"] for entry in play.entries()}
        for letter in letters_of(play):
            body = letter.body
            has_entries = f"{body.source_topic}/{body.partition}/{body.offset}" in sources
            verdict = judge(letter, RULES, play.partitions)
            if has_entries:
                assert verdict.standing is Standing.RECORDED, (name, letter)
            recorded += has_entries
            kept += verdict.standing is Standing.KEPT
    assert recorded >= 1
    assert kept >= 10


@pytest.mark.parametrize(
    ("text", "expected_ms"),
    [
        ("2026-11-24T10:00:00Z", 1_795_514_400_000),
        ("2026-11-24T13:00:00.5+03:00", 1_795_514_400_500),
        ("90m", 1_795_514_400_000 - 90 * 60_000),
        ("7d", 1_795_514_400_000 - 7 * 86_400_000),
    ],
)
def test_moments(text: str, expected_ms: int) -> None:
    assert moment_ms(text, datetime(2026, 11, 24, 10, tzinfo=UTC)) == expected_ms


@pytest.mark.parametrize("text", ["", "yesterday", "2026-11-24T10:00:00", "5", "-5m", "9999999d"])
def test_moments_that_are_none(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="expected a time"):
        moment_ms(text, datetime(2026, 11, 24, 10, tzinfo=UTC))


def test_a_filter_that_says_nothing() -> None:
    assert Filter().says_nothing
    assert not Filter(reasons=frozenset(("bad_key",))).says_nothing


PAYMENT = b"""{"timestamp": "%s", "plan_id": "p-1", "correlation_id": "c-1", "data": {}}"""


async def written(directory: Path) -> None:
    """A log with what an engine makes of a payment for an unknown plan, a minute ago."""
    play = Playground(compile_setup(load_setup()))
    play.now_ms = time.time_ns() // 1_000_000 - 60_000
    stamp = datetime.now(UTC).isoformat(timespec="seconds").encode()
    topic = "emit/abs/bss/payment/p-1/service_payment"
    play.mqtt(topic, PAYMENT % stamp)
    play.mqtt(topic, b"\x1b[31m no JSON")
    log = EmbeddedLog(directory, partitions=play.partitions)
    await log.open()
    appender = await log.appender()
    for one in play.consumed:
        await appender.append([chunk(one.topic, one.partition, (one.key, one.value))])
    for made in play.produced:
        await appender.append([chunk(made.topic, made.partition, (made.key, made.value))])
    await appender.close()
    await log.close()


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


async def test_the_commands(tmp_path: Path) -> None:
    directory = tmp_path / "bss-data" / "log"
    await written(directory)

    def run(*arguments: str) -> tuple[int, str]:
        done = cli("dead-letters", *arguments, cwd=tmp_path)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout

    code, text = run("list", "--json")
    first, second = json_lines(text)
    assert code == 0
    assert (first["reason"], first["standing"], first["entity"]) == ("unknown_plan", "kept", "p-1")
    assert second["reason"] == "malformed_json"
    assert second["standing"] == "nameless"
    assert "2 of 2 dead letters: " in run("list")[1]
    assert json_lines(run("list", "--json", "--reason", "bad_key", "--since", "1h")[1]) == []

    # What would move the terminal is shown in hexadecimal.
    shown = json_lines(run("show", first["id"], "--json")[1])[0]
    assert shown["raw_text"].startswith("1\tservice_payment\t")
    assert "raw_hex" in json_lines(run("show", second["id"], "--json")[1])[0]
    assert "\x1b" not in run("show", second["id"])[1]
    assert run("show", "0-999")[0] == 1

    assert run("replay", "--yes")[0] == 2
    assert "1 would be replayed" in run("replay", "--entity", "p-1")[1]
    assert run("replay", second["id"], "--yes")[0] == 1
    code, text = run("replay", first["id"], "--yes", "--note", "synced", "--json")
    assert (code, json_lines(text)[0]["standing"]) == (0, "replayed")
    assert run("replay", first["id"], "--yes")[0] == 1
    (trail,) = json_lines(run("list", "--json", "--reason", "replayed")[1])
    assert trail["detail"].endswith(": synced")
    assert trail["source_topic"] == topics.DEAD_LETTER


async def test_the_log_has_one_owner(tmp_path: Path) -> None:
    directory = tmp_path / "bss-data" / "log"
    await written(directory)
    log = EmbeddedLog(directory, partitions=4)
    await log.open()
    try:
        listed = cli("dead-letters", "list", cwd=tmp_path)
        replayed = cli("dead-letters", "replay", "--entity", "p-1", "--yes", cwd=tmp_path)
    finally:
        await log.close()
    assert (listed.returncode, replayed.returncode) == (0, 1)
    assert "took no replay by" in replayed.stderr


async def test_who_has_the_log_replays_for_others(tmp_path: Path) -> None:
    directory = tmp_path / "bss-data" / "log"
    await written(directory)
    listed = cli("dead-letters", "list", "--reason", "unknown_plan", "--json", cwd=tmp_path)
    (first,) = (one["id"] for one in json_lines(listed.stdout))
    log = EmbeddedLog(directory, partitions=4)
    await log.open()
    desk = ReplayDesk(log, directory, "bss-replay", epoch_ms)
    (directory / "replay.sock").touch()  # As a process that died leaves it.
    await desk.open()
    try:
        assert (directory / "replay.sock").stat().st_mode & 0o777 == 0o600
        command = ("dead-letters", "replay", first, "--yes", "--json")
        done = await asyncio.to_thread(cli, *command, cwd=tmp_path)
        again = await asyncio.to_thread(cli, *command, cwd=tmp_path)
    finally:
        await desk.close()
        await log.close()
    assert json_lines(done.stdout)[0]["standing"] == "replayed", done.stderr
    assert (done.returncode, again.returncode) == (0, 1)
    assert json_lines(again.stdout)[0]["why"] == "it has been replayed 1 times"
    assert not (directory / "replay.sock").exists()


def test_no_log_no_letters(tmp_path: Path) -> None:
    for arguments in (("list",), ("replay", "--entity", "p-1", "--yes")):
        assert cli("dead-letters", *arguments, cwd=tmp_path).returncode == 1
    assert not (tmp_path / "bss-data").exists()
