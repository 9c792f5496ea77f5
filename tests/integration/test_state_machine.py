"""Submit, wait, claim, claim ahead, renew, commit, finish, fail, release, cancel, pause, resume, retry, sweep, in any order.

Each step is done to SQL and to a model in memory (tests/support/model.py), and both must then say the same. Workers keep their
claims when they are taken from them, so every statement is also tried by zombies. A longer search:

    pytest tests/integration/test_state_machine.py --hypothesis-profile=long
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import Connection, select, update

from gistmill.control import Missing, cancel, pause, resume, retry
from gistmill.db import ahead, crashes, dependencies, endings
from gistmill.db import chunks as chunk_rows
from gistmill.db import results as result_rows
from gistmill.db.check import check, recount
from gistmill.db.chunks import Budgets
from gistmill.db.claim import Claim
from gistmill.db.clock import db_now
from gistmill.db.pending import Unit, load_pending
from gistmill.db.session import open_database
from gistmill.db.tables import chunks, dataset_dialogues, dataset_rows, jobs, results
from gistmill.errors import (
    ChunkFailed,
    DeviceOutOfMemory,
    GistmillError,
    InputTooLong,
    ItemError,
    JobEnded,
    JobIsOver,
    JobNotOver,
    LeaseLost,
    NothingToRetry,
)
from gistmill.settings import WorkerSettings
from gistmill.sweep import Sweeper
from tests.support.databases import PostgreSQLServer, SQLiteFiles
from tests.support.hands import made
from tests.support.invariants import assert_ends_are_counted
from tests.support.jobs import first_tenant, job_row, make_job, make_worker, take
from tests.support.model import ALIVE, FINAL, MAX_CRASHES, MAX_FAILURES, ModelChunk, ModelJob

WORKERS = ("ada", "bob", "cyd")
BUDGETS = Budgets(MAX_FAILURES, MAX_CRASHES, retry_base_s=0.0)
# Two dialogues come twice, so a rank is not a row.
TEXTS = [f"dialogue number {number:02}" for number in (0, 1, 2, 3, 4, 2, 5, 6, 7, 8, 9, 0)]
ERRORS: tuple[type[ItemError] | None, ...] = (None, None, InputTooLong, DeviceOutOfMemory)
LONG_S = 10_000.0
# The same examples in every run, so that a change fails because of the change.
SHORT = settings(derandomize=True, database=None, deadline=None, max_examples=40, stateful_step_count=50)

some_worker = st.sampled_from(WORKERS)
JOBS = 4
MOST_CHUNKS = 8
some_job = st.integers(0, JOBS - 1)
some_needs = st.sampled_from(((), (0,), (1,), (2,), (0, 1), (1, 2)))


class NoBells:
    """Nobody listens here: which worker wakes is not this test's matter."""

    def ring(self, kind: str, *, listeners: int = 1) -> bool:
        """Do nothing."""
        return False


