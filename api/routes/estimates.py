"""Estimates: what a job would do and take, without submitting it."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter

from api import catalog
from api.deps import Service, ServiceDep
from gistmill.db.models import ModelVersion
from gistmill.estimate import CountTokens
from gistmill.specs import SummarizeSpec
from gistmill.submit import Planning, ResolvedModel, estimate_job
from gistmill.sweep import live_within_s
from gistmill.views import EstimateView
from models_store import tokenizer

router = APIRouter(prefix="/v1/estimates", tags=["jobs"])


@router.post("")
def estimate(service: ServiceDep, spec: SummarizeSpec) -> EstimateView:
    """Say what this summarize job would do: its prompts in tokens, what is stored already, chunks and expected time.

    It is checked, and its model looked for, as at submit; no job is written.
    """
    planning = Planning(
        service.database,
        service.tenant_key,
        partial(catalog.resolve, service),
        live_within_s(service.settings.worker),
    )
    return estimate_job(planning, spec, partial(_find_counter, service))


def _find_counter(service: Service, model: ResolvedModel) -> tuple[CountTokens, int | None]:
    assert isinstance(model, ModelVersion)
    positions = service.store.get_manifest(model.base_digest).max_positions
    return tokenizer.load_counter(service.store.get(model.base_digest)), positions
