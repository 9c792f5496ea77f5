"""Every control against every move of workers and sweeps, and against every other control, at the same moment."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations_with_replacement

import pytest
from sqlalchemy import Connection, update

from gistmill import control
from gistmill.db import ahead, crashes
from gistmill.db import chunks as chunk_rows
from gistmill.db.check import check
from gistmill.db.chunks import Budgets
from gistmill.db.claim import Claim, Claimant
from gistmill.db.clock import db_now
from gistmill.db.session import Database
from gistmill.db.tables import chunks
from gistmill.errors import ChunkFailed, DeviceOutOfMemory, ItemError, JobIsOver, JobNotOver, LeaseLost, NothingToRetry
from gistmill.specs import SPEC_VERSION
from gistmill.states import FINAL_JOB_STATES
from tests.support.hands import claimed, commit, end, pending, work
from tests.support.jobs import first_tenant, job_row, make_job, make_worker, take

TEXTS = [f"dialogue number {number:02}" for number in range(12)]
BUDGETS = Budgets(retry_base_s=0.0)
REFUSALS = (JobIsOver, JobNotOver, NothingToRetry, LeaseLost)
ROUNDS = 2


@dataclass
class Table:
    """A job in the middle of its life: one chunk runs, its owner has claimed one ahead, one is lost, one is queued.

    The owner of the lost one is gone. An item has failed.
    """

    database: Database
    job: int
    job_id: str
    tenant: int
    held: Claim
    reserved: Claim | None
    claims: list[Claim]
    behind: list[Claim] = field(default_factory=list)
    number: int = 0

    def transact(self, work: Callable[[Connection], object]) -> None:
        """Commit this."""
        self.database.transact(work)

    def cancel(self) -> None:
        """A client cancels the job."""
        control.cancel(self.database, self.tenant, self.job_id)

    def pause(self) -> None:
        """A client pauses it."""
        control.pause(self.database, self.tenant, self.job_id)

    def resume(self) -> None:
        """A client resumes it."""
        control.resume(self.database, self.tenant, self.job_id)

    def retry(self) -> None:
        """A client takes it up again."""
        control.retry(self.database, self.tenant, self.job_id)

    def claim(self) -> None:
        """A worker claims what comes next."""
        self.number += 1
        claim = take(self.database, make_worker(self.database, f"racer-{self.job}-{self.number}"))
        if claim is not None:
            self.claims.append(claim)

    def claim_ahead(self) -> None:
        """Another worker, which runs a chunk as well, claims the next one ahead."""
        reserve(self.database, replace(self.held, worker=f"ahead-{self.job}"))

    def begin(self) -> None:
        """The turn of the chunk that was claimed ahead comes."""
        if self.reserved is not None and self.database.transact(partial(ahead.begin, claim=self.reserved, lease_s=30.0)):
            self.claims.append(self.reserved)

    def begin_with_next(self) -> None:
        """Its turn comes, and the one behind it is reserved in the same transaction."""

        def both(connection: Connection, reserved: Claim) -> tuple[bool, Claim | None]:
            if not ahead.begin(connection, reserved, lease_s=30.0):
                return False, None
            claimant = Claimant(reserved.worker, ("summarize",), 10**12, SPEC_VERSION)
            return True, ahead.claim_behind(connection, claimant, reserved, [], lease_s=30.0)

        if self.reserved is not None:
            has_begun, behind = self.database.transact(partial(both, reserved=self.reserved))
            self.claims += [self.reserved] if has_begun else []
            self.behind += [] if behind is None else [behind]

    def give_back(self) -> None:
        """Its owner gives it back."""
        if self.reserved is not None:
            self.transact(partial(ahead.give_back, claim=self.reserved))

    def finish(self) -> None:
        """The owner records the rest of its chunk and finishes it."""
        end(self.database, self.held)

    def release(self) -> None:
        """The owner gives its chunk back."""
        self.transact(partial(chunk_rows.release, claim=self.held))

    def fail(self) -> None:
        """The owner's handler failed."""
        self.transact(partial(chunk_rows.fail, claim=self.held, error=ChunkFailed("x"), budgets=BUDGETS))

    def reap(self) -> None:
        """A sweep takes lost chunks away from their owners."""
        self.transact(partial(crashes.reap, budgets=BUDGETS))

    def sweep(self) -> None:
        """A sweep closes what is queued under an ended job."""
        self.transact(partial(chunk_rows.close_ended, job_key=self.job))