class Gistmill(RuleBasedStateMachine):
    """The real statements beside the model."""

    make_url: ClassVar[Callable[[], str]]
    drop: ClassVar[Callable[[str], None]]

    @initialize()
    def open(self) -> None:
        """Begin with an empty database."""
        self.url = self.make_url()
        self.database = open_database(self.url)
        self.tenant = first_tenant(self.database)
        self.claimants = {name: make_worker(self.database, name) for name in WORKERS}
        self.hands: dict[str, Claim] = {}
        self.reserved: dict[str, Claim] = {}
        self.jobs: list[ModelJob] = []
        self.sweeper = Sweeper(self.database, NoBells(), WorkerSettings())  # type: ignore[arg-type]

    def teardown(self) -> None:
        """Check the whole database and drop it."""
        if hasattr(self, "database"):
            try:
                assert check(self.database) == []
            finally:
                self.database.close()
                self.drop(self.url)

    # What clients do.

    @precondition(lambda self: len(self.jobs) < JOBS)
    @rule(rows=st.integers(1, len(TEXTS)), per_chunk=st.integers(1, 6), is_paused=st.booleans(), needed=some_needs)
    def submit(self, rows: int, per_chunk: int, is_paused: bool, needed: tuple[int, ...]) -> None:
        needs = [job for at in needed if (job := self._job(at))]
        state = "waiting" if needs else "queued"
        key = make_job(self.database, TEXTS[:rows], per_chunk=per_chunk, paused=is_paused, state=state)
        if needs:
            self.database.transact(partial(wait_for, key=key, needs=[need.key for need in needs]))
        with self.database.read() as connection:
            ranks = self._read_ranks(connection, key)
        last = max(ranks.values())
        ranges = [ModelChunk(first, min(first + per_chunk - 1, last)) for first in range(0, last + 1, per_chunk)]
        job = ModelJob(key, job_row(self.database, key)["id"], ranks, ranges, state, paused=is_paused, needs=needs)
        self.jobs.append(job)
        for need in needs:
            need.dependents.append(job)
        job.judge()

    @rule(at=some_job, chance=st.integers(0, 3))
    def cancel(self, at: int, chance: int) -> None:
        if (job := self._job(at)) and chance == 0:
            if job.state in ("completed", "failed"):
                self._refuses(JobIsOver, lambda: cancel(self.database, self.tenant, job.id))
                return
            cancel(self.database, self.tenant, job.id)
            if job.state != "cancelled":
                job.cancel()

    @rule(at=some_job, wish=st.booleans())
    def pause_or_resume(self, at: int, wish: bool) -> None:
        if job := self._job(at):
            act = pause if wish else resume
            if job.state not in (*ALIVE, "waiting"):
                self._refuses(JobIsOver, lambda: act(self.database, self.tenant, job.id))
                return
            act(self.database, self.tenant, job.id)
            job.paused = wish
            if not wish:
                job.settle()

    @rule(at=some_job, retryable=st.booleans())
    def retry(self, at: int, retryable: bool) -> None:
        if job := self._job(at):
            again = partial(retry, self.database, self.tenant, job.id, Missing(retryable=retryable))
            if job.state not in FINAL or job.left:
                self._refuses(JobNotOver, again)
            elif not job.can_retry(retryable=retryable):
                self._refuses(NothingToRetry, again)
            else:
                assert again() == job.missing(retryable=retryable)
                job.retry(retryable=retryable)

    # What workers do, dead ones too.

    @rule(worker=some_worker)
    def claim(self, worker: str) -> None:
        if self._holds(worker):
            return
        found = take(self.database, self.claimants[worker], lease_s=LONG_S)
        if found is None:
            assert [job.id for job in self.jobs if job.next_chunk()] == []
            return
        job = self._job_of(found)
        chunk = job.next_chunk()
        assert chunk is not None
        assert (found.first_rank, found.last_rank, found.epoch) == (chunk.first, chunk.last, chunk.epoch + 1)
        chunk.state, chunk.owner, chunk.epoch, chunk.progressed = "running", worker, found.epoch, False
        job.state = "running"
        self.hands[worker] = found

    @rule(worker=some_worker)
    def claim_ahead(self, worker: str) -> None:
        """Nobody counts as live here: one chunk that waits is enough."""
        running = self.hands.get(worker)
        if running is None or self._keeps(worker):
            return
        asking = partial(ahead.claim_ahead, claimant=self.claimants[worker], running=running, lease_s=LONG_S, live_within_s=0)
        found = self.database.transact(asking)
        waiting = [job.next_chunk() for job in self.jobs if job.next_chunk()]
        if found is None:
            assert running.crashes or not waiting or any(chunk.crashes for chunk in waiting if chunk)
            return
        job = self._job_of(found)
        chunk = job.next_chunk()
        assert chunk is not None
        assert (found.first_rank, found.last_rank, found.epoch) == (chunk.first, chunk.last, chunk.epoch + 1)
        assert (chunk.crashes, running.crashes) == (0, 0)
        chunk.state, chunk.owner, chunk.epoch, chunk.progressed = "reserved", worker, found.epoch, False
        job.state = "running"
        self.reserved[worker] = found

    @rule(worker=some_worker)
    def begin_reserved(self, worker: str) -> None:
        """Its turn comes when the worker runs nothing else; a zombie tries it as well."""
        claim = self.reserved.get(worker)
        if claim is None or self._holds(worker):
            return
        job = self._job_of(claim)
        chunk = job.keeps(claim)
        may_run = job.state in ALIVE and not job.paused
        begun = self.database.transact(partial(ahead.begin, claim=claim, lease_s=LONG_S))
        assert begun == (chunk is not None and may_run)
        if chunk is not None and begun:
            chunk.state, job.state = "running", "running"
            self.hands[worker] = claim
        elif chunk is not None:
            job.give_back(chunk)

    @rule(worker=some_worker)
    def work_off_and_begin_what_is_reserved(self, worker: str) -> None:
        """Claim, claim ahead, finish and go on: a series that chance alone hardly makes."""
        self.claim(worker)
        self.claim_ahead(worker)
        self.commit(worker, 0, 1000, None)
        self.finish(worker)
        self.begin_reserved(worker)

    @rule(worker=some_worker)
    def give_reserved_back(self, worker: str) -> None:
        if claim := self.reserved.get(worker):
            job = self._job_of(claim)
            chunk = job.keeps(claim)
            self.database.transact(partial(ahead.give_back, claim=claim))
            if chunk is not None:
                job.give_back(chunk)

    @rule(worker=some_worker)
    def renew(self, worker: str) -> None:
        for claim in filter(None, (self.hands.get(worker), self.reserved.get(worker))):
            renewed = self.database.transact(partial(chunk_rows.renew, claim=claim, lease_s=LONG_S))
            job = self._job_of(claim)
            assert renewed == bool(job.owns(claim) or job.keeps(claim))

    @rule(worker=some_worker, start=st.integers(0, 2), size=st.integers(1, 4), error=st.sampled_from(ERRORS))
    def commit(self, worker: str, start: int, size: int, error: type[ItemError] | None) -> None:
        claim = self.hands.get(worker)
        if claim is None:
            return
        job = self._job_of(claim)
        with self.database.read() as connection:
            units = load_pending(connection, claim, limit=1000, is_sampling=False)
        every_row = [row for unit in units for row in unit.rows]
        units = units[start : start + size]
        write = partial(result_rows.record, claim=claim, **outcomes(units, error))
        chunk = job.owns(claim)
        if chunk is None:
            self._refuses(LeaseLost, lambda: self.database.transact(write))
        elif job.state in FINAL:
            self._refuses(JobEnded, lambda: self.database.transact(write))
        else:
            rows = [row for unit in units for row in unit.rows]
            assert sorted(every_row) == sorted(job.pending(chunk.first, chunk.last))
            recorded = self.database.transact(write)
            assert recorded.succeeded + recorded.failed == len(rows)
            job.record(chunk, rows, None if error is None else error.code)

    @rule(worker=some_worker)
    def commit_a_zombie_and_its_heir_both(self, worker: str) -> None:
        """What another owner has written meanwhile stands."""
        claim = self.hands.get(worker)
        if claim is None or self._job_of(claim).owns(claim) is not None:
            return
        self._refuses(LeaseLost, lambda: self.database.transact(partial(result_rows.record, claim=claim)))
        self._refuses(LeaseLost, lambda: self.database.transact(partial(chunk_rows.finish, claim=claim)))
        self._refuses(LeaseLost, lambda: self.database.transact(partial(chunk_rows.release, claim=claim)))
        fail = partial(chunk_rows.fail, claim=claim, error=ChunkFailed("x"), budgets=BUDGETS)
        self._refuses(LeaseLost, lambda: self.database.transact(fail))

    @rule(worker=some_worker, error=st.sampled_from(ERRORS))
    def work_to_the_end(self, worker: str, error: type[ItemError] | None) -> None:
        """Claim, commit everything and finish: without it few jobs would ever complete."""
        self.claim(worker)
        self.commit(worker, 0, 1000, error)
        self.finish(worker)

    @rule(worker=some_worker, error=st.sampled_from(ERRORS))
    def work_off_what_is_needed(self, worker: str, error: type[ItemError] | None) -> None:
        """Without it few jobs would be released."""
        self.let_rests_pass()
        for _ in range(MOST_CHUNKS):
            self.work_to_the_end(worker, error)

    @precondition(lambda self: any(job.dependents for job in self.jobs))
    @rule(at=some_job)
    def cancel_and_retry_a_need(self, at: int) -> None:
        """Without it few jobs would fail with a need, and fewer be revived."""
        if (job := self._job(at)) and job.dependents and job.state in (*ALIVE, "waiting", "cancelled"):
            self.cancel(at, 0)
            for worker in WORKERS:
                self.release_what_it_may_hold(worker)
            self.retry(at, retryable=False)

    @rule(worker=some_worker, start=st.integers(0, 2), size=st.integers(1, 2), error=st.sampled_from(ERRORS))
    def crash_with_progress_and_without(self, worker: str, start: int, size: int, error: type[ItemError] | None) -> None:
        """What is split the second time has holes: a series that chance alone hardly makes."""
        self.claim(worker)
        self.commit(worker, start, size, error)
        self.reap(worker)
        self.claim(worker)
        self.reap(worker)

    @rule(worker=some_worker)
    def finish(self, worker: str) -> None:
        claim = self.hands.get(worker)
        if claim is None:
            return
        job = self._job_of(claim)
        chunk = job.owns(claim)
        if chunk is not None and job.state not in FINAL and job.pending(chunk.first, chunk.last):
            return
        if job.state in FINAL:
            ending, outcome = partial(chunk_rows.close, claim=claim), "cancelled"
        else:
            ending, outcome = partial(chunk_rows.finish, claim=claim, ended=self._count_ends(claim)), "done"
        if self._end(worker, ending):
            assert chunk is not None
            chunk.end(outcome)
            job.settle()

    @rule(worker=some_worker)
    def finish_after_lost_commits(self, worker: str) -> None:
        """A worker that was answered more than SQL holds: its chunk is given back."""
        finish = partial(chunk_rows.finish, ended=1000)
        self._end_with(worker, finish, lambda job, chunk: job.give_back(chunk))

    @rule(worker=some_worker)
    def fail(self, worker: str) -> None:
        self._end_with(
            worker, partial(chunk_rows.fail, error=GistmillError("x"), budgets=BUDGETS), lambda job, chunk: job.fail(chunk)
        )

    @rule(worker=some_worker)
    def fail_job(self, worker: str) -> None:
        self._end_with(worker, partial(chunk_rows.fail_job, error=GistmillError("x")), lambda job, chunk: job.fail_whole(chunk))

    @rule(worker=some_worker, rests=st.booleans())
    def release(self, worker: str, rests: bool) -> None:
        self._end_with(
            worker,
            partial(chunk_rows.release, delay_s=LONG_S if rests else 0.0),
            lambda job, chunk: job.give_back(chunk, rests=rests),
        )

    @rule(worker=some_worker)
    def release_what_it_may_hold(self, worker: str) -> None:
        owned = self._owned(worker)
        released = self.database.transact(partial(chunk_rows.release_owned, worker=worker))
        assert released == len(owned)
        for job, chunk in owned:
            job.give_back(chunk)

    # What time and the sweep do. Nobody tells the worker: from now on it is a zombie.

    @rule(worker=some_worker)
    def reap(self, worker: str) -> None:
        owned = self._owned(worker)
        self.database.transact(partial(expire, worker=worker))
        reaped = self.database.transact(lambda connection: crashes.reap(connection, BUDGETS))
        assert reaped == len(owned)
        for job, chunk in owned:
            job.crash(chunk)

    @rule(worker=some_worker)
    def bury(self, worker: str) -> None:
        owned = self._owned(worker)
        assert self.database.transact(lambda connection: crashes.bury(connection, worker, BUDGETS)) == len(owned)
        for job, chunk in owned:
            job.crash(chunk)

    @rule()
    def sweep(self) -> None:
        self.sweeper.sweep()
        for job in self.jobs:
            job.sweep()

    @rule()
    def let_rests_pass(self) -> None:
        rested = update(chunks).where(chunks.c.run_at > db_now()).values(run_at=db_now())
        self.database.transact(lambda connection: connection.execute(rested))
        for job in self.jobs:
            for chunk in job.chunks:
                chunk.rests = False

    # What must hold.

    @invariant()
    def sql_says_what_the_model_says(self) -> None:
        if not getattr(self, "jobs", ()):
            return
        with self.database.read() as connection:
            for job in self.jobs:
                row = connection.execute(select(jobs).where(jobs.c.key == job.key)).mappings().one()
                assert row["state"] == job.state
                counts = ("succeeded", "failed", "not_run", "attempt")
                assert [row[name] for name in counts] == [getattr(job, name) for name in counts]
                assert (row["paused"], row["chunks"], row["chunks_left"]) == (job.paused, len(job.chunks), job.left)
                assert (row["error"] or {}).get("code") == job.error
                columns = (chunks.c.first_rank, chunks.c.last_rank, chunks.c.state, chunks.c.epoch, chunks.c.owner)
                query = select(*columns, chunks.c.failures, chunks.c.crashes).where(chunks.c.job_key == job.key)
                stored = [tuple(chunk) for chunk in connection.execute(query.order_by(chunks.c.ordinal))]
                written = connection.execute(select(results).where(results.c.job_key == job.key)).all()
                assert stored == [(c.first, c.last, c.state, c.epoch, c.owner, c.failures, c.crashes) for c in job.chunks]
                ends = {end.row_number: (end.error_code, end.attempt, end.epoch) for end in written}
                assert ends == {number: (end.code, end.attempt, end.epoch) for number, end in job.ends.items()}

    @invariant()
    def counters_are_what_a_recount_says(self) -> None:
        if hasattr(self, "database"):
            assert recount(self.database) == []
            assert_ends_are_counted(self.database)

    @invariant()
    def completed_job_misses_nothing(self) -> None:
        for job in getattr(self, "jobs", ()):
            if job.state == "completed":
                assert [row for row in job.ranks if job.is_pending(row)] == []

    # Helpers.

    def _end_with(self, worker: str, ending: partial[None], in_the_model: Callable[[ModelJob, ModelChunk], None]) -> None:
        claim = self.hands.get(worker)
        if claim is None:
            return
        job = self._job_of(claim)
        chunk = job.owns(claim)
        if self._end(worker, partial(ending, claim=claim)):
            assert chunk is not None
            in_the_model(job, chunk)

    def _end(self, worker: str, ending: Callable[[Connection], None]) -> bool:
        """End the worker's chunk; False when it was no longer its own."""
        claim = self.hands.pop(worker)
        if self._job_of(claim).owns(claim) is None:
            self._refuses(LeaseLost, lambda: self.database.transact(ending))
            return False
        self.database.transact(ending)
        return True

    def _refuses(self, error: type[Exception], act: Callable[[], object]) -> None:
        with pytest.raises(error):
            act()

    def _job(self, at: int) -> ModelJob | None:
        return self.jobs[at] if at < len(self.jobs) else None

    def _job_of(self, claim: Claim) -> ModelJob:
        return next(job for job in self.jobs if job.key == claim.job_key)

    def _holds(self, worker: str) -> bool:
        claim = self.hands.get(worker)
        return claim is not None and self._job_of(claim).owns(claim) is not None

    def _keeps(self, worker: str) -> bool:
        claim = self.reserved.get(worker)
        return claim is not None and self._job_of(claim).keeps(claim) is not None

    def _owned(self, worker: str) -> list[tuple[ModelJob, ModelChunk]]:
        return [(job, chunk) for job in self.jobs for chunk in job.chunks if chunk.owner == worker]

    def _count_ends(self, claim: Claim) -> int:
        job = self._job_of(claim)
        ranks = range(claim.first_rank, claim.last_rank + 1)
        return sum(job.ranks[row] in ranks and end.epoch == claim.epoch for row, end in job.ends.items())

    def _read_ranks(self, connection: Connection, key: int) -> dict[int, int]:
        joined = dataset_rows.join(dataset_dialogues, dataset_dialogues.c.dialogue_key == dataset_rows.c.dialogue_key)
        query = (
            select(dataset_rows.c.row_number, dataset_dialogues.c.rank)
            .select_from(joined.join(jobs, jobs.c.dataset_key == dataset_rows.c.dataset_key))
            .where(jobs.c.key == key, dataset_dialogues.c.dataset_key == dataset_rows.c.dataset_key)
        )
        return {row.row_number: row.rank for row in connection.execute(query)}


