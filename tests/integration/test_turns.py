"""Several threads on one connection."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from sqlalchemy import QueuePool

from gistmill.db.session import Database
from gistmill.settings import Settings
from gistmill.sweep import Sweeper
from workers.app import Worker
from workers.gpu import cpu_device
from workers.handlers.summarize import SummarizeHandler
from workers.handlers.turns import Turns
from workers.heartbeat import Heartbeat


def test_threads_of_a_handler_hold_one_connection_together(database: Database) -> None:
    shared = Turns(database)
    pool = database.engine.pool
    assert isinstance(pool, QueuePool)
    most: list[int] = []
    together = threading.Barrier(3)

    def use() -> None:
        together.wait(10)
        for work in (shared.read, shared.write) * 5:
            with work() as connection:
                connection.exec_driver_sql("SELECT 1")
                time.sleep(0.01)  # What is tried here is that the others wait meanwhile.
                most.append(pool.checkedout())

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(most), set(most)) == (30, {1})


def test_runner_takes_turns_with_the_threads_of_its_handler(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    worker = Worker(settings, cpu_device(0), ("summarize",), "w")
    sweeper = Sweeper(worker.database, worker.bells, settings.worker)
    heartbeat = Heartbeat(worker.database, "w", settings.worker, sweeper, worker.drain)
    runner = worker._make_runner(heartbeat, worker._make_residence())
    handler = runner.handlers["summarize"]
    assert isinstance(handler, SummarizeHandler)
    assert isinstance(runner.database, Turns)
    assert {id(runner.database)} == {id(handler.database), id(runner.ahead.database)}
    worker.database.close()
