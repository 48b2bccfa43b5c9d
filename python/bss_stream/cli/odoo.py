"""`bss-stream odoo-refused`: what Odoo has refused for good: list, retry."""

import asyncio
from collections.abc import Iterable
from typing import Annotated, Final

import orjson
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bss_stream import _engine
from bss_stream.cli import running
from bss_stream.cli.options import ConfigPath
from bss_stream.clock import epoch_ms
from bss_stream.config import Config
from bss_stream.echo import rfc3339
from bss_stream.errors import ConfigError
from bss_stream.odoo import extra, refusals
from bss_stream.odoo.billing import Measures
from bss_stream.odoo.refusals import LISTED_MAX, Refusal
from bss_stream.roles import open_log, readable_log
from bss_stream.setup import compile_setup

FAULTS: Final = 1
ERROR_SHOWN_MAX: Final = 160

app = typer.Typer(help="What Odoo has refused: read it, try it again.", no_args_is_help=True)
out = Console(soft_wrap=True)

Limit = Annotated[int, typer.Option(help="So many at most.", min=1, max=LISTED_MAX)]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]


@app.command("list")
def list_command(config: ConfigPath = None, limit: Limit = 100, as_json: AsJson = False) -> None:
    """The newest records that Odoo has refused and not taken since, with what it says."""
    found, total = running.run(_standing(Config.load(config)))
    shown = found[-limit:]
    if as_json:
        _print_json(shown)
        return
    if shown:
        out.print(_table(shown))
    out.print(f"{len(shown)} of {total} refused records")


async def _standing(config: Config) -> tuple[list[Refusal], int]:
    async with readable_log(config) as log:
        return await refusals.standing(log)


@app.command()
def retry(config: ConfigPath = None, as_json: AsJson = False) -> None:
    """Write them once more, with the models and fields that are configured now.

    Ids are what they were, so nothing comes in twice. With the embedded log the platform must not
    run meanwhile, since the log has one owner.
    """
    loaded = Config.load(config)
    if loaded.odoo.url is None:
        raise ConfigError(["$.odoo.url: not set, expected where Odoo is"])
    taken, refused = running.run(_retry(loaded))
    if as_json:
        _print_json(refused)
    elif refused:
        out.print(_table(refused))
    out.print(f"{taken} taken, {len(refused)} refused again")
    raise typer.Exit(FAULTS if refused else 0)


async def _retry(config: Config) -> tuple[int, list[Refusal]]:
    try:
        from bss_stream.odoo.client import OdooClient
        from bss_stream.odoo.from_config import connection
        from bss_stream.odoo.retry import Retrier
        from bss_stream.odoo.upsert import Upserts
    except ImportError as error:
        raise extra.missing(error) from error
    markets = await asyncio.to_thread(config.load_setup)
    engine = _engine.Engine(compile_setup(markets), partitions=1)
    client = OdooClient(connection(config))
    try:
        log = await open_log(config)
        try:
            upserts = Upserts(client, config.odoo)
            await upserts.check()
            measures = Measures.of(markets)
            retrier = Retrier(log, upserts, measures, engine.describe_state, clock_ms=epoch_ms)
            taken, refused = await retrier.run()
            return taken, list(refused)
        finally:
            await log.close()
    finally:
        await client.close()


def _print_json(found: Iterable[Refusal]) -> None:
    for one in found:
        typer.echo(
            orjson.dumps(
                {
                    "at": rfc3339(one.at_ms),
                    "kind": one.kind,
                    "key": one.key,
                    "plan_id": one.plan_id,
                    "source": one.source,
                    "values": one.values,
                    "error": one.error,
                }
            )
        )


def _table(found: Iterable[Refusal]) -> Table:
    table = Table(title="Refused by Odoo", title_justify="left")
    for column in ("at", "kind", "key", "plan", "error"):
        table.add_column(column, overflow="fold")
    for one in found:
        error = one.error.replace("\n", " ")[:ERROR_SHOWN_MAX]
        # Text, because ids and errors may hold what rich takes for markup.
        table.add_row(*map(Text, (rfc3339(one.at_ms), one.kind, one.key, one.plan_id, error)))
    return table