class GistmillWithAGraph(Gistmill):
    """The same, beginning with four jobs of which the last needs two, and those the first."""

    @initialize()
    def open(self) -> None:
        """Begin with the graph."""
        Gistmill.open(self)
        for needed in ((), (0,), (0,), (1, 2)):
            self.submit(4, 2, False, needed)


def outcomes(units: list[Unit], error: type[ItemError] | None) -> dict[str, list[object]]:
    if error is not None:
        return {"lost": [result_rows.Lost(unit, error("x")) for unit in units]}
    return {"made": [made(unit) for unit in units]}


def wait_for(connection: Connection, key: int, needs: list[int]) -> None:
    dependencies.add_needs(connection, key, needs)
    endings.judge(connection, [key])


def expire(connection: Connection, worker: str) -> None:
    held = update(chunks).where(chunks.c.owner == worker)
    connection.execute(held.values(lease_until=db_now() - 1))


def budget(kind: type[Gistmill]) -> settings:
    if settings.get_current_profile_name() == "long":
        return settings.get_profile("long")
    return SHORT if kind is Gistmill else settings(SHORT, max_examples=15)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", [Gistmill, GistmillWithAGraph])
def test_on_sqlite_any_order_of_events_keeps_what_must_hold(sqlite_files: SQLiteFiles, kind: type[Gistmill]) -> None:
    with ExitStack() as stack:

        def make() -> str:
            return sqlite_files.make_migrated(Path(stack.enter_context(tempfile.TemporaryDirectory())))

        machine = type("OnSQLite", (kind,), {"make_url": staticmethod(make), "drop": staticmethod(lambda _url: None)})
        run_state_machine_as_test(machine, settings=budget(kind))


@pytest.mark.postgresql
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("few_are_many")
@pytest.mark.parametrize("kind", [Gistmill, GistmillWithAGraph])
def test_on_postgresql_any_order_of_events_keeps_what_must_hold(
    postgresql_server: PostgreSQLServer, kind: type[Gistmill]
) -> None:
    parts = {"make_url": staticmethod(postgresql_server.make_migrated), "drop": staticmethod(postgresql_server.drop)}
    run_state_machine_as_test(type("OnPostgreSQL", (kind,), parts), settings=budget(kind))
