"""gistmill evaluate: score models, or summaries made elsewhere, against references, and say which is better."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gistmill.cli.output import EXIT_FAILED_ITEMS, advise, require_directory, say, write_json
from gistmill.cli.submitting import DefaultGroup, interruptible, labels_of, split_names, stay_up
from gistmill.errors import NothingToScore

if TYPE_CHECKING:
    from gistmill.client import Client
    from gistmill.client.comparison import Comparison

MODELS, FILES, SCORES, GENERATION = "Models", "Summaries made elsewhere", "Scores", "Generation"

HELP = "Score models, or summaries made elsewhere, against references, and say which is better."

app = typer.Typer(cls=DefaultGroup, no_args_is_help=True)

Detach = Annotated[bool, typer.Option("--detach", help="Return after submitting; the evaluation runs on.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the comparison as one JSON document.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Write the comparison here: .csv, .parquet, .md or .svg.")]
Metrics = Annotated[str | None, typer.Option(rich_help_panel=SCORES, help="Metrics by name. Default: rouge.")]
References = Annotated[
    str | None, typer.Option(rich_help_panel=SCORES, help="Several references of a case: max (default), mean or each.")
]
Stemming = Annotated[
    bool | None, typer.Option("--stemming/--no-stemming", rich_help_panel=SCORES, help="Compare word stems (default).")
]
Resamples = Annotated[int | None, typer.Option(rich_help_panel=SCORES, help="Of bootstrap and test. Default: 5000.")]
Seed = Annotated[int | None, typer.Option(rich_help_panel=SCORES, help="Of bootstrap and test. Default: 0.")]


@app.command("run")
def evaluate(
    data: Annotated[str | None, typer.Argument(help="A file with references, -, a dataset, or owner/name:split.")] = None,
    models: Annotated[
        str | None, typer.Option(rich_help_panel=MODELS, help="MODEL, NAME=MODEL or job:ID, separated by commas.")
    ] = None,
    system: Annotated[
        list[str] | None,
        typer.Option(
            rich_help_panel=MODELS,
            help="One with a prompt or generation of its own: name=N,model=M,prompt=P,num_beams=4. Repeatable.",
        ),
    ] = None,
    baseline: Annotated[str | None, typer.Option(help="Whom the others are compared with. Default: the first.")] = None,
    prompt: Annotated[str | None, typer.Option(rich_help_panel=MODELS, help="Prompt of all. Default: instruction.")] = None,
    column: Annotated[list[str] | None, typer.Option(help="Map a column of the data, such as references=summary.")] = None,
    select: Annotated[str | None, typer.Option(help="Rows to take: [0:10], [::100] or [10,20,30].")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Take the first rows only.")] = None,
    predictions: Annotated[
        str | None, typer.Option(rich_help_panel=FILES, help="A CSV, JSON Lines or Parquet file with summaries.")
    ] = None,
    prediction_columns: Annotated[
        str | None, typer.Option(rich_help_panel=FILES, help="Its columns that hold summaries, separated by commas.")
    ] = None,
    reference_column: Annotated[
        str | None, typer.Option(rich_help_panel=FILES, help="Its columns that hold references, separated by commas.")
    ] = None,
    case_column: Annotated[
        str | None, typer.Option(rich_help_panel=FILES, help="The column that tells which rows share a dialogue.")
    ] = None,
    beside: Annotated[
        str | None, typer.Option("--data", rich_help_panel=FILES, help="The dialogues of the rows, in the same order.")
    ] = None,
    metrics: Metrics = None,
    references: References = None,
    stemming: Stemming = None,
    resamples: Resamples = None,
    seed: Seed = None,
    max_new_tokens: Annotated[int | None, typer.Option(rich_help_panel=GENERATION, help="Longest summary.")] = None,
    num_beams: Annotated[int | None, typer.Option(rich_help_panel=GENERATION, help="Beams; 1 is greedy.")] = None,
    max_input_tokens: Annotated[int | None, typer.Option(rich_help_panel=GENERATION, help="Most tokens of a prompt.")] = None,
    on_overflow: Annotated[str | None, typer.Option(rich_help_panel=GENERATION, help="fail (default) or truncate.")] = None,
    precision: Annotated[
        str | None, typer.Option(rich_help_panel=GENERATION, help="native, float32, bfloat16 or int8.")
    ] = None,
    priority: Annotated[int | None, typer.Option(help="Higher runs first; -100 to 100.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="NAME=VALUE, to select jobs by later. Repeatable.")] = None,
    output: Output = None,
    detach: Detach = False,
    as_json: AsJson = False,
) -> None:
    """Score models, or summaries made elsewhere, against references: means with intervals, pairs with p-values.

    What is stored can be scored anew without a GPU: gistmill evaluate rescore EVALUATION.
    """
    from gistmill.client import Client

    _check_output(output)
    generation = {"max_new_tokens": max_new_tokens, "num_beams": num_beams}
    spec: dict[str, Any] = {
        "baseline": baseline,
        "prompt": prompt,
        "select": select,
        "generation": {name: value for name, value in generation.items() if value is not None} or None,
        "max_input_tokens": max_input_tokens,
        "on_overflow": on_overflow,
        "precision": precision,
        "priority": priority,
        "labels": labels_of(label or ()),
        **_scoring(metrics, references, stemming, resamples, seed),
    }
    if predictions is not None and data is not None:
        raise typer.BadParameter("beside --predictions the data is named by --data", param_hint="DATA")
    source = sys.stdin.buffer if data == "-" else data or beside
    with Client() as client, interruptible(client) as accepted:
        comparison = client.evaluate(
            source,
            models=[*split_names(models), *(_system(text) for text in system or ())],
            predictions=predictions,
            prediction_columns=split_names(prediction_columns),
            reference_columns=split_names(reference_column),
            case_column=case_column,
            columns=column or (),
            limit=limit,
            **spec,
        )
        accepted(comparison)
        _finish(client, comparison, output, detach=detach, as_json=as_json)


@app.command("rescore")
def rescore(
    evaluation: Annotated[str, typer.Argument(help="The id of an evaluate job.")],
    also: Annotated[
        list[str] | None, typer.Option(help="Another evaluation of the same rows, whose models join in. Repeatable.")
    ] = None,
    baseline: Annotated[str | None, typer.Option(help="Whom the others are compared with.")] = None,
    metrics: Metrics = None,
    references: References = None,
    stemming: Stemming = None,
    resamples: Resamples = None,
    seed: Seed = None,
    output: Output = None,
    detach: Detach = False,
    as_json: AsJson = False,
) -> None:
    """Score the summaries of an evaluation anew, from what is stored: no GPU is needed."""
    from gistmill.client import Client

    _check_output(output)
    changes = {"baseline": baseline, **_scoring(metrics, references, stemming, resamples, seed)}
    with Client() as client, interruptible(client) as accepted:
        earlier = client.comparison(evaluation)
        wanted = {name: value for name, value in changes.items() if value is not None}
        comparison = earlier.rescore(also=also or (), **wanted)
        accepted(comparison)
        _finish(client, comparison, output, detach=detach, as_json=as_json)


def _check_output(output: Path | None) -> None:
    """Make sure that the comparison can be written there, before hours of work."""
    from gistmill.comparison import files

    if output is None:
        return
    files.check_suffix(output)
    require_directory(output)


def _scoring(
    metrics: str | None, references: str | None, stemming: bool | None, resamples: int | None, seed: int | None
) -> dict[str, Any]:
    return {
        "metrics": split_names(metrics) or None,
        "references": references,
        "stemming": stemming,
        "resamples": resamples,
        "seed": seed,
    }


def _system(text: str) -> dict[str, Any]:
    """Return the system that name=N,model=M,prompt=P and generation parameters describe."""
    fields: dict[str, Any] = {}
    generation: dict[str, str] = {}
    for part in split_names(text):
        name, equals, value = part.partition("=")
        if not equals:
            raise typer.BadParameter(f"'{part}' is not NAME=VALUE", param_hint="--system")
        (fields if name in ("name", "model", "prompt") else generation)[name] = value
    return fields | ({"generation": generation} if generation else {})


def _finish(client: Client, comparison: Comparison, output: Path | None, *, detach: bool, as_json: bool) -> None:
    """Wait for the figures and show them."""
    from gistmill.comparison import files, text
    from gistmill.comparison.figures import number_of
    from gistmill.progress import show_progress

    say(f"submitted {comparison.id}: {number_of(comparison.view.cases, 'case')}")
    if detach:
        stay_up(client)
        print(comparison.id)
        advise(f"gistmill compare show {comparison.id}")
        return
    with show_progress() as show:
        comparison.wait(on_change=show)
    view = comparison.view
    if view.state != "completed":
        error = view.error or {}
        say(f"error: {error.get('message', f'the evaluation is {view.state}')}")
        is_empty = error.get("code") == NothingToScore.code
        advise(f"gistmill compare items {comparison.id}" if is_empty else f"gistmill jobs retry {comparison.id}")
        raise typer.Exit(1)
    if output is not None:
        files.save(view, output)
        say(f"written to {output}")
    if as_json:
        write_json(view.model_dump(mode="json"))
    elif output is None:
        text.write_text(view, sys.stdout)
    advise(f"gistmill compare worst {comparison.id} --by delta")
    if view.counts.get("failed"):
        raise typer.Exit(EXIT_FAILED_ITEMS)
