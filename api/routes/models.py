"""Models and adapters: listed, added from the hub or uploads, named, removed, and handed out by digest."""

from __future__ import annotations

import re
import shutil
import uuid
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from api import catalog
from api.catalog import MadeByJob, Merged
from api.deps import Service, ServiceDep
from api.spool import receive_file
from gistmill.db import aliases, lineage, removal
from gistmill.db import models as model_rows
from gistmill.errors import InvalidName, NotFound
from gistmill.views import ModelView, Page
from models_store import importing, names
from models_store import manifest as manifests
from models_store.manifest import Manifest

router = APIRouter(prefix="/v1/models", tags=["models"])

UPLOAD = re.compile(r"upload-[0-9a-f]{32}")
PLAIN_NAME = re.compile(r"\.?[A-Za-z0-9_][A-Za-z0-9 ._+@-]{0,199}")
# Dotted names are never part of a model, so they cannot meet an uploaded file.
NAME_FILE = ".name"


class HubModel(BaseModel):
    """A model on the hub."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"hub_id": "google/flan-t5-base"}]})

    hub_id: str = Field(min_length=1, max_length=200)
    name: str | None = Field(None, description="What to call it here; the last part of the hub id by default.")
    base: str | None = Field(None, max_length=300, description="For an adapter: the model that it belongs to.")


class NewUpload(BaseModel):
    """The name of the model whose files will follow."""

    model_config = ConfigDict(extra="forbid")

    name: str


class Upload(BaseModel):
    """Where the files go: PUT /v1/models/uploads/{upload}/files/{name}."""

    upload: str


class Publish(BaseModel):
    """How the uploaded files become a model."""

    model_config = ConfigDict(extra="forbid")

    convert: bool = Field(False, description="Turn a pickled checkpoint into safetensors, reading tensors only.")
    base: str | None = Field(None, max_length=300, description="For an adapter: the model that it belongs to.")
    job: MadeByJob | None = Field(None, description="From a worker: the lease under which the files were made.")


class Alias(BaseModel):
    """Another name for a version."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"alias": "live", "reference": "support-lora@1"}]}
    )

    alias: str
    reference: str = Field(min_length=1, max_length=300)


@router.get("")
def list_models(service: ServiceDep) -> Page[ModelView]:
    """List all model versions."""
    return model_rows.list_models(service.database, service.tenant_key)


@router.post("", status_code=201)
def add_model_from_hub(service: ServiceDep, body: HubModel) -> ModelView:
    """Download a model or an adapter of the hub."""
    return catalog.add_from_hub(service, body.hub_id, name=body.name, base=body.base)


@router.post("/uploads", status_code=201)
def begin_upload(service: ServiceDep, body: NewUpload) -> Upload:
    """Begin to upload the files of a model."""
    name = names.check_name(body.name)
    upload = f"upload-{uuid.uuid4().hex}"
    (service.store.make_staging(upload) / NAME_FILE).write_text(name)
    return Upload(upload=upload)


@router.put("/uploads/{upload}/files/{name:path}", status_code=204)
async def upload_file(service: ServiceDep, request: Request, upload: str, name: str) -> None:
    """Store one file of the model; the body is its bytes. Files that a model does not consist of are read and let go."""
    directory = await run_in_threadpool(_find_upload, service, upload)
    is_kept = _is_part_of_a_model(name)
    # A file that breaks off never gets its name; a dotted one is no part of a model.
    part = directory / f".{uuid.uuid4().hex}"
    try:
        limit_bytes = service.settings.api.max_upload_bytes
        await receive_file(request, part if is_kept else None, limit_bytes=limit_bytes)
        if is_kept:
            await run_in_threadpool(part.rename, directory / name)
        elif importing.PICKLED.fullmatch(name):
            # The name alone tells the import why there are no other weights.
            await run_in_threadpool((directory / name).touch)
    finally:
        await run_in_threadpool(part.unlink, missing_ok=True)


