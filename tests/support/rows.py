"""Small histories written straight into the tables, for tests that only read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Table, insert, select

from gistmill.db.ids import make_id
from gistmill.db.session import Database
from gistmill.db.tables import (
    chunks,
    dataset_dialogues,
    dataset_rows,
    datasets,
    dialogues,
    generations,
    jobs,
    models,
    recipes,
    results,
    tenants,
)
from gistmill.specs import SummarizeSpec

MOMENT = 1_800_000_000.0


@dataclass(frozen=True)
class History:
    """What was written: a tenant with one dataset, one model and one job."""

    tenant_key: int
    dataset_id: str
    job_id: str
    job_key: int


def add(connection: Connection, table: Table, **values: Any) -> int:
    """Insert a row and return its key."""
    return int(connection.execute(insert(table).values(**values)).inserted_primary_key[0])  # type: ignore[index]


def write_history(
    database: Database,
    *,
    tenant: str = "default",
    items: int = 6,
    failed: frozenset[int] = frozenset(),
    state: str = "completed",
    name: str = "calls",
    per_arrival: int = 2,
) -> History:
    """Write a job of `items` rows, in which each dialogue occurs once and the rows in `failed` have errors."""
    with database.write() as connection:
        tenant_key = connection.scalar(select(tenants.c.key).where(tenants.c.name == tenant)) or add(
            connection, tenants, name=tenant
        )
        dataset_key, dataset_id = _write_dataset(connection, tenant_key, items, name)
        model_key = connection.scalar(select(models.c.key).where(models.c.tenant_key == tenant_key)) or _write_model(
            connection, tenant_key
        )
        job_key, job_id = _write_job(connection, tenant_key, dataset_key, model_key, items, len(failed), state)
        _write_results(connection, tenant_key, job_key, dataset_key, failed, per_arrival)
    return History(tenant_key, dataset_id, job_id, job_key)


def _write_dataset(connection: Connection, tenant_key: int, items: int, name: str) -> tuple[int, str]:
    dataset_id = make_id("ds")
    key = add(
        connection,
        datasets,
        id=dataset_id,
        tenant_key=tenant_key,
        name=name,
        digest=dataset_id.ljust(64, "0"),
        state="ready",
        format="jsonl",
        mapping={},
        warnings=[],
        rows=items,
        dialogues=items,
        ranked=items,
        created_at=MOMENT,
        ready_at=MOMENT + 1,
    )
    for row in range(items):
        dialogue = add(
            connection,
            dialogues,
            tenant_key=tenant_key,
            digest=f"{dataset_id}-{row}",
            characters=20,
            text=f"Ann: secret {row} of {tenant_key}",
        )
        connection.execute(
            insert(dataset_rows).values(
                dataset_key=key,
                row_number=row,
                id=f"call-{row}",
                dialogue_key=dialogue,
                occurrence=0,
                references=[],
                metadata={},
            )
        )
        connection.execute(insert(dataset_dialogues).values(dataset_key=key, rank=row, dialogue_key=dialogue, rows=1))
    return key, dataset_id


def _write_model(connection: Connection, tenant_key: int) -> int:
    return add(
        connection,
        models,
        tenant_key=tenant_key,
        name="tiny",
        version=1,
        digest=f"{tenant_key:064d}",
        manifest={"architecture": "T5ForConditionalGeneration", "parameters": 1000, "dtype": "bfloat16"},
        weight_bytes=2000,
        source="test",
        created_at=MOMENT,
    )


def _write_job(
    connection: Connection, tenant_key: int, dataset_key: int, model_key: int, items: int, failed: int, state: str
) -> tuple[int, str]:
    job_id = make_id("job")
    recipe = add(connection, recipes, tenant_key=tenant_key, digest=job_id.ljust(64, "0"), body={})
    left = 0 if state in ("completed", "failed", "cancelled") else 1
    key = add(
        connection,
        jobs,
        id=job_id,
        tenant_key=tenant_key,
        kind="summarize",
        state=state,
        spec_version=1,
        spec=SummarizeSpec(dataset="calls", model="tiny").model_dump(mode="json"),
        labels={"team": "support"},
        warnings=[],
        request_digest="0" * 64,
        dataset_key=dataset_key,
        recipe_key=recipe,
        model_key=model_key,
        model_digest=f"{tenant_key:064d}",
        row_start=0,
        row_stop=items,
        row_step=1,
        items=items,
        distinct_dialogues=items,
        succeeded=items - failed,
        failed=failed,
        generated=items - failed,
        chunks=1,
        chunks_left=left,
        created_at=MOMENT,
        claimed_at=MOMENT,
        started_at=MOMENT + 2,
        finished_at=None if left else MOMENT + 5,
    )
    add(
        connection,
        chunks,
        job_key=key,
        ordinal=0,
        first_rank=0,
        last_rank=items - 1,
        dialogues=items,
        state="queued" if left else "done",
    )
    return key, job_id


def _write_results(
    connection: Connection, tenant_key: int, job_key: int, dataset_key: int, failed: frozenset[int], per_arrival: int
) -> None:
    rows = connection.execute(
        select(dataset_rows.c.row_number, dataset_rows.c.dialogue_key, jobs.c.recipe_key)
        .select_from(dataset_rows.join(jobs, jobs.c.key == job_key))
        .where(dataset_rows.c.dataset_key == dataset_key)
        # Rows arrive from the last to the first, so that arrival and input order differ.
        .order_by(dataset_rows.c.row_number.desc())
    ).all()
    for count, (row, dialogue_key, recipe_key) in enumerate(rows):
        values: dict[str, Any] = {"error_code": "input_too_long", "error_message": "The prompt is too long."}
        if row not in failed:
            generation = {
                "recipe_key": recipe_key,
                "dialogue_key": dialogue_key,
                "draw": 0,
                "summary": f"Secret {row} of {tenant_key}.",
                "finish_reason": "stop",
                "tokens_in": 10,
                "tokens_out": 5,
                "truncated": False,
                "engine": "fake",
                "device": "cpu",
                "dtype": "float32",
                "chunk_key": 1,
                "epoch": 1,
                "created_at": MOMENT + 3,
            }
            values = {"generation_key": add(connection, generations, **generation)}
        values |= {"attempt": 1, "arrival": 1 + count // per_arrival, "chunk_key": 1, "epoch": 1, "created_at": MOMENT + 4}
        connection.execute(insert(results).values(job_key=job_key, row_number=row, **values))
