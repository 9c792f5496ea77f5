"""gistmill jobs cancel, pause, resume, retry: on the jobs that are named, or on a selection."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gistmill.cli.jobs import Json
from gistmill.cli.output import advise, say, write_json
from gistmill.cli.submitting import interruptible
from gistmill.errors import InvalidInput

if TYPE_CHECKING:
    from gistmill.client import Client

Action = Literal["cancel", "pause", "resume", "retry"]
PAST = {"cancel": "cancelled", "pause": "paused", "resume": "resumed", "retry": "retried"}

Jobs = Annotated[list[str] | None, typer.Argument(help="The jobs' ids; without any, --where and --state select.")]
Where = Annotated[
    list[str] | None,
    typer.Option(help="Select jobs by NAME=VALUE: label.NAME, kind, model, dataset or prompt. May be repeated."),
]
State = Annotated[str | None, typer.Option(help="Select jobs in this state.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before a selection is acted upon.")]


def cancel(jobs: Jobs = None, where: Where = None, state: State = None, yes: Yes = False, as_json: Json = False) -> None:
    """Cancel jobs: what waits is not run, what runs stops within seconds."""
    _steer("cancel", jobs, where, state, yes=yes, as_json=as_json)


def pause(jobs: Jobs = None, where: Where = None, state: State = None, yes: Yes = False, as_json: Json = False) -> None:
    """Pause jobs: what runs stops within a step and is given back, and nothing more is handed out."""
    _steer("pause", jobs, where, state, yes=yes, as_json=as_json)


def resume(jobs: Jobs = None, where: Where = None, state: State = None, yes: Yes = False, as_json: Json = False) -> None:
    """Let paused jobs go on."""
    _steer("resume", jobs, where, state, yes=yes, as_json=as_json)


def retry(
    jobs: Jobs = None,
    failed: Annotated[bool, typer.Option("--failed", help="Leave out jobs with items that were never run.")] = False,
    retryable: Annotated[
        bool, typer.Option("--retryable", help="Only items whose error may not happen again, such as a lack of memory.")
    ] = False,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE: make a new job of the failed rows with this change to its spec."),
    ] = None,
    where: Where = None,
    state: State = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Take ended jobs up again: only what is missing is done."""
    options = {"failed": failed, "retryable": retryable}
    if not changes:
        _steer("retry", jobs, where, state, yes=yes, as_json=as_json, options=options)
        return
    if not jobs or len(jobs) != 1:
        raise InvalidInput("--set makes a new job of one job's failed rows: name that job.")
    from gistmill.client import Client

    with Client() as client, interruptible(client) as accept:
        new = client.job(jobs[0]).retry(**options, **dict(map(parse_change, changes)))
        accept(new)
        if as_json:
            write_json(new.view.model_dump(mode="json"))
        say(f"{new.id} takes the {new.view.counts.items} failed rows of {jobs[0]}")
        advise(f"gistmill jobs watch {new.id}")


def parse_change(text: str) -> tuple[str, Any]:
    """Return the name and value of NAME=VALUE; the value is JSON when it reads as JSON, else text.

    Raises:
        InvalidInput: there is no name or no equals sign.
    """
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InvalidInput(f"--set {text} is no change. Write NAME=VALUE, for example max_input_tokens=4096.")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _steer(
    action: Action,
    jobs: list[str] | None,
    where: list[str] | None,
    state: str | None,
    *,
    yes: bool,
    as_json: bool,
    options: dict[str, bool] | None = None,
) -> None:
    from gistmill.client import Client

    if jobs and (where or state):
        raise InvalidInput("Name jobs or select them with --where and --state, but not both.")
    with Client() as client:
        if jobs:
            _steer_named(client, action, jobs, options or {}, as_json=as_json)
        else:
            _steer_selected(client, action, where or [], state, options or {}, yes=yes, as_json=as_json)


def _steer_named(client: Client, action: Action, jobs: list[str], options: dict[str, bool], *, as_json: bool) -> None:
    views = [getattr(client.job(job), action)(**options).view for job in jobs]
    if as_json:
        shown = [view.model_dump(mode="json") for view in views]
        write_json(shown[0] if len(shown) == 1 else shown)
    for view in views:
        say(f"{view.id} is {view.state}{' and paused' if view.paused else ''}")
    advise(f"gistmill jobs {'watch' if action in ('resume', 'retry') else 'show'} {views[-1].id}")


def _steer_selected(
    client: Client,
    action: Action,
    where: list[str],
    state: str | None,
    options: dict[str, bool],
    *,
    yes: bool,
    as_json: bool,
) -> None:
    found = client.steer(action, where=where, state=state, preview=True, **options)
    if found.matched and not yes:
        _ask(action, found.matched)
    done = found
    if found.matched:
        done = client.steer(action, where=where, state=state, up_to=found.up_to, **options)
    if as_json:
        write_json(done.model_dump(mode="json"))
    say(f"{done.changed} jobs {PAST[action]}")
    for refusal in done.refusals:
        say(f"  left as it is: {refusal.message}")
    advise("gistmill jobs list")


def _ask(action: Action, matched: int) -> None:
    if not sys.stdin.isatty():
        raise InvalidInput(f"This would {action} {matched} jobs. Add --yes to do so without being asked.")
    if not typer.confirm(f"{action.capitalize()} {matched} jobs?", err=True):
        raise typer.Exit(1)
