"""The heartbeat, the runner and the handler on real databases, with the fake engine and no process."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, delete, select, update

from gistmill.control import cancel
from gistmill.db.check import check
from gistmill.db.chunks import finish, read_wish
from gistmill.db.claim import Claim
from gistmill.db.session import Database
from gistmill.db.tables import generations, jobs, results
from gistmill.errors import DeviceFull, DeviceTooSmall, LeaseLost, ModelUnavailable, ModelUnreadable, StoreUnavailable
from gistmill.queue import Bells
from gistmill.settings import WorkerSettings
from gistmill.specs import Precision
from gistmill.sweep import Contact, Sweeper
from tests.support.jobs import chunk_rows_of, expire_leases, first_tenant, job_row, make_job, make_worker, take
from tests.support.servers import wait_until
from workers.engine.base import Engine, Outcome
from workers.engine.fake import FakeEngine
from workers.handlers.summarize import SummarizeHandler
from workers.heartbeat import EXIT_HUNG, Heartbeat, Watch
from workers.residence import Residence
from workers.runner import EXIT_LOST_DEVICE, Runner

TEXTS = [f"dialogue number {number}" for number in range(12)]
FAST = WorkerSettings(
    lease_s=2, renew_s=0.3, wish_s=0.1, sweep_s=0.2, margin_s=0.2, generate_stall_s=60, load_stall_s=60, retry_base_s=0.01
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


@pytest.fixture
def bench(database: Database, redis_url: str, tmp_path: Path) -> Iterator[Bench]:
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
    with database.read() as connection:
        query = select(results.c.error_code).where(results.c.job_key == job, results.c.error_code.is_not(None))
        return set(connection.execute(query).scalars())


def test_runner_works_until_nothing_fits(bench: Bench) -> None:
    keys = [make_job(bench.database, TEXTS, per_chunk=5) for _ in range(2)]
    bench.runner.work()
    assert [job_row(bench.database, key)["state"] for key in keys] == ["completed", "completed"]
    assert [job_row(bench.database, key)["generated"] for key in keys] == [12, 0]
    assert len(bench.loads) == 1


@pytest.mark.parametrize(("seconds", "commits"), [(0.0, 2), (60.0, 1)])
def test_micro_batches_that_are_fast_are_recorded_together(bench: Bench, seconds: float, commits: int) -> None:
    bench.handler.settings = FAST.model_copy(update={"commit_s": seconds})
    job = make_job(bench.database, TEXTS)
    bench.runner.work()
    row = job_row(bench.database, job)
    assert (row["state"], row["arrival"]) == ("completed", commits)


def test_commits_that_the_database_lost_are_noticed_before_the_chunk_is_done(bench: Bench) -> None:
    job = make_job(bench.database, TEXTS)

    class Forgetful(FakeEngine):
        """Takes the first commit back, as a failover to a standby that lags would."""

        has_forgotten = False

        def _forward(self, *args: Any) -> list[Outcome] | None:
            if not self.has_forgotten and job_row(bench.database, job)["succeeded"]:
                type(self).has_forgotten = True
                bench.database.transact(forget)
            return super()._forward(*args)

    def forget(connection: Connection) -> None:
        connection.execute(delete(results))
        connection.execute(delete(generations))
        connection.execute(update(jobs).values(succeeded=0, generated=0))

    bench.engine = Forgetful
    bench.handler.settings = FAST.model_copy(update={"commit_s": 0.0})  # Else all is recorded at once, and nothing to forget.
    bench.runner.work()
    assert Forgetful.has_forgotten
    row = job_row(bench.database, job)
    assert (row["state"], row["succeeded"], row["not_run"]) == ("completed", 12, 0)
    assert check(bench.database) == []


def test_redis_that_does_not_answer_costs_no_lease(bench: Bench) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        bells = Bells(f"redis://127.0.0.1:{deaf.getsockname()[1]}/0", "test:")
        bench.runner.bells = bells
        # Shorter than two rings that time out: one of the runner, one of the heartbeat.
        settings = FAST.model_copy(update={"lease_s": 1.4})
        bench.runner.settings = bench.heartbeat.settings = settings
        bench.heartbeat.sweeper.bells = bells
        make_worker(bench.database, "idle")
        job = make_job(bench.database, TEXTS, per_chunk=4)
        bench.runner.work()
        assert job_row(bench.database, job)["state"] == "completed"
        assert [chunk["epoch"] for chunk in chunk_rows_of(bench.database, job)] == [1, 1, 1]
        bells.close()


def test_draining_records_what_was_gathered_and_gives_the_rest_back(bench: Bench) -> None:
    bench.handler.settings = FAST.model_copy(update={"commit_s": 60.0})

    class Last(FakeEngine):
        def _forward(self, *args: Any) -> list[Outcome] | None:
            outcomes = super()._forward(*args)
            bench.drain.set()
            return outcomes

    bench.engine = Last
    job = make_job(bench.database, TEXTS)
    bench.runner.work()
    assert job_row(bench.database, job)["succeeded"] == FakeEngine().max_rows
    assert [(chunk["state"], chunk["crashes"]) for chunk in chunk_rows_of(bench.database, job)] == [("queued", 0)]


def test_items_too_long_fail_alone_or_are_cut_and_counted(bench: Bench) -> None:
    texts = ["short one", "a dialogue of a good many more words than are allowed here " * 3]
    failing = make_job(bench.database, texts, spec={"max_input_tokens": 20})
    cutting = make_job(bench.database, texts, spec={"max_input_tokens": 20, "on_overflow": "truncate"})
    bench.runner.work()
    assert (job_row(bench.database, failing)["succeeded"], job_row(bench.database, failing)["failed"]) == (1, 1)
    assert errors_of(bench.database, failing) == {"input_too_long"}
    row = job_row(bench.database, cutting)
    assert (row["succeeded"], row["truncated"], row["shared"]) == (2, 1, 1)


def test_sampling_draws_anew_for_every_row_and_repeats_itself(bench: Bench) -> None:
    spec = {"generation": {"do_sample": True, "temperature": 1.0, "seed": 3}}
    job = make_job(bench.database, ["same text"] * 3, spec=spec)
    again = make_job(bench.database, ["same text"] * 3, spec=spec)
    bench.runner.work()
    assert job_row(bench.database, job)["generated"] == 3
    assert job_row(bench.database, again)["shared"] == 3


def test_unreadable_model_fails_the_job_with_its_reason(bench: Bench) -> None:
    def broken() -> Engine:
        raise ModelUnreadable("its weights are cut short")

    bench.engine = broken
    job = make_job(bench.database, TEXTS, per_chunk=4)
    bench.runner.work()
    row = job_row(bench.database, job)
    assert (row["state"], row["not_run"]) == ("failed", 12)
    assert "cut short" in row["error"]["message"]


def test_model_that_cannot_be_fetched_is_tried_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.runner.REST_S", 0.01)
    answers = iter([ModelUnavailable("api away")] * (FAST.max_failures + 2))

    def late() -> Engine:
        error = next(answers, None)
        if error is not None:
            raise error
        return FakeEngine()

    bench.engine = late
    job = make_job(bench.database, TEXTS)

    def is_done() -> bool:
        bench.runner.work()
        return bool(job_row(bench.database, job)["state"] == "completed")

    wait_until(is_done, timeout_s=10)
    assert job_row(bench.database, job)["succeeded"] == len(TEXTS)
    assert [(chunk["failures"], chunk["crashes"]) for chunk in chunk_rows_of(bench.database, job)] == [(0, 0)]


def test_unforeseen_error_costs_a_failure_and_at_last_the_items(bench: Bench) -> None:
    def buggy() -> Engine:
        raise KeyError("a bug")

    bench.engine = buggy
    job = make_job(bench.database, TEXTS)

    def is_done() -> bool:
        bench.runner.work()
        return bool(job_row(bench.database, job)["state"] == "completed")

    wait_until(is_done, timeout_s=10)
    assert job_row(bench.database, job)["failed"] == 12
    assert errors_of(bench.database, job) == {"chunk_failed"}


def test_model_larger_than_the_device_waits_for_a_larger_one(bench: Bench) -> None:
    def huge() -> Engine:
        raise DeviceTooSmall(needed_bytes=10**13)

    bench.engine = huge
    job = make_job(bench.database, TEXTS)
    bench.runner.work()
    row, chunk = job_row(bench.database, job), chunk_rows_of(bench.database, job)[0]
    assert (row["min_device_bytes"], chunk["state"], chunk["failures"], chunk["crashes"]) == (10**13, "queued", 0, 0)


@pytest.mark.parametrize("reason", [DeviceFull(), ModelUnavailable("api away")])
def test_full_device_or_missing_api_rests_the_chunk_at_no_cost(bench: Bench, reason: Exception) -> None:
    def refused() -> Engine:
        raise reason

    bench.engine = refused
    job = make_job(bench.database, TEXTS)
    bench.runner.work()
    chunk = chunk_rows_of(bench.database, job)[0]
    assert (chunk["state"], chunk["failures"], chunk["crashes"]) == ("queued", 0, 0)
    assert chunk["run_at"] > chunk["started_at"]


def test_process_that_lost_its_device_ends_after_it_gave_the_chunk_back(bench: Bench) -> None:
    def lost() -> Engine:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    bench.engine = lost
    job = make_job(bench.database, TEXTS, per_chunk=6)
    bench.runner.work()
    assert bench.exits == [EXIT_LOST_DEVICE]
    assert [(chunk["state"], chunk["failures"]) for chunk in chunk_rows_of(bench.database, job)] == [
        ("queued", 1),
        ("queued", 0),
    ]


def test_drain_records_what_is_done_and_gives_the_chunk_back(bench: Bench) -> None:
    bench.engine = lambda: FakeEngine(seconds_per_row=0.1, max_rows=2)
    job = make_job(bench.database, TEXTS)
    worker = threading.Thread(target=bench.runner.work)
    worker.start()
    wait_until(lambda: job_row(bench.database, job)["succeeded"] >= 2)
    bench.drain.set()
    worker.join(5)
    row, chunk = job_row(bench.database, job), chunk_rows_of(bench.database, job)[0]
    assert 2 <= row["succeeded"] < 12
    assert (chunk["state"], chunk["failures"], chunk["crashes"]) == ("queued", 0, 0)


def test_pause_gives_the_chunk_back_and_cancel_closes_it(bench: Bench) -> None:
    bench.engine = lambda: FakeEngine(seconds_per_row=0.1, max_rows=1)
    job = make_job(bench.database, TEXTS)
    worker = threading.Thread(target=bench.runner.work)
    worker.start()
    wait_until(lambda: job_row(bench.database, job)["succeeded"] >= 1)
    bench.database.transact(lambda connection: connection.execute(update(jobs).values(paused=True)))
    worker.join(5)
    assert chunk_rows_of(bench.database, job)[0]["state"] == "queued"
    assert job_row(bench.database, job)["state"] == "running"
    bench.database.transact(lambda connection: connection.execute(update(jobs).values(paused=False)))
    worker = threading.Thread(target=bench.runner.work)
    worker.start()
    wait_until(lambda: chunk_rows_of(bench.database, job)[0]["state"] == "running")
    cancel(bench.database, first_tenant(bench.database), job_row(bench.database, job)["id"])
    worker.join(5)
    row = job_row(bench.database, job)
    assert row["state"] == "cancelled"
    assert row["succeeded"] + row["not_run"] == 12


def test_lost_answer_to_a_claim_is_settled_before_the_next(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(bench.database, TEXTS)
    take(bench.database, make_worker(bench.database, "other"))  # Another worker's chunk is left alone.
    other = make_job(bench.database, TEXTS)
    real = bench.database.transact
    lost: list[bool] = []

    def lossy(work: Callable[..., object]) -> object:
        answer = real(work)
        if isinstance(answer, Claim) and not lost:
            lost.append(True)
            raise StoreUnavailable("the answer to COMMIT was lost")
        return answer

    monkeypatch.setattr(bench.database, "transact", lossy)
    bench.runner.work()
    assert job_row(bench.database, other)["state"] == "completed"
    assert chunk_rows_of(bench.database, other)[0]["epoch"] == 2
    assert chunk_rows_of(bench.database, job)[0]["epoch"] == 1


def test_lease_is_renewed_only_while_the_work_progresses(database: Database, bench: Bench) -> None:
    make_job(database, TEXTS)
    claim = take(database, bench.runner.claimant, lease_s=2)
    assert claim is not None
    watch = bench.heartbeat.watch(claim, requested_at=time.monotonic())
    first_limit = watch.write_until
    wait_until(lambda: watch.write_until > first_limit, what="a renewal")
    watch.enter(0.2)
    wait_until(lambda: watch.is_stalled and watch.stopped_at is not None, what="the stall being noticed")
    limit = watch.write_until
    wait_until(lambda: time.monotonic() > limit, timeout_s=5, what="the end of the lease")
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
    wait_until(lambda: EXIT_HUNG in bench.exits, timeout_s=5)
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
    wait_until(lambda: exits == [EXIT_HUNG], timeout_s=5)
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


def test_work_that_exists_is_not_generated_again(bench: Bench) -> None:
    asked: list[str] = []

    class Noting(FakeEngine):
        def generate(self, prompts: Any, *args: Any, **options: Any) -> Iterator[list[Outcome]]:
            asked.extend(prompt.text for prompt in prompts)
            return super().generate(prompts, *args, **options)

    bench.engine = Noting
    make_job(bench.database, TEXTS[:6])
    longer = make_job(bench.database, TEXTS)
    bench.runner.work()
    assert len(asked) == len(set(asked)) == len(TEXTS)
    assert (job_row(bench.database, longer)["generated"], job_row(bench.database, longer)["shared"]) == (6, 6)


def test_generation_tells_what_it_ran_on(bench: Bench) -> None:
    make_job(bench.database, TEXTS)
    bench.runner.work()
    with bench.database.read() as connection:
        query = select(generations.c.engine, generations.c.device, generations.c.dtype).distinct()
        assert [tuple(row) for row in connection.execute(query)] == [("fake", "cpu", "none")]


def test_chunk_whose_lease_ran_out_unseen_is_given_back_before_the_next_claim(bench: Bench) -> None:
    class LateOnce(FakeEngine):
        """Takes longer than the lease once."""

        was_late = False

        def _forward(self, *args: Any) -> list[Outcome] | None:
            if not self.was_late:
                self.was_late = True
                assert bench.heartbeat._watch is not None
                bench.heartbeat._watch.stop(LeaseLost())
            return super()._forward(*args)

    bench.engine = LateOnce
    job = make_job(bench.database, TEXTS)
    bench.runner.work()
    assert job_row(bench.database, job)["state"] == "completed"
    assert [(chunk["epoch"], chunk["crashes"]) for chunk in chunk_rows_of(bench.database, job)] == [(2, 0)]


def test_chunk_whose_ending_got_no_answer_is_given_back_before_the_next_claim(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = bench.database.transact
    lost: list[bool] = []

    def lossy(work: Callable[..., object]) -> object:
        if getattr(work, "func", None) is finish and not lost:
            lost.append(True)
            raise StoreUnavailable("away")
        return real(work)

    monkeypatch.setattr(bench.database, "transact", lossy)
    job = make_job(bench.database, TEXTS)
    bench.runner.work()
    assert lost
    row, chunk = job_row(bench.database, job), chunk_rows_of(bench.database, job)[0]
    assert (row["state"], row["generated"], chunk["epoch"], chunk["crashes"]) == ("completed", 12, 2, 0)
