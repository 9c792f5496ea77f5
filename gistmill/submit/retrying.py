"""Failed rows become a job of their own, with another spec."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import select

from gistmill.db import references, retrying
from gistmill.db.jobs import JobRows
from gistmill.db.session import Database
from gistmill.db.tables import datasets, models
from gistmill.errors import InvalidSpec, NothingToRetry
from gistmill.specs import SummarizeSpec, parse_spec
from gistmill.submit.drafts import ResolvedModel
from gistmill.submit.jobs import Origin, submit_job

# What makes a job another one altogether cannot be changed by a retry.
FIXED = ("kind", "dataset", "select")


def submit_retry(
    database: Database,
    tenant_key: int,
    job_id: str,
    changes: Mapping[str, Any],
    *,
    codes: Sequence[str] | None = None,
    idempotency_key: str | None = None,
    resolve_model: Callable[[str], ResolvedModel] | None = None,
    ring: Callable[[str], object] | None = None,
    live_within_s: float = 30.0,
) -> tuple[str, bool]:
    """Return the id of a new job over the failed rows of this one, with these changes to its spec, and whether it is new.

    A change names a field of the spec, with a dot inside generation ("generation.max_new_tokens"). The model stays the very
    version that the first job used, unless it is changed.

    Raises:
        UnknownJob, JobNotOver: there is no such job, or it has not ended.
        NothingToRetry: no row failed, or none with one of `codes`.
        InvalidSpec: a change names no field, or one that a retry cannot change.
    """
    with database.read() as connection:
        job = retrying.get_ended(connection, tenant_key, job_id)
        rows = retrying.failed_rows(connection, job.key, codes)
        dataset = connection.execute(select(datasets.c.id).where(datasets.c.key == job.dataset_key)).scalar_one()
        model = connection.execute(select(models.c.name, models.c.version).where(models.c.key == job.model_key)).one_or_none()
    if not rows:
        raise NothingToRetry(f"The job {job_id} has no failed item to make a new job of.")
    body = dict(job.spec) | {"dataset": dataset, "select": None}
    if model is not None:
        body["model"] = references.label(model)
    origin = Origin(job.key, JobRows(0, 0, 0, tuple(rows)))
    return submit_job(
        database,
        tenant_key,
        change(body, changes),
        origin=origin,
        idempotency_key=idempotency_key,
        resolve_model=resolve_model,
        ring=ring,
        live_within_s=live_within_s,
    )


def change(body: dict[str, Any], changes: Mapping[str, Any]) -> SummarizeSpec:
    """Return the spec of this body with the changes made.

    Raises:
        InvalidSpec: a change names no field, one that cannot be changed, or a value that does not fit.
    """
    changed = {**body, "generation": dict(body.get("generation") or {})}
    for name, value in changes.items():
        if name in FIXED:
            raise InvalidSpec(f"A retry cannot change '{name}': it is over the failed rows of the same dataset.")
        section, dot, field = name.partition(".")
        if dot and section == "generation":
            changed["generation"][field] = value
        else:
            changed[name] = value
    return parse_spec(changed)
