"""Where a model comes from: the version, what it was made from, what that was made from."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, select

from gistmill.db import references
from gistmill.db.model_views import views_of
from gistmill.db.session import Database
from gistmill.db.tables import models
from gistmill.views import ModelView, Page

LONGEST_CHAIN = 100


def list_lineage(database: Database, tenant_key: int, reference: str) -> Page[ModelView]:
    """Return the version that a reference means, then its base, then the base's base; removed ones are part of it.

    Raises:
        UnknownModel, InvalidInput, UnsupportedModel: as `references.get` does.
    """
    with database.read() as connection:
        row: Row[Any] | None = references.get(connection, tenant_key, reference).named
        chain: list[Row[Any]] = []
        while row is not None and len(chain) < LONGEST_CHAIN:
            chain.append(row)
            row = find_origin(connection, row)
        return Page(data=views_of(connection, chain))


def find_origin(connection: Connection, row: Row[Any]) -> Row[Any] | None:
    """Return the version that this one was made from: an adapter's base, or what was tuned; always an older row."""
    tuned = models.c.digest == find_base_digest(row)
    query = select(models).where(models.c.tenant_key == row.tenant_key, tuned, models.c.key < row.key)
    return connection.execute(query.order_by(models.c.key.desc()).limit(1)).one_or_none()


def find_base_digest(row: Row[Any]) -> str | None:
    """Return the sha256 of an adapter's base, or of what was tuned; None for a version that was not trained here."""
    digest: str | None = row.base_digest or (row.lineage or {}).get("base_digest")
    return digest
