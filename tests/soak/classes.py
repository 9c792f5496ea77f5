"""The table of faults: each class, who is hurt, what must recover, and what is drawn for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from tests.soak import on_api, on_jobs, on_redis, on_sql, on_workers
from tests.soak.plan import Fault, Met
from tests.soak.stage import Stage
from tests.support.faults import KILLING_POINTS

Strike = Callable[[Stage, Fault], Met | None]
# What recovers: the victim's chunk by its next step, the whole fleet by anybody's next step, or what the strike measured.
Recovers = Literal["chunk", "fleet", "itself"]

BOTH = frozenset({"sqlite", "postgresql"})


@dataclass(frozen=True)
class FaultClass:
    """A class of fault. `draws` are the bounds of each parameter; whole bounds draw whole numbers, both inside."""

    name: str
    lane: str
    strike: Strike
    recovers: Recovers
    draws: dict[str, tuple[float, float]] = field(default_factory=dict)
    databases: frozenset[str] = BOTH

    @property
    def how(self) -> str:
        """How it is done, in a line."""
        return (self.strike.__doc__ or "").partition("\n")[0]


def _worker(name: str, strike: Strike, **draws: tuple[float, float]) -> FaultClass:
    return FaultClass(name, "workers", strike, "chunk", draws)


def _point(name: str, strike: Strike, **draws: tuple[float, float]) -> FaultClass:
    return FaultClass(name, "points", strike, "chunk", draws)


def _reply(name: str, strike: Strike, **draws: tuple[float, float]) -> FaultClass:
    return FaultClass(name, "replies", strike, "chunk", draws)


def _redis(name: str, strike: Strike, **draws: tuple[float, float]) -> FaultClass:
    return FaultClass(name, "redis", strike, "fleet", draws)


def _sql(name: str, strike: Strike, only: str = "", **draws: tuple[float, float]) -> FaultClass:
    return FaultClass(name, "sql", strike, "fleet", draws, frozenset({only}) if only else BOTH)


def _jobs(name: str, strike: Strike, **draws: tuple[float, float]) -> FaultClass:
    return FaultClass(name, "jobs", strike, "itself", draws | {"pick": (0, 9), "http": (0, 1)})


CLASSES = (
    _worker("worker-killed", on_workers.kill),
    _worker("worker-terminated", on_workers.terminate),
    FaultClass("fleet-killed", "workers", on_workers.kill_fleet, "fleet"),
    _worker("worker-stopped-past-lease", on_workers.stop_long, seconds=(3.0, 4.5)),
    _worker("worker-stopped-briefly", on_workers.stop_short, seconds=(0.3, 0.9)),
    _point("killed-at-a-point", on_workers.kill_at_point, point=(0, len(KILLING_POINTS) - 1)),
    _point("stopped-before-a-write", on_workers.stop_before_write, nth=(1, 3)),
    _point("segfault", on_workers.segfault, nth=(1, 4)),
    _point("handler-hangs", on_workers.hang, nth=(1, 4)),
    _point("heart-dies", on_workers.lose_heart, nth=(3, 15)),
    _reply("claim-reply-lost", on_workers.lose_claim, nth=(1, 2)),
    _reply("record-reply-lost", on_workers.lose_record, nth=(1, 4)),
    _reply("ending-reply-lost", on_workers.lose_ending, nth=(1, 2)),
    FaultClass("clock-ahead", "replies", on_workers.skew_clock, "itself", {"seconds": (600, 600)}),
    FaultClass("clock-behind", "replies", on_workers.skew_clock, "itself", {"seconds": (-600, -600)}),
    FaultClass("poison", "poison", on_workers.poison, "itself", {"dialogues": (4, 8), "where": (0, 7)}),
    _redis("redis-flushed", on_redis.flush_redis),
    _redis("redis-restarted-empty", on_redis.restart_redis, seconds=(0.1, 1.5)),
    _redis("redis-clients-killed", on_redis.kill_redis_clients),
    _redis("redis-link-cut", on_redis.cut_redis, seconds=(0.5, 2.5)),
    _redis("redis-link-half-open", on_redis.half_open_redis, seconds=(0.5, 2.5)),
    _redis("redis-link-slow", on_redis.slow_redis, seconds=(1.0, 3.0)),
    _redis("bells-forged", on_redis.forge_bells, bells=(5, 30)),
    _redis("redis-read-only", on_redis.make_redis_read_only, seconds=(0.5, 2.0)),
    _redis("redis-out-of-memory", on_redis.fill_redis, seconds=(0.5, 2.0)),
    _sql("sql-locked-past-lease", on_sql.lock_sql, seconds=(2.5, 4.0)),
    _sql("disk-full", on_sql.fill_disk, "sqlite", seconds=(1.0, 3.0)),
    _sql("sql-crashed", on_sql.crash_sql, "postgresql", seconds=(0.0, 3.0)),
    _sql("sql-backends-terminated", on_sql.terminate_sql, "postgresql"),
    _sql("sql-link-cut", on_sql.cut_sql, "postgresql", seconds=(0.5, 3.5)),
    _sql("sql-link-half-open", on_sql.half_open_sql, "postgresql", seconds=(0.5, 3.5)),
    _sql("sql-link-slow", on_sql.slow_sql, "postgresql", seconds=(1.0, 3.0)),
    _sql("sql-deadlock", on_sql.deadlock, "postgresql"),
    FaultClass("api-killed", "api", on_api.kill_api, "itself", {"seconds": (0.0, 2.0)}),
    FaultClass("http-reply-lost", "api", on_api.lose_http_reply, "itself"),
    _jobs("cancel", on_jobs.cancel),
    _jobs("pause-and-resume", on_jobs.pause),
    _jobs("retry", on_jobs.retry),
    _jobs("cancel-against-retry", on_jobs.cancel_against_retry),
    _jobs("two-controls-at-once", on_jobs.two_at_once, pair=(0, len(on_jobs.PAIRS) - 1)),
)
BY_NAME = {kind.name: kind for kind in CLASSES}


def classes_of(database: str) -> list[FaultClass]:
    """Return the classes that apply to this database."""
    return [kind for kind in CLASSES if database in kind.databases]
