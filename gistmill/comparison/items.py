"""Cases side by side: to read, as lines of JSON, and as the notebook's table of references and one column per system."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import IO

from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from gistmill.comparison.characters import plain
from gistmill.comparison.console import render, write
from gistmill.comparison.figures import points, signed
from gistmill.views import CaseView

INDENT = 4
# The columns of the wide table that are no system's.
FIXED = ("id", "references")


def write_text(cases: Iterable[CaseView], file: IO[str]) -> None:
    """Write each case with its dialogue, references, and every summary with its scores, to a terminal in its width."""
    for case in cases:
        write(_parts(case), file)


def as_text(case: CaseView, *, width: int | None = None) -> str:
    """Return a case with its dialogue, references, and every summary with its scores, folded to a width if there is one."""
    return render(_parts(case), width=width)


def as_lines(cases: Iterable[CaseView]) -> Iterator[str]:
    """Yield each case as a line of JSON; scores are 0 to 1."""
    for case in cases:
        yield case.model_dump_json(exclude={"cursor"}) + "\n"


def as_wide_csv(cases: Iterable[CaseView], systems: Sequence[str]) -> Iterator[str]:
    """Yield the lines of a table with the id, the references and a column per system, named like it.

    Several references of a case stand in one cell, a line each, because cases differ in how many they have. A summary that is
    missing is an empty cell. `gistmill evaluate --predictions` reads such a file. A system that is called like one of the first
    two columns gets `system:` before its name.
    """
    yield _line([*FIXED, *(f"system:{name}" if name in FIXED else name for name in systems)])
    for case in cases:
        yield _line([case.id, "\n".join(case.references), *(case.summaries.get(name) or "" for name in systems)])


def _parts(case: CaseView) -> Iterator[RenderableType]:
    yield Text(plain(_head(case)), style="bold")
    # Of summaries made elsewhere the dialogues may be unknown; what stands for one then says nothing more than the head does.
    if case.dialogue != f"row {case.row}":
        yield from _block("dialogue", case.dialogue)
    for number, reference in enumerate(case.references, start=1):
        yield from _block(f"reference {number}" if len(case.references) > 1 else "reference", reference)
    for system, summary in case.summaries.items():
        scores = "  ".join(f"{measure} {points(score)}" for measure, score in case.scores.get(system, {}).items())
        yield from _block(f"{system}  {scores}".rstrip(), _shown(summary))
    yield Text()


def _head(case: CaseView) -> str:
    delta = "" if case.delta is None else f", {signed(case.delta)} points over the baseline"
    return f"row {case.row}, id {case.id}: {case.outcome.replace('_', ' ')}{delta}"


def _shown(summary: str | None) -> str:
    if summary is None:
        return "(no summary)"
    return summary if summary.strip() else "(empty)"


def _block(title: str, text: str) -> Iterator[RenderableType]:
    yield Text(plain(f"  {title}"), style="cyan")
    yield Padding(Text(plain(text)), (0, 0, 0, INDENT))


def _line(cells: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()
