"""How models come into the service: from the package, from the hub, from uploads. Files first, then the row."""

from __future__ import annotations

from pathlib import Path

from api.deps import Service
from gistmill.db import models as model_rows
from gistmill.db.models import ModelVersion
from gistmill.errors import ModelUnavailable, UnknownModel
from gistmill.views import ModelView
from models_store import catalog, importing, names
from models_store.manifest import Manifest


def add_built_in(service: Service) -> None:
    """Put the built-in models into the store and into SQL; those that are there stay as they are."""
    for name in catalog.names():
        _register(service, catalog.import_builtin(service.store, name), name=name, source="built-in")


def add_from_hub(service: Service, hub_id: str, *, name: str | None = None) -> ModelView:
    """Download a model of the hub and give it the next version of its name.

    Raises:
        InvalidName: the hub id or the name cannot be one.
        ModelUnavailable: the hub cannot be reached or has no such model.
        ModelError: what it has cannot be used.
    """
    name = names.check_name(name) if name else names.name_of_hub_id(hub_id)
    with service.import_lock:
        manifest = importing.import_hub(service.store, hub_id)
    return _register(service, manifest, name=name, source=f"{model_rows.HUB}{hub_id}")


def add_from_upload(service: Service, directory: Path, *, name: str, convert: bool) -> ModelView:
    """Turn uploaded files into the next version of the name.

    Raises:
        ModelError: the files cannot be used as a model.
    """
    manifest = importing.import_directory(service.store, directory, label=f"The upload of {name}", convert=convert)
    return _register(service, manifest, name=names.check_name(name), source="upload")


def resolve(service: Service, reference: str) -> ModelVersion:
    """Return the model of a job; a hub id that is not known here is looked for on the hub, once.

    Raises:
        UnknownModel: it is neither here nor can it be had from the hub.
        ModelError: what the hub has cannot be used.
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


def _register(service: Service, manifest: Manifest, *, name: str, source: str) -> ModelView:
    return model_rows.register(
        service.database,
        service.tenant_key,
        manifest.model_dump(mode="json"),
        name=name,
        digest=manifest.digest,
        weight_bytes=manifest.weight_bytes,
        source=source,
    )
