"""Work for a fleet on hosts, and what SQL and the hosts' logs say about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from gistmill.client import Client, Job
from gistmill.db.session import Database
from gistmill.db.tables import chunks, jobs, results
from models_store.builtin.dialogues import generate
from tests.hosts.conftest import WORKERS, Fleet
from tests.support.jobs import chunk_rows_of
from tests.support.servers import wait_until


def submit(client: Client, directory: Path, *, rows: int, seed: int = 1, **how: Any) -> Job:
    """Submit a job of the built-in model over this many dialogues."""
    path = directory / f"calls-{seed}.jsonl"
    made = generate(rows, seed=seed, split="held_out")
    path.write_text("".join(json.dumps({"dialogue": example.dialogue}) + "\n" for example in made))
    return client.summarize(path, model="gist-tiny", **how)


def start_both(fleet: Fleet, **environment: str) -> None:
    """Start both worker hosts and wait until they are ready."""
    for name in WORKERS:
        fleet.start_worker(name, **environment)
    wait_until_both_started(fleet)


def wait_until_both_started(fleet: Fleet) -> None:
    """Wait until the workers of both hosts are ready."""
    wait_until(lambda: all(fleet.events(name, "worker_started") for name in WORKERS), timeout_s=80, what="both workers")


def key_of(database: Database, job: Job) -> int:
    """Return the key of the job's row."""
    with database.read() as connection:
        return int(connection.execute(select(jobs.c.key).where(jobs.c.id == job.id)).scalar_one())


def wait_until_shared(fleet: Fleet, database: Database, job: Job) -> int:
    """Wait until both hosts work on the job and have written results; return its key."""
    key = key_of(database, job)

    def is_shared() -> bool:
        progressed = [chunk for chunk in chunk_rows_of(database, key) if chunk["progressed"]]
        return len(progressed) >= 2 and all(fleet.chunks_of(name, job.id) for name in WORKERS)

    wait_until(is_shared, timeout_s=60, what="results of both hosts")
    return key


def results_of(database: Database, job: int) -> int:
    """Return how many results the job has."""
    with database.read() as connection:
        return int(connection.execute(select(func.count()).where(results.c.job_key == job)).scalar_one())


def epoch_of(database: Database, lost: dict[str, object]) -> int:
    """Return the epoch that a chunk has reached."""
    with database.read() as connection:
        return int(connection.execute(select(chunks.c.epoch).where(chunks.c.key == lost["chunk"])).scalar_one())


def written_under(database: Database, lost: dict[str, object]) -> int:
    """Return how many results a chunk got under the epoch of this claim."""
    query = select(func.count()).where(results.c.chunk_key == lost["chunk"], results.c.epoch == lost["epoch"])
    with database.read() as connection:
        return int(connection.execute(query).scalar_one())
