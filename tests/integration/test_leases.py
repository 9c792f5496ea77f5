"""The heartbeat and the lease: who may go on, who must stop, and who is called dead."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from gistmill.db.chunks import read_wish
from gistmill.db.session import Database
from gistmill.errors import LeaseLost
from gistmill.queue import Bells
from gistmill.sweep import Contact, Sweeper
from tests.support.bench import FAST, TEXTS, Bench
from tests.support.jobs import chunk_rows_of, expire_leases, job_row, make_job, make_worker, take
from tests.support.servers import wait_until
from workers.engine.base import Outcome
from workers.engine.fake import FakeEngine
from workers.heartbeat import EXIT_HUNG, Heartbeat, Watch


def test_lease_is_renewed_only_while_the_work_progresses(database: Database, bench: Bench) -> None:
    bench.heartbeat.settings = FAST.model_copy(update={"lease_s": 2.0})
    make_job(database, TEXTS)
    claim = take(database, bench.runner.claimant, lease_s=2)
    assert claim is not None
    watch = bench.heartbeat.watch(claim, requested_at=time.monotonic())
    first_limit = watch.write_until
    wait_until(lambda: watch.write_until > first_limit, what="a renewal")
    watch.enter(0.2)
    wait_until(lambda: watch.is_stalled and watch.stopped_at is not None, what="the stall being noticed")
    limit = watch.write_until
    wait_until(lambda: time.monotonic() > limit, what="the end of the lease")
    assert watch.write_until == limit
    bench.heartbeat.unwatch()


def test_process_ends_when_the_handler_does_not_stop_after_losing_its_lease(
    bench: Bench, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.heartbeat.STOP_LIMIT_S", 0.3)
    make_job(database, TEXTS)
    claim = take(database, bench.runner.claimant, lease_s=2)
    assert claim is not None
    expire_leases(database)
    database.transact(lambda connection: connection.exec_driver_sql("UPDATE chunks SET epoch = epoch + 1"))
    bench.heartbeat.watch(claim, requested_at=time.monotonic())
    wait_until(lambda: EXIT_HUNG in bench.exits, what="the end of the process")
    bench.heartbeat.unwatch()


def test_worker_stops_writing_at_its_own_time_before_the_lease_ends(database: Database) -> None:
    make_job(database, TEXTS)
    claim = take(database, make_worker(database, "w"), lease_s=30)
    assert claim is not None
    watch = Watch(claim, write_until=time.monotonic() - 1, drain=threading.Event())
    assert watch.should_stop()
    with database.read() as connection:
        assert read_wish(connection, claim).is_owned  # SQL would still have let it write.


def test_nobody_is_called_dead_before_a_whole_lease_of_contact(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("gistmill.sweep.time.monotonic", lambda: now)
    contact = Contact(lease_s=2)

    def pass_time(seconds: float) -> None:
        nonlocal now
        for _ in range(round(seconds / 0.5)):
            now += 0.5
            contact.answered()

    assert not contact.has_lasted()
    contact.answered()
    pass_time(1.5)
    assert not contact.has_lasted()
    contact.broke()
    contact.answered()
    pass_time(1.5)
    assert not contact.has_lasted()
    pass_time(0.5)
    assert contact.has_lasted()


def test_answer_that_came_late_begins_the_lease_of_contact_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("gistmill.sweep.time.monotonic", lambda: now)
    contact = Contact(lease_s=2, since=90.0, last=99.5)
    assert contact.has_lasted()
    now = 101.0
    assert not contact.has_lasted()
    contact.answered()
    assert not contact.has_lasted()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_worker_whose_heartbeat_died_ends(database: Database, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bells = Bells(redis_url, "test:")
    heartbeat = Heartbeat(database, "w", FAST, Sweeper(database, bells, FAST), threading.Event())
    exits: list[int] = []
    heartbeat.exit = exits.append

    def broken() -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(heartbeat, "beat", broken)
    heartbeat.start()
    wait_until(lambda: exits == [EXIT_HUNG], what="the end of the process")
    heartbeat.stop()  # Its exception must be noted in this test, which expects it, and not in the next one.
    bells.close()


def test_heart_beats_for_a_chunk_before_redis_is_waited_for(bench: Bench) -> None:
    watched: list[bool] = []

    class Watched(Bells):
        """Bells that note whether the heart knows of a chunk when they are rung by a worker that has one."""

        def ring(self, kind: str, *, listeners: int = 1) -> bool:
            running = chunk_rows_of(bench.database, job)[0]["state"] == "running"
            if running and threading.current_thread() is threading.main_thread():
                watched.append(bench.heartbeat._watch is not None)
            return super().ring(kind, listeners=listeners)

    make_worker(bench.database, "idle")
    job = make_job(bench.database, TEXTS, per_chunk=6)
    bench.runner.bells = Watched("redis://127.0.0.1:1/0", "test:")
    bench.runner.work()
    assert watched
    assert all(watched)


def test_nothing_is_recorded_once_the_lease_may_have_ended(bench: Bench) -> None:
    job = make_job(bench.database, TEXTS)
    claim = take(bench.database, bench.runner.claimant)
    assert claim is not None
    watch = Watch(claim, write_until=time.monotonic() + 3600, drain=threading.Event())

    class Late(FakeEngine):
        """Its last step takes as long as the lease."""

        def _forward(self, *args: Any) -> list[Outcome] | None:
            outcomes = super()._forward(*args)
            watch.write_until = time.monotonic()
            return outcomes

    bench.engine = Late
    bench.handler.settings = FAST.model_copy(update={"commit_s": 0.0})
    with pytest.raises(LeaseLost):
        bench.handler.run(claim, watch)
    assert job_row(bench.database, job)["succeeded"] == 0


def test_loading_and_generating_begin_with_their_own_stall_limits(bench: Bench) -> None:
    entered: list[float] = []

    class Noting(Watch):
        def enter(self, limit_s: float) -> None:
            entered.append(limit_s)
            super().enter(limit_s)

    bench.handler.settings = FAST.model_copy(update={"generate_stall_s": 7.0})
    make_job(bench.database, TEXTS)
    claim = take(bench.database, bench.runner.claimant)
    assert claim is not None
    bench.handler.run(claim, Noting(claim, write_until=float("inf"), drain=threading.Event()))
    assert entered == [60, 7.0]
