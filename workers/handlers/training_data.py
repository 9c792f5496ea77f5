"""The rows of a training, written down for the child that reads them: it knows no SQL."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, select

from gistmill.db import prompts
from gistmill.db import training as training_rows
from gistmill.db.claim import Claim
from gistmill.db.session import Database
from gistmill.db.tables import datasets
from gistmill.db.training import TrainingRow
from gistmill.errors import InvalidDataset
from gistmill.prompts import PromptTemplate
from gistmill.specs import FinetuneSpec
from gistmill.submit.drafts import select_rows

TICK_ROWS = 1_000


@dataclass(frozen=True)
class TrainingData:
    """Two files of JSON Lines with prompt and references, and where their rows came from."""

    train_file: Path
    train_rows: int
    validation_file: Path | None
    validation_rows: int
    origin: dict[str, Any]


def write_data(database: Database, claim: Claim, spec: FinetuneSpec, directory: Path, tick: Callable[[], None]) -> TrainingData:
    """Write the rows of the job into a directory; the same job always writes the same files.

    Raises:
        InvalidDataset: the part that is kept back leaves nothing to train on, or is nothing.
    """
    train, validation = directory / "train.jsonl", directory / "validation.jsonl"
    with database.read() as connection:
        template = prompts.get(connection, claim.tenant_key, spec.prompt)
        dataset = connection.execute(select(datasets).where(datasets.c.key == claim.dataset_key)).one()
        origin = {"dataset": dataset.id, "dataset_digest": dataset.digest, "select": spec.select}
        kept_back = _keep_back(connection, dataset, spec) if isinstance(spec.validation, float) else frozenset[int]()
        rows = list_rows(connection, dataset, spec.select)
        train_rows = _write(train, template, (row for row in rows if row.dialogue_key not in kept_back), tick)
        validated: Iterable[TrainingRow] = ()
        if isinstance(spec.validation, str):
            other = connection.execute(select(datasets).where(datasets.c.id == spec.validation)).one()
            origin |= {"validation": other.id, "validation_digest": other.digest}
            validated = list_rows(connection, other, None)
        elif kept_back:
            origin |= {"validation": spec.validation}
            validated = (row for row in list_rows(connection, dataset, spec.select) if row.dialogue_key in kept_back)
        validation_rows = _write(validation, template, validated, tick)
    return TrainingData(train, train_rows, validation if validation_rows else None, validation_rows, origin)


def list_rows(connection: Connection, dataset: Row[Any], selection: str | None) -> Iterable[TrainingRow]:
    """Stream the selected rows of a dataset that have a reference."""
    return training_rows.read_rows(connection, dataset.key, select_rows(selection, dataset.rows))


def _keep_back(connection: Connection, dataset: Row[Any], spec: FinetuneSpec) -> frozenset[int]:
    """Return the dialogues of the part that is kept back: equal ones lie on one side, and the seed decides which side."""
    assert isinstance(spec.validation, float)
    ranked = {
        row.dialogue_key: hashlib.sha256(f"{spec.seed}/{row.dialogue}".encode()).digest()
        for row in list_rows(connection, dataset, spec.select)
    }
    count = max(1, round(spec.validation * len(ranked)))
    if count >= len(ranked):
        raise InvalidDataset(
            f"Keeping {spec.validation} of {len(ranked)} distinct dialogues back leaves none to train on. Add rows, or name a"
            " dataset for --validation."
        )
    return frozenset(sorted(ranked, key=lambda key: ranked[key])[:count])


def _write(path: Path, template: PromptTemplate, rows: Iterable[TrainingRow], tick: Callable[[], None]) -> int:
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for count, row in enumerate(rows, start=1):
            line = {"prompt": template.render(row.dialogue), "references": row.references}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            if count % TICK_ROWS == 0:
                tick()
    return count
