"""A comparison in Markdown, as GitHub reads it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from gistmill.comparison.tables import Table, list_sentences, list_tables
from gistmill.views import ComparisonView

# An underscore inside a word means nothing there.
MEANS_SOMETHING = re.compile(r"[\\`*<>|\[\]#~$]|(?<![^\W_])_|_(?![^\W_])")


def as_markdown(view: ComparisonView, *, level: int = 2) -> str:
    """Return the tables, each below a heading of this level, and the sentences as a list."""
    parts = [as_section(table, level) for table in list_tables(view)]
    sentences = "".join(f"- {escape(sentence)}\n" for sentence in list_sentences(view))
    return "\n".join([*parts, sentences])


def as_section(table: Table, level: int) -> str:
    """Return a table below a heading of this level."""
    return "\n".join([f"{'#' * level} {escape(table.title)}", "", *_rows(table), ""])


def escape(text: str) -> str:
    """Return a text on one line that Markdown shows as it is."""
    return MEANS_SOMETHING.sub(r"\\\g<0>", " ".join(text.split()))


def _rows(table: Table) -> Iterator[str]:
    yield _line([escape(column) for column in table.columns])
    yield _line([":--" if place < table.names else "--:" for place in range(len(table.columns))])
    for row in table.rows:
        yield _line([*map(escape, row[: table.names]), *row[table.names :]])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
