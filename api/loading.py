"""From an uploaded file, or a split on the hub, to a dataset."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePath

from api.deps import Service
from gistmill.ingest import hub
from gistmill.ingest.mapping import parse_mapping
from gistmill.submit import load_dataset_file
from gistmill.views import DatasetView


def load_file(
    service: Service, path: Path, *, filename: str, name: str | None, format: str | None, columns: Sequence[str]
) -> tuple[DatasetView, bool]:
    """Return the dataset of the file's rows, and whether it is new; it is called like the file unless it has a name.

    Raises:
        InvalidDataset: something is wrong with the rows; nothing was written.
        InvalidName: the name cannot be used.
        InvalidSpec: the mapping of the columns does not parse.
    """
    return load_dataset_file(
        service.database,
        service.tenant_key,
        path,
        name=name or PurePath(filename).stem,
        filename=filename,
        format=format,
        mapping=parse_mapping(columns),
        max_line_bytes=service.settings.api.max_line_bytes,
    )


def load_from_hub(
    service: Service, hub_id: str, split: str | None, *, name: str | None, columns: Sequence[str]
) -> tuple[DatasetView, bool]:
    """Return the dataset of a split on the hub, and whether it is new.

    Raises:
        InvalidDataset: there is no such split, or something is wrong with its rows.
        Unavailable: the hub cannot be reached or has no such dataset.
    """
    service.spool_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=service.spool_dir) as folder:
        path = Path(folder) / "hub.jsonl"
        hub.download(hub_id, split, path)
        default = f"{hub_id}:{split}" if split else hub_id
        return load_file(service, path, filename=path.name, name=name or default, format="jsonl", columns=columns)
