"""Jobs: submitted, watched, and their items streamed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from api import catalog
from api.deps import After, PageLimit, Service, ServiceDep, note_replay
from api.routes.prompts import check_prompt
from api.streaming import LINES, Limit, PageReader, Position, lines
from gistmill import readback, submit
from gistmill.readback.items import PAGE
from gistmill.specs import JobSpec
from gistmill.sweep import live_within_s
from gistmill.views import ItemErrorView, JobView, MetricView, Page, ResultView

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

POLL_S = 0.5
KEEP_ALIVE_S = 5.0

Cursor = Annotated[str | None, Query(max_length=100, description="The `cursor` of the last line that was read.")]


@router.post("", status_code=201, responses={200: {"description": "The answer to an earlier request with the same key."}})
def submit_job(
    service: ServiceDep,
    spec: JobSpec,
    response: Response,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=200)] = None,
) -> JobView:
    """Submit a job; a second request with the same Idempotency-Key and body gets the first one's job."""
    job_id, is_new = submit.submit_job(
        service.database,
        service.tenant_key,
        spec,
        resolve_model=partial(catalog.resolve, service),
        idempotency_key=idempotency_key,
        ring=service.bells.ring,
        live_within_s=live_within_s(service.settings.worker),
        check_prompt=partial(check_prompt, service),
    )
    note_replay(response, is_new=is_new)
    return get_job(service, job_id)


@router.get("")
def list_jobs(service: ServiceDep, limit: PageLimit = 50, after: After = None, state: str | None = None) -> Page[JobView]:
    """List jobs, newest first."""
    return readback.list_jobs(
        service.database,
        service.tenant_key,
        limit=limit,
        after=after,
        state=state,
        gone_after_s=service.gone_after_s,
    )


@router.get("/{job_id}")
def get_job(service: ServiceDep, job_id: str) -> JobView:
    """Show a job as it stands."""
    return readback.get_job(service.database, service.tenant_key, job_id, gone_after_s=service.gone_after_s)


@router.get("/{job_id}/results", response_class=StreamingResponse, responses={200: {"content": {LINES: {}}}})
def stream_results(
    service: ServiceDep,
    job_id: str,
    after: Cursor = None,
    limit: Limit = None,
    order: Literal["auto", "input", "arrival"] = "auto",
    follow: bool = False,
) -> StreamingResponse:
    """Stream results, one JSON object a line: by arrival while the job runs, in input order when it has ended.

    With `follow` the stream goes on until the job has ended; blank lines keep the connection alive.
    """
    settled = readback.result_order(service.database, service.tenant_key, job_id, after=after, order=order)

    def read(cursor: str | None, most: int) -> list[ResultView]:
        return readback.read_results(service.database, service.tenant_key, job_id, after=cursor, limit=most, order=settled)

    return StreamingResponse(_stream(service, job_id, read, after, limit, follow=follow), media_type=LINES)


@router.get("/{job_id}/errors", response_class=StreamingResponse, responses={200: {"content": {LINES: {}}}})
def stream_errors(service: ServiceDep, job_id: str, after: Cursor = None, limit: Limit = None) -> StreamingResponse:
    """Stream the items that failed, one JSON object a line, in input order."""
    # Whatever is wrong with the request is found before the status is sent.
    readback.read_errors(service.database, service.tenant_key, job_id, after=after, limit=0)

    def read(cursor: str | None, most: int) -> list[ItemErrorView]:
        return readback.read_errors(service.database, service.tenant_key, job_id, after=cursor, limit=most)

    return StreamingResponse(lines(read, Position(after, limit, page=PAGE)), media_type=LINES)


@router.get("/{job_id}/metrics", response_class=StreamingResponse, responses={200: {"content": {LINES: {}}}})
def stream_metrics(
    service: ServiceDep, job_id: str, after: Cursor = None, limit: Limit = None, follow: bool = False
) -> StreamingResponse:
    """Stream the curve of a training, one JSON object a line, by step; with `follow` until the job has ended."""
    readback.read_metrics(service.database, service.tenant_key, job_id, after=after, limit=0)

    def read(cursor: str | None, most: int) -> list[MetricView]:
        return readback.read_metrics(service.database, service.tenant_key, job_id, after=cursor, limit=most)

    return StreamingResponse(_stream(service, job_id, read, after, limit, follow=follow), media_type=LINES)


def _stream(
    service: Service, job_id: str, read: PageReader, after: str | None, limit: int | None, *, follow: bool
) -> AsyncIterator[str]:
    position = Position(after, limit, page=PAGE)
    return _follow(service, job_id, read, position) if follow else lines(read, position)


async def _follow(service: Service, job_id: str, read: PageReader, position: Position) -> AsyncIterator[str]:
    get_state = partial(readback.get_job_state, service.database, service.tenant_key, job_id)
    last_sent = time.monotonic()
    while True:
        # The state is read first: what a job that has ended still holds is read after its last result was written.
        state = await run_in_threadpool(get_state)
        async for text in lines(read, position):
            yield text
            last_sent = time.monotonic()
        if state.is_final or position.page == 0:
            return
        if time.monotonic() - last_sent > KEEP_ALIVE_S:
            yield "\n"
            last_sent = time.monotonic()
        await asyncio.sleep(POLL_S)
