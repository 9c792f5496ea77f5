"""The tree of commands."""

from __future__ import annotations

import typer

from gistmill.cli import (
    compare,
    datasets,
    evaluate,
    experiment,
    finetune,
    fleet,
    jobs,
    models,
    prompts,
    sql,
    stack,
    steering,
    summarize,
    workers,
)

app = typer.Typer(
    name="gistmill",
    help="Summarize dialogues in bulk with encoder-decoder models, and lose nothing.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("summarize")(summarize.summarize)
app.command("finetune")(finetune.finetune)
for command in (steering.cancel, steering.pause, steering.resume, steering.retry):
    jobs.app.command()(command)
app.add_typer(evaluate.app, name="evaluate", help=evaluate.HELP)
app.add_typer(compare.app, name="compare", help="Read evaluations back: tables, drawings, cases side by side, gates.")
app.add_typer(experiment.app, name="experiment", help="The whole notebook as one graph of jobs, with a report.")
app.add_typer(jobs.app, name="jobs", help="List, watch, read and steer jobs.")
app.add_typer(datasets.app, name="datasets", help="Add and list datasets.")
app.add_typer(models.app, name="models", help="Add and list models.")
app.add_typer(prompts.app, name="prompts", help="Add, list and show prompts.")
app.command("workers")(workers.workers)
app.command("sql")(sql.sql)
app.command("up")(stack.up)
app.command("down")(stack.down)
app.command("version")(stack.version)
hand_over = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
app.command("api", context_settings=hand_over)(fleet.api)
app.command("worker", context_settings=hand_over)(fleet.worker)
app.command("db", context_settings=hand_over)(fleet.db)