CONTROLS = (Table.cancel, Table.pause, Table.resume, Table.retry)
MOVES = (Table.claim, Table.finish, Table.release, Table.fail, Table.reap, Table.sweep)
AHEAD = (Table.claim_ahead, Table.begin, Table.begin_with_next, Table.give_back)
PAIRS = [*combinations_with_replacement(CONTROLS, 2), *((control, move) for control in CONTROLS for move in (*MOVES, *AHEAD))]
PAIRS += [(move, other) for move in AHEAD for other in (Table.claim, Table.reap, *AHEAD)]


def out_of_memory(_text: str) -> ItemError | None:
    return DeviceOutOfMemory()


def set_up(database: Database, *, is_over: bool) -> Table:
    job = make_job(database, TEXTS, per_chunk=3)
    held, lost = claimed(database), claimed(database)
    commit(database, held, pending(database, held)[:1], out_of_memory)
    reserved = None if is_over else reserve(database, held)
    if is_over:
        end(database, held)
        end(database, lost)
        work(database, out_of_memory)
    gone = update(chunks).where(chunks.c.key == lost.chunk_key, chunks.c.state == "running").values(lease_until=db_now() - 1)
    database.transact(lambda connection: connection.execute(gone))
    return Table(database, job, job_row(database, job)["id"], first_tenant(database), held, reserved, [held])


def reserve(database: Database, running: Claim) -> Claim | None:
    claimant = Claimant(running.worker, ("summarize",), 10**12, SPEC_VERSION)
    ask = partial(ahead.claim_ahead, claimant=claimant, running=running, lease_s=30.0, live_within_s=0.0)
    return database.transact(ask)


def race(*steps: Callable[[], None]) -> None:
    """Begin these at the same moment; a refusal is a fair outcome, any other error is none."""
    barrier = threading.Barrier(len(steps))
    errors: list[Exception] = []

    def go(step: Callable[[], None]) -> None:
        barrier.wait()
        try:
            step()
        except REFUSALS:
            pass
        except Exception as error:  # noqa: BLE001 - raised again below, in the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=go, args=(step,)) for step in steps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def bring_to_an_end(table: Table) -> None:
    """Do what workers, sweeps and users would do next, until nothing is missing."""
    table.give_back()
    for behind in table.behind:
        table.transact(partial(ahead.give_back, claim=behind))
    table.transact(partial(chunk_rows.release_owned, worker=f"ahead-{table.job}"))
    for claim in table.claims:
        with suppress(LeaseLost):
            end(table.database, claim)
    table.reap()
    table.sweep()
    with suppress(JobIsOver):
        table.resume()
    work(table.database)
    assert job_row(table.database, table.job)["state"] in FINAL_JOB_STATES
    with suppress(NothingToRetry):
        table.retry()
    work(table.database)


@pytest.mark.parametrize("is_over", [False, True], ids=["running", "over"])
@pytest.mark.parametrize(("one", "other"), PAIRS, ids=lambda step: step.__name__)
def test_two_moves_at_the_same_moment_leave_a_job_that_can_be_brought_to_its_end(
    database: Database, one: Callable[[Table], None], other: Callable[[Table], None], *, is_over: bool
) -> None:
    for _ in range(ROUNDS):
        table = set_up(database, is_over=is_over)
        race(partial(one, table), partial(other, table))
        assert check(database) == []
        bring_to_an_end(table)
        row = job_row(database, table.job)
        assert (row["state"], row["succeeded"], row["failed"], row["not_run"]) == ("completed", 12, 0, 0)
        assert check(database) == []


def test_two_reapers_and_a_live_owner_leave_the_chunk_with_one_of_them(database: Database) -> None:
    for _ in range(5):
        table = set_up(database, is_over=False)
        expire = update(chunks).where(chunks.c.key == table.held.chunk_key).values(lease_until=db_now() - 0.001)
        database.transact(lambda connection, expire=expire: connection.execute(expire))
        race(table.reap, table.reap, lambda table=table: renew(table))
        with database.read() as connection:
            chunk = connection.execute(chunks.select().where(chunks.c.key == table.held.chunk_key)).one()
        is_kept = chunk.state == "running"
        assert (chunk.epoch, chunk.owner) == (table.held.epoch, table.held.worker if is_kept else None)
        bring_to_an_end(table)
        assert job_row(database, table.job)["succeeded"] == 12
        assert check(database) == []


def renew(table: Table) -> None:
    table.transact(partial(chunk_rows.renew, claim=table.held, lease_s=30.0))


def test_retry_storm_makes_one_attempt_at_a_time(database: Database) -> None:
    table = set_up(database, is_over=True)
    for attempt in range(2, 5):
        race(*[table.retry] * 12)
        row = job_row(database, table.job)
        assert (row["attempt"], row["state"]) == (attempt, "queued")
        work(database, out_of_memory)
        assert check(database) == []
