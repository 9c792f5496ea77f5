"""gistmill workers: who works."""

from __future__ import annotations

from typing import Annotated

import typer

from gistmill.cli.output import say, write_views


def workers(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List worker processes with what they do now."""
    from gistmill.client import Client

    with Client.for_reading() as client:
        columns = ("id", "host", "pid", "device", "engine", "state", "job", "seen_at")
        if not write_views(client.list_workers(), columns, as_json=as_json):
            say("there are no workers; start one with: gistmill worker, or everything with: gistmill up")
