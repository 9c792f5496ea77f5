"""Experiments as they are read back: their steps, and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, Select, select

from gistmill import __version__, report
from gistmill.db import experiments
from gistmill.db import prompts as prompt_rows
from gistmill.db.clock import as_datetime
from gistmill.db.session import Database
from gistmill.db.tables import datasets, jobs
from gistmill.db.training import last_points
from gistmill.errors import UnknownJob
from gistmill.readback.cases import CaseQuery, read_cases
from gistmill.readback.comparisons import get_comparison
from gistmill.readback.jobs import read_jobs
from gistmill.readback.metrics import view_of_point
from gistmill.readback.workers import GONE_AFTER_S
from gistmill.report.material import Tuning
from gistmill.specs.experiment import COMPARISONS, TUNINGS
from gistmill.states import JobKind
from gistmill.views import CaseView, ComparisonView, ExperimentView, JobView, Page, PromptView, StepView

SHOWN = 3
# An example is looked for among so many: it is to be one that was scored.
LOOKED_AT = 50


def get_experiment(database: Database, tenant_key: int, job_id: str, *, gone_after_s: float = GONE_AFTER_S) -> ExperimentView:
    """Return the experiment of this job with its steps as they stand.

    Raises:
        UnknownJob: this tenant has no experiment of this id.
    """
    with database.read() as connection:
        return _view(connection, tenant_key, _get_row(connection, tenant_key, job_id), gone_after_s)


def list_experiments(
    database: Database,
    tenant_key: int,
    *,
    limit: int = 50,
    after: str | None = None,
    gone_after_s: float = GONE_AFTER_S,
) -> Page[ExperimentView]:
    """Return a page of experiments, newest first, that begins behind `after`."""
    query = _select(tenant_key).order_by(jobs.c.id.desc()).limit(limit + 1)
    if after is not None:
        query = query.where(jobs.c.id < after)
    with database.read() as connection:
        rows = connection.execute(query).all()
        shown = [_view(connection, tenant_key, row, gone_after_s) for row in rows[:limit]]
    has_more = len(rows) > limit
    return Page(data=shown, has_more=has_more, next=shown[-1].id if has_more else None)


def report_experiment(database: Database, tenant_key: int, job_id: str) -> str:
    """Return the report of an experiment in Markdown; while it runs, with what is known so far.

    Raises:
        UnknownJob: this tenant has no experiment of this id.
    """
    experiment = get_experiment(database, tenant_key, job_id)
    compared = {name: get_comparison(database, tenant_key, key) for name, key in experiment.comparisons.items()}
    models = experiment.comparisons["models"]
    with database.read() as connection:
        row = _get_row(connection, tenant_key, job_id)
        tunings = _list_tunings(connection, tenant_key, row.key)
        prompts = _find_prompts(connection, tenant_key, compared["prompts"])
    worst, best = (
        read_cases(database, tenant_key, models, CaseQuery(order, measure="rougeLsum"), limit=SHOWN)
        if compared["models"].measures
        else []
        for order in ("worst", "best")
    )
    examples = _scored(database, tenant_key, experiment.comparisons["prompts"], 1)
    material = report.Material(
        experiment=experiment,
        comparisons=compared,
        tunings=tunings,
        prompts=prompts,
        example=examples[0] if examples else None,
        cases=_scored(database, tenant_key, models, SHOWN),
        worst=worst,
        best=best,
        version=__version__,
    )
    return report.as_markdown(material)


def _get_row(connection: Connection, tenant_key: int, job_id: str) -> Row[Any]:
    row = connection.execute(_select(tenant_key).where(jobs.c.id == job_id)).one_or_none()
    if row is None:
        raise UnknownJob(f"There is no experiment '{job_id[:60]}'. List them with: gistmill experiment list")
    return row


def _select(tenant_key: int) -> Select[Any]:
    return (
        select(jobs, datasets.c.name.label("dataset_name"), datasets.c.digest.label("dataset_digest"))
        .join(datasets, datasets.c.key == jobs.c.dataset_key)
        .where(jobs.c.tenant_key == tenant_key, jobs.c.kind == JobKind.EXPERIMENT)
    )


def _view(connection: Connection, tenant_key: int, row: Row[Any], gone_after_s: float) -> ExperimentView:
    steps = experiments.list_steps(connection, row.key)
    known = read_jobs(connection, tenant_key, [row.key, *(step.key for step in steps)], gone_after_s=gone_after_s)
    test = connection.execute(
        select(datasets.c.name, datasets.c.digest).where(datasets.c.tenant_key == tenant_key, datasets.c.id == row.spec["test"])
    ).one()
    ids = {step.step_name: step.id for step in steps}
    return ExperimentView(
        id=row.id,
        name=row.spec["name"],
        state=row.state,
        paused=row.paused,
        model=known[row.key].model,
        dataset=row.dataset_name,
        dataset_digest=row.dataset_digest,
        test=test.name,
        test_digest=test.digest,
        spec=row.spec,
        steps=[_step(step, known[step.key]) for step in steps],
        comparisons={short: ids[name] for short, name in COMPARISONS.items() if name in ids},
        error=row.error,
        warnings=row.warnings,
        created_at=as_datetime(row.created_at),
        finished_at=as_datetime(row.finished_at),
    )


def _step(step: Row[Any], job: JobView) -> StepView:
    done, total = _count(job)
    return StepView(
        number=step.number,
        name=step.step_name,
        job=job.id,
        kind=job.kind,
        state=job.state,
        done=done,
        total=total,
        failed=job.counts.failed,
        produced=job.produced,
        waits_for=job.waits_for,
        error=job.error,
        started_at=job.started_at,
        finished_at=job.finished_at,
    )


def _count(job: JobView) -> tuple[int, int | None]:
    if job.kind == JobKind.FINETUNE:
        training = job.training or {}
        return training.get("step") or 0, training.get("total_steps")
    if job.evaluation is not None:
        return job.evaluation["ended"], job.evaluation["cases"]
    return job.counts.succeeded + job.counts.failed, job.counts.items


def _list_tunings(connection: Connection, tenant_key: int, job_key: int) -> list[Tuning]:
    keys = {step.step_name: step.key for step in experiments.list_steps(connection, job_key)}
    of = {method: keys[name] for method, name in TUNINGS.items()}
    known = read_jobs(connection, tenant_key, of.values())
    return [Tuning(method, known[key], _last_points(connection, key)) for method, key in of.items()]


def _last_points(connection: Connection, job_key: int) -> Mapping[str, Any]:
    return {point.kind: view_of_point(point) for point in last_points(connection, job_key)}


def _find_prompts(connection: Connection, tenant_key: int, compared: ComparisonView) -> dict[str, PromptView]:
    """Return the prompts of a comparison by the names of their systems."""
    named = {system.name: system.prompt for system in compared.systems if system.prompt}
    return {name: prompt_rows.get_view(connection, tenant_key, prompt) for name, prompt in named.items()}


def _scored(database: Database, tenant_key: int, job_id: str, count: int) -> Sequence[CaseView]:
    cases = read_cases(database, tenant_key, job_id, limit=LOOKED_AT)
    return [case for case in cases if case.outcome == "scored"][:count]
