"""Steering: cancel, pause, resume and retry, on one job or on a selection."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Header, Response

from api import catalog
from api.deps import Service, ServiceDep
from gistmill import control, readback, submit
from gistmill.control import JobSelection, Missing
from gistmill.sweep import live_within_s
from gistmill.views import JobView, RefusalView, RetryRequest, SteerRequest, SteerView

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

SHOWN_REFUSALS = 20


@router.post("/steer")
def steer_jobs(service: ServiceDep, request: SteerRequest) -> SteerView:
    """Cancel, pause, resume or retry every job of a selection; with `preview` only count them."""
    selection = JobSelection(tuple(request.where), request.state, request.up_to)
    matched, newest = control.count(service.database, service.tenant_key, request.action, selection)
    if request.preview or not matched:
        return SteerView(matched=matched, up_to=newest)
    done = control.steer(
        service.database,
        service.tenant_key,
        request.action,
        selection,
        missing=Missing(request.failed, request.retryable),
        ring=service.bells.ring,
    )
    refusals = [RefusalView(job=item.job, code=item.code, message=item.message) for item in done.refused[:SHOWN_REFUSALS]]
    return SteerView(matched=matched, up_to=newest, changed=done.changed, refused=len(done.refused), refusals=refusals)


@router.post("/{job_id}/cancel", status_code=202)
def cancel_job(service: ServiceDep, job_id: str) -> JobView:
    """Cancel a job: its workers stop within seconds, and what was summarized stays."""
    control.cancel(service.database, service.tenant_key, job_id)
    return _show(service, job_id)


@router.post("/{job_id}/pause", status_code=202)
def pause_job(service: ServiceDep, job_id: str) -> JobView:
    """Pause a job: what runs stops within a step and is given back, and nothing more is handed out."""
    control.pause(service.database, service.tenant_key, job_id)
    return _show(service, job_id)


@router.post("/{job_id}/resume", status_code=202)
def resume_job(service: ServiceDep, job_id: str) -> JobView:
    """Let a paused job go on."""
    control.resume(service.database, service.tenant_key, job_id, ring=service.bells.ring)
    return _show(service, job_id)


@router.post("/{job_id}/retry", status_code=202, responses={201: {"description": "With `set`: the new job."}})
def retry_job(
    service: ServiceDep,
    job_id: str,
    response: Response,
    request: RetryRequest | None = None,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=200)] = None,
) -> JobView:
    """Take an ended job up again: only what is missing is done. With `set` the failed rows become a new job."""
    request = request or RetryRequest()
    missing = Missing(request.failed, request.retryable)
    if not request.set:
        control.retry(service.database, service.tenant_key, job_id, missing, ring=service.bells.ring)
        return _show(service, job_id)
    new_id, is_new = submit.submit_retry(
        service.database,
        service.tenant_key,
        job_id,
        request.set,
        codes=missing.codes,
        idempotency_key=idempotency_key,
        resolve_model=partial(catalog.resolve, service),
        ring=service.bells.ring,
        live_within_s=live_within_s(service.settings.worker),
    )
    response.status_code = 201 if is_new else 200
    return _show(service, new_id)


def _show(service: Service, job_id: str) -> JobView:
    return readback.get_job(service.database, service.tenant_key, job_id, gone_after_s=service.gone_after_s)
