"""Checkpoints of running trainings: sent by the worker that holds the lease, fetched by the one that goes on."""

from __future__ import annotations

import uuid
from typing import Annotated

from fastapi import APIRouter, Path, Request
from fastapi.responses import FileResponse
from pydantic import BaseModel
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool

from api.deps import Service, ServiceDep
from api.spool import receive_file
from gistmill import readback
from gistmill.db.fence import owned_by
from gistmill.db.models import Lease
from gistmill.db.tables import chunks, jobs
from gistmill.errors import LeaseLost

router = APIRouter(prefix="/v1/jobs", tags=["checkpoints"])

Step = Annotated[int, Path(ge=0, lt=10**9)]


class CheckpointView(BaseModel):
    """A checkpoint that the api keeps."""

    step: int
    epoch: int
    size: int


@router.put("/{job_id}/checkpoints/{step}", status_code=204)
async def put_checkpoint(service: ServiceDep, request: Request, job_id: str, step: Step, chunk_key: int, epoch: int) -> None:
    """Keep a checkpoint; the body is a tar archive of its files. It is refused unless this epoch holds the chunk."""
    lease = Lease(job_id, chunk_key, epoch)
    await run_in_threadpool(_require_lease, service, lease)
    directory = service.store.root / "incoming" / f"checkpoint-{uuid.uuid4().hex}"
    await run_in_threadpool(directory.mkdir, parents=True)
    received = directory / "archive"
    try:
        await receive_file(request, received, limit_bytes=service.settings.api.max_checkpoint_bytes)
        # Much may have happened while it was received.
        await run_in_threadpool(_require_lease, service, lease)
        await run_in_threadpool(service.shelf.put, job_id, step, epoch, received)
    finally:
        await run_in_threadpool(received.unlink, missing_ok=True)
        await run_in_threadpool(directory.rmdir)


@router.get("/{job_id}/checkpoints")
def list_checkpoints(service: ServiceDep, job_id: str) -> list[CheckpointView]:
    """List the checkpoints of a training, newest first."""
    readback.get_job_state(service.database, service.tenant_key, job_id)
    found = service.shelf.list(job_id)
    return [CheckpointView(step=kept.step, epoch=kept.epoch, size=kept.path.stat().st_size) for kept in found]


@router.get("/{job_id}/checkpoints/{step}", response_class=FileResponse)
def get_checkpoint(service: ServiceDep, job_id: str, step: Step) -> FileResponse:
    """Send a checkpoint as a tar archive."""
    readback.get_job_state(service.database, service.tenant_key, job_id)
    return FileResponse(service.shelf.get(job_id, step).path, media_type="application/x-tar")


def _require_lease(service: Service, lease: Lease) -> None:
    held = select(chunks.c.key).join(jobs, jobs.c.key == chunks.c.job_key).where(owned_by(lease))
    with service.database.read() as connection:
        if connection.scalar(held.where(jobs.c.tenant_key == service.tenant_key, jobs.c.id == lease.job_id)) is None:
            raise LeaseLost(f"The chunk {lease.chunk_key} of {lease.job_id} is not held under epoch {lease.epoch} any more.")
