"""`bss-stream dead-letters`: list, show, replay."""

import re
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

import orjson
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bss_stream import dead_letters
from bss_stream.cli import running
from bss_stream.cli.options import ConfigPath
from bss_stream.clock import epoch_ms
from bss_stream.config import Config
from bss_stream.dead_letters import Filter, Judgement, Listing, Order, Rules, Standing, Verdict
from bss_stream.dead_letters.letters import printable
from bss_stream.roles import readable_log, replay_letters

LIST_MAX: Final = 10_000
DETAIL_SHOWN_MAX: Final = 80
FAULTS: Final = 1

_SPAN: Final = re.compile(r"([0-9]{1,6})([smhd])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_ID: Final = re.compile(r"([0-9]{1,9})-([0-9]{1,18})")

app = typer.Typer(help="What could not be processed: read it, replay it.", no_args_is_help=True)
out = Console(soft_wrap=True)

Reasons = Annotated[
    list[str] | None, typer.Option("--reason", help="Only this reason; may be repeated.")
]
Since = Annotated[
    str | None, typer.Option(help="From then on: 2026-11-24T10:00:00Z, or 90m, 24h, 7d ago.")
]
Until = Annotated[str | None, typer.Option(help="Before then, said as for --since.")]
Entity = Annotated[str | None, typer.Option(help="Only of this plan, station or battery.")]
Topic = Annotated[
    str | None, typer.Option(help="Only what came by a topic, of MQTT or the log, that begins so.")
]
Limit = Annotated[int, typer.Option(help="So many at most.", min=1, max=LIST_MAX)]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]


@app.command("list")
def list_command(
    config: ConfigPath = None,
    reason: Reasons = None,
    since: Since = None,
    until: Until = None,
    entity: Entity = None,
    topic: Topic = None,
    limit: Limit = 100,
    as_json: AsJson = False,
) -> None:
    """The newest dead letters, with what each says of itself; works while the platform runs.

    `show` and `replay` also look at what has come since.
    """
    loaded = Config.load(config)
    wanted = _filter((), reason, since, until, entity, topic)
    listing = running.run(_list(loaded, wanted, limit))
    if as_json:
        _print_json(map(_described, listing.verdicts))
        return
    if listing.verdicts:
        out.print(_table(listing.verdicts))
    counted = ", ".join(f"{count} {name}" for name, count in listing.reasons.most_common())
    total = listing.reasons.total()
    out.print(Text(f"{len(listing.verdicts)} of {total} dead letters{': ' * bool(total)}{counted}"))


async def _list(config: Config, wanted: Filter, limit: int) -> Listing:
    async with readable_log(config) as log:
        return await dead_letters.newest(log, wanted, Rules.present(epoch_ms()), limit)


@app.command()
def show(
    letter: Annotated[str, typer.Argument(help="Its id, as `list` gives it.")],
    config: ConfigPath = None,
    as_hex: Annotated[bool, typer.Option("--hex", help="The bytes in hexadecimal.")] = False,
    as_json: AsJson = False,
) -> None:
    """One dead letter with its raw bytes, and whether it can be replayed."""
    loaded = Config.load(config)
    wanted = Filter(places=frozenset((_place(letter),)))
    found, raw = running.run(_show(loaded, wanted))
    if found is None:
        out.print(f"there is no dead letter {letter}", style="red", markup=False, highlight=False)
        raise typer.Exit(FAULTS)
    described = {**_described(found), **_raw(raw, as_hex)}
    if as_json:
        _print_json([described])
        return
    for name in ("raw_text", "raw_hex"):
        body = described.pop(name, None)
        if body is not None:
            break
    for name, value in described.items():
        out.print(Text(f"{name + ':':16}{value}"))
    out.print(Text(f"\n{body}"))


async def _show(config: Config, wanted: Filter) -> tuple[Verdict | None, bytes]:
    async with readable_log(config) as log:
        ((partition, _),) = wanted.places
        if partition >= log.partitions:
            return None, b""
        found = [letter async for letter in dead_letters.letters(log, partition, wanted)]
        if not found:
            return None, b""
        judgement = await dead_letters.judged(log, wanted, Rules.present(epoch_ms()))
        return judgement.verdicts[0], found[0].body.raw


@app.command()
def replay(
    letters: Annotated[list[str] | None, typer.Argument(help="Ids, as `list` gives them.")] = None,
    config: ConfigPath = None,
    reason: Reasons = None,
    since: Since = None,
    until: Until = None,
    entity: Entity = None,
    topic: Topic = None,
    limit: Limit = 100,
    again: Annotated[
        bool, typer.Option(help="Also what has been replayed, if the ledgers do not have it.")
    ] = False,
    note: Annotated[str, typer.Option(help="Why; it is kept with the replay.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do it; otherwise only say what.")] = False,
    as_json: AsJson = False,
) -> None:
    """Bring signals once more to the engine, oldest first; each replay is on record.

    On the embedded log, which has one owner, the platform is asked to if it runs.
    """
    loaded = Config.load(config)
    wanted = _filter(letters or (), reason, since, until, entity, topic)
    if wanted.says_nothing:
        raise typer.BadParameter("say which: ids, --reason, --since, --until, --entity or --topic")
    if yes:
        order = Order(wanted=wanted, again=again, limit=limit, note=note)
        judgement = running.run(replay_letters(loaded, order))
    else:
        judgement = running.run(_judged(loaded, wanted, Rules.present(epoch_ms(), again=again)))
    if as_json:
        _print_json(map(_described, judgement.verdicts))
    else:
        _tell(judgement, limit, yes)
    done = {one.letter.place for one in judgement.verdicts if _is_done(one, yes)}
    raise typer.Exit(FAULTS if wanted.places - done else 0)


