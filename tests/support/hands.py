"""What a worker does with a chunk, step by step and without a process."""

from __future__ import annotations

import uuid
from collections.abc import Callable

from gistmill.db import chunks as chunk_rows
from gistmill.db.claim import Claim
from gistmill.db.pending import Unit, load_pending
from gistmill.db.results import Lost, Made, record
from gistmill.db.session import Database
from gistmill.errors import ItemError, JobEnded
from tests.support.jobs import make_worker, take

Fails = Callable[[str], ItemError | None]


def nothing_fails(_text: str) -> ItemError | None:
    """Return no error for any text."""
    return None


def made(unit: Unit, summary: str = "s", *, truncated: bool = False) -> Made:
    """Return a summary of the unit."""
    return Made(unit, summary, "stop", 5, 2, truncated, "fake", "cpu", "float32")


def pending(database: Database, claim: Claim) -> list[Unit]:
    """Return what the chunk still has to do."""
    with database.read() as connection:
        return load_pending(connection, claim, limit=1000, is_sampling=False)


def claimed(database: Database, worker: str = "") -> Claim:
    """Return the next chunk, claimed by this worker or by a new one."""
    claim = take(database, make_worker(database, worker or str(uuid.uuid4())))
    assert claim is not None
    return claim


def commit(database: Database, claim: Claim, units: list[Unit], fails: Fails = nothing_fails) -> None:
    """Record these units, each with a summary or its error."""
    lost = [Lost(unit, error) for unit in units if (error := fails(unit.text)) is not None]
    good = [made(unit) for unit in units if fails(unit.text) is None]
    database.transact(lambda connection: record(connection, claim, made=good, lost=lost))


def end(database: Database, claim: Claim, fails: Fails = nothing_fails) -> None:
    """Record everything and finish; close the chunk when its job has ended."""
    try:
        commit(database, claim, pending(database, claim), fails)
        database.transact(lambda connection: chunk_rows.finish(connection, claim))
    except JobEnded:
        database.transact(lambda connection: chunk_rows.close(connection, claim))


def work(database: Database, fails: Fails = nothing_fails) -> None:
    """Work off everything that can be claimed."""
    while (claim := take(database, make_worker(database, str(uuid.uuid4())))) is not None:
        end(database, claim, fails)
