"""Workers as SQL knows them: who is live, who is idle, and which bells would find somebody."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import Connection, Float, Row, Select, bindparam, delete, func, insert, select, update

from gistmill.db.claim import Claimant, kinds_that_wait
from gistmill.db.clock import db_now
from gistmill.db.tables import workers

# Rows of workers that ended are kept this long, so that a reader can see who ran what.
KEPT_S = 7 * 24 * 3600.0


@dataclass(frozen=True)
class Registration:
    """What a worker process says of itself when it starts."""

    worker: str
    host: str
    pid: int
    device: str
    device_name: str
    device_bytes: int
    engine: str
    kinds: tuple[str, ...]
    spec_version: int


def register(connection: Connection, registration: Registration) -> None:
    """Add the worker; its uuid is new with every process start."""
    connection.execute(
        insert(workers).values(
            id=registration.worker,
            host=registration.host,
            pid=registration.pid,
            device=registration.device,
            device_name=registration.device_name,
            device_bytes=registration.device_bytes,
            engine=registration.engine,
            kinds=list(registration.kinds),
            resident=[],
            spec_version=registration.spec_version,
            state="idle",
            started_at=db_now(),
            seen_at=db_now(),
        )
    )


def see(connection: Connection, worker: str, **values: Any) -> None:
    """Note that the worker is alive, and these values of its row."""
    connection.execute(update(workers).where(workers.c.id == worker).values(seen_at=db_now(), **values))


def rest(connection: Connection, worker: str) -> None:
    """Note that the worker found nothing to do, unless it is draining."""
    connection.execute(
        update(workers).where(workers.c.id == worker, workers.c.state == "busy").values(state="idle", chunk_key=None)
    )


def live(connection: Connection, *, within_s: float) -> Sequence[Row[Any]]:
    """Return the workers that were seen in the last `within_s` seconds and take work."""
    return connection.execute(_living(), {"within_s": within_s}).all()


@cache
def _living() -> Select[Any]:
    seen = workers.c.seen_at > db_now() - bindparam("within_s", type_=Float())
    return select(workers).where(seen, workers.c.state.in_(("idle", "busy")))


def count_live(connection: Connection, *, within_s: float) -> int:
    """Return how many workers take work."""
    return int(connection.execute(_count_living(), {"within_s": within_s}).scalar_one())


@cache
def _count_living() -> Select[Any]:
    return _living().with_only_columns(func.count())


def bells_to_ring(connection: Connection, *, within_s: float) -> dict[str, int]:
    """Return each kind whose work some idle live worker fits, with the number of live workers that listen to it."""
    rows = live(connection, within_s=within_s)
    idle = {(tuple(row.kinds), row.device_bytes, row.spec_version) for row in rows if row.state == "idle"}
    claimants = [Claimant("", kinds, device_bytes, spec_version) for kinds, device_bytes, spec_version in sorted(idle)]
    waiting = kinds_that_wait(connection, claimants)
    return {kind: sum(kind in row.kinds for row in rows) for kind in waiting}


def forget_old(connection: Connection) -> None:
    """Delete the rows of workers that were last seen long ago."""
    connection.execute(delete(workers).where(workers.c.seen_at < db_now() - KEPT_S))
