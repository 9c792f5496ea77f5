"""gistmill experiment: the whole notebook as one graph of jobs, watched, read back and reported."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gistmill.cli.output import advise, say, write_json, write_table
from gistmill.cli.submitting import interruptible, labels_of, split_names, stay_up

if TYPE_CHECKING:
    from gistmill.client.experiment import Experiment

DATA, SETTINGS = "Data", "Settings of the jobs"
NONE = "none"

app = typer.Typer(no_args_is_help=True)

Id = Annotated[str, typer.Argument(help="The id of an experiment's job.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the experiment as one JSON document.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Write the report here, as Markdown.")]
Watch = Annotated[bool, typer.Option("--watch/--detach", help="Follow the steps, or return after submitting.")]


@app.command()
def notebook(
    data: Annotated[str, typer.Option(help="A file with references, -, a dataset, or owner/name:split.")],
    base: Annotated[str | None, typer.Option(help="The model to tune. Default: google/flan-t5-base.")] = None,
    test: Annotated[
        str | None, typer.Option(rich_help_panel=DATA, help="Data to test on. Default: the last tenth is kept back.")
    ] = None,
    select: Annotated[str | None, typer.Option(rich_help_panel=DATA, help="Rows of the data: [0:10], [::100] …")] = None,
    test_select: Annotated[str | None, typer.Option(rich_help_panel=DATA, help="Rows of the test data.")] = None,
    sample: Annotated[
        int | None,
        typer.Option(min=1, rich_help_panel=DATA, help="First test rows for prompts and generation. Default: 50."),
    ] = None,
    one_shot: Annotated[
        str | None, typer.Option(rich_help_panel=DATA, help="The row that one-shot shows, such as [40].")
    ] = None,
    few_shot: Annotated[
        str | None, typer.Option(rich_help_panel=DATA, help="Rows that few-shot shows, such as [40,80,120].")
    ] = None,
    column: Annotated[
        list[str] | None, typer.Option(rich_help_panel=DATA, help="Map a column, such as references=summary. Repeatable.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(rich_help_panel=SETTINGS, help="Of trainings and comparison.")] = None,
    generation: Annotated[
        list[str] | None, typer.Option(rich_help_panel=SETTINGS, help="NAME=VALUE, such as max_new_tokens=50. Repeatable.")
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(rich_help_panel=SETTINGS, help="name=N,num_beams=4: generation to compare. Repeatable; or none."),
    ] = None,
    full: Annotated[
        list[str] | None,
        typer.Option(rich_help_panel=SETTINGS, help="NAME=VALUE of full tuning, such as epochs=2. Repeatable."),
    ] = None,
    lora: Annotated[
        list[str] | None, typer.Option(rich_help_panel=SETTINGS, help="NAME=VALUE of LoRA, such as rank=16. Repeatable.")
    ] = None,
    max_input_tokens: Annotated[int | None, typer.Option(rich_help_panel=SETTINGS, help="Most tokens of a prompt.")] = None,
    on_overflow: Annotated[str | None, typer.Option(rich_help_panel=SETTINGS, help="fail (default) or truncate.")] = None,
    precision: Annotated[str | None, typer.Option(rich_help_panel=SETTINGS, help="native, float32, bfloat16 or int8.")] = None,
    metrics: Annotated[str | None, typer.Option(rich_help_panel=SETTINGS, help="Metrics by name. Default: rouge.")] = None,
    references: Annotated[str | None, typer.Option(rich_help_panel=SETTINGS, help="max (default), mean or each.")] = None,
    resamples: Annotated[int | None, typer.Option(rich_help_panel=SETTINGS, help="Of bootstrap and test.")] = None,
    seed: Annotated[int | None, typer.Option(rich_help_panel=SETTINGS, help="Of bootstrap and test.")] = None,
    priority: Annotated[int | None, typer.Option(help="Higher runs first; -100 to 100.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="NAME=VALUE, to select jobs by later. Repeatable.")] = None,
    output: Output = None,
    watch: Watch = True,
    as_json: AsJson = False,
) -> None:
    """Compare prompts and generation, tune fully and with LoRA, compare the three models, and report."""
    from gistmill.client import Client

    spec: dict[str, Any] = {
        "model": base,
        "select": select,
        "test_select": test_select,
        "sample": sample,
        "one_shot": one_shot,
        "few_shot": few_shot,
        "prompt": prompt,
        "generation": _fields(generation, "--generation"),
        "sweep": _sweep(sweep),
        "full": _fields(full, "--full"),
        "lora": _fields(lora, "--lora"),
        "max_input_tokens": max_input_tokens,
        "on_overflow": on_overflow,
        "precision": precision,
        "metrics": split_names(metrics) or None,
        "references": references,
        "resamples": resamples,
        "seed": seed,
        "priority": priority,
        "labels": labels_of(label or ()),
    }
    with Client() as client, interruptible(client) as accepted:
        source = sys.stdin.buffer if data == "-" else data
        experiment = client.experiment("notebook", source, test=test, columns=column or (), **spec)
        accepted(experiment)
        say(f"submitted {experiment.id}: {len(experiment.steps)} steps")
        for warning in experiment.view.warnings:
            say(f"warning: {warning}")
        if not watch:
            stay_up(client)
            print(experiment.id)
            advise(f"gistmill experiment watch {experiment.id}")
            return
        follow(experiment, output, as_json=as_json)


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List the experiments, newest first."""
    from gistmill.client import Client

    with Client.for_reading() as client:
        views = list(client.list_experiments())
    if as_json:
        write_json([view.model_dump(mode="json") for view in views])
        return
    rows = [
        (
            view.id,
            view.state,
            view.model,
            view.dataset,
            f"{sum(step.state == 'completed' for step in view.steps)}/{len(view.steps)}",
        )
        for view in views
    ]
    write_table(("id", "state", "model", "dataset", "steps"), rows)


