"""gistmill finetune: tune a model on data with references, watch the loss, get a model version."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gistmill.cli.output import advise, say, write_json
from gistmill.cli.submitting import interruptible, labels_of, stay_up

if TYPE_CHECKING:
    from gistmill.client import Job

LORA, TRAINING, EVALUATION = "LoRA", "Training", "Evaluation"


def finetune(
    data: Annotated[str, typer.Argument(help="A file with references, - for standard input, a dataset, or owner/name:split.")],
    base: Annotated[str | None, typer.Option(help="The model to tune. Default: google/flan-t5-base.")] = None,
    method: Annotated[str | None, typer.Option(help="lora (default) tunes an adapter, full every weight.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the result. Default: BASE-METHOD.")] = None,
    prompt: Annotated[str | None, typer.Option(help="A prompt; see gistmill prompts list. Default: instruction.")] = None,
    column: Annotated[list[str] | None, typer.Option(help="Map a column, such as references=summary. Repeatable.")] = None,
    select: Annotated[str | None, typer.Option(help="Rows to take: [0:10], [::100] or [10,20,30].")] = None,
    rank: Annotated[int | None, typer.Option(rich_help_panel=LORA, help="Rank r. Default: 32.")] = None,
    alpha: Annotated[int | None, typer.Option(rich_help_panel=LORA, help="Scale alpha. Default: 32.")] = None,
    dropout: Annotated[float | None, typer.Option(rich_help_panel=LORA, help="Dropout. Default: 0.05.")] = None,
    targets: Annotated[str | None, typer.Option(rich_help_panel=LORA, help="Modules to adapt. Default: q,v.")] = None,
    epochs: Annotated[float | None, typer.Option(rich_help_panel=TRAINING, help="Passes over the data. Default: 1.")] = None,
    max_steps: Annotated[int | None, typer.Option(rich_help_panel=TRAINING, help="Optimizer steps, instead of epochs.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(rich_help_panel=TRAINING, help="Default: 1e-5 for full, 1e-3 for lora.")
    ] = None,
    batch_size: Annotated[str | None, typer.Option(rich_help_panel=TRAINING, help="Rows per step, or auto (default).")] = None,
    gradient_accumulation: Annotated[
        int | None, typer.Option(rich_help_panel=TRAINING, help="Batches per optimizer step. Default: 1.")
    ] = None,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", rich_help_panel=TRAINING, help="Save memory, take longer.")
    ] = False,
    weight_decay: Annotated[float | None, typer.Option(rich_help_panel=TRAINING, help="Default: 0.01.")] = None,
    warmup: Annotated[int | None, typer.Option(rich_help_panel=TRAINING, help="Steps of a rising rate. Default: 0.")] = None,
    seed: Annotated[int | None, typer.Option(rich_help_panel=TRAINING, help="Seed of order and dropout. Default: 0.")] = None,
    max_input_tokens: Annotated[int | None, typer.Option(rich_help_panel=TRAINING, help="Longer prompts are cut.")] = None,
    max_target_tokens: Annotated[int | None, typer.Option(rich_help_panel=TRAINING, help="Longer references are cut.")] = None,
    validation: Annotated[
        str | None,
        typer.Option(rich_help_panel=EVALUATION, help="Data with references, or the part to keep back, such as 0.1."),
    ] = None,
    evaluate_every: Annotated[
        int | None, typer.Option(rich_help_panel=EVALUATION, help="Steps between evaluations. Default: an epoch.")
    ] = None,
    early_stop: Annotated[
        str | None, typer.Option(rich_help_panel=EVALUATION, help="Stop without a gain: rouge_l:patience=3.")
    ] = None,
    priority: Annotated[int | None, typer.Option(help="Higher runs first; -100 to 100.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="NAME=VALUE, to select jobs by later. Repeatable.")] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show step, losses, scores, speed and time left as a live line.")
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Return after submitting; the job runs on.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the job as one JSON document.")] = False,
) -> None:
    """Tune a model on dialogues with reference summaries; the result is a model version."""
    from gistmill.client import Client

    spec: dict[str, Any] = {
        "model": base,
        "method": method,
        "name": name,
        "prompt": prompt,
        "select": select,
        "rank": rank,
        "alpha": alpha,
        "dropout": dropout,
        "targets": tuple(part.strip() for part in targets.split(",")) if targets else None,
        "epochs": epochs,
        "max_steps": max_steps,
        "learning_rate": learning_rate,
        "batch_size": int(batch_size) if batch_size and batch_size.isdecimal() else batch_size,
        "gradient_accumulation": gradient_accumulation,
        "gradient_checkpointing": gradient_checkpointing or None,
        "weight_decay": weight_decay,
        "warmup_steps": warmup,
        "seed": seed,
        "max_input_tokens": max_input_tokens,
        "max_target_tokens": max_target_tokens,
        "evaluate_every": evaluate_every,
        "early_stop": early_stop,
        "priority": priority,
        "labels": labels_of(label or ()),
    }
    with Client() as client, interruptible(client) as accepted:
        source = sys.stdin.buffer if data == "-" else data
        job = client.finetune(source, validation=validation, columns=column or (), **spec)
        accepted(job)
        say(f"submitted {job.id}")
        for warning in job.view.warnings:
            say(f"warning: {warning}")
        if detach:
            stay_up(client)
            print(job.id)
            advise(f"gistmill jobs watch {job.id}")
            return
        _finish(job, watch=watch, as_json=as_json)


def _finish(job: Job, *, watch: bool, as_json: bool) -> None:
    """Wait for the model and say what came of it."""
    from gistmill.training_progress import show_training

    with show_training(live=watch) as show:
        job.wait(on_change=show)
    if as_json:
        write_json(job.view.model_dump(mode="json"))
    if job.view.error:
        say(f"error: {job.view.error.get('message', job.view.error)}")
    say(f"{job.state}: {job.view.produced or 'no model was made'}")
    if job.state != "completed":
        raise typer.Exit(1)
    advise(f"gistmill summarize FILE --model {job.view.produced}")
    advise(f"gistmill jobs metrics {job.id} -o curve.svg")


def write_curve(job: Job, output: Path | None, *, as_json: bool) -> None:
    """Write the curve where and as it is wanted: by the file's ending, else as JSON or CSV on standard output."""
    curve = job.metrics()
    if output is not None:
        if output.suffix not in (".csv", ".svg"):
            raise typer.BadParameter(f"a curve is written as .csv or .svg, not as '{output.name}'", param_hint="--output")
        output.write_text(curve.as_svg(f"{job.view.produced or job.id}: loss") if output.suffix == ".svg" else curve.as_csv())
        say(f"written to {output}")
    elif as_json:
        write_json([point.model_dump(mode="json", exclude={"cursor"}) for point in curve])
    else:
        print(curve.as_csv(), end="")
