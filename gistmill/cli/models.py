"""gistmill models: list, show, add."""

from __future__ import annotations

from typing import Annotated

import typer

from gistmill.cli.output import advise, say, write_json, write_views

app = typer.Typer(no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_models(as_json: Json = False) -> None:
    """List every model version."""
    from gistmill.client import Client

    with Client.for_reading() as client:
        columns = ("name", "version", "architecture", "parameters", "weight_bytes", "dtype", "source")
        write_views(client.list_models(), columns, as_json=as_json)


@app.command()
def show(model: Annotated[str, typer.Argument(help="name, or name@version.")], as_json: Json = False) -> None:
    """Show a model version."""
    from gistmill.client import Client

    with Client.for_reading() as client:
        view = client.get_model(model).model_dump(mode="json")
    if as_json:
        write_json(view)
        return
    for field, value in view.items():
        print(f"{field:14} {value}")


@app.command()
def add(
    source: Annotated[str, typer.Argument(help="A directory with a model, or a hub id such as google/flan-t5-base.")],
    name: Annotated[str | None, typer.Option(help="Name of the model. Default: the directory's name.")] = None,
    convert: Annotated[bool, typer.Option("--convert", help="Turn a pickled checkpoint (.bin) into safetensors.")] = False,
    as_json: Json = False,
) -> None:
    """Add a model. Only safetensors are kept, and no code of a model is ever run."""
    from gistmill.client import Client

    with Client.for_reading() as client:
        model = client.add_model(source, name=name, convert=convert)
    if as_json:
        write_json(model.model_dump(mode="json"))
    else:
        print(f"{model.name}@{model.version}")
    say(f"{model.architecture}, {model.parameters:,} parameters, {model.dtype}")
    advise(f"gistmill summarize FILE --model {model.name}")
