"""Worker processes."""

from __future__ import annotations

from fastapi import APIRouter

from api.deps import ServiceDep
from gistmill import readback
from gistmill.views import Page, WorkerView

router = APIRouter(prefix="/v1/workers", tags=["workers"])


@router.get("")
def list_workers(service: ServiceDep) -> Page[WorkerView]:
    """List the workers, newest first, and those that went in the last hour."""
    return readback.list_workers(service.database, service.tenant_key, gone_after_s=service.gone_after_s)
