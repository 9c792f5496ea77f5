"""The cases of an evaluation: a dialogue with its rows, their references, and what each system wrote for them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sqlalchemy import Column, ColumnElement, Connection, and_, exists, literal, select

from gistmill.db.bulk import is_among, listed
from gistmill.db.claim import Claim
from gistmill.db.evaluations import Evaluation
from gistmill.db.jobs import JobRows, takes
from gistmill.db.tables import dataset_dialogues, dataset_rows, evaluation_cases, generations, job_rows, results

PREDICTIONS = "predictions"
# As many as a chunk has when all rows are taken; of a selection only some of them have a row.
WINDOW_RANKS = 2_000


class Scope(Protocol):
    """The rows of an evaluate job: its claim, or its row under other names."""

    @property
    def job_key(self) -> int:
        """The job."""

    @property
    def dataset_key(self) -> int:
        """Its dataset."""

    @property
    def row_start(self) -> int:
        """Its first row."""

    @property
    def row_stop(self) -> int:
        """The row behind its last."""

    @property
    def row_step(self) -> int:
        """Every so many rows; 0 when they are listed in `job_rows`."""


@dataclass
class CaseRow:
    """A row of a case. `texts` holds what each system wrote for it, by number; one that wrote nothing is not there."""

    number: int
    references: list[str]
    texts: dict[int, str] = field(default_factory=dict)


@dataclass
class Case:
    """A distinct dialogue with the rows of the job that have it, in order."""

    dialogue_key: int
    rows: list[CaseRow] = field(default_factory=list)

    @property
    def references(self) -> list[str]:
        """All references of the case, row by row."""
        return [text for row in self.rows for text in row.references]


def load_pending(connection: Connection, claim: Claim, evaluation: Evaluation, *, limit: int) -> list[Case]:
    """Return the next cases of the chunk that have no outcome yet, in rank order; empty when the chunk is done."""
    keys = _pending_keys(connection, claim, limit)
    return load_cases(connection, claim, evaluation, keys) if keys else []


def load_cases(connection: Connection, job: Scope, evaluation: Evaluation, keys: Sequence[int]) -> list[Case]:
    """Return the cases of these dialogues in the order given."""
    cases = {key: Case(key) for key in keys}
    by_number: dict[int, CaseRow] = {}
    query = select(dataset_rows.c.dialogue_key, dataset_rows.c.row_number, dataset_rows.c.references).where(
        dataset_rows.c.dataset_key == job.dataset_key,
        is_among(connection, dataset_rows.c.dialogue_key, keys),
        _is_selected(job, dataset_rows.c.row_number),
    )
    for row in connection.execute(query.order_by(dataset_rows.c.row_number)):
        by_number[row.row_number] = CaseRow(row.row_number, list(row.references))
        cases[row.dialogue_key].rows.append(by_number[row.row_number])
    _add_texts(connection, evaluation, by_number)
    if evaluation.predictions_key is not None:
        _add_predictions(connection, job.dataset_key, evaluation, evaluation.predictions_key, by_number)
    return list(cases.values())


def seen_in_training(connection: Connection, keys: Sequence[int], trainings: Iterable[tuple[int, JobRows]]) -> Collection[int]:
    """Return those of these dialogues that one of the trainings, each the rows of a dataset, has read."""
    seen: set[int] = set()
    for dataset_key, rows in trainings:
        query = select(dataset_rows.c.dialogue_key).where(
            dataset_rows.c.dataset_key == dataset_key,
            is_among(connection, dataset_rows.c.dialogue_key, keys),
            takes(connection, rows, dataset_rows.c.row_number),
        )
        seen.update(connection.execute(query).scalars())
    return seen


def _pending_keys(connection: Connection, claim: Claim, limit: int) -> list[int]:
    """Return the first dialogues of the chunk without an outcome, in rank order.

    Window by window, with a list of keys for each look: joined in one statement, PostgreSQL read every row of a dataset that it
    has no statistics of for each dialogue of the chunk, 364,000 rows for a page of 300.
    """
    found: list[int] = []
    for first in range(claim.first_rank, claim.last_rank + 1, WINDOW_RANKS):
        last = min(first + WINDOW_RANKS - 1, claim.last_rank)
        window = select(dataset_dialogues.c.dialogue_key).where(
            dataset_dialogues.c.dataset_key == claim.dataset_key, dataset_dialogues.c.rank.between(first, last)
        )
        keys = connection.execute(window.order_by(dataset_dialogues.c.rank)).scalars().all()
        found += _open_keys(connection, claim, keys)
        if len(found) >= limit:
            break
    return found[:limit]


def _open_keys(connection: Connection, claim: Claim, keys: Sequence[int]) -> list[int]:
    """Return those of these dialogues that the job takes and that have no outcome, in their order.

    Each is looked up by a query of its own: with a list, PostgreSQL compared all outcomes of the job, 0.6 s a page of 20,000.
    """
    asked = listed(connection, keys).subquery()
    key = asked.c[0]
    outcome = select(literal(1)).where(evaluation_cases.c.job_key == claim.job_key, evaluation_cases.c.dialogue_key == key)
    row = select(literal(1)).where(
        dataset_rows.c.dataset_key == claim.dataset_key,
        dataset_rows.c.dialogue_key == key,
        _is_selected(claim, dataset_rows.c.row_number),
    )
    is_open = (outcome.scalar_subquery().is_(None), row.limit(1).scalar_subquery().is_not(None))
    found = set(connection.execute(select(key).where(*is_open)).scalars())
    return [key for key in keys if key in found]


def _is_selected(job: Scope, row_number: Column[int]) -> ColumnElement[bool]:
    if job.row_step == 0:
        return exists(select(literal(1)).where(job_rows.c.job_key == job.job_key, job_rows.c.row_number == row_number))
    # "+ 0" keeps this condition from choosing the index, as in pending.py.
    number = row_number + literal(0)
    condition = and_(number >= job.row_start, number < job.row_stop)
    return condition if job.row_step == 1 else and_(condition, (number - job.row_start) % job.row_step == 0)


def _add_texts(connection: Connection, evaluation: Evaluation, rows: dict[int, CaseRow]) -> None:
    """Fill in what jobs have written for these rows."""
    for system in evaluation.systems:
        if system.summaries_key is None:
            continue
        query = (
            select(results.c.row_number, generations.c.summary)
            .join(generations, generations.c.key == results.c.generation_key)
            .where(results.c.job_key == system.summaries_key, is_among(connection, results.c.row_number, list(rows)))
        )
        for row_number, summary in connection.execute(query):
            rows[row_number].texts[system.number] = summary


def _add_predictions(
    connection: Connection, dataset_key: int, evaluation: Evaluation, predictions_key: int, rows: dict[int, CaseRow]
) -> None:
    """Fill in what a file holds for these rows. References of that file go before those of the dataset beside it."""
    query = select(dataset_rows.c.row_number, dataset_rows.c.metadata, dataset_rows.c.references).where(
        dataset_rows.c.dataset_key == predictions_key, is_among(connection, dataset_rows.c.row_number, list(rows))
    )
    for row_number, metadata, references in connection.execute(query):
        texts = metadata.get(PREDICTIONS, {})
        rows[row_number].texts |= {
            system.number: texts[system.column] for system in evaluation.systems if system.column in texts
        }
        if references and predictions_key != dataset_key:
            rows[row_number].references = list(references)
