"""Jobs as they stand."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, Select, select

from gistmill.db import dependencies
from gistmill.db import workers as worker_rows
from gistmill.db.clock import as_datetime, db_now
from gistmill.db.session import Database
from gistmill.db.tables import datasets, evaluations, jobs, models
from gistmill.errors import InvalidInput, UnknownJob
from gistmill.readback.workers import GONE_AFTER_S
from gistmill.states import CLAIMABLE_JOB_STATES, JobState
from gistmill.views import Counts, JobView, Page

Needs = Mapping[int, Sequence[Row[Any]]]
# Of the jobs that one waits for, so many are named.
NAMED = 3


def get_job(database: Database, tenant_key: int, job_id: str, *, gone_after_s: float = GONE_AFTER_S) -> JobView:
    """Return the job.

    Raises:
        UnknownJob: this tenant has none of this id.
    """
    with database.read() as connection:
        row = connection.execute(_select(tenant_key).where(jobs.c.id == job_id)).one_or_none()
        if row is None:
            raise _unknown(job_id)
        return _view(row, _live_workers(connection, [row], gone_after_s), _open_needs(connection, [row]))


def read_jobs(
    connection: Connection, tenant_key: int, keys: Collection[int], *, gone_after_s: float = GONE_AFTER_S
) -> dict[int, JobView]:
    """Return these jobs by their keys."""
    rows = connection.execute(_select(tenant_key).where(jobs.c.key.in_(keys))).all()
    live, needs = _live_workers(connection, rows, gone_after_s), _open_needs(connection, rows)
    return {row.key: _view(row, live, needs) for row in rows}


def get_job_state(database: Database, tenant_key: int, job_id: str) -> JobState:
    """Return the state alone, cheaply.

    Raises:
        UnknownJob: this tenant has no job of this id.
    """
    with database.read() as connection:
        state = connection.scalar(select(jobs.c.state).where(jobs.c.tenant_key == tenant_key, jobs.c.id == job_id))
    if state is None:
        raise _unknown(job_id)
    return JobState(state)


def list_jobs(
    database: Database,
    tenant_key: int,
    *,
    limit: int = 50,
    after: str | None = None,
    state: str | None = None,
    gone_after_s: float = GONE_AFTER_S,
) -> Page[JobView]:
    """Return a page of jobs, newest first, that begins behind the job `after`.

    Raises:
        InvalidInput: there is no such state.
    """
    if state is not None and state not in set(JobState):
        raise InvalidInput(f"There is no job state '{state}'. There are: {', '.join(JobState)}.")
    query = _select(tenant_key).order_by(jobs.c.id.desc()).limit(limit + 1)
    if after is not None:
        query = query.where(jobs.c.id < after)
    if state is not None:
        query = query.where(jobs.c.state == state)
    with database.read() as connection:
        rows = connection.execute(query).all()
        live, needs = _live_workers(connection, rows, gone_after_s), _open_needs(connection, rows)
    shown = [_view(row, live, needs) for row in rows[:limit]]
    has_more = len(rows) > limit
    return Page(data=shown, has_more=has_more, next=shown[-1].id if has_more else None)


def _unknown(job_id: str) -> UnknownJob:
    return UnknownJob(f"There is no job '{job_id}'. List them with: gistmill jobs list")


def _select(tenant_key: int) -> Select[Any]:
    origin = jobs.alias()
    made = models.alias()
    joined = (
        jobs.outerjoin(datasets, datasets.c.key == jobs.c.dataset_key)
        .outerjoin(models, models.c.key == jobs.c.model_key)
        .outerjoin(origin, origin.c.key == jobs.c.retry_of_key)
        .outerjoin(made, made.c.job_key == jobs.c.key)
        .outerjoin(evaluations, evaluations.c.job_key == jobs.c.key)
    )
    return (
        select(
            jobs,
            datasets.c.name.label("dataset_name"),
            models.c.name.label("model_name"),
            models.c.version.label("model_version"),
            origin.c.id.label("retry_of"),
            made.c.name.label("produced_name"),
            made.c.version.label("produced_version"),
            made.c.kind.label("produced_kind"),
            evaluations.c.cases.label("evaluation_cases"),
            evaluations.c.ended.label("evaluation_ended"),
            db_now().label("now"),
        )
        .select_from(joined)
        .where(jobs.c.tenant_key == tenant_key)
    )


def _live_workers(connection: Connection, rows: Sequence[Row[Any]], within_s: float) -> Sequence[Row[Any]]:
    """Return the live workers, when one of the jobs may be waiting for one."""
    if not any(row.state in CLAIMABLE_JOB_STATES for row in rows):
        return []
    return worker_rows.live(connection, within_s=within_s)


def _open_needs(connection: Connection, rows: Sequence[Row[Any]]) -> Needs:
    """Return, for each of these jobs that waits, the jobs that it waits for."""
    waiting = [row.key for row in rows if row.state == JobState.WAITING]
    return dependencies.list_open_needs(connection, waiting) if waiting else {}


def _view(row: Row[Any], live: Sequence[Row[Any]], needs: Needs) -> JobView:
    spec: dict[str, Any] = row.spec
    model = spec.get("model", "") if row.model_name is None else f"{row.model_name}@{row.model_version}"
    return JobView(
        id=row.id,
        kind=row.kind,
        state=row.state,
        paused=row.paused,
        attempt=row.attempt,
        retry_of=row.retry_of,
        dataset=row.dataset_name or spec.get("dataset", ""),
        select=spec.get("select"),
        model=model,
        prompt=spec.get("prompt", ""),
        generation=spec.get("generation", {}),
        priority=row.priority,
        labels=row.labels,
        counts=_counts(row),
        chunks_left=row.chunks_left,
        waits_for=_name_needs(needs.get(row.key, ())) or _waits_for(row, live),
        training=row.training,
        evaluation=_evaluation(row),
        produced=None if row.produced_name is None else _produced(row),
        error=row.error,
        warnings=row.warnings,
        created_at=as_datetime(row.created_at),
        started_at=as_datetime(row.started_at),
        finished_at=as_datetime(row.finished_at),
        dialogues_per_s=_speed(row),
    )


def _evaluation(row: Row[Any]) -> dict[str, Any] | None:
    return None if row.evaluation_cases is None else {"cases": row.evaluation_cases, "ended": row.evaluation_ended}


def _produced(row: Row[Any]) -> str:
    """Return the reference by which the result is used; an adapter is written behind its base."""
    made = f"{row.produced_name}@{row.produced_version}"
    return f"{row.model_name}+{made}" if row.produced_kind == "adapter" else made


def _counts(row: Row[Any]) -> Counts:
    return Counts(
        items=row._mapping["items"],
        distinct=row.distinct_dialogues,
        generated=row.generated,
        shared=row.shared,
        succeeded=row.succeeded,
        failed=row.failed,
        not_run=row.not_run,
        truncated=row.truncated,
        cut_off=row.cut_off,
    )


def _speed(row: Row[Any]) -> float | None:
    """Estimate the dialogues that reached an end from the items that did: the dialogues are not counted one by one."""
    items: int = row._mapping["items"]
    seconds = (row.finished_at or row.now) - (row.started_at or row.now)
    if not items or seconds <= 0:
        return None
    return round(float(row.distinct_dialogues * (row.succeeded + row.failed) / items / seconds), 3)


def _name_needs(needs: Sequence[Row[Any]]) -> str | None:
    if not needs:
        return None
    more = f" and {len(needs) - NAMED} more" if len(needs) > NAMED else ""
    return f"it waits for {', '.join(f'{need.id} ({need.state})' for need in needs[:NAMED])}{more}"


def _waits_for(row: Row[Any], live: Sequence[Row[Any]]) -> str | None:
    if row.state not in CLAIMABLE_JOB_STATES:
        return None
    if row.paused:
        return "it is paused"
    if not live:
        return "no worker is running; start one with: gistmill worker"
    of_kind = [worker for worker in live if row.kind in worker.kinds]
    if not of_kind:
        return f"no running worker takes {row.kind} jobs"
    if all(worker.device_bytes < row.min_device_bytes for worker in of_kind):
        return f"no running worker has a device with {row.min_device_bytes / 1024**3:.1f} GiB of memory"
    if all(worker.spec_version < row.spec_version for worker in of_kind):
        return "every running worker is of an older version; restart one with this version"
    return None
