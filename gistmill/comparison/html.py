"""A comparison in a cell of a notebook."""

from __future__ import annotations

from collections.abc import Sequence

from gistmill.comparison.svg import as_svg, escape
from gistmill.comparison.tables import Table, list_sentences, list_tables
from gistmill.views import ComparisonView


def as_html(view: ComparisonView) -> str:
    """Return the tables, the drawing and the sentences as a piece of HTML."""
    tables = "\n".join(_table(table) for table in list_tables(view))
    sentences = "\n".join(f"<li>{escape(sentence)}</li>" for sentence in list_sentences(view))
    return f'<div class="gistmill-comparison">\n{tables}\n{as_svg(view)}<ul>\n{sentences}\n</ul>\n</div>\n'


def _table(table: Table) -> str:
    head = _row(table.columns, table.names, "th")
    body = "\n".join(_row(row, table.names, "td") for row in table.rows)
    title = f"<caption>{escape(table.title)}</caption>"
    return f"<table>\n{title}\n<thead>\n{head}\n</thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def _row(cells: Sequence[str], names: int, tag: str) -> str:
    sides = ("left" if place < names else "right" for place in range(len(cells)))
    inside = "".join(
        f'<{tag} style="text-align:{side}">{escape(cell)}</{tag}>' for cell, side in zip(cells, sides, strict=True)
    )
    return f"<tr>{inside}</tr>"
