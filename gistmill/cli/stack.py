"""gistmill up, down and version."""

from __future__ import annotations

from typing import Annotated

import typer

from gistmill.cli.output import advise, say


def up(
    no_workers: Annotated[bool, typer.Option("--no-workers", help="Start redis and the api only.")] = False,
) -> None:
    """Run redis, the api and workers on this machine until Ctrl-C."""
    from gistmill.local import supervise
    from gistmill.settings import load_settings

    settings = load_settings()

    def on_ready(url: str) -> None:
        say(f"Gistmill runs at {url}, data in {settings.data_dir}. Ctrl-C stops it.")
        advise("gistmill summarize FILE --model gist-tiny")

    raise typer.Exit(supervise(settings, private=False, workers=not no_workers, on_ready=on_ready))


def down() -> None:
    """Stop the stack of the data directory; jobs resume when it is started again."""
    from gistmill.local import stop_stack
    from gistmill.settings import load_settings

    settings = load_settings()
    if stop_stack(settings):
        say(f"stopped; the data stays in {settings.data_dir}")
    else:
        say(f"nothing runs on {settings.data_dir}")


def version() -> None:
    """Print the version."""
    from gistmill import __version__

    print(__version__)
