"""Model versions as users see them: with the names of their bases, jobs and aliases instead of keys."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, Row, select

from gistmill.db.bulk import listed
from gistmill.db.clock import as_datetime
from gistmill.db.tables import jobs, model_aliases, models
from gistmill.views import ModelView


def view_of(connection: Connection, row: Row[Any]) -> ModelView:
    """Return what users see of one version."""
    return views_of(connection, [row])[0]


def views_of(connection: Connection, rows: Sequence[Row[Any]]) -> list[ModelView]:
    """Return what users see of these versions, which are all of one tenant, in the same order."""
    bases = _name_bases(connection, rows)
    aliases = _list_aliases(connection, [row.key for row in rows])
    job_ids = _list_job_ids(connection, [row.job_key for row in rows if row.job_key is not None])
    return [_view(row, base=bases.get(row.base_digest), aliases=aliases[row.key], job=job_ids.get(row.job_key)) for row in rows]


def _name_bases(connection: Connection, rows: Iterable[Row[Any]]) -> dict[str, str]:
    """Return name@version of each base digest; of several names the one that was not removed, then the oldest."""
    wanted = {(row.tenant_key, row.base_digest) for row in rows if row.base_digest is not None}
    if not wanted:
        return {}
    query = (
        select(models.c.digest, models.c.name, models.c.version)
        .where(
            models.c.tenant_key.in_({tenant_key for tenant_key, _ in wanted}),
            models.c.digest.in_(listed(connection, sorted(digest for _, digest in wanted))),
        )
        .order_by(models.c.removed_at.is_(None), models.c.key.desc())
    )
    return {digest: f"{name}@{version}" for digest, name, version in connection.execute(query)}


def _list_aliases(connection: Connection, keys: Sequence[int]) -> dict[int, list[str]]:
    query = select(model_aliases.c.model_key, model_aliases.c.alias).order_by(model_aliases.c.alias)
    found: dict[int, list[str]] = defaultdict(list)
    for key, alias in connection.execute(query.where(model_aliases.c.model_key.in_(listed(connection, keys)))):
        found[key].append(alias)
    return found


def _list_job_ids(connection: Connection, keys: Sequence[int]) -> dict[int, str]:
    if not keys:
        return {}
    query = select(jobs.c.key, jobs.c.id).where(jobs.c.key.in_(listed(connection, keys)))
    return {row.key: row.id for row in connection.execute(query)}


def _view(row: Row[Any], *, base: str | None, aliases: list[str], job: str | None) -> ModelView:
    manifest: dict[str, Any] = row.manifest
    return ModelView(
        name=row.name,
        version=row.version,
        digest=row.digest,
        kind=row.kind,
        base=base,
        base_digest=row.base_digest,
        architecture=str(manifest.get("architecture", "")),
        parameters=int(manifest.get("parameters", 0)),
        weight_bytes=row.weight_bytes,
        dtype=str(manifest.get("dtype", "")),
        source=row.source,
        aliases=aliases,
        job=job,
        lineage=row.lineage,
        created_at=as_datetime(row.created_at),
        removed_at=as_datetime(row.removed_at),
    )
