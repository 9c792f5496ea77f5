"""An evaluate job before it is written: its systems, the summarize jobs that it needs and waits for, its cases in chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, Text, cast, literal, select

from gistmill.db import evaluations, experiments
from gistmill.db.evaluations import System
from gistmill.db.experiments import Step
from gistmill.db.jobs import JobRows, takes
from gistmill.db.tables import dataset_rows, datasets, jobs
from gistmill.errors import DataMismatch, InvalidDataset, InvalidSpec
from gistmill.ingest.mapping import describe
from gistmill.specs import EvaluateSpec, SummarizeSpec, SystemSpec, digest_of
from gistmill.states import JobKind, JobState
from gistmill.submit import summarizing
from gistmill.submit.drafts import Draft, get_ready, select_rows
from gistmill.submit.summarizing import Planning

# A page of ROUGE takes milliseconds; a chunk of this size is seconds of work, and enough of them for several hosts.
CASES_PER_CHUNK = 2_000


@dataclass(frozen=True)
class _Source:
    """Where a system's summaries come from: a job that is there, the n-th of those to submit, or a column."""

    name: str
    job_key: int | None = None
    before: int | None = None
    column: str | None = None


def draft(planning: Planning, spec: EvaluateSpec) -> Draft:
    """Return the job of this spec with the summarize jobs that are missing. Stored generations are found, never made twice.

    Raises:
        UnknownDataset, UnknownModel, UnknownPrompt, UnknownJob, InvalidSelection, DatasetLoading: nothing can be planned.
        InvalidDataset: no row has a reference, or the predictions have other rows than the dataset.
        InvalidSpec: the predictions have no such column, or a job that is named has failed.
        DataMismatch: a job that is named is about other data.
    """
    with planning.database.read() as connection:
        dataset = get_ready(connection, planning.tenant_key, spec.dataset)
        rows = select_rows(spec.select, dataset.rows)
        predictions = _get_predictions(connection, planning.tenant_key, spec, dataset)
        _require_references(connection, spec, dataset, predictions, rows)
    sources, before = _find_sources(planning, spec, dataset, rows)
    with planning.database.read() as connection:
        ranges = summarizing.cut_rows(connection, dataset, rows, CASES_PER_CHUNK)
    cases = sum(chunk.dialogues for chunk in ranges)

    def record(connection: Connection, job_key: int, keys: Sequence[int]) -> None:
        systems = [
            System(number, source.name, source.job_key if source.before is None else keys[source.before], source.column)
            for number, source in enumerate(sources)
        ]
        predictions_key = None if predictions is None else predictions.key
        evaluations.add(connection, job_key, cases=cases, predictions_key=predictions_key, systems=systems)
        made = [
            Step(f"summaries of {source.name}"[:300], keys[source.before]) for source in sources if source.before is not None
        ]
        # Whoever steers the evaluation steers the jobs that it has submitted; those that were there are their owners' own.
        if made:
            experiments.add_steps(connection, job_key, made)

    return Draft(
        spec=spec.model_copy(update={"baseline": spec.ordered[0]}),
        dataset_key=dataset.key,
        model=None,
        rows=rows,
        ranges=ranges,
        distinct_dialogues=cases,
        before=tuple(before),
        needs=tuple(dict.fromkeys(source.job_key for source in sources if source.job_key is not None)),
        record=record,
    )


def _get_predictions(connection: Connection, tenant_key: int, spec: EvaluateSpec, dataset: Row[Any]) -> Row[Any] | None:
    if spec.predictions is None:
        return None
    predictions = get_ready(connection, tenant_key, spec.predictions)
    columns = predictions.mapping.get("predictions") or ()
    missing = next((name for name in spec.columns if name not in columns), None)
    if missing is not None:
        raise InvalidSpec(
            f"'{spec.predictions}' was not uploaded with summaries in a column '{missing}'. {describe(missing, list(columns))}"
        )
    if predictions.rows != dataset.rows:
        raise InvalidDataset(
            f"The predictions '{predictions.name}' have {predictions.rows} rows and the data '{dataset.name}' has"
            f" {dataset.rows}: they are paired row by row, so both must have the same."
        )
    return predictions


