"""Comparisons: evaluations read back, their cases streamed, and scored anew from what is stored."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from api.deps import After, PageLimit, Service, ServiceDep, note_replay
from api.streaming import LINES, Limit, Position, as_lines, lines
from gistmill import readback, submit
from gistmill.readback.cases import DELTA, PAGE, CaseOrder, CaseQuery, Ranking, rank_cases, read_ranked
from gistmill.sweep import live_within_s
from gistmill.views import CaseView, ComparisonView, JobView, Page

router = APIRouter(prefix="/v1/comparisons", tags=["comparisons"])

Name = Annotated[str | None, Query(max_length=300)]


class Rescore(BaseModel):
    """How to score the same summaries anew."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"set": {"stemming": False}}]})

    also: list[str] = Field([], max_length=16, description="Other evaluations of the same rows whose systems join in.")
    set: dict[str, Any] = Field(
        default_factory=dict, max_length=16, description="metrics, stemming, references, resamples, seed, baseline, …"
    )


@router.get("")
def list_comparisons(service: ServiceDep, limit: PageLimit = 50, after: After = None) -> Page[ComparisonView]:
    """List evaluations, newest first."""
    return readback.list_comparisons(service.database, service.tenant_key, limit=limit, after=after)


@router.get("/{job_id}")
def get_comparison(service: ServiceDep, job_id: str) -> ComparisonView:
    """Show scores with intervals, paired comparisons, costs and the signature of an evaluate job."""
    return readback.get_comparison(service.database, service.tenant_key, job_id)


@router.get("/{job_id}/items", response_class=StreamingResponse, responses={200: {"content": {LINES: {}}}})
def stream_cases(
    service: ServiceDep,
    job_id: str,
    order: CaseOrder = "input",
    by: Annotated[str, Query(max_length=100, description="delta, or a measure of the system.")] = DELTA,
    measure: Name = None,
    system: Name = None,
    baseline: Name = None,
    after: After = None,
    limit: Limit = None,
) -> StreamingResponse:
    """Stream cases side by side, one JSON object a line: in input order, or the worst or best first."""
    query = CaseQuery(order, by, measure, system, baseline)
    # Whatever is wrong with the request is found before the status is sent.
    if order == "input":
        readback.read_cases(service.database, service.tenant_key, job_id, query, after=after, limit=0)

        def read(cursor: str | None, most: int) -> list[CaseView]:
            return readback.read_cases(service.database, service.tenant_key, job_id, query, after=cursor, limit=most)

        return StreamingResponse(lines(read, Position(after, limit, page=PAGE)), media_type=LINES)
    ranking = rank_cases(service.database, service.tenant_key, job_id, query, after, limit)
    return StreamingResponse(_ranked_lines(service, job_id, query, ranking), media_type=LINES)


@router.post("/{job_id}/rescore", status_code=201, responses={200: {"description": "The answer to an earlier request."}})
def rescore(
    service: ServiceDep,
    job_id: str,
    body: Rescore,
    response: Response,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=200)] = None,
) -> JobView:
    """Submit an evaluate job over the same summaries with other scores; no summary is made again."""
    new_id, is_new = submit.submit_rescore(
        service.database,
        service.tenant_key,
        [job_id, *body.also],
        body.set,
        idempotency_key=idempotency_key,
        ring=service.bells.ring,
        live_within_s=live_within_s(service.settings.worker),
    )
    note_replay(response, is_new=is_new)
    return readback.get_job(service.database, service.tenant_key, new_id, gone_after_s=service.gone_after_s)


async def _ranked_lines(service: Service, job_id: str, query: CaseQuery, ranking: Ranking) -> AsyncIterator[str]:
    for part in ranking.pages():
        read = partial(read_ranked, service.database, service.tenant_key, job_id, query, part)
        yield as_lines(await run_in_threadpool(read))
