"""The command line. Commands import what they need when they run, so that help answers at once."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command that the arguments name, and end with its exit status."""
    from gistmill.cli.app import app
    from gistmill.cli.output import report_errors

    with report_errors():
        app()
    sys.exit(0)
