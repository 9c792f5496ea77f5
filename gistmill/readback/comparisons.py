"""Evaluations as they are read back: scores, pairs, what each model cost, and the signature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, func, select

from gistmill.db import evaluations
from gistmill.db.clock import as_datetime
from gistmill.db.evaluations import System
from gistmill.db.session import Database
from gistmill.db.tables import comparisons, jobs, models, score_means, training_metrics
from gistmill.views import ComparisonView, CostView, MeanView, Page, PairView, SystemView

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def get_comparison(database: Database, tenant_key: int, job_id: str) -> ComparisonView:
    """Return the evaluation of this job as it stands; figures are there once it has completed.

    Raises:
        UnknownComparison: this tenant has no evaluate job of this id.
    """
    with database.read() as connection:
        return _view(connection, evaluations.get_row(connection, tenant_key, job_id))


def list_comparisons(database: Database, tenant_key: int, *, limit: int = 50, after: str | None = None) -> Page[ComparisonView]:
    """Return a page of evaluations, newest first, that begins behind `after`."""
    query = evaluations.select_rows(tenant_key).order_by(jobs.c.id.desc()).limit(limit + 1)
    if after is not None:
        query = query.where(jobs.c.id < after)
    with database.read() as connection:
        rows = connection.execute(query).all()
        shown = [_view(connection, row) for row in rows[:limit]]
    has_more = len(rows) > limit
    return Page(data=shown, has_more=has_more, next=shown[-1].id if has_more else None)


def _view(connection: Connection, row: Row[Any]) -> ComparisonView:
    systems = evaluations.list_systems(connection, row.job_key)
    means = connection.execute(select(score_means).where(score_means.c.job_key == row.job_key)).all()
    return ComparisonView(
        id=row.id,
        state=row.state,
        dataset=row.dataset_name,
        dataset_digest=row.dataset_digest,
        select=row.spec.get("select"),
        baseline=systems[0].name,
        measures=_in_order({mean.measure for mean in means}),
        cases=row.cases,
        ended=row.ended,
        counts=(row.counts or {}).get("outcomes") or {},
        systems=_systems(connection, row, systems, means),
        pairs=_pairs(connection, row.job_key, systems),
        signature="|".join(f"{name}:{value}" for name, value in (row.signature or {}).items()),
        notes=row.notes,
        error=row.error,
        created_at=as_datetime(row.created_at),
        finished_at=as_datetime(row.finished_at),
    )


def _in_order(measures: set[str]) -> list[str]:
    """Return ROUGE as everyone lists it, then the others by name."""
    return [*(name for name in ROUGE if name in measures), *sorted(measures.difference(ROUGE))]


def _systems(connection: Connection, row: Row[Any], systems: Sequence[System], means: Sequence[Row[Any]]) -> list[SystemView]:
    sources = evaluations.list_sources(connection, systems)
    empty = (row.counts or {}).get("empty") or [0] * len(systems)
    views = []
    for system in systems:
        source = sources.get(system.number)
        of = {mean.measure: _mean(mean) for mean in means if mean.system == system.number}
        view = SystemView(
            name=system.name,
            column=system.column,
            empty=empty[system.number],
            scores={measure: of[measure] for measure in _in_order(set(of))},
        )
        views.append(view if source is None else view.model_copy(update=_origin(connection, source)))
    return views


def _origin(connection: Connection, source: Row[Any]) -> Mapping[str, Any]:
    """Return how a system's summaries were made, and what their model cost."""
    model = connection.execute(select(models).where(models.c.key == source.model_key)).one_or_none()
    return {
        "job": source.id,
        "model": source.spec.get("model") if model is None else f"{model.name}@{model.version}",
        "prompt": source.spec.get("prompt"),
        "generation": source.spec.get("generation") or {},
        "cost": None if model is None else _cost(connection, model),
    }


def _cost(connection: Connection, model: Row[Any]) -> CostView:
    """Return what the model version cost; one that was not trained here has only its size."""
    cost = CostView(artifact_bytes=model.weight_bytes, total_parameters=model.manifest.get("parameters"))
    training = None
    if model.job_key is not None:
        training = connection.execute(select(jobs).where(jobs.c.key == model.job_key)).one_or_none()
    if training is None:
        return cost
    memory = connection.scalar(
        select(func.max(training_metrics.c.memory_bytes)).where(training_metrics.c.job_key == training.key)
    )
    known = training.training or {}
    is_over = training.finished_at is not None and training.started_at is not None
    return cost.model_copy(
        update={
            "training_s": round(training.finished_at - training.started_at, 3) if is_over else None,
            "memory_bytes": memory,
            "trainable_parameters": known.get("trainable_parameters"),
            "total_parameters": known.get("total_parameters"),
        }
    )


def _mean(row: Row[Any]) -> MeanView:
    return MeanView(
        cases=row.cases,
        precision=row.precision,
        recall=row.recall,
        fmeasure=row.fmeasure,
        low=row.low,
        high=row.high,
        levels=row.levels or {},
    )


def _pairs(connection: Connection, job_key: int, systems: Sequence[System]) -> list[PairView]:
    names = {system.number: system.name for system in systems}
    rows = connection.execute(
        select(comparisons)
        .where(comparisons.c.job_key == job_key)
        .order_by(comparisons.c.baseline, comparisons.c.system, comparisons.c.measure)
    )
    views = [
        PairView(
            measure=row.measure,
            system=names[row.system],
            baseline=names[row.baseline],
            cases=row.cases,
            delta=row.delta,
            low=row.low,
            high=row.high,
            levels=row.levels or {},
            p_value=row.p_value,
            p_adjusted=row.p_adjusted,
            wins=row.wins,
            ties=row.ties,
            losses=row.losses,
        )
        for row in rows
    ]
    order = {measure: place for place, measure in enumerate(_in_order({view.measure for view in views}))}
    places = {name: number for number, name in names.items()}
    return sorted(views, key=lambda view: (places[view.baseline], places[view.system], order[view.measure]))
