"""Training runs in SQL: the rows they read, the points of their curves, and how far they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, Text, cast, func, literal, select, update

from gistmill.db.bulk import PAGE, insert_returning
from gistmill.db.claim import Claim
from gistmill.db.fence import guard
from gistmill.db.jobs import JobRows, takes
from gistmill.db.tables import dataset_rows, dialogues, jobs, models, training_metrics


class Point(NamedTuple):
    """A point of a curve: `kind` is "train" for an optimizer step and "eval" for an evaluation after one."""

    kind: str
    step: int
    epoch: float
    loss: float | None = None
    learning_rate: float | None = None
    gradient_norm: float | None = None
    samples_per_s: float | None = None
    memory_bytes: int | None = None
    rouge1: float | None = None
    rouge2: float | None = None
    rougel: float | None = None
    rougelsum: float | None = None


class TrainingRow(NamedTuple):
    """A row with at least one reference."""

    row_number: int
    dialogue_key: int
    dialogue: str
    references: list[str]


COLUMNS = [training_metrics.c[name] for name in ("job_key", *Point._fields, "chunk_key", "lease_epoch")]


def record(
    connection: Connection, claim: Claim, points: Sequence[Point], *, training: dict[str, Any] | None, is_saved: bool
) -> int:
    """Write points of the curve, and how far the run is; return how many points are new.

    A resumed run repeats what it did after its checkpoint: points that are there stand. `is_saved` says that a checkpoint
    was written, which is what counts as progress of the chunk.

    Raises:
        LeaseLost: the chunk is no longer this claim's; nothing was written.
    """
    guard(connection, claim, **({"progressed": True} if is_saved else {"owner": claim.worker}))
    rows = [(claim.job_key, *point, claim.chunk_key, claim.epoch) for point in points]
    written = insert_returning(
        connection,
        COLUMNS,
        rows,
        stamp=training_metrics.c.created_at,
        on_conflict="DO NOTHING",
        returning=[training_metrics.c.step],
    )
    if training is not None:
        connection.execute(update(jobs).where(jobs.c.key == claim.job_key).values(training=training))
    return len(written)


def read_points(connection: Connection, job_key: int, *, after: tuple[int, str] = (-1, ""), limit: int = PAGE) -> list[Point]:
    """Return points behind (step, kind), by step; an evaluation comes before the step's own point."""
    step, kind = training_metrics.c.step, training_metrics.c.kind
    query = select(*(training_metrics.c[name] for name in Point._fields)).where(
        training_metrics.c.job_key == job_key, (step > after[0]) | ((step == after[0]) & (kind > after[1]))
    )
    return [Point(*row) for row in connection.execute(query.order_by(step, kind).limit(limit))]


def last_points(connection: Connection, job_key: int) -> list[Point]:
    """Return the last point of each kind."""
    kinds = select(training_metrics.c.kind.label("kind"), func.max(training_metrics.c.step).label("step"))
    last = kinds.where(training_metrics.c.job_key == job_key).group_by(training_metrics.c.kind).subquery()
    is_last = (training_metrics.c.kind == last.c.kind) & (training_metrics.c.step == last.c.step)
    query = select(*(training_metrics.c[name] for name in Point._fields)).join(last, is_last)
    return [Point(*row) for row in connection.execute(query.where(training_metrics.c.job_key == job_key))]


def read_rows(connection: Connection, dataset_key: int, rows: JobRows) -> Iterator[TrainingRow]:
    """Stream the rows that have a reference, in the order of the dataset."""
    query = (
        select(dataset_rows.c.row_number, dialogues.c.key, dialogues.c.text, dataset_rows.c.references)
        .join(dialogues, dialogues.c.key == dataset_rows.c.dialogue_key)
        .where(
            dataset_rows.c.dataset_key == dataset_key,
            takes(connection, rows, dataset_rows.c.row_number),
            cast(dataset_rows.c.references, Text) != "[]",
        )
        .order_by(dataset_rows.c.row_number)
    )
    for row in connection.execute(query, execution_options={"yield_per": PAGE}):
        yield TrainingRow(*row)


def has_model(connection: Connection, job_key: int) -> bool:
    """True when the job's model is there: it was published, and only the end of the chunk may be missing."""
    return connection.execute(select(literal(1)).where(models.c.job_key == job_key)).first() is not None
