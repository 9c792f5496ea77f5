"""What every kind of job is checked for and made of before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import Connection, Row

from gistmill.db import datasets
from gistmill.db.jobs import JobRows
from gistmill.db.speed import Work
from gistmill.errors import DatasetLoading
from gistmill.ingest.selection import parse_selection
from gistmill.plan import Range
from gistmill.specs import AnySpec
from gistmill.states import DatasetState


class ResolvedModel(Protocol):
    """What a job needs to know of its model."""

    @property
    def key(self) -> int:
        """The key of its row in `models`."""

    @property
    def digest(self) -> str:
        """The sha256 that names its files."""


@dataclass(frozen=True)
class Draft:
    """A job that was checked and planned, with nothing written yet.

    `before` are jobs that are written with it and that it waits for, `needs` the keys of others. One that stands before several
    is written once. Of them `maker` makes the model; its `id` was given before, so that specs can name it. `base` is what a
    model that is still to be made is tuned from, if that is known. `works` are what a summarize job does and, behind it, what
    has about the same speed. `record` writes what the job has in other tables, given its key and those of `before`.
    """

    spec: AnySpec
    dataset_key: int
    model: ResolvedModel | None
    rows: JobRows
    ranges: tuple[Range, ...]
    recipe: dict[str, Any] | None = None
    distinct_dialogues: int = 0
    warnings: tuple[str, ...] = ()
    before: tuple[Draft, ...] = ()
    needs: tuple[int, ...] = ()
    model_job_key: int | None = None
    maker: Draft | None = None
    base: ResolvedModel | None = None
    works: tuple[Work, ...] = ()
    id: str | None = None
    record: Callable[[Connection, int, Sequence[int]], None] | None = None


def get_ready(connection: Connection, tenant_key: int, reference: str) -> Row[Any]:
    """Return the dataset of this id or name.

    Raises:
        UnknownDataset: there is none.
        DatasetLoading: it is not ready; trying again is safe.
    """
    dataset = datasets.get(connection, tenant_key, reference)
    if dataset.state != DatasetState.READY:
        raise DatasetLoading(f"The dataset '{reference}' is still being loaded ({dataset.rows} rows so far). Try again later.")
    return dataset


def select_rows(select: str | None, rows: int) -> JobRows:
    """Return the rows that a selection chooses out of so many; all of them without one.

    Raises:
        InvalidSelection: it does not parse, or chooses nothing.
    """
    if select is None:
        return JobRows(0, rows)
    chosen = parse_selection(select, rows)
    return JobRows(chosen.start, chosen.stop, chosen.step, chosen.rows)
