"""Faults of Redis, and of the way to it. The bells are lost or forged; the work is not."""

from __future__ import annotations

import time
from collections.abc import Callable

from gistmill.queue import Bells
from tests.soak.hurting import hurt_link, now, slow_down
from tests.soak.plan import Fault, Met
from tests.soak.stage import Stage
from tests.support import faults
from tests.support.proxy import Proxy
from tests.support.servers import RedisServer

Change = Callable[[RedisServer], None]

QUEUE = "gistmill:gistmill.summarize"


def flush_redis(stage: Stage, fault: Fault) -> Met | None:
    """FLUSHALL."""
    return now(stage.redis.command("FLUSHALL").startswith(b"+OK"))


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
    return now(answer[:1] == b":" and int(answer[1:]) > 0)


def cut_redis(stage: Stage, fault: Fault) -> Met | None:
    """Connections to Redis are reset and refused."""
    return hurt_link(stage, fault, stage.redis_proxy, Proxy.cut)


def half_open_redis(stage: Stage, fault: Fault) -> Met | None:
    """Connections to Redis hang, and neither side is told."""
    return hurt_link(stage, fault, stage.redis_proxy, Proxy.half_open)


def slow_redis(stage: Stage, fault: Fault) -> Met | None:
    """Everything to and from Redis comes late."""
    return hurt_link(stage, fault, stage.redis_proxy, slow_down)


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


def _refuse(
    stage: Stage, fault: Fault, begin: Callable[[RedisServer], None], end: Callable[[RedisServer], None], answer: bytes
) -> Met | None:
    at = time.monotonic()
    begin(stage.redis)
    try:
        stage.wait(fault.parameters["seconds"])
        refused = stage.redis.command("SET", "soak", "1").startswith(answer)
    finally:
        end(stage.redis)
    return Met(at, time.monotonic()) if refused else None