def _is_done(verdict: Verdict, yes: bool) -> bool:
    return verdict.standing is Standing.KEPT if not yes else verdict.why == dead_letters.NOW


async def _judged(config: Config, wanted: Filter, rules: Rules) -> Judgement:
    async with readable_log(config) as readable:
        return await dead_letters.judged(readable, wanted, rules)


def _tell(judgement: Judgement, limit: int, yes: bool) -> None:
    if judgement.verdicts:
        out.print(_table(judgement.verdicts))
    done = sum(_is_done(one, yes) for one in judgement.verdicts)
    if yes:
        out.print(f"{done} replayed, {len(judgement.verdicts) - done} left as they are")
    else:
        out.print(f"{min(done, limit)} would be replayed: --yes does it")
    if judgement.more:
        out.print("there are more: only the oldest were looked at")


def _filter(
    ids: Sequence[str],
    reasons: Sequence[str] | None,
    since: str | None,
    until: str | None,
    entity: str | None,
    topic: str | None,
) -> Filter:
    now = datetime.now(UTC)
    return Filter(
        places=frozenset(map(_place, ids)),
        reasons=frozenset(reasons or ()),
        since_ms=None if since is None else moment_ms(since, now),
        until_ms=None if until is None else moment_ms(until, now),
        entity=entity,
        topic=topic,
    )


def _place(text: str) -> tuple[int, int]:
    found = _ID.fullmatch(text)
    if found is None:
        raise typer.BadParameter(f"{text!r}: expected PARTITION-OFFSET, as `list` gives it")
    return int(found[1]), int(found[2])


def moment_ms(text: str, now: datetime) -> int:
    """Epoch ms of an RFC 3339 time, or of so long ago. Raises typer.BadParameter."""
    span = _SPAN.fullmatch(text)
    if span is not None:
        moment = now - timedelta(**{_UNITS[span[2]]: int(span[1])})
    else:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            moment = datetime.min
        if moment.tzinfo is None:
            wanted = "2026-11-24T10:00:00Z, with its zone, or a span such as 90m, 24h, 7d"
            raise typer.BadParameter(f"{text!r}: expected a time as {wanted}")
    return (moment - _EPOCH) // timedelta(milliseconds=1)


def _rfc3339(at_ms: int) -> str:
    try:
        return (_EPOCH + timedelta(milliseconds=at_ms)).isoformat(timespec="milliseconds")
    except OverflowError:  # A record that was made elsewhere: shown as it is.
        return str(at_ms)


def _described(verdict: Verdict) -> dict[str, Any]:
    letter = verdict.letter
    body, signal = letter.body, letter.signal
    return {
        "id": letter.id,
        "at": _rfc3339(body.received_ms),
        "reason": body.reason,
        "detail": body.detail,
        "standing": verdict.standing,
        "why": verdict.why,
        "entity": letter.entity,
        "event": signal.event if signal is not None else "",
        "correlation_id": letter.correlation_id,
        "mqtt_topic": letter.mqtt_topic,
        "source_topic": body.source_topic,
        "source_partition": body.partition,
        "source_offset": body.offset,
        "bytes": letter.raw_bytes,
        "replays": letter.replays,
    }


def _raw(raw: bytes, as_hex: bool) -> dict[str, str]:
    text = None if as_hex else printable(raw)
    return {"raw_hex": raw.hex(" ", 2)} if text is None else {"raw_text": text}


def _print_json(objects: Iterable[dict[str, Any]]) -> None:
    for one in objects:
        sys.stdout.buffer.write(orjson.dumps(one) + b"\n")
    sys.stdout.buffer.flush()


def _table(verdicts: Sequence[Verdict]) -> Table:
    table = Table(title="Dead letters", title_justify="left")
    for column in ("id", "at", "reason", "entity", "event", "standing", "detail"):
        table.add_column(column, overflow="fold")
    for one in verdicts:
        shown = _described(one)
        standing = f"{one.standing}: {one.why}" if one.why else str(one.standing)
        cells = (shown["id"], shown["at"], shown["reason"], shown["entity"], shown["event"])
        # Text, because ids and details may hold what rich takes for markup.
        table.add_row(*map(Text, (*cells, standing, shown["detail"][:DETAIL_SHOWN_MAX])))
    return table
