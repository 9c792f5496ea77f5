"""Jobs that need each other, written as submit writes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import insert, update

from gistmill import prompts
from gistmill.db import endings
from gistmill.db.clock import db_now
from gistmill.db.jobs import JobRows, NewJob, insert_job_row
from gistmill.db.session import Database
from gistmill.db.tables import chunks, evaluations, jobs
from gistmill.plan import Range, plan_all
from gistmill.queue import Bells
from gistmill.specs import AnySpec, EvaluateSpec, SummarizeSpec, recipe
from tests.support.jobs import MODEL_DIGEST, first_tenant, job_row, make_dataset

TEXTS = tuple(f"dialogue number {number}" for number in range(4))


class NoBells(Bells):
    """Bells that hang nowhere: they note who was rung for."""

    def __init__(self) -> None:
        self.rung: list[str] = []

    def ring(self, kind: str, *, listeners: int = 1) -> bool:
        """Note the ring."""
        self.rung.append(kind)
        return True


Planned = tuple[NewJob, list[Range]]


def make_waiting(database: Database, *needs: int, texts: Sequence[str] = TEXTS) -> int:
    """Write a summarize job that needs these jobs; return its key."""
    return write(database, plan_waiting(database, *needs, texts=texts))


def plan_waiting(database: Database, *needs: int, texts: Sequence[str] = TEXTS) -> Planned:
    """Return a summarize job of the fake model that needs these jobs, with two dialogues a chunk, and its chunks."""
    spec = SummarizeSpec(dataset="test", model="fake")
    body = recipe(spec, model_digest=MODEL_DIGEST, prompt_digest=prompts.BUILT_IN[spec.prompt].digest)
    return plan(database, spec, needs, texts, recipe=body, model_digest=MODEL_DIGEST)


def make_evaluation(database: Database, *needs: int, texts: Sequence[str] = TEXTS) -> int:
    """Write an evaluate job that needs these jobs; return its key."""
    spec = EvaluateSpec(dataset="test", models=("a", "b"))  # type: ignore[arg-type]
    key = write(database, plan(database, spec, needs, texts))
    added = insert(evaluations).values(job_key=key, cases=len(texts), notes=[])
    database.transact(lambda connection: connection.execute(added))
    return key


def plan(database: Database, spec: AnySpec, needs: Sequence[int], texts: Sequence[str] = TEXTS, **fields: Any) -> Planned:
    """Return a job over a new dataset of these texts, and its chunks of two dialogues."""
    ranges = list(plan_all(len(texts), 2))
    values = {"recipe": None, "model_key": None, "model_digest": "", "needs": tuple(needs)} | fields
    new = NewJob(
        tenant_key=first_tenant(database),
        spec=spec,
        request_digest="d" * 64,
        idempotency_key=None,
        dataset_key=make_dataset(database, texts),
        rows=JobRows(0, len(texts)),
        distinct_dialogues=len(texts),
        chunks=len(ranges),
        **values,
    )
    return new, ranges


def write(database: Database, planned: Planned) -> int:
    """Write the job; return its key."""
    return database.transact(lambda connection: insert_job_row(connection, *planned)).key


def make_chunkless(database: Database, *needs: int) -> int:
    """Write a job that does nothing itself, as the root of a graph is; return its key."""
    return make_waiting(database, *needs, texts=())


def drop_chunks(database: Database, job: int) -> None:
    """Let the job have no chunk left, and nobody has noticed."""
    done = update(chunks).where(chunks.c.job_key == job).values(state="done", outcome="done", finished_at=db_now())
    database.transact(lambda connection: connection.execute(done))
    database.transact(lambda connection: connection.execute(update(jobs).where(jobs.c.key == job).values(chunks_left=0)))


def complete(database: Database, job: int) -> frozenset[str]:
    """End the job as its last chunk would; return the kinds of the jobs that were released."""
    drop_chunks(database, job)
    return database.transact(lambda connection: endings.settle(connection, job))


def id_of(database: Database, job: int) -> str:
    """Return the id that users know the job by."""
    return str(job_row(database, job)["id"])


def states(database: Database, *keys: int) -> list[str]:
    """Return the states of these jobs."""
    return [job_row(database, key)["state"] for key in keys]


def set_state(database: Database, job: int, **values: object) -> None:
    """Change the job's row behind everybody's back."""
    database.transact(lambda connection: connection.execute(update(jobs).where(jobs.c.key == job).values(**values)))
