"""Plain Celery beside Gistmill: the same rows, the same redis-server, the same database at the same durability."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from celery import Celery

from benchmarks.orchestration.corpus import dialogues
from benchmarks.orchestration.peer_table import CREATE, TABLE, connect
from benchmarks.orchestration.processes import Child, start_command
from benchmarks.orchestration.stack import Stack
from tests.support.servers import wait_until

# (pool, concurrency, prefetch multiplier): a few that people run; the best on a short trial is measured in full.
SETTINGS = (
    ("prefork", 1, 4),
    ("prefork", 2, 4),
    ("prefork", 2, 64),
    ("prefork", 4, 4),
    ("prefork", 8, 4),
    ("threads", 4, 4),
    ("solo", 1, 4),
)
TRIAL_ITEMS = 3_000
BATCH = 1_000
SEED = 77


def measure_peer(stack: Stack, directory: Path, items: int, *, million: int) -> dict[str, Any]:
    """Return the items/s of plain Celery with its best settings, from the first publish to the last row in the database."""
    trials = [(_items_per_s(stack, directory, setting, TRIAL_ITEMS), setting) for setting in SETTINGS]
    best = max(trials)[1]
    speed = _items_per_s(stack, directory, best, items)
    return {
        "trials": [{"setting": _name(setting), "items_per_s": round(value, 1)} for value, setting in trials],
        "best": _name(best),
        "items": items,
        "items_per_s": round(speed, 1),
        "seconds_scaled_to_items": {"items": million, "seconds": round(million / speed, 1)},
    }


def _items_per_s(stack: Stack, directory: Path, setting: tuple[str, int, int], items: int) -> float:
    # Redis holds nothing of the last trial, and the table is new.
    with stack.bells() as connection:
        connection.flushall()
    _create_table(stack.database.url)
    with _running_worker(stack, directory, setting) as worker:
        # One item warms every part up; it is not counted.
        _publish(stack.redis.url, [(-1, "warm up")])
        _await_rows(stack, worker, 1)
        started = time.perf_counter()
        _publish(stack.redis.url, enumerate(dialogues(items, seed=SEED)))
        _await_rows(stack, worker, items + 1)
        return items / (time.perf_counter() - started)


@contextmanager
def _running_worker(stack: Stack, directory: Path, setting: tuple[str, int, int]) -> Iterator[Child]:
    pool, concurrency, prefetch = setting
    command = [sys.executable, "-m", "celery", "-A", "benchmarks.orchestration.peer_app", "worker", "-P", pool]
    options = ["-c", str(concurrency), f"--prefetch-multiplier={prefetch}", "-l", "WARNING"]
    options += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    environment = {"BENCHMARK_BROKER": stack.redis.url, "BENCHMARK_DATABASE": stack.database.url}
    worker = start_command("celery", [*command, *options], log=directory / f"celery-{_name(setting)}", environment=environment)
    try:
        yield worker
    finally:
        worker.stop()


def _publish(broker: str, items: Iterable[tuple[int, str]]) -> None:
    """Send one task per item through kombu's batches, the fastest way that Celery 5.7 has."""
    with Celery("publisher", broker=broker, set_as_current=False) as app, app.producer_pool.acquire(block=True) as producer:
        iterator = iter(items)
        while batch := list(islice(iterator, BATCH)):
            with producer.batch(BATCH):
                for item, dialogue in batch:
                    app.send_task("peer.summarize", args=(item, dialogue), producer=producer)


def _await_rows(stack: Stack, worker: Child, rows: int) -> None:
    with stack.bells() as connection:

        def is_empty() -> bool:
            worker.require_alive()
            return int(connection.llen("celery")) == 0

        wait_until(is_empty, timeout_s=900, what="the tasks to be taken")
    with closing(connect(stack.database.url)) as connection:
        query = f"SELECT count(*) FROM {TABLE}"
        wait_until(lambda: connection.execute(query).fetchone()[0] == rows, timeout_s=120, what="the rows")


def _create_table(url: str) -> None:
    with closing(connect(url)) as connection:
        connection.execute(f"DROP TABLE IF EXISTS {TABLE}")
        connection.execute(CREATE)


def _name(setting: Sequence[object]) -> str:
    pool, concurrency, prefetch = setting
    return f"{pool} -c {concurrency} --prefetch-multiplier={prefetch}"
