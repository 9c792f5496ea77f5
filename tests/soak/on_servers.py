"""Faults of Redis, of the database, of the api, and of the ways to them."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from sqlalchemy import select

from gistmill.db.tables import chunks
from gistmill.queue import Bells
from tests.soak.plan import Fault, Met
from tests.soak.stage import SEATS, Stage
from tests.support import faults
from tests.support.databases import PostgreSQLServer
from tests.support.proxy import Proxy

QUEUE = "gistmill:gistmill.summarize"
SLOW_S = 0.02


def flush_redis(stage: Stage, fault: Fault) -> Met | None:
    """FLUSHALL."""
    return _now(stage.redis.command("FLUSHALL").startswith(b"+OK"))


def restart_redis(stage: Stage, fault: Fault) -> Met | None:
    """SIGKILL; a moment later it is back, and empty."""
    at = time.monotonic()
    stage.call(stage.redis.stop)
    stage.wait(fault.parameters["seconds"])
    stage.call(stage.redis.start)
    return Met(at, time.monotonic())


def kill_redis_clients(stage: Stage, fault: Fault) -> Met | None:
    """CLIENT KILL of every connection."""
    answer = stage.redis.command("CLIENT", "KILL", "TYPE", "normal")
    return _now(answer[:1] == b":" and int(answer[1:]) > 0)


def cut_redis(stage: Stage, fault: Fault) -> Met | None:
    """Connections to Redis are reset and refused."""
    return _hurt_link(stage, fault, stage.redis_proxy, Proxy.cut)


def half_open_redis(stage: Stage, fault: Fault) -> Met | None:
    """Connections to Redis hang, and neither side is told."""
    return _hurt_link(stage, fault, stage.redis_proxy, Proxy.half_open)


def slow_redis(stage: Stage, fault: Fault) -> Met | None:
    """Everything to and from Redis comes late."""
    return _hurt_link(stage, fault, stage.redis_proxy, _slow_down)


def forge_bells(stage: Stage, fault: Fault) -> Met | None:
    """Bells by the dozen, half of them no bells at all."""
    at, number = time.monotonic(), int(fault.parameters["bells"])
    bells = Bells(stage.redis.url, "gistmill:")
    with stage.forging:
        stage.has_forged = True
        rung = [bells.ring("summarize", listeners=1000) for _ in range(number)]
        forged = [stage.redis.command("LPUSH", QUEUE, f"forged-{count}") for count in range(number)]
    bells.close()
    return Met(at, at) if any(rung) and any(answer[:1] == b":" for answer in forged) else None


def make_redis_read_only(stage: Stage, fault: Fault) -> Met | None:
    """READONLY: a replica without a master."""
    return _refuse(stage, fault, faults.refuse_writes, faults.allow_writes, b"-READONLY")


def fill_redis(stage: Stage, fault: Fault) -> Met | None:
    """OOM: no memory for any write."""
    return _refuse(stage, fault, faults.fill_memory, faults.free_memory, b"-OOM")


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
            victim.process.kill()
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
    return _hurt_link(stage, fault, _sql_proxy(stage), Proxy.cut)


def half_open_sql(stage: Stage, fault: Fault) -> Met | None:
    """Connections to PostgreSQL hang, and neither side is told."""
    return _hurt_link(stage, fault, _sql_proxy(stage), Proxy.half_open)


def slow_sql(stage: Stage, fault: Fault) -> Met | None:
    """Everything to and from PostgreSQL comes late."""
    return _hurt_link(stage, fault, _sql_proxy(stage), _slow_down)


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
    return _now(found)


def kill_api(stage: Stage, fault: Fault) -> Met | None:
    """SIGKILL; a moment later it is started again."""
    at = time.monotonic()
    stage.call(stage.kill_api)
    stage.wait(fault.parameters["seconds"])
    stage.start_api()
    serves = stage.wait_for(stage.api_answers, timeout_s=30)
    return Met(at, at, seconds=time.monotonic() - at) if serves else None


def lose_http_reply(stage: Stage, fault: Fault) -> Met | None:
    """A job's submission reaches the api, its reply is lost; whoever asked asks again."""
    before = stage.api_proxy.swallowed
    stage.api_proxy.swallow_reply_to(b'"labels"', behind=b"POST /v1/jobs HTTP")
    if not stage.wait_for(lambda: stage.api_proxy.swallowed > before, timeout_s=20):
        return None
    at = time.monotonic()
    stage.wait_for(lambda: stage.accepted_at > at, timeout_s=20)
    return Met(at, at, seconds=stage.accepted_at - at) if stage.accepted_at > at else None


def _now(is_met: bool) -> Met | None:
    at = time.monotonic()
    return Met(at, at) if is_met else None


def _slow_down(proxy: Proxy) -> None:
    proxy.delay_s = SLOW_S


def _hurt_link(stage: Stage, fault: Fault, proxy: Proxy, hurt: Callable[[Proxy], None]) -> Met | None:
    at, connections = time.monotonic(), proxy.connections
    hurt(proxy)
    try:
        stage.wait(fault.parameters["seconds"])
    finally:
        proxy.mend()
    return Met(at, time.monotonic()) if connections else None


def _refuse(stage: Stage, fault: Fault, begin: Callable[..., None], end: Callable[..., None], answer: bytes) -> Met | None:
    at = time.monotonic()
    begin(stage.redis)
    try:
        stage.wait(fault.parameters["seconds"])
        refused = stage.redis.command("SET", "soak", "1").startswith(answer)
    finally:
        end(stage.redis)
    return Met(at, time.monotonic()) if refused else None


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
