"""A comparison on a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import IO

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table as RichTable
from rich.text import Text

from gistmill.comparison.characters import plain
from gistmill.comparison.console import render, write
from gistmill.comparison.tables import Table, list_sentences, list_tables
from gistmill.views import ComparisonView

BETWEEN = 2
# Names may be folded to this many characters; a figure in pieces could be misread, so figures never are.
FOLDED_NAME = 16


def write_text(view: ComparisonView, file: IO[str]) -> None:
    """Write the tables and sentences of a comparison to a terminal in its width, or to another file without colours."""
    write(_parts(view), file)


def as_text(view: ComparisonView, *, width: int | None = None) -> str:
    """Return the tables and sentences of a comparison, folded to a width, or as wide as they are."""
    return render(_parts(view), width=width)


def _parts(view: ComparisonView) -> Iterator[RenderableType]:
    for table in list_tables(view):
        yield Text(plain(table.title), style="bold")
        yield _Fitting(table)
        yield Text()
    for sentence in list_sentences(view):
        yield Text(plain(sentence))


class _Fitting:
    """A table as it is; where that is too wide with each interval below its figure; else each row as lines of its own."""

    def __init__(self, table: Table) -> None:
        names, rows = map(plain, table.columns), (tuple(map(plain, row)) for row in table.rows)
        self._table = replace(table, columns=tuple(names), rows=tuple(rows))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the first form that fits."""
        stacked = _stack(self._table)
        if _width(self._table) <= options.max_width:
            yield _draw(self._table)
        elif _width(stacked, longest_name=FOLDED_NAME) <= options.max_width:
            yield _draw(stacked)
        else:
            yield from _list(self._table)


def _stack(table: Table) -> Table:
    """Return the table with the intervals and the words of the figures' headings below each other."""
    heads = (name if place < table.names else name.replace(" ", "\n") for place, name in enumerate(table.columns))
    rows = ((*row[: table.names], *(cell.replace(" [", "\n[") for cell in row[table.names :])) for row in table.rows)
    return replace(table, columns=tuple(heads), rows=tuple(rows))


def _width(table: Table, *, longest_name: int | None = None) -> int:
    widths = [max(_cell_width(cell) for cell in column) for column in zip(table.columns, *table.rows, strict=True)]
    if longest_name is not None:
        widths[: table.names] = [min(width, longest_name) for width in widths[: table.names]]
    return sum(widths) + BETWEEN * (len(widths) - 1)


def _cell_width(cell: str) -> int:
    return max((cell_len(line) for line in cell.split("\n")), default=0)


def _draw(table: Table) -> RichTable:
    drawn = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, BETWEEN - 1, 0, 0))
    for place, column in enumerate(table.columns):
        if place < table.names:
            drawn.add_column(Text(column), overflow="fold")
        else:
            drawn.add_column(Text(column), justify="right", no_wrap=True)
    for row in table.rows:
        drawn.add_row(*map(Text, row))
    return drawn


def _list(table: Table) -> Iterator[Text]:
    heads = table.columns[table.names :]
    width = max(map(cell_len, heads))
    for row in table.rows:
        named = zip(table.columns[: table.names], row[: table.names], strict=True)
        yield Text(row[0] if table.names == 1 else ", ".join(f"{head} {cell}" for head, cell in named), style="bold")
        for head, cell in zip(heads, row[table.names :], strict=True):
            yield Text(f"  {head}{' ' * (width - cell_len(head))}  {cell}")
