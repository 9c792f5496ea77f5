"""Jobs written straight into SQL, for tests of what happens after submit."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, insert, select, update

from gistmill import prompts
from gistmill.db.claim import Claim, Claimant, claim
from gistmill.db.clock import db_now
from gistmill.db.ids import make_id
from gistmill.db.session import Database
from gistmill.db.tables import chunks, dataset_dialogues, dataset_rows, datasets, dialogues, jobs, recipes, tenants
from gistmill.db.workers import Registration, register
from gistmill.specs import SPEC_VERSION, SummarizeSpec, digest_of, recipe
from tests.support.servers import wait_until

MODEL_DIGEST = "a" * 64


def first_tenant(database: Database) -> int:
    """Return the key of the default tenant."""
    with database.read() as connection:
        return int(connection.execute(select(tenants.c.key).order_by(tenants.c.key).limit(1)).scalar_one())


def make_dataset(database: Database, texts: Sequence[str], *, tenant_key: int | None = None) -> int:
    """Write a ready dataset with one row per text; return its key."""
    tenant = tenant_key or first_tenant(database)
    return database.transact(lambda connection: _write_dataset(connection, texts, tenant))


def make_job(
    database: Database,
    texts: Sequence[str],
    *,
    per_chunk: int = 1000,
    tenant_key: int | None = None,
    model_digest: str = MODEL_DIGEST,
    spec: dict[str, Any] | None = None,
    **columns: Any,
) -> int:
    """Write a dataset and a queued job over all its rows, `per_chunk` distinct dialogues a chunk; return the job's key."""
    tenant = tenant_key or first_tenant(database)
    dataset_key = make_dataset(database, texts, tenant_key=tenant)
    return database.transact(
        lambda connection: _write_job(connection, tenant, dataset_key, texts, per_chunk, model_digest, spec or {}, columns)
    )


def _write_dataset(connection: Connection, texts: Sequence[str], tenant: int) -> int:
    digest = digest_of([list(texts), make_id("x")])
    key = connection.execute(
        insert(datasets)
        .values(id=make_id("ds"), tenant_key=tenant, name="test", digest=digest, state="ready", format="jsonl")
        .values(mapping={}, warnings=[], rows=len(texts), dialogues=len(set(texts)), created_at=db_now())
        .returning(datasets.c.key)
    ).scalar_one()
    keys: dict[str, int] = {}
    seen: dict[str, int] = {}
    for number, text in enumerate(texts):
        if text not in keys:
            keys[text] = _dialogue(connection, tenant, text)
        connection.execute(
            insert(dataset_rows).values(
                dataset_key=key, row_number=number, id=str(number + 1), dialogue_key=keys[text], occurrence=seen.get(text, 0),
                references=[], metadata={},
            )
        )  # fmt: skip
        seen[text] = seen.get(text, 0) + 1
    ranked = sorted(keys, key=lambda text: (len(text), hashlib.sha256(text.encode()).hexdigest()))
    for rank, text in enumerate(ranked):
        connection.execute(
            insert(dataset_dialogues).values(dataset_key=key, rank=rank, dialogue_key=keys[text], rows=seen[text])
        )
    return int(key)


def _dialogue(connection: Connection, tenant: int, text: str) -> int:
    digest = hashlib.sha256(text.encode()).hexdigest()
    found = select(dialogues.c.key).where(dialogues.c.tenant_key == tenant, dialogues.c.digest == digest)
    key = connection.execute(found).scalar_one_or_none()
    if key is None:
        values = {"tenant_key": tenant, "digest": digest, "characters": len(text), "text": text}
        key = connection.execute(insert(dialogues).values(values).returning(dialogues.c.key)).scalar_one()
    return int(key)


def _write_job(
    connection: Connection,
    tenant: int,
    dataset_key: int,
    texts: Sequence[str],
    per_chunk: int,
    model_digest: str,
    spec: dict[str, Any],
    columns: dict[str, Any],
) -> int:
    parsed = SummarizeSpec.model_validate({"dataset": "test", "model": "fake"} | spec)
    body = recipe(parsed, model_digest=model_digest, prompt_digest=prompts.get(parsed.prompt).digest)
    digest = digest_of(body)
    known = connection.execute(select(recipes.c.key).where(recipes.c.tenant_key == tenant, recipes.c.digest == digest))
    recipe_key = known.scalar_one_or_none()
    if recipe_key is None:
        statement = insert(recipes).values(tenant_key=tenant, digest=digest, body=body).returning(recipes.c.key)
        recipe_key = connection.execute(statement).scalar_one()
    distinct = len(set(texts))
    starts = range(0, distinct, per_chunk)
    values = {
        "id": make_id("job"), "tenant_key": tenant, "kind": "summarize", "state": "queued", "spec_version": SPEC_VERSION,
        "spec": parsed.model_dump(mode="json"), "labels": {}, "warnings": [], "request_digest": digest,
        "dataset_key": dataset_key, "recipe_key": recipe_key, "model_digest": model_digest, "row_start": 0,
        "row_stop": len(texts), "row_step": 1, "items": len(texts), "distinct_dialogues": distinct, "chunks": len(starts),
        "chunks_left": len(starts), "created_at": db_now(), "claimed_at": db_now(),
    } | columns  # fmt: skip
    key = connection.execute(insert(jobs).values(values).returning(jobs.c.key)).scalar_one()
    for ordinal, start in enumerate(starts):
        last = min(start + per_chunk, distinct) - 1
        size = last - start + 1
        connection.execute(
            insert(chunks).values(
                job_key=key, ordinal=ordinal, first_rank=start, last_rank=last, dialogues=size, state="queued"
            )
        )
    return int(key)


def make_worker(
    database: Database, name: str, *, kinds: tuple[str, ...] = ("summarize",), device_bytes: int = 10**12
) -> Claimant:
    """Register a worker; return what it claims with."""
    registration = Registration(name, "host", 1, "cpu", "cpu", device_bytes, "fake", kinds, SPEC_VERSION)
    database.transact(lambda connection: register(connection, registration))
    return Claimant(name, kinds, device_bytes, SPEC_VERSION)


def take(database: Database, claimant: Claimant, *, lease_s: float = 30.0) -> Claim | None:
    """Claim the next chunk."""
    return database.transact(lambda connection: claim(connection, claimant, lease_s=lease_s))


def job_row(database: Database, key: int) -> Any:
    """Return the job's row as a mapping."""
    with database.read() as connection:
        return connection.execute(select(jobs).where(jobs.c.key == key)).mappings().one()


def has_reserved_chunk(database: Database, key: int) -> bool:
    """True while a worker holds a chunk of the job that it has claimed ahead."""
    return any(chunk["state"] == "reserved" for chunk in chunk_rows_of(database, key))


def chunk_rows_of(database: Database, key: int) -> list[Any]:
    """Return the chunks of a job in order."""
    with database.read() as connection:
        query = select(chunks).where(chunks.c.job_key == key).order_by(chunks.c.ordinal)
        return list(connection.execute(query).mappings())


def tick(database: Database) -> None:
    """Wait until the database's clock, which counts milliseconds in SQLite, shows a later moment."""
    with database.read() as connection:
        before = connection.execute(select(db_now())).scalar_one()
        wait_until(lambda: connection.execute(select(db_now())).scalar_one() > before, what="the database's clock")


def expire_leases(database: Database) -> None:
    """Let every lease end now, without waiting."""
    database.transact(
        lambda connection: connection.execute(
            update(chunks).where(chunks.c.lease_until.is_not(None)).values(lease_until=db_now() - 1)
        )
    )