def _require_references(
    connection: Connection, spec: EvaluateSpec, dataset: Row[Any], predictions: Row[Any] | None, rows: JobRows
) -> None:
    """Make sure that at least one row has a reference; rows without one are counted when they are scored."""
    keys = [dataset.key] if predictions is None else [dataset.key, predictions.key]
    usable = select(literal(1)).where(
        dataset_rows.c.dataset_key.in_(keys),
        takes(connection, rows, dataset_rows.c.row_number),
        cast(dataset_rows.c.references, Text) != "[]",
    )
    if connection.scalar(usable.limit(1)) is None:
        how = "--reference-column NAME" if predictions is not None else "--column references=NAME"
        raise InvalidDataset(
            f"None of the {rows.count} rows of '{dataset.name}' has a reference summary, and scores need them. Name the column"
            f" that holds them: {how}."
        )


def _find_sources(
    planning: Planning, spec: EvaluateSpec, dataset: Row[Any], rows: JobRows
) -> tuple[list[_Source], list[Draft]]:
    """Return the systems, the baseline first, and the summarize jobs to submit for them."""
    if spec.columns:
        return [_Source(name, column=name) for name in spec.ordered], []
    by_name = {system.label: system for system in spec.models}
    before: dict[str, Draft] = {}
    sources: list[_Source] = []
    for name in spec.ordered:
        system = by_name[name]
        job_key = _find_named_job(planning, system, dataset)
        if job_key is None:
            made = summarizing.draft(planning, _summarize(spec, system, dataset.id), rows=rows)
            job_key = _find_done(planning, made, with_truncated=spec.on_overflow == "truncate")
        if job_key is not None:
            sources.append(_Source(name, job_key=job_key))
            continue
        # Two names for one recipe are one job, also in several evaluations that are submitted together.
        work = digest_of([made.recipe, made.model_job_key, made.spec.model_dump(mode="json")])
        before[work] = planning.shared.setdefault(work, made)
        sources.append(_Source(name, before=list(before).index(work)))
    return sources, list(before.values())


def _find_named_job(planning: Planning, system: SystemSpec, dataset: Row[Any]) -> int | None:
    """Return the key of the summarize job that `job:ID` names, or None when the system is a model."""
    if system.job_id is None or system.model in planning.makers:
        return None
    query = select(jobs).where(jobs.c.tenant_key == planning.tenant_key, jobs.c.id == system.job_id)
    with planning.database.read() as connection:
        job = connection.execute(query).one_or_none()
        if job is None or job.kind == JobKind.FINETUNE:
            return None
        if job.kind != JobKind.SUMMARIZE:
            raise InvalidSpec(f"The job cannot run as written: /models: {job.id} is of kind {job.kind} and has no summaries.")
        if system.prompt is not None or system.generation is not None:
            raise InvalidSpec(
                f"The job cannot run as written: /models: the summaries of {job.id} are made already; a prompt or generation"
                " parameters belong to a model."
            )
        if job.dataset_key != dataset.key:
            other = connection.execute(select(datasets).where(datasets.c.key == job.dataset_key)).one()
            raise DataMismatch(
                f"The summaries of {job.id} are about '{other.name}' (digest {other.digest[:12]}…), and the references about"
                f" '{dataset.name}' (digest {dataset.digest[:12]}…). Scores of different data cannot be paired: summarize"
                f" '{dataset.name}' first."
            )
    if job.state in (JobState.FAILED, JobState.CANCELLED, JobState.CANCELLING):
        raise InvalidSpec(f"The job cannot run as written: /models: {job.id} is {job.state}. Retry it first.")
    return int(job.key)


def _summarize(spec: EvaluateSpec, system: SystemSpec, dataset_id: str) -> SummarizeSpec:
    """Return the job that makes this system's summaries: all share prompt and generation unless one has its own."""
    return SummarizeSpec(
        dataset=dataset_id,
        select=spec.select,
        model=system.model,
        prompt=system.prompt or spec.prompt,
        generation=system.generation or spec.generation,
        max_input_tokens=spec.max_input_tokens,
        on_overflow=spec.on_overflow,
        precision=spec.precision,
        priority=spec.priority,
        labels=spec.labels,
    )


def _find_done(planning: Planning, made: Draft, *, with_truncated: bool) -> int | None:
    """Return a completed job that has all these summaries; only such a one is used as a whole."""
    if made.recipe is None or made.model is None:
        return None
    with planning.database.read() as connection:
        return evaluations.find_completed(
            connection,
            planning.tenant_key,
            recipe=made.recipe,
            model_key=made.model.key,
            dataset_key=made.dataset_key,
            rows=made.rows,
            with_truncated=with_truncated,
        )