@router.post("/uploads/{upload}/publish", status_code=201)
def publish_upload(service: ServiceDep, upload: str, body: Publish) -> ModelView:
    """Make the uploaded files a model version. Whether it succeeds or not, the upload is over."""
    directory = _find_upload(service, upload)
    try:
        name = (directory / NAME_FILE).read_text()
        if body.job is not None:
            return catalog.add_from_job(service, directory, name=name, job=body.job)
        return catalog.add_from_upload(service, directory, name=name, convert=body.convert, base=body.base)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@router.get("/by-digest/{digest}/manifest")
def get_manifest(service: ServiceDep, digest: str) -> Manifest:
    """Show what the model of this digest consists of."""
    catalog.get_by_digest(service, digest)
    return service.store.get_manifest(digest)


@router.get("/by-digest/{digest}/files/{name:path}", response_class=FileResponse)
def get_file(service: ServiceDep, digest: str, name: str) -> FileResponse:
    """Send a file of the model."""
    catalog.get_by_digest(service, digest)
    return FileResponse(service.store.get_file(digest, name), media_type="application/octet-stream")


@router.post("/merged", status_code=201)
def merge_adapter(service: ServiceDep, reference: str) -> Merged:
    """Merge an adapter into its base; the files are kept for a day after their last use."""
    return catalog.merge(service, reference)


@router.get("/merged/{base_digest}/{adapter_digest}/files/{name}", response_class=FileResponse)
def get_merged_file(service: ServiceDep, base_digest: str, adapter_digest: str, name: str) -> FileResponse:
    """Send a file of a base with an adapter merged."""
    for digest in (base_digest, adapter_digest):
        catalog.get_by_digest(service, digest)
    directory = service.store.find_merged(base_digest, adapter_digest)
    if directory is None or name not in {entry.path for entry in manifests.load(directory).files}:
        raise NotFound("There is no such file. Merge anew with POST /v1/models/merged")
    return FileResponse(directory / name, media_type="application/octet-stream")


@router.post("/aliases")
def set_alias(service: ServiceDep, body: Alias) -> ModelView:
    """Let an alias mean a version; one that exists is moved."""
    alias = names.check_name(body.alias)
    return aliases.set_alias(service.database, service.tenant_key, alias, body.reference)


@router.delete("/aliases/{alias}", status_code=204)
def delete_alias(service: ServiceDep, alias: str) -> None:
    """Take an alias away."""
    aliases.delete_alias(service.database, service.tenant_key, alias)


@router.get("/lineage/{reference:path}")
def list_lineage(service: ServiceDep, reference: str) -> Page[ModelView]:
    """Show a version, what it was made from, what that was made from, and so on."""
    return lineage.list_lineage(service.database, service.tenant_key, reference)


@router.get("/{reference:path}")
def get_model(service: ServiceDep, reference: str) -> ModelView:
    """Show the version that `name`, `name@version`, `base+adapter`, an alias or a hub id means."""
    return model_rows.get_model(service.database, service.tenant_key, reference)


@router.delete("/{reference:path}")
def remove_model(service: ServiceDep, reference: str) -> ModelView:
    """Offer a version to no new job; its files stay, because results refer to them."""
    return removal.remove_model(service.database, service.tenant_key, reference)


def _find_upload(service: Service, upload: str) -> Path:
    directory = service.store.root / "incoming" / upload
    if not UPLOAD.fullmatch(upload) or not (directory / NAME_FILE).is_file():
        raise NotFound("There is no such upload. Begin one with POST /v1/models/uploads")
    return directory


def _is_part_of_a_model(name: str) -> bool:
    if not PLAIN_NAME.fullmatch(name) or ".." in name:
        raise InvalidName(f"'{name[:120]}' is not the plain name of a file.")
    return importing.is_allowed(name) or importing.is_convertible(name) or name == manifests.FILE_NAME
