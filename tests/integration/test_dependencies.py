"""Jobs that wait for jobs: released by whoever ends the last need, failed with a lost one, revived with its retry."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import Connection

from gistmill import control
from gistmill.db import chunks as chunk_rows
from gistmill.db import endings
from gistmill.db.check import check
from gistmill.db.jobs import InsertedJob, insert_job_row
from gistmill.db.session import Database
from gistmill.errors import GistmillError, NothingToRetry
from gistmill.readback import get_job, list_jobs
from gistmill.settings import WorkerSettings
from gistmill.sweep import Sweeper
from tests.support.graphs import (
    TEXTS,
    NoBells,
    complete,
    drop_chunks,
    id_of,
    make_chunkless,
    make_evaluation,
    make_waiting,
    plan_waiting,
    set_state,
    states,
)
from tests.support.hands import claimed, end, work
from tests.support.jobs import chunk_rows_of, first_tenant, job_row, make_job, make_worker, take
from tests.support.meanwhile import while_uncommitted


def sweep(database: Database) -> list[str]:
    """Sweep once; return the kinds that were rung."""
    bells = NoBells()
    Sweeper(database, bells, WorkerSettings()).sweep()
    return bells.rung


def fail_job(database: Database, job: int, message: str = "the model cannot be read.") -> None:
    database.transact(lambda connection: endings.mark_failed(connection, job, GistmillError(message)))


def cancel(database: Database, job: int) -> None:
    control.cancel(database, first_tenant(database), id_of(database, job))


def retry(database: Database, job: int, ring: Callable[[str], object] | None = None) -> int:
    return control.retry(database, first_tenant(database), id_of(database, job), ring=ring)


def test_waiting_job_is_claimed_only_when_its_last_need_has_completed(database: Database) -> None:
    first, second = make_job(database, TEXTS), make_job(database, TEXTS)
    waiting = make_waiting(database, first, second)
    assert states(database, waiting) == ["waiting"]
    assert [chunk["state"] for chunk in chunk_rows_of(database, waiting)] == ["queued", "queued"]
    one, other = claimed(database), claimed(database)
    assert take(database, make_worker(database, "idle")) is None
    end(database, one)
    assert states(database, first, second, waiting) == ["completed", "running", "waiting"]
    end(database, other)
    assert states(database, waiting) == ["queued"]
    assert claimed(database).job_key == waiting
    assert check(database) == []


def test_job_that_needs_completed_jobs_only_is_queued_at_once(database: Database) -> None:
    need = make_job(database, TEXTS)
    work(database)
    assert states(database, make_waiting(database, need)) == ["queued"]


@pytest.mark.parametrize(("lose", "said"), [(fail_job, "failed: the model cannot be read. Take"), (cancel, "was cancelled.")])
def test_lost_need_fails_what_needs_it_with_the_reason_and_the_sweep_closes_its_chunks(
    database: Database, lose: Callable[[Database, int], None], said: str
) -> None:
    need = make_job(database, TEXTS)
    direct = make_waiting(database, need)
    through = make_waiting(database, direct)
    lose(database, need)
    late = make_waiting(database, through)
    for job in (direct, through, late):
        row = job_row(database, job)
        assert (row["state"], row["not_run"], row["error"]["code"]) == ("failed", 4, "dependency_failed")
        assert f"{id_of(database, need)}, which this one needs, {said}" in row["error"]["message"]
        assert row["error"]["message"].endswith(f"gistmill jobs retry {id_of(database, need)}")
    sweep(database)
    for job in (direct, through, late):
        assert {chunk["outcome"] for chunk in chunk_rows_of(database, job)} == {"cancelled"}
        assert job_row(database, job)["chunks_left"] == 0
    assert check(database) == []


def test_worker_that_fails_the_whole_job_fails_what_waits_for_it(database: Database) -> None:
    need = make_job(database, TEXTS)
    waiting = make_waiting(database, need)
    claim = claimed(database)
    database.transact(lambda connection: chunk_rows.fail_job(connection, claim, GistmillError("unreadable")))
    assert states(database, need, waiting) == ["failed", "failed"]


def test_reason_stays_that_of_the_first_through_a_chain(database: Database) -> None:
    need = make_job(database, TEXTS)
    direct = make_waiting(database, need)
    through = make_waiting(database, direct)
    fail_job(database, need)
    assert job_row(database, through)["error"] == job_row(database, direct)["error"]


def test_diamond_is_worked_off_from_its_root_to_its_end(database: Database) -> None:
    root = make_job(database, TEXTS)
    sides = [make_waiting(database, root), make_waiting(database, root)]
    last = make_waiting(database, *sides, root)
    ended: list[int] = []
    while (claim := take(database, make_worker(database, f"w{len(ended)}"))) is not None:
        ended.append(claim.job_key)
        end(database, claim)
    assert ended == [root, *(side for side in sides for _ in range(2)), last, last]
    assert states(database, root, *sides, last) == ["completed"] * 4
    assert check(database) == []


def test_job_without_chunks_completes_with_its_needs_and_releases_what_waits_for_it(database: Database) -> None:
    need = make_job(database, TEXTS)
    between = make_chunkless(database, need)
    waiting = make_waiting(database, between)
    work_until_released = complete(database, need)
    assert work_until_released == {"summarize"}
    assert states(database, between, waiting) == ["completed", "queued"]


def test_cancelled_waiting_job_leaves_its_needs_alone(database: Database) -> None:
    need = make_job(database, TEXTS)
    waiting = make_waiting(database, need)
    after = make_waiting(database, waiting)
    cancel(database, waiting)
    row = job_row(database, waiting)
    assert (row["state"], row["not_run"], row["chunks_left"]) == ("cancelled", 4, 0)
    assert states(database, need, after) == ["queued", "failed"]
    work(database)
    assert states(database, need, waiting) == ["completed", "cancelled"]
    retry(database, waiting)
    work(database)
    assert states(database, waiting, after) == ["completed", "completed"]
    assert check(database) == []


def test_pause_of_a_waiting_job_stays_a_wish(database: Database) -> None:
    need = make_job(database, TEXTS)
    waiting = make_waiting(database, need)
    tenant = first_tenant(database)
    control.pause(database, tenant, id_of(database, waiting))
    work(database)
    row = job_row(database, waiting)
    assert (row["state"], row["paused"]) == ("queued", True)
    control.resume(database, tenant, id_of(database, waiting))
    work(database)
    assert states(database, waiting) == ["completed"]


def test_resume_looks_again_whether_the_needs_have_completed(database: Database) -> None:
    need = make_job(database, TEXTS)
    waiting = make_waiting(database, need)
    set_state(database, need, state="completed")
    rung: list[str] = []
    control.resume(database, first_tenant(database), id_of(database, waiting), ring=rung.append)
    assert (states(database, waiting), rung) == (["queued"], ["summarize"])


def test_resume_rings_for_what_it_has_released(database: Database) -> None:
    need = make_job(database, TEXTS)
    make_evaluation(database, need)
    drop_chunks(database, need)
    rung: list[str] = []
    control.resume(database, first_tenant(database), id_of(database, need), ring=rung.append)
    assert rung == ["evaluate", "summarize"]


@pytest.mark.parametrize("is_swept", [False, True])
def test_retry_of_a_lost_need_revives_what_failed_with_it(database: Database, *, is_swept: bool) -> None:
    need = make_job(database, TEXTS, per_chunk=2)
    direct = make_waiting(database, need)
    through = make_waiting(database, direct)
    cancel(database, need)
    if is_swept:
        sweep(database)
    assert retry(database, need) == 4
    for job in (direct, through):
        row = job_row(database, job)
        assert (row["state"], row["attempt"], row["not_run"], row["error"]) == ("waiting", 2, 0, None)
        assert (row["chunks_left"], row["finished_at"]) == (2, None)
        assert {chunk["state"] for chunk in chunk_rows_of(database, job)} == {"queued"}
    sweep(database)
    assert check(database) == []
    work(database)
    assert states(database, need, direct, through) == ["completed"] * 3
    assert [job_row(database, job)["succeeded"] for job in (direct, through)] == [4, 4]
    assert check(database) == []


def test_job_with_two_lost_needs_is_revived_with_the_last_of_them(database: Database) -> None:
    one, other = make_job(database, TEXTS), make_job(database, TEXTS)
    waiting = make_waiting(database, one, other)
    cancel(database, one)
    cancel(database, other)
    retry(database, one)
    assert states(database, waiting) == ["failed"]
    retry(database, other)
    row = job_row(database, waiting)
    assert (row["state"], row["attempt"]) == ("waiting", 2)


def test_retry_leaves_jobs_alone_that_failed_for_a_reason_of_their_own(database: Database) -> None:
    need = make_job(database, TEXTS)
    waiting = make_waiting(database, need)
    fail_job(database, waiting)
    cancel(database, need)
    retry(database, need)
    assert (states(database, waiting), job_row(database, waiting)["attempt"]) == (["failed"], 1)


def test_job_that_was_cancelled_as_its_last_item_ended_is_completed_by_a_retry(database: Database) -> None:
    need = make_job(database, TEXTS)
    waiting = make_waiting(database, need)
    claim = claimed(database)
    cancel(database, need)
    end(database, claim)
    row = job_row(database, need)
    assert (row["state"], row["succeeded"], row["not_run"]) == ("cancelled", 4, 0)
    assert retry(database, need) == 0
    assert states(database, need, waiting) == ["completed", "queued"]
    assert check(database) == []


def test_retry_of_a_job_whose_need_is_lost_names_what_to_retry(database: Database) -> None:
    need = make_job(database, TEXTS)
    waiting = make_waiting(database, need)
    cancel(database, need)
    sweep(database)
    with pytest.raises(NothingToRetry, match=f"needs the job {id_of(database, need)}, which was cancelled"):
        retry(database, waiting)
    row = job_row(database, waiting)
    assert (row["state"], row["attempt"], row["chunks_left"]) == ("failed", 1, 0)
    assert check(database) == []


def test_retry_rings_for_what_can_be_claimed_and_not_for_what_waits(database: Database) -> None:
    need = make_job(database, TEXTS)
    waiting = make_waiting(database, need)
    cancel(database, waiting)
    rung: list[str] = []
    retry(database, waiting, ring=rung.append)
    assert (states(database, waiting), rung) == (["waiting"], [])
    cancel(database, waiting)
    complete(database, need)
    retry(database, waiting, ring=rung.append)
    assert (states(database, waiting), rung) == (["queued"], ["summarize"])


def test_sweep_releases_what_was_missed_and_rings_for_it(database: Database) -> None:
    need = make_job(database, TEXTS)
    waiting = make_waiting(database, need)
    drop_chunks(database, need)
    set_state(database, need, state="completed", not_run=4)
    assert check(database) == [f"{id_of(database, waiting)}: it waits, but not for any job"]
    make_worker(database, "idle")
    assert sweep(database) == ["summarize"]
    assert states(database, waiting) == ["queued"]
    assert check(database) == []


def test_sweep_fails_what_was_missed(database: Database) -> None:
    need, other = make_job(database, TEXTS), make_job(database, TEXTS)
    waiting = make_waiting(database, need, other)
    drop_chunks(database, need)
    set_state(database, need, state="cancelled", not_run=4)
    sweep(database)
    sweep(database)
    row = job_row(database, waiting)
    assert (row["state"], row["chunks_left"], row["error"]["code"]) == ("failed", 0, "dependency_failed")
    assert check(database) == []


def test_sweep_that_saw_a_job_ended_leaves_it_alone_when_it_was_revived(database: Database) -> None:
    need = make_job(database, TEXTS)
    waiting = make_waiting(database, need)
    cancel(database, need)
    retry(database, need)
    database.transact(lambda connection: chunk_rows.close_ended(connection, waiting))
    assert {chunk["state"] for chunk in chunk_rows_of(database, waiting)} == {"queued"}
    assert states(database, waiting) == ["waiting"]


def test_sweep_leaves_jobs_alone_that_wait_for_something(database: Database) -> None:
    done, running = make_job(database, TEXTS), make_job(database, TEXTS)
    waiting = make_waiting(database, done, running)
    complete(database, done)
    sweep(database)
    assert states(database, waiting) == ["waiting"]
    assert check(database) == []


def test_reader_is_told_for_which_jobs_a_job_waits(database: Database) -> None:
    needs = [make_job(database, TEXTS) for _ in range(5)]
    waiting = make_waiting(database, *needs)
    tenant = first_tenant(database)
    complete(database, needs[0])
    view = get_job(database, tenant, id_of(database, waiting))
    named = ", ".join(f"{id_of(database, need)} (queued)" for need in needs[1:4])
    assert view.waits_for == f"it waits for {named} and 1 more"
    assert list_jobs(database, tenant, state="waiting").data == [view]


# What happens at the same moment.


def test_two_needs_that_complete_at_the_same_moment_release_the_job_once(database: Database) -> None:
    needs = [make_job(database, TEXTS), make_job(database, TEXTS)]
    waiting = make_waiting(database, *needs)
    for need in needs:
        drop_chunks(database, need)
    released: list[frozenset[str]] = []
    second = while_uncommitted(
        database,
        lambda connection: released.append(endings.settle(connection, needs[0])),
        lambda: database.transact(lambda connection: endings.settle(connection, needs[1])),
    )
    assert states(database, waiting) == ["queued"]
    assert [*released, second] == [frozenset(), {"summarize"}]


@pytest.mark.parametrize("is_lost", [False, True])
def test_job_that_is_written_while_its_need_ends_is_not_forgotten(database: Database, *, is_lost: bool) -> None:
    need = make_job(database, TEXTS)
    drop_chunks(database, need)

    def finish(connection: Connection) -> None:
        if is_lost:
            endings.mark_failed(connection, need, GistmillError("x"))
        else:
            endings.settle(connection, need)

    waiting = while_uncommitted(database, finish, lambda: make_waiting(database, need))
    assert isinstance(waiting, int)
    assert states(database, waiting) == ["failed" if is_lost else "queued"]


def test_need_that_ends_while_a_job_that_needs_it_is_written_releases_it(database: Database) -> None:
    need = make_job(database, TEXTS)
    drop_chunks(database, need)
    new, ranges = plan_waiting(database, need)
    made: list[InsertedJob] = []
    while_uncommitted(
        database,
        lambda connection: made.append(insert_job_row(connection, new, ranges)),
        lambda: database.transact(lambda connection: endings.settle(connection, need)),
    )
    assert states(database, made[0].key) == ["queued"]
