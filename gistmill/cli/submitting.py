"""What every command that submits a job shares: labels, leaving a stack up, and Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import typer
from typer.core import TyperGroup

from gistmill.cli.output import EXIT_INTERRUPTED, say
from gistmill.states import STOPPED_JOB_STATES

if TYPE_CHECKING:
    from gistmill.client import Client


class Watched(Protocol):
    """What a command waits for: a job, a comparison or an experiment."""

    @property
    def id(self) -> str:
        """The id of its job."""

    @property
    def state(self) -> str:
        """The state of its job when it was last read."""

    @property
    def view(self) -> Any:
        """What was last read of it."""


class DefaultGroup(TyperGroup):
    """Commands of which `run` is meant when none is named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `run` before arguments that name no command."""
        if args and args[0] not in self.commands:
            args = ["run", *args]
        return super().parse_args(ctx, args)


def split_names(text: str | None) -> list[str]:
    """Return the parts of a text that commas separate."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def labels_of(texts: Iterable[str]) -> dict[str, str] | None:
    """Return the labels that NAME=VALUE texts give, or None when there are none."""
    pairs = [text.partition("=") for text in texts]
    if any(not name or not equals for name, equals, _ in pairs):
        raise typer.BadParameter("write NAME=VALUE, for example team=support", param_hint="--label")
    return {name: value for name, _, value in pairs} or None


def stay_up(client: Client) -> None:
    """Leave the stack running when this command ends."""
    if client.stack is not None:
        client.stack.keep()
        if client.stack.is_private:
            say("the stack runs on; stop it with: gistmill down")


@contextmanager
def interruptible(client: Client, watched: Watched | None = None) -> Iterator[Callable[[Watched], None]]:
    """Say on Ctrl-C, whenever it comes, what becomes of the job that is watched, or submitted within.

    Gives the function to call with the job once it was accepted.
    """
    accepted = [] if watched is None else [watched]
    try:
        yield accepted.append
    except KeyboardInterrupt:
        if accepted:
            leave(client, accepted[0])
        else:
            say("interrupted while submitting; whether the job was accepted says: gistmill jobs list")
        raise typer.Exit(EXIT_INTERRUPTED) from None


def leave(client: Client, job: Watched) -> None:
    """Say what becomes of a job whose watcher leaves."""
    if job.state in STOPPED_JOB_STATES:
        say(f"left; the job {job.id} is {job.state}. Look at it with: gistmill jobs show {job.id}")
    elif getattr(job.view, "paused", False):
        say(f"left; the job {job.id} is paused. Let it go on with: gistmill jobs resume {job.id}")
    elif client.stack is not None and client.stack.is_private and not client.stack.is_kept:
        say(f"stopping; the job {job.id} resumes when gistmill starts here again, for example: gistmill jobs watch {job.id}")
    else:
        say(f"detached; the job {job.id} runs on. Follow it with: gistmill jobs watch {job.id}")
