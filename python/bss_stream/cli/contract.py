"""`bss-stream contract`: the wire contract as documents for other programs."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from bss_stream.contract import asyncapi, schemas, yaml

app = typer.Typer(
    help="The wire contract: what goes over MQTT and Kafka, for other programs to read.",
    no_args_is_help=True,
)


@app.command("asyncapi")
def write_asyncapi(
    file: Annotated[
        Path | None, typer.Argument(help="Where to write it; without, it is printed.")
    ] = None,
    style: Annotated[
        Literal["yaml", "json"], typer.Option("--format", help="The notation.")
    ] = "yaml",
) -> None:
    """An AsyncAPI 3.0 document of every channel, message and operation."""
    document = asyncapi.document()
    text = yaml.dump(document) if style == "yaml" else schemas.text(document)
    if file is None:
        typer.echo(text, nl=False)
    else:
        file.write_text(text, encoding="utf-8")


@app.command("schema")
def write_schemas(
    directory: Annotated[
        Path | None,
        typer.Argument(
            metavar="[DIR]",
            help="Where to write a file each; without, all are printed as one object.",
            file_okay=False,
        ),
    ] = None,
) -> None:
    """JSON Schemas (2020-12) of every payload."""
    if directory is None:
        typer.echo(json.dumps(schemas.documents(), indent=2, ensure_ascii=False))
    else:
        typer.echo(f"{len(schemas.write(directory))} schemas in {directory}")
