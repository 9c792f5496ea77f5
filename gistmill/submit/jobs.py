"""A request becomes a job: checked and planned first, then one transaction, then the bell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from gistmill.db import models
from gistmill.db.jobs import InsertedJob, JobRows, NewJob, find_job_by_idempotency_key, insert_job_row
from gistmill.db.session import Database
from gistmill.errors import IdempotencyMismatch, InvalidInput
from gistmill.specs import AnySpec, EvaluateSpec, ExperimentSpec, FinetuneSpec, digest_of
from gistmill.submit import evaluating, experimenting, finetuning, summarizing
from gistmill.submit.drafts import Draft, ResolvedModel
from gistmill.submit.summarizing import CheckPrompt, Planning

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
    spec: AnySpec
    digest: str
    idempotency_key: str | None
    origin: Origin | None


def submit_job(
    database: Database,
    tenant_key: int,
    spec: AnySpec,
    *,
    origin: Origin | None = None,
    idempotency_key: str | None = None,
    resolve_model: Callable[[str], ResolvedModel] | None = None,
    ring: Callable[[str], object] | None = None,
    live_within_s: float = 30.0,
    check_prompt: CheckPrompt | None = None,
) -> tuple[str, bool]:
    """Return the id of the job that carries this request out, and whether it is new.

    Everything is checked before anything is written; then the job is committed with all its chunks, and the bell is rung.
    The same key with the same spec is the same job, also when two come at once. Its bell is rung again: whoever asks again
    may have died before the first one. `resolve_model` turns the model reference into a row of `models`; by itself that is
    a look at those rows, and never at a hub. With an `origin` the rows are the origin's, whatever the spec selects.
    `check_prompt` looks at the prompts that an experiment makes; whoever can count tokens gives it.

    Raises:
        IdempotencyMismatch: the key came with another spec before.
        UnknownDataset, UnknownModel, UnknownPrompt, InvalidSelection: nothing was written.
        InvalidDataset, NameTaken, UnsupportedModel: the same, for a finetune job.
        InvalidDataset, DataMismatch, UnknownJob: the same, for an evaluate job.
        InvalidDataset, InvalidSpec: the same, for an experiment that has too few rows, or tests on what it trains on.
        DatasetLoading: the dataset is not ready; trying again is safe.
    """
    if idempotency_key is not None and not 0 < len(idempotency_key) <= LONGEST_KEY:
        raise InvalidInput(f"An Idempotency-Key has 1 to {LONGEST_KEY} characters; this one has {len(idempotency_key)}.")
    body = spec.model_dump(mode="json")
    digest = digest_of(body if origin is None else {"retry_of": origin.job_key, "spec": body})
    request = _Request(tenant_key, spec, digest, idempotency_key, origin)
    earlier = _find_earlier(database, request)
    resolve = resolve_model or partial(models.resolve, database, tenant_key)
    planning = Planning(database, tenant_key, resolve, live_within_s, check_prompt)
    job_id, created = (earlier, False) if earlier else _submit_new(request, planning, ring)
    if ring is not None:
        ring(spec.kind)
    return job_id, created


def _submit_new(request: _Request, planning: Planning, ring: Callable[[str], object] | None) -> tuple[str, bool]:
    draft = _draft(request, planning)
    try:
        job = planning.database.transact(lambda connection: _insert(connection, request, draft, {}))
    except IntegrityError:
        # Another request with this key was faster, by less than it took to plan this one.
        earlier = _find_earlier(planning.database, request)
        if earlier is None:
            raise
        return earlier, False
    log.info("job_submitted", job_id=job.id, kind=draft.spec.kind, items=draft.rows.count, chunks=len(draft.ranges))
    if ring is not None:
        for kind in sorted(_kinds_before(draft) - {draft.spec.kind}):
            ring(kind)
    return job.id, True


def _draft(request: _Request, planning: Planning) -> Draft:
    spec = request.spec
    if isinstance(spec, FinetuneSpec):
        return finetuning.draft(planning.database, planning.tenant_key, spec, planning.resolve_model)
    if isinstance(spec, EvaluateSpec):
        return evaluating.draft(planning, spec)
    if isinstance(spec, ExperimentSpec):
        return experimenting.draft(planning, spec)
    return summarizing.draft(planning, spec, rows=None if request.origin is None else request.origin.rows)


def _kinds_before(draft: Draft) -> set[str]:
    return {kind for before in draft.before for kind in (before.spec.kind, *_kinds_before(before))}


def _insert(connection: Connection, request: _Request, draft: Draft, written: dict[int, InsertedJob]) -> InsertedJob:
    """Write the job and those that it waits for, in one transaction: all of them or none.

    `written` are the jobs of this transaction by the identity of their drafts: several may wait for the same.
    """
    if id(draft) in written:
        return written[id(draft)]
    keys = [_insert(connection, _part_of(request, before), before, written).key for before in draft.before]
    new = NewJob(
        tenant_key=request.tenant_key,
        spec=draft.spec,
        request_digest=request.digest,
        idempotency_key=request.idempotency_key,
        dataset_key=draft.dataset_key,
        recipe=draft.recipe,
        model_key=None if draft.model is None else draft.model.key,
        model_digest="" if draft.model is None else draft.model.digest,
        rows=draft.rows,
        distinct_dialogues=draft.distinct_dialogues,
        chunks=len(draft.ranges),
        retry_of_key=None if request.origin is None else request.origin.job_key,
        warnings=draft.warnings,
        needs=(*draft.needs, *keys),
        model_job_key=draft.model_job_key if draft.maker is None else written[id(draft.maker)].key,
        id=draft.id,
    )
    job = written[id(draft)] = insert_job_row(connection, new, draft.ranges)
    if draft.record is not None:
        draft.record(connection, job.key, keys)
    return job


def _part_of(request: _Request, before: Draft) -> _Request:
    digest = digest_of(before.spec.model_dump(mode="json"))
    return _Request(request.tenant_key, before.spec, digest, idempotency_key=None, origin=None)


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
