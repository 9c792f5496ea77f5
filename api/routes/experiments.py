"""Experiments: listed, shown with their steps, and reported. They are submitted, steered and retried as jobs."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse

from api.deps import After, PageLimit, ServiceDep
from gistmill import readback
from gistmill.views import ExperimentView, Page

router = APIRouter(prefix="/v1/experiments", tags=["experiments"])

MARKDOWN = "text/markdown"


@router.get("")
def list_experiments(service: ServiceDep, limit: PageLimit = 50, after: After = None) -> Page[ExperimentView]:
    """List experiments, newest first."""
    return readback.list_experiments(
        service.database, service.tenant_key, limit=limit, after=after, gone_after_s=service.gone_after_s
    )


@router.get("/{job_id}")
def get_experiment(service: ServiceDep, job_id: str) -> ExperimentView:
    """Show an experiment with each of its steps as they stand."""
    return readback.get_experiment(service.database, service.tenant_key, job_id, gone_after_s=service.gone_after_s)


@router.get("/{job_id}/report", response_class=PlainTextResponse, responses={200: {"content": {MARKDOWN: {}}}})
def report_experiment(service: ServiceDep, job_id: str) -> PlainTextResponse:
    """Write the report in Markdown; while the experiment runs, with what is known so far."""
    text = readback.report_experiment(service.database, service.tenant_key, job_id)
    return PlainTextResponse(text, media_type=MARKDOWN)
