"""A comparison as a file: one table of numbers from 0 to 1 for programs, or what people read, by the file's suffix."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gistmill.comparison.markdown import as_markdown
from gistmill.comparison.svg import as_svg
from gistmill.errors import InvalidInput
from gistmill.views import ComparisonView, PairView, SystemView

# The kinds of rows: `mean` of a system, and `difference` of a system from a baseline. Each leaves cells of the other empty.
FIELDS: dict[str, type] = {
    "kind": str,
    "system": str,
    "baseline": str,
    "measure": str,
    "cases": int,
    "value": float,
    "low": float,
    "high": float,
    "precision": float,
    "recall": float,
    "p_value": float,
    "p_adjusted": float,
    "wins": int,
    "ties": int,
    "losses": int,
    "training_s": float,
    "memory_bytes": int,
    "trainable_parameters": int,
    "total_parameters": int,
    "artifact_bytes": int,
}
SUFFIXES = (".csv", ".parquet", ".md", ".svg")


def save(view: ComparisonView, path: Path) -> None:
    """Write a comparison as CSV, Parquet, Markdown or a drawing, as the path's suffix says.

    Raises:
        InvalidInput: it has another suffix, or pyarrow is needed and not installed.
    """
    check_suffix(path)
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        write_parquet(view, path)
        return
    texts: dict[str, Callable[[ComparisonView], str]] = {".csv": as_csv, ".md": as_markdown, ".svg": as_svg}
    path.write_text(texts[suffix](view), encoding="utf-8", newline="")


def check_suffix(path: Path) -> None:
    """Make sure, before there is anything to write, that a comparison can be written to this path.

    Raises:
        InvalidInput: it has another suffix than .csv, .parquet, .md or .svg, or pyarrow is needed and not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InvalidInput(f"A comparison is written as {', '.join(SUFFIXES)}, not as '{path.name}'.")
    if path.suffix.lower() == ".parquet" and find_spec("pyarrow") is None:
        raise InvalidInput(
            f"'{path.name}' cannot be written: Parquet needs pyarrow. Install it with: pip install pyarrow. Or write .csv."
        )


def as_csv(view: ComparisonView) -> str:
    """Return a line per mean and per difference, scores from 0 to 1; what does not apply is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(list_rows(view))
    return text.getvalue()


def write_parquet(view: ComparisonView, path: Path) -> None:
    """Write the rows of `as_csv` as Parquet; what does not apply is null."""
    import pyarrow
    from pyarrow import parquet

    types = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64()}
    schema = pyarrow.schema([(name, types[kind]) for name, kind in FIELDS.items()])
    parquet.write_table(pyarrow.Table.from_pylist(list(list_rows(view)), schema=schema), path)


def list_rows(view: ComparisonView) -> Iterator[dict[str, Any]]:
    """Yield a row of `FIELDS` for each mean, then for each difference."""
    for system in view.systems:
        yield from (_mean(system, measure) for measure in view.measures if measure in system.scores)
    yield from map(_difference, view.pairs)


def _mean(system: SystemView, measure: str) -> dict[str, Any]:
    found = system.scores[measure]
    cost = system.cost.model_dump() if system.cost else {}
    return (
        dict.fromkeys(FIELDS)
        | cost
        | {
            "kind": "mean",
            "system": system.name,
            "measure": measure,
            "cases": found.cases,
            "value": found.fmeasure,
            "low": found.low,
            "high": found.high,
            "precision": found.precision,
            "recall": found.recall,
        }
    )


def _difference(pair: PairView) -> dict[str, Any]:
    known = {name: value for name, value in pair.model_dump().items() if name in FIELDS}
    return dict.fromkeys(FIELDS) | known | {"kind": "difference", "value": pair.delta}
