"""Datasets as they stand."""

from __future__ import annotations

from sqlalchemy import select

from gistmill.db import datasets as dataset_rows
from gistmill.db.session import Database
from gistmill.db.tables import datasets
from gistmill.views import DatasetView, Page


def get_dataset(database: Database, tenant_key: int, reference: str) -> DatasetView:
    """Return the dataset of this id, else the newest ready one of this name, else the newest of this name.

    Raises:
        UnknownDataset: this tenant has none; the message tells the nearest name.
    """
    with database.read() as connection:
        return dataset_rows.as_view(dataset_rows.get(connection, tenant_key, reference))


def list_datasets(database: Database, tenant_key: int, *, limit: int = 50, after: str | None = None) -> Page[DatasetView]:
    """Return a page of datasets, newest first, that begins behind the dataset `after`."""
    query = select(datasets).where(datasets.c.tenant_key == tenant_key).order_by(datasets.c.id.desc()).limit(limit + 1)
    if after is not None:
        query = query.where(datasets.c.id < after)
    with database.read() as connection:
        rows = connection.execute(query).all()
    shown = [dataset_rows.as_view(row) for row in rows[:limit]]
    has_more = len(rows) > limit
    return Page(data=shown, has_more=has_more, next=shown[-1].id if has_more else None)
