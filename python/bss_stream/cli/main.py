"""The commands of `bss-stream`, and how an error becomes an exit code."""

import sys
from pathlib import Path
from typing import Annotated, Final, Literal

import typer
from rich.console import Console

from bss_stream import __version__, diagram, logs, topic_table
from bss_stream._engine import check_model
from bss_stream.cli import console as console_command
from bss_stream.cli import contract as contract_command
from bss_stream.cli import coverage as coverage_command
from bss_stream.cli import dead_letters, odoo, report, running
from bss_stream.cli import demo as demo_command
from bss_stream.cli.options import ConfigPath
from bss_stream.config import Config, Logging
from bss_stream.errors import BssStreamError, ConfigError
from bss_stream.roles import LOG_ROLES, MQTT_ROLES, Role, wanted_roles
from bss_stream.setup import compile_setup, packaged_models
from bss_stream.simulate import SimulationConfig
from bss_stream.stories import Library

DONE: Final = 0
FAULTS: Final = 1
WRONG_USE: Final = 2

app = typer.Typer(
    name="bss-stream",
    help="A stream processor for battery-swap networks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
model_app = typer.Typer(help="The state machines, which are data.", no_args_is_help=True)
config_app = typer.Typer(help="The configuration.", no_args_is_help=True)
app.add_typer(model_app, name="model")
app.add_typer(config_app, name="config")
app.add_typer(dead_letters.app, name="dead-letters")
app.add_typer(contract_command.app, name="contract")
app.add_typer(odoo.app, name="odoo-refused")
app.add_typer(report.app, name="report")

out = Console(soft_wrap=True)
err = Console(stderr=True, soft_wrap=True)

Instance = Annotated[
    str | None,
    typer.Option(
        help="Tells processes of one role apart: each its own, and the same over restarts. With it "
        "a process that is back within log.kafka.session_timeout_ms goes on with the partitions "
        "that it had, and no other is disturbed."
    ),
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")]


def main() -> None:
    """Run the command line and exit."""
    try:
        app(standalone_mode=True)
    except ConfigError as error:
        for fault in error.faults:
            err.print(fault, style="red", markup=False, highlight=False)
        sys.exit(WRONG_USE)
    except BssStreamError as error:
        err.print(str(error), style="red", markup=False, highlight=False)
        sys.exit(FAULTS)


def _set_up_logging(settings: Logging, verbose: bool) -> None:
    logs.set_up("info" if verbose else settings.level, settings.format)


@app.callback(invoke_without_command=True)
def _version(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        out.print(__version__)
        raise typer.Exit(DONE)
    if context.invoked_subcommand is None:
        raise typer.Exit(WRONG_USE)


@app.command()
def demo(
    duration: Annotated[float, typer.Option(help="Seconds of swapping.", min=1)] = 30.0,
    rate: Annotated[float, typer.Option(help="Swaps a second.", min=1)] = 500.0,
    plans: Annotated[int, typer.Option(help="Riders, each with a plan.", min=1)] = 5_000,
    seed: Annotated[int, typer.Option(help="The same seed, the same riders.")] = 1,
    data_dir: Annotated[
        Path | None, typer.Option(help="Keep the log and the ledger here.", file_okay=False)
    ] = None,
    verbose: Verbose = False,
) -> None:
    """A whole swap network on this machine, without any server: watch it work, then audit it."""
    _set_up_logging(Logging(), verbose)
    options = demo_command.DemoOptions(
        duration_s=duration, rate=rate, plans=plans, seed=seed, data_dir=data_dir
    )
    raise typer.Exit(DONE if running.run(demo_command.demo(options, out)) else FAULTS)


@app.command()
def run(config: ConfigPath = None, instance: Instance = None, verbose: Verbose = False) -> None:
    """All roles in one process; Odoo's if the configuration names an Odoo."""
    _run_roles(config, None, instance, verbose)


@app.command()
def bridge(config: ConfigPath = None, instance: Instance = None, verbose: Verbose = False) -> None:
    """MQTT to log."""
    _run_roles(config, ("bridge",), instance, verbose)


@app.command()
def process(config: ConfigPath = None, instance: Instance = None, verbose: Verbose = False) -> None:
    """Signals through the engine to ledgers, outbox and state."""
    _run_roles(config, ("processor",), instance, verbose)


@app.command()
def publish(config: ConfigPath = None, instance: Instance = None, verbose: Verbose = False) -> None:
    """Outbox to MQTT."""
    _run_roles(config, ("publisher",), instance, verbose)


@app.command()
def sink(config: ConfigPath = None, instance: Instance = None, verbose: Verbose = False) -> None:
    """Ledgers to SQL."""
    _run_roles(config, ("sink",), instance, verbose)


@app.command()
def query(config: ConfigPath = None, instance: Instance = None, verbose: Verbose = False) -> None:
    """Queries of riders, operators and asset managers out of the ledger database."""
    _run_roles(config, ("queries",), instance, verbose)


@app.command("odoo")
def odoo_adapter(
    config: ConfigPath = None, instance: Instance = None, verbose: Verbose = False
) -> None:
    """Ledgers and life cycles to Odoo; payment states from there, by query and reconciliation."""
    _run_roles(config, ("odoo",), instance, verbose)


@app.command()
def console(config: ConfigPath = None, verbose: Verbose = False) -> None:
    """The operators' web pages: live figures, stations, fleets, plans, ledger, dead letters."""
    loaded = Config.load(config)
    _set_up_logging(loaded.logging, verbose)
    running.run(console_command.console(loaded))


def _run_roles(
    path: Path | None, roles: tuple[Role, ...] | None, instance: str | None, verbose: bool
) -> None:
    config = Config.load(path)
    _set_up_logging(config.logging, verbose)
    if roles is not None:
        _refuse_alone(config, roles[0])
    running.run(running.run_roles(config, roles or wanted_roles(config), instance))


def _refuse_alone(config: Config, role: Role) -> None:
    """The embedded log and broker belong to one process; a role of its own needs servers."""
    faults = []
    if config.log.backend == "embedded" and role in LOG_ROLES:
        faults.append(f'$.log.backend: "embedded": the {role} alone needs "kafka"; or use `run`')
    if config.mqtt.embedded and role in MQTT_ROLES:
        faults.append(f"$.mqtt.embedded: true: the {role} alone needs a broker; or use `run`")
    if role == "odoo" and config.odoo.url is None:
        faults.append("$.odoo.url: not set, expected where Odoo is")
    if faults:
        raise ConfigError(faults)


@app.command()
def simulate(
    config: ConfigPath = None,
    duration: Annotated[float | None, typer.Option(help="Seconds of swapping.", min=1)] = None,
    rate: Annotated[float | None, typer.Option(help="Swaps a second.", min=0.1)] = None,
    plans: Annotated[int | None, typer.Option(help="Riders.", min=1)] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed, the same riders.")] = None,
    verbose: Verbose = False,
) -> None:
    """Riders, stations and ARM as MQTT clients of the broker in the configuration."""
    loaded = Config.load(config)
    _set_up_logging(loaded.logging, verbose)
    chosen = {
        name: value
        for name, value in (("rate", rate), ("plans", plans), ("seed", seed))
        if value is not None
    }
    simulation: SimulationConfig = running.replace(loaded.simulate, chosen)
    clean = running.run(demo_command.simulate(loaded, simulation, duration, out))
    raise typer.Exit(DONE if clean else FAULTS)


@app.command()
def audit(
    config: ConfigPath = None,
    drained: Annotated[
        bool, typer.Option(help="Nothing is running: what is still to come is a fault.")
    ] = False,
    states: Annotated[bool, typer.Option(help="Compare with the plans' states.")] = True,
) -> None:
    """Recompute every account from the ledgers, verify the hash chains, compare with state."""
    report = running.run(running.audit(Config.load(config), drained=drained, states=states))
    out.print(report)
    raise typer.Exit(DONE if report.ok else FAULTS)


@model_app.command("check")
def model_check(
    files: Annotated[list[Path], typer.Argument(help="Models.", exists=True, dir_okay=False)],
) -> None:
    """Compile models and name every fault with its file and path."""
    faulty = False
    for file in files:
        try:
            name = check_model(str(file), file.read_bytes())
        except ValueError as error:
            faulty = True
            err.print(str(error), style="red", markup=False, highlight=False)
        else:
            out.print(f"{file}: {name} is sound", highlight=False)
    raise typer.Exit(FAULTS if faulty else DONE)


@model_app.command("diagram")
def model_diagram(
    model: Annotated[
        str, typer.Argument(help="A file, or the name of a model that comes with the program.")
    ] = "bss-fsm-v1",
    style: Annotated[
        Literal["mermaid", "plantuml"], typer.Option("--format", help="The notation.")
    ] = "mermaid",
) -> None:
    """Draw a model's cycles as Mermaid or PlantUML text."""
    path = Path(model)
    packaged = packaged_models() / f"{model}.json"
    if path.is_file():
        file, text = str(path), path.read_bytes()
    elif packaged.is_file():
        file, text = f"{model}.json", packaged.read_bytes()
    else:
        raise ConfigError([f"{model}: no such file, and no model of that name"])
    try:
        check_model(file, text)
    except ValueError as error:
        raise ConfigError(str(error).splitlines()) from None
    out.print(diagram.draw(text, style), markup=False, highlight=False, end="")


@model_app.command("coverage")
def model_coverage(
    directories: Annotated[
        list[Path], typer.Argument(help="Stories.", exists=True, file_okay=False)
    ],
    config: ConfigPath = None,
    floor: Annotated[
        float, typer.Option(help="Per cent of the transitions of every model.", min=0, max=100)
    ] = 100.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Play stories; say which states, signals, transitions, events and reasons they exercise."""
    setup = compile_setup(Config.load(config).load_setup())
    table = topic_table.load()
    result = coverage_command.play(Library(directories, setup), table, floor)
    if as_json:
        out.print(result.as_json(), soft_wrap=True, markup=False, highlight=False)
    else:
        out.print(result)
    raise typer.Exit(DONE if result.ok else FAULTS)


@config_app.command("check")
def config_check(config: ConfigPath = None) -> None:
    """Read the configuration, the markets and the models, and name every fault."""
    try:
        loaded = Config.load(config)
        setup = loaded.load_setup()
        compile_setup(setup)
    except ConfigError as error:
        for fault in error.faults:
            err.print(fault, style="red", markup=False, highlight=False)
        raise typer.Exit(FAULTS) from None
    markets = ", ".join(market.folder for market in setup.markets)
    models = ", ".join(model.model_id for model in setup.models)
    out.print(f"sound: markets {markets}; models {models}", highlight=False)
