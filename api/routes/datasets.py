"""Datasets: uploaded as bytes or fetched from the hub, and listed."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from api import loading
from api.deps import After, PageLimit, ServiceDep
from api.spool import spooled
from gistmill import readback
from gistmill.ingest.reading import Format
from gistmill.views import DatasetView, Page

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])

LONGEST_NAME = 300
COLUMN = "MEANING=COLUMN, such as dialogue=transcript; predictions=COLUMN1,COLUMN2 hold summaries made elsewhere."
THERE_ALREADY: dict[int | str, dict[str, Any]] = {200: {"description": "The same rows were there already."}}


class HubDataset(BaseModel):
    """A split of a dataset on the hub."""

    model_config = ConfigDict(extra="forbid")

    hub_id: str = Field(
        pattern=r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$", max_length=200, examples=["knkarthick/dialogsum"]
    )
    split: str | None = Field(None, min_length=1, max_length=100)
    name: str | None = Field(None, min_length=1, max_length=LONGEST_NAME)
    column: list[str] = Field([], description=COLUMN)


@router.post("", status_code=201, responses=THERE_ALREADY)
async def upload_dataset(
    service: ServiceDep,
    request: Request,
    response: Response,
    filename: Annotated[str, Query(max_length=300)] = "upload",
    name: Annotated[str | None, Query(min_length=1, max_length=LONGEST_NAME)] = None,
    format: Format | None = None,
    column: Annotated[list[str] | None, Query(description=COLUMN)] = None,
) -> DatasetView:
    """Store the rows of a file whose bytes are the request's body; the same rows are stored once."""
    limit_bytes = service.settings.api.max_upload_bytes
    async with spooled(request, service.spool_dir, filename=filename, limit_bytes=limit_bytes) as path:
        dataset, is_new = await run_in_threadpool(
            loading.load_file,
            service,
            path,
            filename=filename,
            name=name,
            format=format,
            columns=column or [],
        )
    response.status_code = 201 if is_new else 200
    return dataset


@router.post("/hub", status_code=201, responses=THERE_ALREADY)
def add_dataset_from_hub(service: ServiceDep, body: HubDataset, response: Response) -> DatasetView:
    """Store the rows of a split on the hub."""
    dataset, is_new = loading.load_from_hub(service, body.hub_id, body.split, name=body.name, columns=body.column)
    response.status_code = 201 if is_new else 200
    return dataset


@router.get("")
def list_datasets(service: ServiceDep, limit: PageLimit = 50, after: After = None) -> Page[DatasetView]:
    """List datasets, newest first."""
    return readback.list_datasets(service.database, service.tenant_key, limit=limit, after=after)


@router.get("/{reference:path}")
def get_dataset(service: ServiceDep, reference: str) -> DatasetView:
    """Show the dataset of this id, else the newest of this name."""
    return readback.get_dataset(service.database, service.tenant_key, reference)
