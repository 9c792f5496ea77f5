"""Scores in SQL: the transaction that records a page of cases, all scores as arrays are made of, means and comparisons."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, delete, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from gistmill.db.bulk import PAGE, insert_many, insert_returning
from gistmill.db.claim import Claim
from gistmill.db.clock import db_now
from gistmill.db.fence import guard
from gistmill.db.tables import comparisons, evaluation_cases, evaluations, jobs, score_means, scores
from gistmill.errors import JobEnded
from gistmill.states import FINAL_JOB_STATES, JobState

ROUGE_ALONE = ("rouge",)


class ScoreRow(NamedTuple):
    """What one system reached on one measure, for a case as a whole or for one of its rows."""

    row_number: int
    system: int
    measure: str
    precision: float | None
    recall: float | None
    fmeasure: float


class CaseEnd(NamedTuple):
    """How a case ended, and its scores when it was scored."""

    dialogue_key: int
    row_number: int
    outcome: str
    missing: tuple[int, ...] = ()
    empty: tuple[int, ...] = ()
    is_differing: bool = False
    scores: tuple[ScoreRow, ...] = ()


class StoredScore(NamedTuple):
    """A score as the aggregation reads it."""

    dialogue_key: int
    row_number: int
    system: int
    measure: str
    precision: float | None
    recall: float | None
    fmeasure: float


CASE_COLUMNS = [
    evaluation_cases.c[name]
    for name in ("job_key", "dialogue_key", "row_number", "outcome", "missing", "empty", "differing", "chunk_key", "epoch")
]
SCORE_COLUMNS = [scores.c[name] for name in ("job_key", *StoredScore._fields)]


def record(connection: Connection, claim: Claim, ends: Sequence[CaseEnd]) -> int:
    """Write how these cases ended, with their scores, all or nothing; return how many are new.

    A case that has an outcome keeps it: an earlier lease may have committed without hearing so.

    Raises:
        LeaseLost: the chunk is no longer this claim's; nothing was written.
        JobEnded: the job was cancelled to its end or has failed.
    """
    guard(connection, claim, progressed=True)
    _check_job(connection, claim.job_key)
    rows = [
        (
            *(claim.job_key, end.dialogue_key, end.row_number, end.outcome),
            *(json.dumps(end.missing), json.dumps(end.empty), end.is_differing, claim.chunk_key, claim.epoch),
        )
        for end in sorted(ends)
    ]
    written = insert_returning(
        connection,
        CASE_COLUMNS,
        rows,
        stamp=evaluation_cases.c.created_at,
        on_conflict="DO NOTHING",
        returning=[evaluation_cases.c.dialogue_key],
    )
    new = {dialogue_key for (dialogue_key,) in written}
    insert_many(
        connection,
        SCORE_COLUMNS,
        ((claim.job_key, end.dialogue_key, *score) for end in ends if end.dialogue_key in new for score in end.scores),
    )
    connection.execute(
        update(evaluations).where(evaluations.c.job_key == claim.job_key).values(ended=evaluations.c.ended + len(new))
    )
    return len(new)


def read_all(connection: Connection, job_key: int) -> Iterator[StoredScore]:
    """Stream every score of the job, the rows of a case together."""
    query = select(*(scores.c[name] for name in StoredScore._fields)).where(scores.c.job_key == job_key)
    query = query.order_by(scores.c.dialogue_key, scores.c.row_number, scores.c.system)
    for row in connection.execute(query, execution_options={"yield_per": PAGE}):
        yield StoredScore(*row)


def count_outcomes(connection: Connection, job_key: int) -> dict[str, int]:
    """Return how many cases ended how, by name, so that the same counts are the same bytes."""
    query = select(evaluation_cases.c.outcome, func.count()).where(evaluation_cases.c.job_key == job_key)
    return dict(sorted((row.outcome, row[1]) for row in connection.execute(query.group_by(evaluation_cases.c.outcome))))


class Flaws(NamedTuple):
    """What is to be said aloud: of how many cases each system has no summary, or an empty one, and in how many rows differ."""

    missing: list[int]
    empty: list[int]
    differing: int


def count_flaws(connection: Connection, job_key: int, systems: int) -> Flaws:
    """Return the flaws of all cases of the job."""
    query = select(evaluation_cases.c.missing, evaluation_cases.c.empty, evaluation_cases.c.differing)
    query = query.where(evaluation_cases.c.job_key == job_key)
    missing, empty, differing = [0] * systems, [0] * systems, 0
    for row in connection.execute(query, execution_options={"yield_per": PAGE}):
        differing += row.differing
        for counts, numbers in ((missing, row.missing), (empty, row.empty)):
            for number in numbers:
                counts[number] += 1
    return Flaws(missing, empty, differing)


def record_aggregates(
    connection: Connection,
    claim: Claim,
    *,
    means: Sequence[Mapping[str, Any]],
    pairs: Sequence[Mapping[str, Any]],
    counts: Mapping[str, Any],
    signature: Mapping[str, Any],
    notes: Sequence[str],
) -> None:
    """Write what the scores come to. The same scores always come to the same, so that what is there stands.

    Raises:
        LeaseLost: the chunk is no longer this claim's; nothing was written.
        JobEnded: the job was cancelled to its end or has failed.
    """
    guard(connection, claim, progressed=True)
    _check_job(connection, claim.job_key)
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    for table, rows in ((score_means, means), (comparisons, pairs)):
        if rows:
            values = [{"job_key": claim.job_key, **row} for row in rows]
            connection.execute(dialect.insert(table).on_conflict_do_nothing(), values)
    connection.execute(
        update(evaluations)
        .where(evaluations.c.job_key == claim.job_key)
        .values(counts=dict(counts), signature=dict(signature), notes=list(notes), aggregated_at=db_now())
    )


def forget(connection: Connection, job: Row[Any]) -> None:
    """Let a job that is taken up again look anew at what it left out: by now every model may have a summary of it.

    What its scores came to goes too, because it is written only once. After a failure so do all scores, when modules gave
    some: a module that was mended gives other figures, and the two must not be mixed. `job` is its row as it ended.
    """
    is_stale = job.state == JobState.FAILED and tuple(job.spec.get("metrics") or ROUGE_ALONE) != ROUGE_ALONE
    gone = () if is_stale else (evaluation_cases.c.outcome != "scored",)
    for table in (score_means, comparisons, *((scores,) if is_stale else ())):
        connection.execute(delete(table).where(table.c.job_key == job.key))
    cases = connection.execute(delete(evaluation_cases).where(evaluation_cases.c.job_key == job.key, *gone)).rowcount
    connection.execute(
        update(evaluations)
        .where(evaluations.c.job_key == job.key)
        .values(ended=evaluations.c.ended - cases, aggregated_at=None)
    )


def _check_job(connection: Connection, job_key: int) -> None:
    """Lock the job's row, as everywhere after its chunk."""
    statement = (
        update(jobs).where(jobs.c.key == job_key, jobs.c.state.not_in(FINAL_JOB_STATES)).values(claimed_at=jobs.c.claimed_at)
    )
    if connection.execute(statement).rowcount != 1:
        raise JobEnded
