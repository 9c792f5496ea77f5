"""The runner: every way in which a chunk can end, on real databases, with the fake engine and no process."""

from __future__ import annotations

import math
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select, update

from gistmill.control import cancel
from gistmill.db.chunks import finish
from gistmill.db.claim import Claim, claim
from gistmill.db.tables import jobs, workers
from gistmill.errors import DeviceFull, DeviceTooSmall, LeaseLost, ModelUnavailable, ModelUnreadable, StoreUnavailable
from gistmill.queue import Bells
from tests.support.bench import FAST, TEXTS, Bench, OneBatch, errors_of, work_until_completed
from tests.support.graphs import make_evaluation, states
from tests.support.jobs import chunk_rows_of, first_tenant, job_row, make_job, make_worker, take
from tests.support.servers import wait_until
from workers import runner
from workers.engine.base import Engine, Outcome
from workers.engine.fake import FakeEngine
from workers.runner import EXIT_LOST_DEVICE


def test_runner_works_until_nothing_fits(bench: Bench) -> None:
    keys = [make_job(bench.database, TEXTS, per_chunk=5) for _ in range(2)]
    bench.runner.work()
    assert [job_row(bench.database, key)["state"] for key in keys] == ["completed", "completed"]
    assert [job_row(bench.database, key)["generated"] for key in keys] == [12, 0]
    assert len(bench.loads) == 1


def test_runner_that_gives_up_between_two_chunks_leaves_no_busy_worker(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(bench.database, TEXTS, per_chunk=4)
    answers = [claim]

    def claim_once(*asked: Any, **how: Any) -> Claim | None:
        if not answers:
            raise ZeroDivisionError
        return answers.pop()(*asked, **how)

    monkeypatch.setattr(runner, "claim", claim_once)
    with pytest.raises(ZeroDivisionError):
        bench.runner.work()

    assert [chunk["state"] for chunk in chunk_rows_of(bench.database, job)] == ["done", "queued", "queued"]
    with bench.database.read() as connection:
        assert connection.execute(select(workers.c.state, workers.c.chunk_key)).one() == ("idle", None)


def test_redis_that_does_not_answer_costs_no_lease(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    class Lasting(FakeEngine):
        def _forward(self, rows: Any, parameters: Any, should_stop: Callable[[], bool]) -> list[Outcome] | None:
            wait_until(lambda: should_stop() or is_renewed(), what="a renewal")
            return super()._forward(rows, parameters, should_stop)

    def is_renewed() -> bool:
        running = [chunk for chunk in chunk_rows_of(bench.database, job) if chunk["state"] == "running"]
        return any(chunk["lease_until"] > chunk["started_at"] + settings.lease_s + 0.1 for chunk in running)

    # Behind one ring that times out there is more of the lease left than a machine that is busy with other tests takes.
    monkeypatch.setattr("gistmill.queue.RING_TIMEOUT_S", 4.0)
    monkeypatch.setattr("gistmill.queue.REST_AFTER_TIMEOUT_S", 3600.0)
    # Shorter than two: one of the runner, one of the heartbeat.
    settings = FAST.model_copy(update={"lease_s": 7.4})
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        bells = Bells(f"redis://127.0.0.1:{deaf.getsockname()[1]}/0", "test:")
        bench.runner.bells = bells
        bench.runner.settings = bench.heartbeat.settings = settings
        bench.heartbeat.sweeper.bells = bells
        bench.engine = Lasting
        make_worker(bench.database, "idle")
        job = make_job(bench.database, TEXTS, per_chunk=4)
        bench.runner.work()
        assert job_row(bench.database, job)["state"] == "completed"
        assert [chunk["epoch"] for chunk in chunk_rows_of(bench.database, job)] == [1, 1, 1]
        bells.close()


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
    work_until_completed(bench, job)
    assert job_row(bench.database, job)["succeeded"] == len(TEXTS)
    assert [(chunk["failures"], chunk["crashes"]) for chunk in chunk_rows_of(bench.database, job)] == [(0, 0)]


def test_unforeseen_error_costs_a_failure_and_at_last_the_items(bench: Bench) -> None:
    def buggy() -> Engine:
        raise KeyError("a bug")

    bench.engine = buggy
    job = make_job(bench.database, TEXTS)
    work_until_completed(bench, job)
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


def start_and_wait_for_a_batch(bench: Bench, job: int) -> threading.Thread:
    bench.engine = lambda: OneBatch(max_rows=2)
    bench.handler.settings = FAST.model_copy(update={"commit_s": 0.0})
    worker = threading.Thread(target=bench.runner.work)
    worker.start()
    wait_until(lambda: job_row(bench.database, job)["succeeded"] == 2, what="the first micro-batch in SQL")
    return worker


def test_drain_records_what_is_done_and_gives_the_chunk_back(bench: Bench) -> None:
    job = make_job(bench.database, TEXTS)
    worker = start_and_wait_for_a_batch(bench, job)
    bench.drain.set()
    worker.join()
    row, chunk = job_row(bench.database, job), chunk_rows_of(bench.database, job)[0]
    assert row["succeeded"] == 2
    assert (chunk["state"], chunk["failures"], chunk["crashes"]) == ("queued", 0, 0)


def test_pause_gives_the_chunk_back_and_cancel_closes_it(bench: Bench) -> None:
    job = make_job(bench.database, TEXTS)
    worker = start_and_wait_for_a_batch(bench, job)
    bench.database.transact(lambda connection: connection.execute(update(jobs).values(paused=True)))
    worker.join()
    assert chunk_rows_of(bench.database, job)[0]["state"] == "queued"
    assert job_row(bench.database, job)["state"] == "running"
    bench.database.transact(lambda connection: connection.execute(update(jobs).values(paused=False)))
    worker = threading.Thread(target=bench.runner.work)
    worker.start()
    wait_until(lambda: chunk_rows_of(bench.database, job)[0]["state"] == "running")
    cancel(bench.database, first_tenant(bench.database), job_row(bench.database, job)["id"])
    worker.join()
    row = job_row(bench.database, job)
    assert (row["state"], row["succeeded"], row["not_run"]) == ("cancelled", 2, 10)


def test_lost_answer_to_a_claim_is_settled_before_the_next(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(bench.database, TEXTS)
    take(bench.database, make_worker(bench.database, "other"))  # Another worker's chunk is left alone.
    other = make_job(bench.database, TEXTS)
    real = bench.database.transact
    lost: list[bool] = []

    def lossy(work: Callable[..., object]) -> object:
        answer = real(work)
        if isinstance(answer, tuple) and isinstance(answer[0], Claim) and not lost:
            lost.append(True)
            raise StoreUnavailable("the answer to COMMIT was lost")
        return answer

    monkeypatch.setattr(bench.database, "transact", lossy)
    bench.runner.work()
    assert job_row(bench.database, other)["state"] == "completed"
    assert chunk_rows_of(bench.database, other)[0]["epoch"] == 2
    assert chunk_rows_of(bench.database, job)[0]["epoch"] == 1


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


@pytest.mark.usefixtures("patient_bells")
def test_worker_rings_for_what_its_chunk_released_although_it_has_just_rung(bench: Bench, redis_url: str) -> None:
    bells = Bells(redis_url, "test:")
    bench.heartbeat.sweeper._next = math.inf
    make_worker(bench.database, "scorer", kinds=("evaluate",))
    bench.runner.work()
    need = make_job(bench.database, TEXTS)
    evaluation = make_evaluation(bench.database, need)
    bench.runner.work()
    assert states(bench.database, need, evaluation) == ["completed", "queued"]
    assert bells.waiting("evaluate") == 1
    bells.close()
