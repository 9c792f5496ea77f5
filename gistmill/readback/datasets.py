"""Datasets as they stand."""

from __future__ import annotations

import difflib
from typing import Any

from sqlalchemy import Connection, Row, or_, select

from gistmill.db.clock import as_datetime
from gistmill.db.session import Database
from gistmill.db.tables import datasets
from gistmill.errors import UnknownDataset
from gistmill.states import DatasetState
from gistmill.views import DatasetView, Page

NAMES_COMPARED = 500


def get_dataset(database: Database, tenant_key: int, reference: str) -> DatasetView:
    """Return the dataset of this id, else the newest ready one of this name, else the newest of this name.

    Raises:
        UnknownDataset: this tenant has none; the message tells the nearest name.
    """
    is_ready = datasets.c.state == DatasetState.READY
    query = (
        select(datasets)
        .where(datasets.c.tenant_key == tenant_key, or_(datasets.c.id == reference, datasets.c.name == reference))
        .order_by((datasets.c.id == reference).desc(), is_ready.desc(), datasets.c.key.desc())
        .limit(1)
    )
    with database.read() as connection:
        row = connection.execute(query).one_or_none()
        if row is None:
            raise _unknown(connection, tenant_key, reference)
    return _view(row)


def list_datasets(database: Database, tenant_key: int, *, limit: int = 50, after: str | None = None) -> Page[DatasetView]:
    """Return a page of datasets, newest first, that begins behind the dataset `after`."""
    query = select(datasets).where(datasets.c.tenant_key == tenant_key).order_by(datasets.c.id.desc()).limit(limit + 1)
    if after is not None:
        query = query.where(datasets.c.id < after)
    with database.read() as connection:
        rows = connection.execute(query).all()
    shown = [_view(row) for row in rows[:limit]]
    has_more = len(rows) > limit
    return Page(data=shown, has_more=has_more, next=shown[-1].id if has_more else None)


def _unknown(connection: Connection, tenant_key: int, reference: str) -> UnknownDataset:
    query = select(datasets.c.name).where(datasets.c.tenant_key == tenant_key).order_by(datasets.c.key.desc())
    near = difflib.get_close_matches(reference, connection.scalars(query.limit(NAMES_COMPARED)).all(), n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return UnknownDataset(f"There is no dataset '{reference}'.{hint} List them with: gistmill datasets list")


def _view(row: Row[Any]) -> DatasetView:
    return DatasetView(
        id=row.id,
        name=row.name,
        state=row.state,
        digest=row.digest,
        rows=row.rows,
        dialogues=row.dialogues,
        format=row.format,
        created_at=as_datetime(row.created_at),
        warnings=row.warnings,
    )
