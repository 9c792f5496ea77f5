"""gistmill datasets: add, list, show."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from gistmill.cli.output import advise, say, write_json, write_views

app = typer.Typer(no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def add(
    data: Annotated[str, typer.Argument(help="A file, - for standard input, or a hub id such as owner/name:split.")],
    name: Annotated[str | None, typer.Option(help="Name of the dataset. Default: the file's name.")] = None,
    column: Annotated[list[str] | None, typer.Option(help="Map a column, such as dialogue=transcript. Repeatable.")] = None,
    as_json: Json = False,
) -> None:
    """Check and upload a dataset."""
    from gistmill.client import Client

    with Client.for_reading() as client:
        source = sys.stdin.buffer if data == "-" else data
        dataset = client.add_dataset(source, name=name, columns=column or ())
    if as_json:
        write_json(dataset.model_dump(mode="json"))
    else:
        print(dataset.id)
    for warning in dataset.warnings:
        say(f"warning: {warning}")
    say(f"{dataset.name}: {dataset.rows} rows, {dataset.dialogues} distinct dialogues")
    advise(f"gistmill summarize {dataset.id}")


@app.command("list")
def list_datasets(as_json: Json = False) -> None:
    """List datasets, newest first."""
    from gistmill.client import Client

    with Client.for_reading() as client:
        columns = ("id", "name", "state", "rows", "dialogues", "format", "created_at")
        write_views(client.list_datasets(), columns, as_json=as_json)


@app.command()
def show(dataset: Annotated[str, typer.Argument(help="A dataset's id or name.")], as_json: Json = False) -> None:
    """Show a dataset."""
    from gistmill.client import Client

    with Client.for_reading() as client:
        view = client.get_dataset(dataset).model_dump(mode="json")
    if as_json:
        write_json(view)
        return
    for field, value in view.items():
        print(f"{field:12} {value}")
