"""Model versions as SQL knows them. A version is immutable; its files lie in the model store under its digest.

An adapter is a version too. Its digest names its own files, and what a job runs is named by the digest of base and adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from sqlalchemy import Connection, Row, exists, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from gistmill.db import references
from gistmill.db.clock import db_now
from gistmill.db.fence import owned_by
from gistmill.db.model_views import view_of, views_of
from gistmill.db.references import ADAPTER, HUB
from gistmill.db.session import Database
from gistmill.db.tables import chunks, jobs, model_aliases, models
from gistmill.errors import LeaseLost, NameTaken, UnknownJob, UnknownModel
from gistmill.specs import combined_digest
from gistmill.views import ModelView, Page

__all__ = ["HUB", "ModelParts", "ModelVersion", "find_digest", "get_model", "register", "resolve"]

ATTEMPTS = 10
Kind = Literal["model", "adapter"]


@dataclass(frozen=True)
class ModelVersion:
    """A model version with what a job needs to know of it.

    `digest` names what runs: for an adapter that is both, base and adapter, whose own digests stand beside it; `manifest` is
    then the base's, and `weight_bytes` counts both. `key` and `name` are those of what was asked for.
    """

    key: int
    name: str
    version: int
    digest: str
    manifest: dict[str, Any]
    weight_bytes: int
    base_digest: str
    adapter_digest: str | None = None


class ModelParts(NamedTuple):
    """The digests of the files that a model consists of."""

    base_digest: str
    adapter_digest: str | None


@dataclass(frozen=True)
class Lease:
    """The chunk under which a worker made a model; nothing is written unless it still runs under this epoch."""

    job_id: str
    chunk_key: int
    epoch: int


def register(
    database: Database,
    tenant_key: int,
    manifest: Mapping[str, Any],
    *,
    name: str,
    digest: str,
    weight_bytes: int,
    source: str,
    kind: Kind = "model",
    base_digest: str | None = None,
) -> ModelView:
    """Give the files of this digest the next version of the name; the same files under the same name keep their version.

    The files must be in the store already: whoever sees the row may fetch them. `name` has been checked by models_store.names.
    A version that was removed stays so; its files then become the next one.

    Raises:
        NameTaken: the name is an alias, or the other kind has it.
    """
    values = _values(tenant_key, manifest, name, digest, weight_bytes, source, kind, base_digest)
    return _insert(database, name, lambda connection: _register(connection, values))


def register_for_job(
    database: Database,
    tenant_key: int,
    manifest: Mapping[str, Any],
    lease: Lease,
    *,
    name: str,
    digest: str,
    weight_bytes: int,
    kind: Kind,
    base_digest: str | None,
    lineage: Mapping[str, Any],
) -> ModelView:
    """Give the files that a job made the next version of the name, once per job: a second call returns that version.

    The chunk is looked at, and locked, in the transaction that writes the row: whoever lost the lease writes nothing.

    Raises:
        LeaseLost: another worker owns the chunk, or nobody does.
        UnknownJob: there is no such job.
        NameTaken: the name is an alias, or the other kind has it.
    """
    source = f"job:{lease.job_id}"
    values = _values(tenant_key, manifest, name, digest, weight_bytes, source, kind, base_digest) | {"lineage": dict(lineage)}
    return _insert(database, name, lambda connection: _register_for_job(connection, lease, values))


def is_registered(database: Database, tenant_key: int, *, name: str, digest: str) -> bool:
    """True when these files have, or had before a removal, a version of this name."""
    query = select(models.c.key).where(models.c.tenant_key == tenant_key, models.c.name == name, models.c.digest == digest)
    with database.read() as connection:
        return bool(connection.scalar(select(exists(query))))


def resolve(database: Database, tenant_key: int, reference: str) -> ModelVersion:
    """Return the version that a reference means, and the base that it runs on; see `references.get`.

    Raises:
        UnknownModel: there is none; the message names the nearest and how to add one.
        InvalidInput: the adapter was made for another base.
        UnsupportedModel: the parts of the reference are not a model and an adapter.
    """
    with database.read() as connection:
        named, base = references.get(connection, tenant_key, reference)
    return _version(named, base)


def get_model(database: Database, tenant_key: int, reference: str) -> ModelView:
    """Return what users see of the version that `resolve` returns.

    Raises:
        UnknownModel, InvalidInput, UnsupportedModel: as `resolve` does.
    """
    with database.read() as connection:
        return view_of(connection, references.get(connection, tenant_key, reference).named)


def find_digest(database: Database, tenant_key: int, digest: str) -> ModelVersion | None:
    """Return a version with these files, also one that was removed, or None."""
    query = select(models).where(models.c.tenant_key == tenant_key, models.c.digest == digest)
    with database.read() as connection:
        row = connection.execute(query.order_by(models.c.removed_at.is_not(None), models.c.key.desc()).limit(1)).one_or_none()
        return None if row is None else _version(row, references.base_of(connection, row))


def parts_of(database: Database, model_key: int) -> ModelParts:
    """Return the digests of the files that the version of this key needs to run.

    Raises:
        UnknownModel: there is no such version.
    """
    query = select(models.c.kind, models.c.digest, models.c.base_digest).where(models.c.key == model_key)
    with database.read() as connection:
        row = connection.execute(query).one_or_none()
    if row is None:
        raise UnknownModel(f"There is no model version of key {model_key}.")
    return ModelParts(row.base_digest, row.digest) if row.kind == ADAPTER else ModelParts(row.digest, None)


def list_models(database: Database, tenant_key: int) -> Page[ModelView]:
    """Return all versions that were not removed, by name, newest first."""
    query = select(models).where(models.c.tenant_key == tenant_key, models.c.removed_at.is_(None))
    with database.read() as connection:
        rows = connection.execute(query.order_by(models.c.name, models.c.version.desc())).all()
        return Page(data=views_of(connection, rows))


def _values(
    tenant_key: int,
    manifest: Mapping[str, Any],
    name: str,
    digest: str,
    weight_bytes: int,
    source: str,
    kind: Kind,
    base_digest: str | None,
) -> dict[str, Any]:
    return {
        "tenant_key": tenant_key,
        "manifest": dict(manifest),
        "name": name,
        "digest": digest,
        "weight_bytes": weight_bytes,
        "source": source[:500],
        "kind": kind,
        "base_digest": base_digest,
    }


def _insert(database: Database, name: str, work: Callable[[Connection], Row[Any]]) -> ModelView:
    """Return what `work` wrote, tried again while other processes take the version that it chose."""

    def write(connection: Connection) -> ModelView:
        return view_of(connection, work(connection))

    for _ in range(ATTEMPTS):
        try:
            return database.transact(write)
        except IntegrityError:
            # Another process took the next version; the one after is free.
            continue
    raise AssertionError(f"the next version of {name} was taken {ATTEMPTS} times")


def _register(connection: Connection, values: dict[str, Any]) -> Row[Any]:
    # Before the look for equal files, as in prompts.py: files that are committed in between take this version.
    last = _last_version(connection, values)
    is_same = [models.c[field] == values[field] for field in ("tenant_key", "name", "digest", "kind")]
    query = select(models).where(*is_same, models.c.base_digest.is_not_distinct_from(values["base_digest"]))
    present = connection.execute(query.where(models.c.removed_at.is_(None)).limit(1)).first()
    if present is not None:
        return present
    return _add_version(connection, values, last=last)


def _register_for_job(connection: Connection, lease: Lease, values: dict[str, Any]) -> Row[Any]:
    job_key = _check_lease(connection, values["tenant_key"], lease)
    present = connection.execute(select(models).where(models.c.job_key == job_key)).one_or_none()
    if present is not None:
        return present
    return _add_version(connection, values | {"job_key": job_key}, last=_last_version(connection, values))


def _check_lease(connection: Connection, tenant_key: int, lease: Lease) -> int:
    """Lock the chunk and return the key of its job. A published model is progress, whatever becomes of the worker."""
    job_key = connection.scalar(select(jobs.c.key).where(jobs.c.tenant_key == tenant_key, jobs.c.id == lease.job_id))
    if job_key is None:
        raise UnknownJob(f"There is no job '{lease.job_id[:60]}'.")
    owned = update(chunks).where(owned_by(lease), chunks.c.job_key == job_key)
    if connection.execute(owned.values(progressed=True)).rowcount != 1:
        raise LeaseLost
    return int(job_key)


def _last_version(connection: Connection, values: dict[str, Any]) -> int:
    named = (models.c.tenant_key == values["tenant_key"], models.c.name == values["name"])
    return connection.scalar(select(func.max(models.c.version)).where(*named)) or 0


def _add_version(connection: Connection, values: dict[str, Any], *, last: int) -> Row[Any]:
    _check_name_fits(connection, values)
    added = insert(models).values(**values, version=last + 1, created_at=db_now())
    return connection.execute(added.returning(models)).one()


def _check_name_fits(connection: Connection, values: dict[str, Any]) -> None:
    name, tenant_key = values["name"], values["tenant_key"]
    query = select(models.c.kind).where(models.c.tenant_key == tenant_key, models.c.name == name)
    other = connection.scalar(query.where(models.c.kind != values["kind"]).limit(1))
    if other is not None:
        raise NameTaken(f"'{name}' is the name of {_a(other)} already: choose another name for the {values['kind']}.")
    is_alias = (model_aliases.c.tenant_key == tenant_key, model_aliases.c.alias == name)
    if connection.scalar(select(model_aliases.c.model_key).where(*is_alias)) is not None:
        raise NameTaken(f"'{name}' is an alias: delete it with 'gistmill models alias {name} --delete' or choose another name.")


def _a(kind: str) -> str:
    return "an adapter" if kind == ADAPTER else "a model"


def _version(named: Row[Any], base: Row[Any]) -> ModelVersion:
    adapter_digest = named.digest if named.kind == ADAPTER else None
    return ModelVersion(
        key=named.key,
        name=named.name,
        version=named.version,
        digest=combined_digest(base.digest, adapter_digest),
        manifest=base.manifest,
        weight_bytes=base.weight_bytes + (0 if adapter_digest is None else named.weight_bytes),
        base_digest=base.digest,
        adapter_digest=adapter_digest,
    )
