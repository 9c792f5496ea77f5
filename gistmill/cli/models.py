"""gistmill models: list, show, lineage, add, alias, remove, export."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gistmill.cli.output import advise, say, write_json, write_views
from gistmill.errors import InvalidInput

if TYPE_CHECKING:
    from gistmill.views import ModelView

app = typer.Typer(no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Reference = Annotated[str, typer.Argument(help="name, name@version, base+adapter@version, or an alias.")]
LIST_COLUMNS = ("name", "version", "kind", "base", "architecture", "parameters", "weight_bytes", "dtype", "aliases", "source")


@app.command("list")
def list_models(as_json: Json = False) -> None:
    """List every model version."""
    from gistmill.client import Client

    with Client.for_reading() as client:
        write_views(client.list_models(), LIST_COLUMNS, as_json=as_json)


@app.command()
def show(model: Reference, as_json: Json = False) -> None:
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
def lineage(model: Reference, as_json: Json = False) -> None:
    """Show what a model version was made from, what that was made from, and so on."""
    from gistmill.client import Client

    with Client.for_reading() as client:
        chain = client.list_lineage(model)
    if as_json:
        write_json([view.model_dump(mode="json") for view in chain])
        return
    for view in chain:
        _print_origin(view)


@app.command()
def add(
    source: Annotated[str, typer.Argument(help="A directory with a model or an adapter, or a hub id: google/flan-t5-base.")],
    name: Annotated[str | None, typer.Option(help="Name of the model. Default: the directory's name.")] = None,
    base: Annotated[str | None, typer.Option(help="For a LoRA adapter in peft's format: the model it belongs to.")] = None,
    convert: Annotated[bool, typer.Option("--convert", help="Turn a pickled checkpoint (.bin) into safetensors.")] = False,
    as_json: Json = False,
) -> None:
    """Add a model, or with --base an adapter. Only safetensors are kept, and no code of a model is ever run."""
    from gistmill.client import Client

    with Client.for_reading() as client:
        model = client.add_model(source, name=name, convert=convert, base=base)
    if as_json:
        write_json(model.model_dump(mode="json"))
    else:
        print(f"{model.name}@{model.version}")
    say(f"{model.architecture}, {model.parameters:,} parameters, {model.dtype}")
    on_base = f"{model.base.partition('@')[0]}+" if model.kind == "adapter" and model.base else ""
    advise(f"gistmill summarize FILE --model {on_base}{model.name}")


@app.command()
def alias(
    alias: Annotated[str, typer.Argument(help="The other name.")],
    model: Annotated[str | None, typer.Argument(help="The version that it means from now on.")] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Take the alias away.")] = False,
    as_json: Json = False,
) -> None:
    """Give a model version another name, or move a name that exists; jobs keep the version that they began with."""
    from gistmill.client import Client

    if (model is None) != delete:
        raise InvalidInput("Write 'gistmill models alias NAME REFERENCE', or 'gistmill models alias NAME --delete'.")
    with Client.for_reading() as client:
        if model is None:
            client.delete_alias(alias)
            say(f"{alias} is no alias any more")
            return
        view = client.set_alias(alias, model)
    if as_json:
        write_json(view.model_dump(mode="json"))
    say(f"{alias} means {view.name}@{view.version}")
    advise(f"gistmill summarize FILE --model {alias}")


@app.command()
def remove(
    model: Annotated[str, typer.Argument(help="name@version.")],
    as_json: Json = False,
) -> None:
    """Offer a model version to no new job. Its files stay, because results refer to them."""
    from gistmill.client import Client

    with Client.for_reading() as client:
        view = client.remove_model(model)
    if as_json:
        write_json(view.model_dump(mode="json"))
    say(f"{view.name}@{view.version} is removed: no new job can use it")


@app.command()
def export(
    model: Reference,
    directory: Annotated[str, typer.Argument(help="A new or empty directory.")],
    merge: Annotated[bool, typer.Option("--merge", help="Write the base with the adapter merged into it.")] = False,
) -> None:
    """Write the files of a model version: of base+adapter those of the adapter, or with --merge a whole model."""
    from gistmill.client import Client

    with Client.for_reading() as client:
        print(client.export_model(model, directory, merge=merge))


def _print_origin(view: ModelView) -> None:
    """Print a version, and below it what is known of where it came from."""
    print(f"{view.name}@{view.version}")
    facts = {
        "kind": view.kind,
        "digest": view.digest,
        "base": view.base,
        "source": view.source,
        "job": view.job,
        "added": view.created_at,
        "removed": view.removed_at,
    }
    for field, value in (facts | (view.lineage or {})).items():
        if value is not None:
            print(f"  {field:18} {value}")
