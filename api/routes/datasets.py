"""Datasets: uploaded as bytes or fetched from the hub, and listed."""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from api import loading
from api.deps import After, PageLimit, ServiceDep
from api.spool import safe_name, spooled
from gistmill import readback
from gistmill.errors import InvalidInput
from gistmill.views import DatasetView, Page

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])

Format = Literal["jsonl", "csv", "parquet"]
ColumnQuery = Annotated[list[str] | None, Query(description="field=column, for columns that are named differently.")]


class HubDataset(BaseModel):
    """A split of a dataset on the hub."""

    model_config = ConfigDict(extra="forbid")

    hub_id: str = Field(min_length=1, max_length=200, examples=["knkarthick/dialogsum"])
    split: str = Field("test", min_length=1, max_length=100)
    column: list[str] = []


@router.post("", status_code=201, responses={200: {"description": "The same rows were there already."}})
async def upload_dataset(
    service: ServiceDep,
    request: Request,
    response: Response,
    filename: Annotated[str, Query(max_length=300)] = "upload",
    name: Annotated[str | None, Query(min_length=1, max_length=300)] = None,
    format: Format | None = None,
    column: ColumnQuery = None,
) -> DatasetView:
    """Store the rows of a file whose bytes are the request's body."""
    mapping = parse_mapping(column or [])
    limit_bytes = service.settings.api.max_upload_bytes
    async with spooled(request, service.spool_dir, filename=filename, limit_bytes=limit_bytes) as path:
        dataset, is_new = await run_in_threadpool(
            loading.load_file,
            service.database,
            service.tenant_key,
            path,
            format=format,
            mapping=mapping,
            name=name or PurePath(safe_name(filename)).stem,
        )
    response.status_code = 201 if is_new else 200
    return dataset


@router.get("")
def list_datasets(service: ServiceDep, limit: PageLimit = 50, after: After = None) -> Page[DatasetView]:
    """List datasets, newest first."""
    return readback.list_datasets(service.database, service.tenant_key, limit=limit, after=after)


@router.get("/{reference}")
def get_dataset(service: ServiceDep, reference: str) -> DatasetView:
    """Show the dataset of this id, else the newest of this name."""
    return readback.get_dataset(service.database, service.tenant_key, reference)


def parse_mapping(columns: list[str]) -> dict[str, str]:
    """Return field -> column of `field=column` words.

    Raises:
        InvalidInput: a word is not of that form or names a field twice.
    """
    mapping: dict[str, str] = {}
    for word in columns:
        field, equals, column = word.partition("=")
        if not equals or not field or not column or field in mapping:
            raise InvalidInput(f"'{word[:100]}' does not map a column. Write for example: dialogue=transcript")
        mapping[field] = column
    return mapping
