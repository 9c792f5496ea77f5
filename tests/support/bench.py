"""A worker without its process: runner, heartbeat and handler on a real database, with the fake engine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import select

from gistmill.db.session import Database
from gistmill.db.tables import results
from gistmill.queue import Bells
from gistmill.settings import WorkerSettings
from gistmill.specs import GenerationParameters, Precision
from gistmill.sweep import Sweeper
from tests.support.jobs import chunk_rows_of, has_reserved_chunk, job_row, make_worker
from tests.support.servers import wait_until
from workers.engine.base import Engine, Outcome, Row
from workers.engine.fake import FakeEngine
from workers.handlers.summarize import SummarizeHandler
from workers.heartbeat import Heartbeat
from workers.residence import Residence
from workers.runner import Runner

TEXTS = [f"dialogue number {number}" for number in range(12)]
# Nobody here waits for a lease to end, and a machine that is busy with other tests may stand still for longer than two seconds.
FAST = WorkerSettings(
    lease_s=10, renew_s=0.3, wish_s=0.1, sweep_s=0.2, margin_s=0.2, generate_stall_s=60, load_stall_s=60, retry_base_s=0.01
)


@dataclass
class Bench:
    """A worker without its process."""

    database: Database
    runner: Runner
    heartbeat: Heartbeat
    drain: threading.Event
    handler: SummarizeHandler
    loads: list[str] = field(default_factory=list)
    engine: Callable[[], Engine] = FakeEngine
    exits: list[int] = field(default_factory=list)


class Patient(FakeEngine):
    """Makes one row at a time; before the last one of the first chunk it waits until another is reserved, and calls `then`.

    An engine that takes a while instead may be through before the reader's thread has asked for the next chunk.
    """

    def __init__(
        self, database: Database, job: int, then: Callable[[Callable[[], bool]], None] = lambda should_stop: None
    ) -> None:
        super().__init__(max_rows=1)
        self._database, self._job, self._then = database, job, then
        self._left = chunk_rows_of(database, job)[0]["dialogues"]

    def _forward(
        self, rows: Sequence[Row], parameters: GenerationParameters, should_stop: Callable[[], bool]
    ) -> list[Outcome] | None:
        self._left -= len(rows)
        if self._left == 0:
            wait_until(lambda: has_reserved_chunk(self._database, self._job), what="a reserved chunk")
            self._then(should_stop)
        return super()._forward(rows, parameters, should_stop)


class OneBatch(FakeEngine):
    """Makes one micro-batch, and is at the next until it is told to stop; `batches` counts those that were begun."""

    def __init__(self, *, max_rows: int = 8) -> None:
        super().__init__(max_rows=max_rows)
        self.batches = 0

    def _forward(
        self, rows: Sequence[Row], parameters: GenerationParameters, should_stop: Callable[[], bool]
    ) -> list[Outcome] | None:
        self.batches += 1
        if self.batches == 1:
            return super()._forward(rows, parameters, should_stop)
        wait_until(should_stop, what="being told to stop")
        return None


@contextmanager
def running_bench(database: Database, redis_url: str, tmp_path: Path) -> Iterator[Bench]:
    """Give a bench whose heart beats."""
    drain = threading.Event()
    bells = Bells(redis_url, "test:")
    claimant = make_worker(database, "bench")
    sweeper = Sweeper(database, bells, FAST)
    heartbeat = Heartbeat(database, "bench", FAST, sweeper, drain)

    def load(directory: Path, precision: Precision) -> Engine:
        made.loads.append(precision)
        return made.engine()

    residence = Residence(lambda digest, ticker: tmp_path, load, limit_bytes=2**30, device_bytes=2**30, load_stall_s=60)
    handler = SummarizeHandler(database, residence, FAST)
    runner = Runner(database, claimant, {"summarize": handler}, heartbeat=heartbeat, bells=bells, settings=FAST, drain=drain)
    made = Bench(database, runner, heartbeat, drain, handler)
    heartbeat.exit = made.exits.append
    heartbeat.start()
    yield made
    heartbeat.stop()
    bells.close()


def errors_of(database: Database, job: int) -> set[str]:
    """Return the codes of the job's errors."""
    with database.read() as connection:
        query = select(results.c.error_code).where(results.c.job_key == job, results.c.error_code.is_not(None))
        return set(connection.execute(query).scalars())


def work_until_completed(bench: Bench, job: int) -> None:
    """Let the runner work, again and again while chunks rest, until the job is completed."""

    def is_done() -> bool:
        bench.runner.work()
        return bool(job_row(bench.database, job)["state"] == "completed")

    wait_until(is_done, timeout_s=10)
