"""From an uploaded file to a dataset."""

from __future__ import annotations

from pathlib import Path

from gistmill.db.session import Database
from gistmill.errors import InvalidDataset
from gistmill.views import DatasetView


def load_file(
    database: Database, tenant_key: int, path: Path, *, format: str | None, mapping: dict[str, str], name: str
) -> tuple[DatasetView, bool]:
    """Return the dataset of the file's rows, and whether it is new."""
    raise InvalidDataset("nothing can be read yet")
