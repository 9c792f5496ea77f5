"""Faults of the database, and of the way to it. An outage costs time."""

from __future__ import annotations

import signal
import time
from contextlib import AbstractContextManager

from sqlalchemy import select

from gistmill.db.tables import chunks
from tests.soak.hurting import hurt_link, now, slow_down
from tests.soak.plan import Fault, Met
from tests.soak.stage import SEATS, Stage
from tests.support import faults
from tests.support.databases import PostgreSQLServer
from tests.support.proxy import Proxy


def lock_sql(stage: Stage, fault: Fault) -> Met | None:
    """A lock on what every worker must write, held longer than the lease."""
    return _while(stage, fault, faults.locked(stage.database))


def fill_disk(stage: Stage, fault: Fault) -> Met | None:
    """No file of two workers may grow, the database's least of all (SQLite)."""
    victims = [stage.seats[fault.seat], stage.seats[(fault.seat + 1) % SEATS]]
    try:
        return _while(stage, fault, faults.full_disk(victims))
    except ProcessLookupError:
        # One died meanwhile; the other may have kept its limit.
        for victim in victims:
            victim.send(signal.SIGKILL)
        return None


def crash_sql(stage: Stage, fault: Fault) -> Met | None:
    """The PostgreSQL server ends at once and recovers."""
    at = time.monotonic()
    server = _postgresql(stage)
    stage.call(server.crash)
    stage.wait(fault.parameters["seconds"])
    stage.call(server.launch)
    return Met(at, time.monotonic())


def terminate_sql(stage: Stage, fault: Fault) -> Met | None:
    """Every backend of PostgreSQL is terminated."""
    at = time.monotonic()
    faults.terminate_backends(_postgresql(stage))
    return Met(at, at)


def cut_sql(stage: Stage, fault: Fault) -> Met | None:
    """Connections to PostgreSQL are reset and refused."""
    return hurt_link(stage, fault, _sql_proxy(stage), Proxy.cut)


def half_open_sql(stage: Stage, fault: Fault) -> Met | None:
    """Connections to PostgreSQL hang, and neither side is told."""
    return hurt_link(stage, fault, _sql_proxy(stage), Proxy.half_open)


def slow_sql(stage: Stage, fault: Fault) -> Met | None:
    """Everything to and from PostgreSQL comes late."""
    return hurt_link(stage, fault, _sql_proxy(stage), slow_down)


def deadlock(stage: Stage, fault: Fault) -> Met | None:
    """A job's row and its chunks are locked against the one order until PostgreSQL finds a deadlock."""
    server = _postgresql(stage)
    before = server.count_deadlocks(stage.database_url)

    def provoke() -> bool:
        # Who fell is no matter: PostgreSQL's own count says that there was one, and is a second behind.
        if job := _running_job(stage):
            faults.provoke_deadlock(stage.database, job)
        return server.count_deadlocks(stage.database_url) > before

    found = stage.wait_for(provoke, timeout_s=15)
    return now(found)


def _while(stage: Stage, fault: Fault, hurt: AbstractContextManager[None]) -> Met | None:
    with hurt:
        at = time.monotonic()
        stage.wait(fault.parameters["seconds"])
    return Met(at, time.monotonic())


def _running_job(stage: Stage) -> int:
    with stage.database.read() as connection:
        query = select(chunks.c.job_key).where(chunks.c.state == "running").limit(1)
        return connection.execute(query).scalar_one_or_none() or 0


def _postgresql(stage: Stage) -> PostgreSQLServer:
    assert stage.postgresql is not None
    return stage.postgresql


def _sql_proxy(stage: Stage) -> Proxy:
    assert stage.sql_proxy is not None
    return stage.sql_proxy
