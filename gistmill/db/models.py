"""Model versions as SQL knows them. A version is immutable; its files lie in the model store under its digest."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, func, insert, or_, select
from sqlalchemy.exc import IntegrityError

from gistmill.db.clock import as_datetime, db_now
from gistmill.db.session import Database
from gistmill.db.tables import models
from gistmill.errors import UnknownModel
from gistmill.views import ModelView, Page

HUB = "hub:"
HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)")
ATTEMPTS = 10


@dataclass(frozen=True)
class ModelVersion:
    """A model version with what a job needs to know of it."""

    key: int
    name: str
    version: int
    digest: str
    manifest: dict[str, Any]
    weight_bytes: int


def register(
    database: Database,
    tenant_key: int,
    manifest: Mapping[str, Any],
    *,
    name: str,
    digest: str,
    weight_bytes: int,
    source: str,
) -> ModelView:
    """Give the files of this digest the next version of the name; the same files under the same name keep their version.

    The files must be in the store already: whoever sees the row may fetch them. `name` has been checked by models_store.names.
    """
    values = {"tenant_key": tenant_key, "name": name, "digest": digest, "weight_bytes": weight_bytes, "source": source[:500]}
    for _ in range(ATTEMPTS):
        try:
            return _view(database.transact(lambda connection: _register(connection, values, manifest)))
        except IntegrityError:
            # Another process took the next version; the one after is free.
            continue
    raise AssertionError(f"the next version of {name} was taken {ATTEMPTS} times")


def resolve(database: Database, tenant_key: int, reference: str) -> ModelVersion:
    """Return the version that `name`, `name@version`, a hub id or a digest means; without a version the newest.

    A hub id means the model that was imported from there, else the model called like its last part.

    Raises:
        UnknownModel: there is none; the message names the nearest and how to add one.
    """
    with database.read() as connection:
        row = _find(connection, tenant_key, reference)
        if row is None:
            raise _unknown(connection, tenant_key, reference)
    return _version(row)


def get_model(database: Database, tenant_key: int, reference: str) -> ModelView:
    """Return what users see of the version that `resolve` returns.

    Raises:
        UnknownModel: there is none.
    """
    with database.read() as connection:
        row = _find(connection, tenant_key, reference)
        if row is None:
            raise _unknown(connection, tenant_key, reference)
    return _view(row)


def find_digest(database: Database, tenant_key: int, digest: str) -> ModelVersion | None:
    """Return a version with these files, or None."""
    with database.read() as connection:
        row = connection.execute(_newest(tenant_key, models.c.digest == digest)).one_or_none()
    return None if row is None else _version(row)


def list_models(database: Database, tenant_key: int) -> Page[ModelView]:
    """Return all versions, by name, newest first."""
    query = select(models).where(models.c.tenant_key == tenant_key).order_by(models.c.name, models.c.version.desc())
    with database.read() as connection:
        return Page(data=[_view(row) for row in connection.execute(query)])


def _register(connection: Connection, values: dict[str, Any], manifest: Mapping[str, Any]) -> Row[Any]:
    named = (models.c.tenant_key == values["tenant_key"], models.c.name == values["name"])
    present = connection.execute(select(models).where(*named, models.c.digest == values["digest"])).first()
    if present is not None:
        return present
    last = connection.scalar(select(func.max(models.c.version)).where(*named)) or 0
    added = insert(models).values(**values, manifest=dict(manifest), version=last + 1, created_at=db_now())
    return connection.execute(added.returning(models)).one()


def _find(connection: Connection, tenant_key: int, reference: str) -> Row[Any] | None:
    name, _, version = reference.partition("@")
    hub_id = HUB_ID.fullmatch(name)
    is_version: list[ColumnElement[bool]] = []
    if version:
        if not version.isascii() or not version.isdigit() or len(version) > 9:
            return None
        is_version = [models.c.version == int(version)]
    exact = _newest(tenant_key, or_(models.c.name == name, models.c.source == HUB + name, models.c.digest == name), *is_version)
    row = connection.execute(exact).one_or_none()
    if row is None and hub_id is not None:
        row = connection.execute(_newest(tenant_key, models.c.name == hub_id["name"], *is_version)).one_or_none()
    return row


def _newest(tenant_key: int, *conditions: ColumnElement[bool]) -> Select[Any]:
    query = select(models).where(models.c.tenant_key == tenant_key, *conditions)
    return query.order_by(models.c.version.desc(), models.c.key.desc()).limit(1)


def _unknown(connection: Connection, tenant_key: int, reference: str) -> UnknownModel:
    names = connection.scalars(select(models.c.name).where(models.c.tenant_key == tenant_key).distinct()).all()
    near = difflib.get_close_matches(reference.rpartition("/")[2], names, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    known = f" There are: {', '.join(sorted(names)[:20])}." if names else ""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", reference.partition("@")[0].rpartition("/")[2]).strip(".-_") or "NAME"
    return UnknownModel(
        f"There is no model '{reference}'.{hint}{known} Add one with: gistmill models add DIR --name {name}"
        " (or try the built-in one: --model gist-tiny)"
    )


def _version(row: Row[Any]) -> ModelVersion:
    return ModelVersion(row.key, row.name, row.version, row.digest, row.manifest, row.weight_bytes)


def _view(row: Row[Any]) -> ModelView:
    manifest: dict[str, Any] = row.manifest
    return ModelView(
        name=row.name,
        version=row.version,
        digest=row.digest,
        architecture=str(manifest.get("architecture", "")),
        parameters=int(manifest.get("parameters", 0)),
        weight_bytes=row.weight_bytes,
        dtype=str(manifest.get("dtype", "")),
        source=row.source,
        created_at=as_datetime(row.created_at),
    )
