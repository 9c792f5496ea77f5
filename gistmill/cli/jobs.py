"""gistmill jobs: list, show, watch, results, errors; steering.py adds cancel, pause, resume, retry."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gistmill.cli.output import EXIT_FAILED_ITEMS, advise, say, write_json, write_views
from gistmill.cli.submitting import interruptible

if TYPE_CHECKING:
    from gistmill.client import Job

app = typer.Typer(no_args_is_help=True)

JobId = Annotated[str, typer.Argument(help="The job's id.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_jobs(
    state: Annotated[str | None, typer.Option(help="Only jobs in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many, newest first.")] = 50,
    as_json: Json = False,
) -> None:
    """List jobs, newest first."""
    from itertools import islice

    from gistmill.client import Client

    with Client.for_reading() as client:
        columns = ("id", "state", "model", "prompt", "dataset", "created_at")
        write_views(islice(client.list_jobs(state=state), limit), columns, as_json=as_json)


@app.command()
def show(job: JobId, as_json: Json = False) -> None:
    """Show a job with its counts."""
    from gistmill.client import Client

    with Client.for_reading() as client:
        view = client.get_job_view(job).model_dump(mode="json")
    if as_json:
        write_json(view)
        return
    for name, value in view.items():
        print(f"{name:16} {json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value}")


@app.command()
def watch(job: JobId, as_json: Json = False) -> None:
    """Follow a job until it ends. Ctrl-C leaves it running."""
    from gistmill.cli.experiment import follow
    from gistmill.client import Client

    with Client() as client:
        watched = client.job(job)
        if watched.view.kind == "experiment":
            experiment = client.get_experiment(job)
            with interruptible(client, experiment):
                follow(experiment, None, as_json=as_json)
            return
        with interruptible(client, watched):
            _follow(watched)
            _close(watched, as_json=as_json)


def _close(job: Job, *, as_json: bool) -> None:
    """Say how the job has ended, and end with the status that it deserves."""
    counts = job.counts
    if as_json:
        write_json(job.view.model_dump(mode="json"))
    if job.view.kind == "finetune":
        say(f"{job.state}: {job.view.produced or 'no model was made'}")
        raise typer.Exit(0 if job.state == "completed" else 1)
    say(f"{job.state}: {counts.succeeded} succeeded, {counts.failed} failed, {counts.not_run} not run")
    advise(f"gistmill jobs results {job.id} -o summaries.jsonl")
    if job.state != "completed":
        raise typer.Exit(1)
    if counts.failed:
        raise typer.Exit(EXIT_FAILED_ITEMS)


def _follow(job: Job) -> None:
    if job.view.kind == "finetune":
        from gistmill.training_progress import show_training

        with show_training(live=True) as show:
            job.wait(on_change=show)
    else:
        job.wait(progress=True)


@app.command()
def results(
    job: JobId,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write them here.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the job ends.")] = False,
) -> None:
    """Write the summaries of a job as JSON Lines."""
    from gistmill.cli.summarize import write_results
    from gistmill.client import Client

    with Client() if follow else Client.for_reading() as client:
        found = client.job(job)
        with interruptible(client, found) if follow else nullcontext():
            if output is not None:
                if follow:
                    found.wait(progress=True)
                write_results(found, output, follow=follow)
                say(f"written to {output}")
                return
            for result in found.results(follow=follow):
                print(json.dumps(result.model_dump(exclude={"cursor"}), ensure_ascii=False))


@app.command()
def errors(job: JobId) -> None:
    """Write the failed items of a job as JSON Lines."""
    from gistmill.client import Client

    with Client.for_reading() as client:
        for error in client.job(job).errors():
            print(json.dumps(error.model_dump(exclude={"cursor"}), ensure_ascii=False))


@app.command()
def metrics(
    job: JobId,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the curve here, as .csv or .svg.")] = None,
    as_json: Json = False,
) -> None:
    """Show the curve of a training: loss, validation loss, scores and speed by step."""
    from gistmill.cli.finetune import write_curve
    from gistmill.client import Client

    with Client.for_reading() as client:
        write_curve(client.job(job), output, as_json=as_json)
