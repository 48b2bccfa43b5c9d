"""`bss-stream report`: what operators and asset managers ask, out of the ledger database."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import date
from typing import Annotated, Any, Final, Literal

import orjson
import typer
from rich.console import Console
from rich.table import Table

from bss_stream import _engine
from bss_stream.cli.options import ConfigPath
from bss_stream.clock import epoch_ms
from bss_stream.config import Config
from bss_stream.errors import ConfigError
from bss_stream.reports.fleet import fleet_report
from bss_stream.reports.network import Market, Network
from bss_stream.reports.operator import operator_report
from bss_stream.reports.stations import stations
from bss_stream.setup import compile_setup
from bss_stream.sink.read_model import ReadView, open_read_model

Format = Annotated[Literal["table", "json"], typer.Option("--format", help="How to show it.")]

DAYS_MAX: Final = 366

app = typer.Typer(
    help="Stations and fleets, out of the ledger database (docs/operator-workflow.md).",
    no_args_is_help=True,
)
out = Console(soft_wrap=True)


@app.command()
def operator(
    station: Annotated[str | None, typer.Option(help="One station; all of them if none.")] = None,
    config: ConfigPath = None,
    shown: Format = "table",
) -> None:
    """How stations stand: readiness, who waits, batteries, shift, today and the day before."""
    with _database(Config.load(config)) as (view, network):
        found = [
            one
            for market in network.markets
            for one in operator_report(
                stations(view, network, market, _wanted(market, station)), epoch_ms()
            )
        ]
    if not found:
        raise ConfigError([f"--station {station!r}: expected a station of the set-up"])
    _show({"stations": found}, shown)


def _wanted(market: Market, station: str | None) -> Sequence[str]:
    if station is None:
        return sorted(market.stations)
    return [station] if station in market.stations else []


@app.command()
def fleet(
    fleet_id: Annotated[
        str | None, typer.Option("--fleet", help="One fleet; all of them if none.")
    ] = None,
    day: Annotated[
        str | None, typer.Option(help="The last day of the ledgers' part, YYYY-MM-DD; or today.")
    ] = None,
    days: Annotated[
        int, typer.Option(help="How many days the ledgers' part covers.", min=1, max=DAYS_MAX)
    ] = 7,
    config: ConfigPath = None,
    shown: Format = "table",
) -> None:
    """How fleets stand: deployment, moves, batteries' lives, charging plans, finance."""
    last = _day(day)
    now_ms = epoch_ms()
    with _database(Config.load(config)) as (view, network):
        found = [
            fleet_report(
                view,
                network,
                market,
                now_ms=now_ms,
                last=last or market.day(now_ms),
                days=days,
                fleet_id=fleet_id,
            )
            for market in network.markets
            if fleet_id is None or fleet_id in market.fleets
        ]
    if not found:
        raise ConfigError([f"--fleet {fleet_id!r}: expected a fleet of the set-up"])
    _show({"markets": found}, shown)


def _day(text: str | None) -> date | None:
    try:
        return None if text is None else date.fromisoformat(text)
    except ValueError as error:
        raise ConfigError([f"--day {text!r}: {error}: expected YYYY-MM-DD"]) from error


@contextmanager
def _database(config: Config) -> Iterator[tuple[ReadView, Network]]:
    setup = config.load_setup()
    engine = _engine.Engine(compile_setup(setup), partitions=1)
    with closing(open_read_model(config.queries_url().reveal())) as model, model.view() as view:
        yield view, Network.of(setup, engine.describe_state)


def _show(document: Mapping[str, Any], shown: str) -> None:
    if shown == "json":
        text = orjson.dumps(document, option=orjson.OPT_INDENT_2).decode()
        out.print(text, markup=False, highlight=False)
        return
    for rows in document.values():
        for row in rows:
            for table in tables(row):
                out.print(table)


def tables(document: Mapping[str, Any], title: str = "") -> Iterator[Table]:
    """A report's object as tables: its plain fields in one, every list and object in another."""
    plain = {name: value for name, value in document.items() if not _is_nested(value)}
    named = title or str(next(iter(plain.values()), ""))
    yield _fields(named, plain)
    for name, value in document.items():
        if not _is_nested(value):
            continue
        inner = f"{named}: {name}"
        if isinstance(value, Mapping):
            yield from tables(value, inner)
        elif any(_is_nested(field) for row in value for field in row.values()):
            for row in value:
                yield from tables(row, f"{inner}: {next(iter(row.values()))}")
        else:
            yield _table(inner, value)


def _is_nested(value: object) -> bool:
    """Whether it needs a table of its own: an object, or a list of them."""
    if isinstance(value, list):
        return bool(value) and isinstance(value[0], Mapping)
    return isinstance(value, Mapping)


def _fields(title: str, fields: Mapping[str, Any]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    for name, value in fields.items():
        table.add_row(name, _text(value))
    return table


def _table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in rows[0]:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(_text(value) for value in row.values()))
    return table


def _text(value: object) -> str:
    if isinstance(value, list):
        return " ".join(str(one) for one in value)
    return "-" if value is None else str(value)
