"""A summarize job before it is written: its rows cut into chunks, and the recipe that decides its texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, select

from gistmill import plan
from gistmill.db import prompts as prompt_rows
from gistmill.db import speed as speeds
from gistmill.db import workers
from gistmill.db.jobs import JobRows
from gistmill.db.lineage import find_base_digest
from gistmill.db.prompts import NewPrompt
from gistmill.db.references import label
from gistmill.db.session import Database
from gistmill.db.speed import Speed, Work
from gistmill.db.tables import jobs, models
from gistmill.errors import InvalidSpec, UnknownJob
from gistmill.plan import Range
from gistmill.specs import SummarizeSpec, recipe
from gistmill.specs.evaluate import OF_A_JOB
from gistmill.specs.generation import INT8_MODEL_TYPES
from gistmill.states import JobKind, JobState
from gistmill.submit.drafts import Draft, ResolvedModel, get_ready, select_rows

CheckPrompt = Callable[[NewPrompt, str, int], None]


@dataclass(frozen=True)
class Planning:
    """Who asks, how a model reference is looked up, how many workers share the work, and what is planned with it so far.

    `check_prompt` raises InvalidInput when a prompt leaves no room for a dialogue among so many tokens of a model. `makers` are
    finetune jobs of the same transaction, by what names their model; `shared` summarize jobs by what they do.
    """

    database: Database
    tenant_key: int
    resolve_model: Callable[[str], ResolvedModel]
    live_within_s: float
    check_prompt: CheckPrompt | None = None
    makers: dict[str, Draft] = field(default_factory=dict)
    shared: dict[str, Draft] = field(default_factory=dict)


def draft(planning: Planning, spec: SummarizeSpec, *, rows: JobRows | None = None) -> Draft:
    """Return the job of this spec; with `rows` it takes those, whatever the spec selects.

    A model `job:ID` is what that finetune job has made, or will make: then the job waits for it.

    Raises:
        UnknownDataset, UnknownModel, UnknownPrompt, UnknownJob, InvalidSelection, DatasetLoading: nothing can be planned.
        InvalidSpec: `job:ID` names a job that makes no model, or that has failed; or no engine runs the model in int8.
    """
    with planning.database.read() as connection:
        prompt = prompt_rows.get(connection, planning.tenant_key, spec.prompt)
        dataset = get_ready(connection, planning.tenant_key, spec.dataset)
        planned = planning.makers.get(spec.model)
        maker = None if planned is not None else find_maker(connection, planning.tenant_key, spec.model)
        made = None if maker is None else find_product(connection, maker.key)
    # A name may mean a newer version by the time that a worker looks.
    spec = spec.model_copy(update={"prompt": prompt.reference})
    taken = rows or select_rows(spec.select, dataset.rows)
    if planned is not None:
        waiting = _draft_waiting(planning, spec, dataset, taken, planned.model)
        return replace(waiting, before=(planned,), maker=planned)
    if maker is not None and made is None:
        waiting = _draft_waiting(planning, spec, dataset, taken, _find_base(planning, maker.model_key))
        return replace(waiting, needs=(maker.key,), model_job_key=maker.key)
    model = planning.resolve_model(made or spec.model)
    with planning.database.read() as connection:
        version = connection.execute(select(models).where(models.c.key == model.key)).one_or_none()
    _check_int8(spec, version)
    works = _list_works(spec, model.digest, None if version is None else find_base_digest(version))
    ranges = plan_ranges(planning, dataset, taken, works)
    return Draft(
        spec=spec.model_copy(update={"model": made or spec.model}),
        dataset_key=dataset.key,
        model=model,
        rows=taken,
        ranges=ranges,
        recipe=recipe(spec, model_digest=model.digest, prompt_digest=prompt.digest),
        distinct_dialogues=sum(chunk.dialogues for chunk in ranges),
        works=works,
    )


def find_maker(connection: Connection, tenant_key: int, model: str) -> Row[Any] | None:
    """Return the row of the finetune job that `job:ID` names, or None when the reference is of another form.

    Raises:
        UnknownJob: there is no such job.
        InvalidSpec: it makes no model, or has ended without one.
    """
    if not model.startswith(OF_A_JOB):
        return None
    job_id = model.removeprefix(OF_A_JOB)
    query = select(jobs).where(jobs.c.tenant_key == tenant_key, jobs.c.id == job_id)
    job: Row[Any] | None = connection.execute(query).one_or_none()
    if job is None:
        raise UnknownJob(f"There is no job '{job_id[:60]}'. List them with: gistmill jobs list")
    if job.kind != JobKind.FINETUNE:
        raise InvalidSpec(f"The job cannot run as written: /model: {job_id} is a {job.kind} job and makes no model.")
    if job.state in (JobState.FAILED, JobState.CANCELLED, JobState.CANCELLING):
        raise InvalidSpec(f"The job cannot run as written: /model: {job_id} is {job.state}. Retry it first.")
    return job


def find_product(connection: Connection, job_key: int) -> str | None:
    """Return the reference of the model version that a finetune job has made, or None when it has not yet."""
    return _find_reference(connection, models.c.job_key == job_key)


def _find_reference(connection: Connection, *which: ColumnElement[bool]) -> str | None:
    row: Row[Any] | None = connection.execute(select(models).where(*which)).one_or_none()
    return None if row is None else label(row)


def _find_base(planning: Planning, model_key: int | None) -> ResolvedModel | None:
    """Return the model that a finetune job tunes, or None when it was removed meanwhile."""
    with planning.database.read() as connection:
        reference = _find_reference(connection, models.c.key == model_key, models.c.removed_at.is_(None))
    return None if reference is None else planning.resolve_model(reference)


def _list_works(spec: SummarizeSpec, *digests: str | None) -> tuple[Work, ...]:
    """Return what the job does with the first of these models, and what it would do with the others.

    A tuned model is as fast as what it was tuned from, which may have run when it has not.
    """
    return tuple(Work.of(digest, spec.precision, spec.generation) for digest in digests if digest is not None)


def plan_ranges(planning: Planning, dataset: Row[Any], rows: JobRows, works: Sequence[Work]) -> tuple[Range, ...]:
    """Cut these rows into chunks of a size that suits the measured speed of such work and the live workers."""
    with planning.database.read() as connection:
        live = find_writers(connection, within_s=planning.live_within_s)
        size = plan.chunk_size(
            min(rows.count, dataset.dialogues),
            live_workers=len(live),
            dialogues_per_s=_find_speed(connection, works, live),
        )
        return cut_rows(connection, dataset, rows, size)


def find_writers(connection: Connection, *, within_s: float) -> list[str]:
    """Return what the device of each live worker that writes summaries is called."""
    live = workers.live(connection, within_s=within_s)
    return [row.device_name for row in live if JobKind.SUMMARIZE in row.kinds]


def find_speeds(connection: Connection, works: Sequence[Work], live: Sequence[str]) -> list[Speed]:
    """Return the speed of each of these devices at the first of these works that anybody has done.

    It is that of all devices when none of these has done it.
    """
    measured = (speeds.find(connection, work) for work in works)
    found = {speed.device_name: speed for speed in next(filter(None, measured), [])}
    return [found[name] for name in live if name in found] or list(found.values())


def _find_speed(connection: Connection, works: Sequence[Work], live: Sequence[str]) -> float | None:
    """Return the mean dialogues per second of a worker, or None when nobody has done such work."""
    known = [speed.dialogues_per_s for speed in find_speeds(connection, works, live)]
    return sum(known) / len(known) if known else None


def cut_rows(connection: Connection, dataset: Row[Any], rows: JobRows, size: int) -> tuple[Range, ...]:
    """Cut these rows of a dataset into ranges of ranks with `size` of their dialogues each."""
    ranges: Iterable[Range]
    if rows.count == dataset.rows:
        ranges = plan.plan_all(dataset.dialogues, size)
    else:
        ranges = plan.cut(plan.selected_ranks(connection, dataset.key, rows), size)
    return tuple(ranges)


def _check_int8(spec: SummarizeSpec, version: Row[Any] | None) -> None:
    if spec.precision != "int8" or version is None:
        return
    # What a row does not tell is left to the worker.
    kind = (version.manifest or {}).get("model_type")
    if kind and kind not in INT8_MODEL_TYPES:
        raise InvalidSpec(
            f"The job cannot run as written: /precision: int8 is offered for T5 models only, and {spec.model} is a"
            f" {kind} model. Use native, float32 or bfloat16."
        )


def _draft_waiting(
    planning: Planning, spec: SummarizeSpec, dataset: Row[Any], rows: JobRows, base: ResolvedModel | None
) -> Draft:
    works = _list_works(spec, None if base is None else base.digest)
    ranges = plan_ranges(planning, dataset, rows, works)
    return Draft(
        spec=spec,
        dataset_key=dataset.key,
        model=None,
        rows=rows,
        ranges=ranges,
        distinct_dialogues=sum(chunk.dialogues for chunk in ranges),
        base=base,
        works=works,
    )
