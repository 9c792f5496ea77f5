"""What a fleet runs: these commands become the process that they name."""

from __future__ import annotations

import os
import sys

import typer


def api(context: typer.Context) -> None:
    """Run the HTTP service. Settings come from the environment."""
    _become("api", context.args)


def worker(context: typer.Context) -> None:
    """Start one worker per GPU, or CPU workers; see: gistmill worker --help"""
    _become("workers", context.args)


def db(context: typer.Context) -> None:
    """Prepare or recount the database: gistmill db upgrade, gistmill db check."""
    _become("gistmill.admin", context.args)


def _become(module: str, arguments: list[str]) -> None:
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])