@app.command()
def show(experiment: Id, as_json: AsJson = False) -> None:
    """Show an experiment with each of its steps, its job, and how far it is."""
    from gistmill.cli.steps import progress, say_why
    from gistmill.client import Client

    with Client.for_reading() as client:
        view = client.get_experiment_view(experiment)
    if as_json:
        write_json(view.model_dump(mode="json"))
        return
    print(f"{view.id}: {view.state}, {view.model} on {view.dataset}")
    write_table(
        ("step", "name", "state", "job", "done"),
        [(step.number, step.name, step.state, step.job, progress(step)) for step in view.steps],
    )
    if view.state in ("failed", "cancelled"):
        say_why(view)
    else:
        advise(f"gistmill experiment report {view.id}")


@app.command()
def watch(experiment: Id, output: Output = None, as_json: AsJson = False) -> None:
    """Follow an experiment until it ends, then report. Ctrl-C leaves it running."""
    from gistmill.client import Client

    with Client() as client:
        watched = client.get_experiment(experiment)
        with interruptible(client, watched):
            follow(watched, output, as_json=as_json)


@app.command()
def report(experiment: Id, output: Output = None) -> None:
    """Write the report of an experiment in Markdown; while it runs, with what is known so far."""
    from gistmill.client import Client

    with Client.for_reading() as client:
        text = client.get_experiment(experiment).report()
    _write(text, output)


def follow(experiment: Experiment, output: Path | None, *, as_json: bool) -> None:
    """Show the steps until the experiment ends, then the report, or what to take up again."""
    from gistmill.cli.steps import say_why, show_steps

    with show_steps(live=True) as show:
        experiment.wait(on_change=show)
    if as_json:
        write_json(experiment.view.model_dump(mode="json"))
    if experiment.state != "completed":
        say(f"error: the experiment {experiment.id} is {experiment.state}")
        say_why(experiment.view)
        raise typer.Exit(1)
    if output is not None or not as_json:
        _write(experiment.report(), output)
    advise(f"gistmill compare worst {experiment.view.comparisons['models']} --by delta")


def _write(text: str, output: Path | None) -> None:
    if output is None:
        sys.stdout.write(text)
    else:
        output.write_text(text, encoding="utf-8")
        say(f"written to {output}")


def _fields(texts: Iterable[str] | None, option: str) -> dict[str, Any] | None:
    """Return the fields that NAME=VALUE texts give, or None without any. A list is written with + between its parts."""
    fields: dict[str, Any] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise typer.BadParameter(f"'{text}' is not NAME=VALUE", param_hint=option)
        fields[name] = value.split("+") if name == "targets" else value
    return fields or None


def _sweep(texts: Iterable[str] | None) -> dict[str, Any] | None:
    """Return generation parameters by name, nothing for `none`, or None for the usual ones."""
    given = list(texts or ())
    if given == [NONE]:
        return {}
    swept: dict[str, Any] = {}
    for text in given:
        fields = _fields(split_names(text), "--sweep") or {}
        name = fields.pop("name", None)
        if name is None:
            raise typer.BadParameter(f"'{text}' has no name: write name=N,num_beams=4", param_hint="--sweep")
        swept[name] = fields
    return swept or None
