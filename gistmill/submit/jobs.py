"""A request becomes a job: checked and planned first, then one transaction, then the bell."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog
from sqlalchemy import Connection, Row
from sqlalchemy.exc import IntegrityError

from gistmill import plan, prompts
from gistmill.db import models, workers
from gistmill.db.jobs import JobRows, NewJob, find_job_by_idempotency_key, insert_job
from gistmill.db.session import Database
from gistmill.errors import IdempotencyMismatch, InvalidInput
from gistmill.plan import Range
from gistmill.specs import FinetuneSpec, SummarizeSpec, digest_of, recipe
from gistmill.submit import finetuning
from gistmill.submit.drafts import Draft, ResolvedModel, get_ready, select_rows

log = structlog.get_logger(__name__)

LONGEST_KEY = 200


@dataclass(frozen=True)
class Origin:
    """The job that a new one comes from, and the rows of it that the new one takes."""

    job_key: int
    rows: JobRows


@dataclass(frozen=True)
class _Request:
    """Who asks for what, and under which idempotency key."""

    tenant_key: int
    spec: SummarizeSpec | FinetuneSpec
    digest: str
    idempotency_key: str | None
    origin: Origin | None


def submit_job(
    database: Database,
    tenant_key: int,
    spec: SummarizeSpec | FinetuneSpec,
    *,
    origin: Origin | None = None,
    idempotency_key: str | None = None,
    resolve_model: Callable[[str], ResolvedModel] | None = None,
    ring: Callable[[str], object] | None = None,
    live_within_s: float = 30.0,
) -> tuple[str, bool]:
    """Return the id of the job that carries this request out, and whether it is new.

    Everything is checked before anything is written; then the job is committed with all its chunks, and the bell is rung.
    The same key with the same spec is the same job, also when two come at once. Its bell is rung again: whoever asks again
    may have died before the first one. `resolve_model` turns the model reference into a row of `models`; by itself that is
    a look at those rows, and never at a hub. With an `origin` the rows are the origin's, whatever the spec selects.

    Raises:
        IdempotencyMismatch: the key came with another spec before.
        UnknownDataset, UnknownModel, UnknownPrompt, InvalidSelection: nothing was written.
        InvalidDataset, NameTaken, UnsupportedModel: the same, for a finetune job.
        DatasetLoading: the dataset is not ready; trying again is safe.
    """
    if idempotency_key is not None and not 0 < len(idempotency_key) <= LONGEST_KEY:
        raise InvalidInput(f"An Idempotency-Key has 1 to {LONGEST_KEY} characters; this one has {len(idempotency_key)}.")
    body = spec.model_dump(mode="json")
    digest = digest_of(body if origin is None else {"retry_of": origin.job_key, "spec": body})
    request = _Request(tenant_key, spec, digest, idempotency_key, origin)
    earlier = _find_earlier(database, request)
    resolve = resolve_model or partial(models.resolve, database, tenant_key)
    job_id, created = (earlier, False) if earlier else _submit_new(database, request, resolve, live_within_s)
    if ring is not None:
        ring(spec.kind)
    return job_id, created


def _submit_new(
    database: Database, request: _Request, resolve_model: Callable[[str], ResolvedModel], live_within_s: float
) -> tuple[str, bool]:
    if isinstance(request.spec, FinetuneSpec):
        draft = finetuning.draft(database, request.tenant_key, request.spec, resolve_model)
    else:
        draft = _draft(database, request, request.spec, resolve_model, live_within_s)
    new = NewJob(
        tenant_key=request.tenant_key,
        spec=draft.spec,
        request_digest=request.digest,
        idempotency_key=request.idempotency_key,
        dataset_key=draft.dataset_key,
        recipe=draft.recipe,
        model_key=draft.model.key,
        model_digest=draft.model.digest,
        rows=draft.rows,
        distinct_dialogues=draft.distinct_dialogues,
        chunks=len(draft.ranges),
        retry_of_key=None if request.origin is None else request.origin.job_key,
        warnings=draft.warnings,
    )
    try:
        job_id = database.transact(lambda connection: insert_job(connection, new, draft.ranges))
    except IntegrityError:
        # Another request with this key was faster, by less than it took to plan this one.
        earlier = _find_earlier(database, request)
        if earlier is None:
            raise
        return earlier, False
    log.info("job_submitted", job_id=job_id, kind=new.spec.kind, items=new.rows.count, chunks=new.chunks)
    return job_id, True


def _draft(
    database: Database,
    request: _Request,
    spec: SummarizeSpec,
    resolve_model: Callable[[str], ResolvedModel],
    live_within_s: float,
) -> Draft:
    prompt = prompts.get(spec.prompt)
    with database.read() as connection:
        dataset = get_ready(connection, request.tenant_key, spec.dataset)
    rows = select_rows(spec.select, dataset.rows) if request.origin is None else request.origin.rows
    model = resolve_model(spec.model)
    with database.read() as connection:
        ranges = _plan(connection, request.tenant_key, dataset, rows, model.digest, live_within_s)
    return Draft(
        spec=spec,
        dataset_key=dataset.key,
        model=model,
        rows=rows,
        ranges=tuple(ranges),
        recipe=recipe(spec, model_digest=model.digest, prompt_digest=prompt.digest),
        distinct_dialogues=sum(chunk.dialogues for chunk in ranges),
    )


def _find_earlier(database: Database, request: _Request) -> str | None:
    """Return the job that was submitted under the same key, or None."""
    if request.idempotency_key is None:
        return None
    with database.read() as connection:
        earlier = find_job_by_idempotency_key(connection, request.tenant_key, request.idempotency_key)
    if earlier is None:
        return None
    job_id, digest = earlier
    if digest != request.digest:
        raise IdempotencyMismatch(
            f"The Idempotency-Key '{request.idempotency_key}' was used for the job {job_id} with another body. Use a new key."
        )
    return job_id


def _plan(
    connection: Connection, tenant_key: int, dataset: Row[Any], rows: JobRows, model_digest: str, live_within_s: float
) -> list[Range]:
    size = plan.chunk_size(
        min(rows.count, dataset.dialogues),
        live_workers=workers.count_live(connection, within_s=live_within_s),
        dialogues_per_s=plan.measured_speed(connection, tenant_key, model_digest),
    )
    ranges: Iterable[Range]
    if rows.count == dataset.rows:
        ranges = plan.plan_all(dataset.dialogues, size)
    else:
        ranges = plan.cut(plan.selected_ranks(connection, dataset.key, rows), size)
    return list(ranges)
