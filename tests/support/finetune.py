"""Data with references, models and finetune jobs, for tests of what happens around a training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gistmill.db.session import Database
from gistmill.db.tables import models
from gistmill.specs import FinetuneSpec, parse_finetune_spec
from gistmill.submit import ResolvedModel, load_dataset_file, submit_job
from gistmill.views import DatasetView
from tests.support.jobs import first_tenant
from tests.support.rows import add

BASE_DIGEST = "b" * 64


@dataclass(frozen=True)
class Model:
    """A model version as a resolver gives it."""

    key: int
    digest: str
    adapter_digest: str | None = None


def add_model(database: Database, name: str = "tiny", *, digest: str = BASE_DIGEST, **columns: Any) -> Model:
    """Write a row of `models` without files."""
    values: dict[str, Any] = {
        "tenant_key": first_tenant(database), "name": name, "version": 1, "digest": digest, "manifest": {},
        "weight_bytes": 1, "source": "test", "created_at": 0.0, **columns,
    }  # fmt: skip
    return Model(database.transact(lambda connection: add(connection, models, **values)), digest)


def load_pairs(
    database: Database, directory: Path, pairs: Sequence[tuple[str, str | None]], *, name: str = "pairs"
) -> DatasetView:
    """Load a dataset of (dialogue, reference) rows."""
    path = directory / f"{name}.jsonl"
    rows = [{"dialogue": dialogue} | ({} if summary is None else {"summary": summary}) for dialogue, summary in pairs]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_dataset_file(database, first_tenant(database), path, name=name)[0]


def submit_finetune(database: Database, model: ResolvedModel, dataset: str, **fields: Any) -> str:
    """Submit a finetune job; return its id."""
    spec: FinetuneSpec = parse_finetune_spec({"dataset": dataset, "model": "tiny", **fields})
    return submit_job(database, first_tenant(database), spec, resolve_model=lambda reference: model)[0]
