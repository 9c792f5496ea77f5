"""Several threads on one connection."""

from __future__ import annotations

import threading
import time

from sqlalchemy import QueuePool

from gistmill.db.session import Database
from workers.handlers.turns import Turns


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
