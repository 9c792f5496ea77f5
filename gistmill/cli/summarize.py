"""gistmill summarize: from a file to its summaries."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gistmill.cli.estimate import write_estimate
from gistmill.cli.output import EXIT_FAILED_ITEMS, advise, say, write_json
from gistmill.cli.submitting import interruptible, labels_of, stay_up

if TYPE_CHECKING:
    from gistmill.client import Client, Job

GENERATION = "Generation"


def summarize(
    data: Annotated[str, typer.Argument(help="A file, - for standard input, a dataset, or a hub id such as owner/name:split.")],
    model: Annotated[str | None, typer.Option(help="Model reference. Default: google/flan-t5-base.")] = None,
    prompt: Annotated[str | None, typer.Option(help="A prompt; see gistmill prompts list. Default: instruction.")] = None,
    column: Annotated[list[str] | None, typer.Option(help="Map a column, such as dialogue=transcript. Repeatable.")] = None,
    select: Annotated[str | None, typer.Option(help="Rows to take: [0:10], [::100] or [10,20,30].")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(rich_help_panel=GENERATION, help="Longest summary.")] = None,
    num_beams: Annotated[int | None, typer.Option(rich_help_panel=GENERATION, help="Beams; 1 is greedy.")] = None,
    do_sample: Annotated[bool, typer.Option("--do-sample", rich_help_panel=GENERATION, help="Sample instead.")] = False,
    temperature: Annotated[float | None, typer.Option(rich_help_panel=GENERATION, help="Sampling temperature.")] = None,
    top_p: Annotated[float | None, typer.Option(rich_help_panel=GENERATION, help="Nucleus sampling.")] = None,
    top_k: Annotated[int | None, typer.Option(rich_help_panel=GENERATION, help="Sample from this many; 0 is all.")] = None,
    seed: Annotated[int | None, typer.Option(rich_help_panel=GENERATION, help="Seed of sampling.")] = None,
    max_input_tokens: Annotated[int | None, typer.Option(help="Most tokens of a prompt. Default: 2048.")] = None,
    on_overflow: Annotated[str | None, typer.Option(help="Longer prompts: fail (default) or truncate.")] = None,
    precision: Annotated[str | None, typer.Option(help="native (default), float32, bfloat16 or int8.")] = None,
    priority: Annotated[int | None, typer.Option(help="Higher runs first; -100 to 100.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="NAME=VALUE, to select jobs by later. Repeatable.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the summaries here, as JSON Lines.")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Return after submitting; the job runs on.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Submit nothing; say what the job would do and take.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the job as one JSON document instead.")] = False,
) -> None:
    """Summarize every dialogue of a file and write the summaries as JSON Lines."""
    from gistmill.client import Client

    generation = {
        "max_new_tokens": max_new_tokens,
        "num_beams": num_beams,
        "do_sample": do_sample or None,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "seed": seed,
    }
    spec: dict[str, Any] = {
        "model": model,
        "prompt": prompt,
        "select": select,
        "max_input_tokens": max_input_tokens,
        "on_overflow": on_overflow,
        "precision": precision,
        "priority": priority,
        "labels": labels_of(label or ()),
    }
    if output is not None and not output.absolute().parent.is_dir():
        raise typer.BadParameter(f"there is no directory {output.absolute().parent}", param_hint="--output")
    with Client.for_reading() if dry_run else Client() as client:
        source = sys.stdin.buffer if data == "-" else data
        if dry_run:
            write_estimate(client.estimate(source, columns=column or (), generation=generation, **spec), as_json=as_json)
            return
        with interruptible(client) as accepted:
            job = client.summarize(source, columns=column or (), generation=generation, **spec)
            accepted(job)
            say(f"submitted {job.id}: {job.counts.items} items, {job.counts.distinct} distinct dialogues")
            if detach:
                _detach(client, job, as_json=as_json)
                return
            _finish(job, output, as_json=as_json)


def _detach(client: Client, job: Job, *, as_json: bool) -> None:
    stay_up(client)
    if as_json:
        write_json(job.view.model_dump(mode="json"))
    else:
        print(job.id)
    advise(f"gistmill jobs watch {job.id}")


def _finish(job: Job, output: Path | None, *, as_json: bool) -> None:
    """Wait for the job, write what it made, and end with the status that its items deserve."""
    job.wait(progress=True)
    if output is not None:
        write_results(job, output)
    if as_json:
        write_json(job.view.model_dump(mode="json"))
    elif output is None:
        for result in job.results():
            print(json.dumps({"id": result.id, "summary": result.summary}, ensure_ascii=False))
    _close(job, output)


def write_results(job: Job, output: Path, *, follow: bool = True) -> None:
    """Write the summaries aside and put the file in place when it is whole."""
    aside = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        with aside.open("w", encoding="utf-8") as file:
            for result in job.results(follow=follow):
                line = result.model_dump(exclude={"cursor"})
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        aside.replace(output)
    finally:
        aside.unlink(missing_ok=True)


def _close(job: Job, output: Path | None) -> None:
    counts = job.counts
    speed = f", {job.view.dialogues_per_s:.1f} dialogues/s" if job.view.dialogues_per_s else ""
    say(
        f"{job.state}: {counts.items} items, {counts.distinct} distinct, {counts.generated} generated, "
        f"{counts.shared} shared, {counts.failed} failed{speed}"
    )
    if counts.truncated:
        say(f"{counts.truncated} prompts were cut to the input limit")
    if counts.cut_off:
        say(f"{counts.cut_off} summaries reached --max-new-tokens")
    if output is not None:
        say(f"written to {output}")
    if job.view.error:
        say(f"error: {job.view.error.get('message', job.view.error)}")
    if counts.failed:
        advise(f"gistmill jobs errors {job.id}")
    if job.state != "completed":
        raise typer.Exit(1)
    if counts.failed:
        raise typer.Exit(EXIT_FAILED_ITEMS)
    if not counts.failed:
        advise(f"gistmill sql \"select item_id, summary from v_summaries where job_id = '{job.id}' limit 5\"")
