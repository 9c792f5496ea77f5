"""How models come into the service: from the package, the hub, uploads and jobs. Files first, then the row."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from api.deps import Service
from gistmill.db import models as model_rows
from gistmill.db.models import Lease, ModelVersion
from gistmill.errors import InvalidInput, ModelUnavailable, UnknownModel, UnsupportedModel
from gistmill.views import ModelView
from models_store import catalog, importing, merging, names
from models_store import manifest as manifests
from models_store.manifest import FileEntry, Manifest


class MadeByJob(BaseModel):
    """The lease under which a worker made a model, and what the model came from."""

    model_config = ConfigDict(extra="forbid")

    job_id: str = Field(max_length=40)
    chunk_key: int
    epoch: int
    lineage: dict[str, Any] = Field(default_factory=dict)
    kind: Literal["model", "adapter"] = "model"
    base_digest: str | None = Field(None, description="The base of an adapter.")


class Merged(BaseModel):
    """A base with an adapter merged: GET /v1/models/merged/{base_digest}/{adapter_digest}/files/{path}."""

    base_digest: str
    adapter_digest: str
    files: tuple[FileEntry, ...]


def add_built_in(service: Service) -> None:
    """Put the built-in models into the store and into SQL; those that are, or were, there stay as they are."""
    for name in catalog.names():
        manifest = catalog.import_builtin(service.store, name)
        if not model_rows.is_registered(service.database, service.tenant_key, name=name, digest=manifest.digest):
            _register(service, manifest, name=name, source="built-in")


def add_from_hub(service: Service, hub_id: str, *, name: str | None = None, base: str | None = None) -> ModelView:
    """Download a model, or with a base an adapter, of the hub and give it the next version of its name.

    Raises:
        InvalidName: the hub id or the name cannot be one.
        ModelUnavailable: the hub cannot be reached or has no such model.
        ModelError: what it has cannot be used.
        UnknownModel: there is no such base.
        NameTaken: the name is an alias, or the other kind has it.
    """
    name = names.check_name(name) if name else names.name_of_hub_id(hub_id)
    base_digest = _find_base(service, base)
    with service.import_lock:
        manifest = importing.import_hub(service.store, hub_id, base_digest=base_digest)
    return _register(service, manifest, name=name, source=f"{model_rows.HUB}{hub_id}")


def add_from_upload(service: Service, directory: Path, *, name: str, convert: bool, base: str | None = None) -> ModelView:
    """Turn uploaded files into the next version of the name: a model, or with a base an adapter of it.

    Raises:
        ModelError: the files cannot be used as a model or an adapter.
        UnknownModel: there is no such base.
        NameTaken: the name is an alias, or the other kind has it.
    """
    label = f"The upload of {name}"
    base_digest = _find_base(service, base)
    manifest = importing.import_directory(service.store, directory, label=label, convert=convert, base_digest=base_digest)
    return _register(service, manifest, name=names.check_name(name), source="upload")


def add_from_job(service: Service, directory: Path, *, name: str, job: MadeByJob) -> ModelView:
    """Turn the files that a worker made into a version of the name, once per job.

    Raises:
        LeaseLost: the worker lost the chunk under which it made them.
        ModelError: the files cannot be used as a model or an adapter.
    """
    base_digest = job.base_digest if job.kind == "adapter" else None
    if base_digest is not None:
        get_by_digest(service, base_digest)
    elif job.kind == "adapter":
        raise InvalidInput("An adapter names its base: base_digest is missing.")
    lease = Lease(job.job_id, job.chunk_key, job.epoch)
    manifest = importing.import_directory(
        service.store, directory, label=f"The result of {job.job_id}", base_digest=base_digest, made_by=vars(lease)
    )
    return model_rows.register_for_job(
        service.database,
        service.tenant_key,
        manifest.model_dump(mode="json"),
        lease,
        name=names.check_name(name),
        digest=manifest.digest,
        weight_bytes=manifest.weight_bytes,
        kind=manifest.kind,
        base_digest=manifest.base_digest,
        lineage=job.lineage,
    )


def resolve(service: Service, reference: str) -> ModelVersion:
    """Return the model of a job; a hub id that is not known here is looked for on the hub, once.

    Raises:
        UnknownModel: it is neither here nor can it be had from the hub.
        ModelError: what the hub has cannot be used, or the parts of the reference do not go together.
        InvalidInput: an adapter was made for another base.
    """
    try:
        return model_rows.resolve(service.database, service.tenant_key, reference)
    except UnknownModel as unknown:
        if not names.is_hub_id(reference):
            raise
        try:
            add_from_hub(service, reference)
        except ModelUnavailable as unavailable:
            raise UnknownModel(f"{unknown.message} (The hub did not give it either.)") from unavailable
    return model_rows.resolve(service.database, service.tenant_key, reference)


def merge(service: Service, reference: str) -> Merged:
    """Merge an adapter into its base, in a process of its own, and say which files came of it.

    Raises:
        InvalidInput: the reference names no adapter.
        ModelError: this host has no torch to merge with.
    """
    model = model_rows.resolve(service.database, service.tenant_key, reference)
    if model.adapter_digest is None:
        raise InvalidInput(f"'{reference}' is a whole model with nothing to merge: export it without --merge.")
    with service.import_lock:
        directory = merging.merge(service.store, base_digest=model.base_digest, adapter_digest=model.adapter_digest)
    files = manifests.load(directory).files
    return Merged(base_digest=model.base_digest, adapter_digest=model.adapter_digest, files=files)


def get_by_digest(service: Service, digest: str) -> ModelVersion:
    """Return a version with these files, also one that was removed.

    Raises:
        UnknownModel: there is none.
    """
    found = model_rows.find_digest(service.database, service.tenant_key, digest)
    if found is None:
        raise UnknownModel(f"There is no model of digest {digest[:64]}.")
    return found


def _find_base(service: Service, reference: str | None) -> str | None:
    """Return the digest of an adapter's base, or None when no base was named."""
    if reference is None:
        return None
    base = resolve(service, reference)
    if base.adapter_digest is not None:
        raise UnsupportedModel(f"The base '{reference}' is itself an adapter, and a base must be a whole model.")
    return base.digest


def _register(service: Service, manifest: Manifest, *, name: str, source: str) -> ModelView:
    return model_rows.register(
        service.database,
        service.tenant_key,
        manifest.model_dump(mode="json"),
        name=name,
        digest=manifest.digest,
        weight_bytes=manifest.weight_bytes,
        source=source,
        kind=manifest.kind,
        base_digest=manifest.base_digest,
    )
