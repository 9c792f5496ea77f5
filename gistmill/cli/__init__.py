"""The command line. Commands import what they need when they run, so that help answers at once."""

from __future__ import annotations

import sys
from typing import Any


def main() -> None:
    """Run the command that the arguments name, and end with its exit status."""
    import typer

    from gistmill.cli.app import app
    from gistmill.cli.output import EXIT_INTERRUPTED, report_errors, say

    with report_errors():
        try:
            status = app(standalone_mode=False)
        except typer.Abort:
            say("interrupted")
            status = EXIT_INTERRUPTED
        except _usage_errors(typer.BadParameter) as error:
            error.show()
            status = error.exit_code
    sys.exit(status if isinstance(status, int) else 0)


def _usage_errors(leaf: type[Exception]) -> Any:
    """Return the class of every error of usage, wherever this version of typer keeps it."""
    return next(kind for kind in leaf.__mro__ if kind.__name__ == "ClickException")
