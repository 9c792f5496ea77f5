"""gistmill prompts: list, show, add, render."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gistmill.cli.output import advise, say, write_json, write_table, write_views
from gistmill.errors import InvalidInput
from gistmill.prompts import PLACE, Kind

if TYPE_CHECKING:
    from gistmill.views import PromptView, RenderedPrompt

app = typer.Typer(no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Reference = Annotated[str, typer.Argument(help="name for the newest version, or name@version.")]
Column = Annotated[list[str] | None, typer.Option(help="Map a column, such as dialogue=transcript. Repeatable.")]
Limit = Annotated[int | None, typer.Option(help="Most tokens of a prompt, special tokens included. Default: 2048.")]
LIST_COLUMNS = ("name", "version", "is_built_in", "dataset", "digest", "created_at")


@app.command("list")
def list_prompts(as_json: Json = False) -> None:
    """List every version of every prompt."""
    from gistmill.client import Client

    with Client.for_reading() as client:
        write_views(client.prompts(), LIST_COLUMNS, as_json=as_json)


@app.command()
def show(prompt: Reference, as_json: Json = False) -> None:
    """Show the text of a prompt, and the rows that it shows as examples."""
    from gistmill.client import Client

    with Client.for_reading() as client:
        view = client.get_prompt(prompt)
    if as_json:
        write_json(view.model_dump(mode="json"))
        return
    _describe(view)
    print(view.template)


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="Name of the prompt; a name that exists gets its next version.")],
    template: Annotated[str | None, typer.Option(help="A file, or a text, with {dialogue} exactly once.")] = None,
    kind: Annotated[Kind | None, typer.Option(help="Show rows of --data: one (one-shot) or any number (few-shot).")] = None,
    data: Annotated[str | None, typer.Option(help="A file with references, - for standard input, or a dataset.")] = None,
    select: Annotated[str | None, typer.Option(help="The rows to show: [10], or [10,20,30].")] = None,
    column: Column = None,
    model: Annotated[str | None, typer.Option(help="Check that a dialogue still fits the input of this model.")] = None,
    max_input_tokens: Limit = None,
    as_json: Json = False,
) -> None:
    """Add a prompt, from a template or with rows of a dataset as examples. A version never changes."""
    from gistmill.client import Client

    with Client.for_reading() as client:
        view = client.add_prompt(
            name,
            None if template is None else _read_template(template),
            kind=kind,
            data=sys.stdin.buffer if data == "-" else data,
            select=select,
            columns=column or (),
            model=model,
            max_input_tokens=max_input_tokens,
        )
    reference = f"{view.name}@{view.version}"
    if as_json:
        write_json(view.model_dump(mode="json"))
    else:
        print(reference)
    if view.examples:
        say(f"{len(view.examples)} examples; their dialogues are left out when summaries made with this prompt are scored")
    advise(f"gistmill prompts render {reference} {view.dataset or 'FILE'} --tokens --model {model or 'MODEL'}")


@app.command()
def render(
    prompt: Reference,
    data: Annotated[str, typer.Argument(help="A file, - for standard input, a dataset, or a hub id such as owner/name:split.")],
    row: Annotated[int, typer.Option(min=0, help="The row, counted from 0.")] = 0,
    column: Column = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="Show the tokens, their ids, and the text that they mean.")] = False,
    model: Annotated[str | None, typer.Option(help="Whose tokens to count. Default: google/flan-t5-base.")] = None,
    max_input_tokens: Limit = None,
    as_json: Json = False,
) -> None:
    """Show what a model reads for a row: the prompt with its dialogue, and how it is tokenized."""
    from gistmill.client import Client

    with Client.for_reading() as client:
        view = client.render(
            prompt,
            sys.stdin.buffer if data == "-" else data,
            row=row,
            columns=column or (),
            tokens=tokens or model is not None or max_input_tokens is not None,
            model=model,
            max_input_tokens=max_input_tokens,
        )
    if as_json:
        write_json(view.model_dump(mode="json"))
    else:
        print(view.text)
        if tokens:
            _write_tokens(view)
    say(f"{view.prompt} on row {view.row} (id {view.id})")
    _say_budget(view)
    advise(
        f"gistmill summarize {data if data != '-' else 'FILE'} --prompt {view.prompt}" + (f" --model {model}" if model else "")
    )


def _read_template(text: str) -> str:
    """Return the text of a file of this name, as it is, or the text itself.

    Raises:
        InvalidInput: the file is not UTF-8, or it seems to be one and is not there.
    """
    path = Path(text)
    try:
        if path.is_file():
            return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{text} is not UTF-8 text: byte {error.start} does not fit.") from error
    except (OSError, ValueError):
        # A text may be longer than a name of a file, or hold what no name does.
        return text
    if PLACE not in text and text.strip() and not any(character.isspace() for character in text):
        raise InvalidInput(f"There is no file {text}, and as a template it has no place for the dialogue: {PLACE}.")
    return text


def _describe(view: PromptView) -> None:
    """Say what is known of a version besides its text."""
    say(f"{view.name}@{view.version}  digest {view.digest}" + ("  built in" if view.is_built_in else ""))
    if view.created_at is not None:
        say(f"added {view.created_at:%Y-%m-%d %H:%M:%S %Z}")
    if view.examples:
        rows = ", ".join(f"{example['row']} (id {example['id']})" for example in view.examples)
        say(f"examples: rows {rows} of {view.dataset}")


def _write_tokens(view: RenderedPrompt) -> None:
    """Write the tokens and the round trip below the text."""
    pairs = zip(view.token_ids or [], view.tokens or [], strict=True)
    print()
    write_table(("place", "id", "token"), [(place, *pair) for place, pair in enumerate(pairs)])
    print()
    print(view.decoded)


def _say_budget(view: RenderedPrompt) -> None:
    if view.token_ids is None or view.budget is None:
        return
    count, budget = len(view.token_ids), view.budget
    if count <= budget:
        say(f"{count} tokens of {budget}")
    else:
        say(f"{count} tokens of {budget}, {count - budget} too many: such an item fails, or is cut with --on-overflow truncate")
    if view.decoded is None or view.decoded == view.text:
        return
    if view.decoded.split() == view.text.split():
        say("line breaks or repeated spaces are lost on this tokenizer: the model never sees them")
    else:
        say("the tokens mean another text than the prompt: the model does not know some of its characters")
