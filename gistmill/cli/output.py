"""Data on standard output, messages on standard error, and errors as people read them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gistmill.errors import GistmillError

SHOWN_DETAILS = 20
EXIT_FAILED_ITEMS = 3
EXIT_INTERRUPTED = 130


@contextmanager
def report_errors() -> Iterator[None]:
    """End the process with a message and the exit status of the error, never with a trace."""
    try:
        yield
    except GistmillError as error:
        say(f"error: {error.message}")
        for detail in error.details[:SHOWN_DETAILS] if len(error.details) > 1 else ():
            place = f"line {detail.line}" if detail.line is not None else detail.pointer
            say(f"  {place}: {detail.message}" if place else f"  {detail.message}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        say("interrupted")
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output has gone, as `head` does: nothing is left to say to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def say(message: str) -> None:
    """Write a message for people to standard error."""
    print(message, file=sys.stderr, flush=True)


def advise(command: str) -> None:
    """Name the command that is useful next."""
    say(f"next: {command}")


def require_directory(output: Path) -> None:
    """Make sure that the directory of a file that will be written is there, before the work that fills it.

    Raises:
        BadParameter: it is not.
    """
    import typer

    if not output.absolute().parent.is_dir():
        raise typer.BadParameter(f"there is no directory {output.absolute().parent}", param_hint="--output")


def write_json(value: Any) -> None:
    """Write one JSON document to standard output."""
    print(json.dumps(value, ensure_ascii=False, default=str))


def write_views(views: Iterable[Any], columns: Sequence[str], *, as_json: bool) -> int:
    """Write a list as a table, or as JSON; return how many there are."""
    rows = [view.model_dump(mode="json") for view in views]
    if as_json:
        write_json(rows)
    else:
        write_table(columns, [[row.get(column) for column in columns] for row in rows])
    return len(rows)


def write_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write columns of text, each as wide as it needs to be."""
    texts = [[_cell(value) for value in row] for row in rows]
    widths = [max([len(name), *(len(row[place]) for row in texts)]) for place, name in enumerate(columns)]
    for row in [list(columns), *texts]:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False)
    return str(value).replace("\n", "\\n")
