"""Every ending against every control, sweep and claim at the same moment, in a graph of jobs that need each other:

need --> between --> last <-- other
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations_with_replacement, product

import pytest
from sqlalchemy import func, select

from gistmill import control
from gistmill.db import chunks as chunk_rows
from gistmill.db.check import check
from gistmill.db.claim import Claim
from gistmill.db.session import Database, open_database
from gistmill.db.tables import chunks, jobs
from gistmill.errors import Conflict, GistmillError, LeaseLost
from gistmill.settings import WorkerSettings
from gistmill.states import JobState
from gistmill.sweep import Sweeper
from tests.faults.test_races import race
from tests.support.databases import PostgreSQLServer
from tests.support.graphs import TEXTS, NoBells, id_of, make_waiting, states
from tests.support.hands import claimed, end, work
from tests.support.jobs import first_tenant, job_row, make_job, make_worker, take


@dataclass
class Graph:
    """Two jobs that are held by workers, and two that wait."""

    database: Database
    tenant: int
    need: int
    other: int
    between: int
    last: int
    held: Claim
    held_other: Claim
    claims: list[Claim] = field(default_factory=list)

    @property
    def jobs(self) -> tuple[int, ...]:
        """All of it, the needed first."""
        return self.need, self.other, self.between, self.last

    def finish_need(self) -> None:
        """The owner of the first job's only chunk finishes."""
        end(self.database, self.held)

    def finish_other(self) -> None:
        """So does the other's."""
        end(self.database, self.held_other)

    def fail_need(self) -> None:
        """The first job fails as a whole."""
        self.database.transact(partial(chunk_rows.fail_job, claim=self.held, error=GistmillError("x")))

    def release_need(self) -> None:
        """Its worker gives the chunk back."""
        self.database.transact(partial(chunk_rows.release, claim=self.held))

    def cancel_need(self) -> None:
        """A client cancels the first job."""
        self._steer(control.cancel, self.need)

    def cancel_other(self) -> None:
        """Or the other."""
        self._steer(control.cancel, self.other)

    def cancel_between(self) -> None:
        """Or one that waits, and is waited for."""
        self._steer(control.cancel, self.between)

    def cancel_last(self) -> None:
        """Or the last."""
        self._steer(control.cancel, self.last)

    def pause_between(self) -> None:
        """A client pauses a job that waits."""
        self._steer(control.pause, self.between)

    def resume_between(self) -> None:
        """Or resumes it."""
        self._steer(control.resume, self.between)

    def retry_need(self) -> None:
        """A client takes the first job up again."""
        self._steer(control.retry, self.need)

    def retry_between(self) -> None:
        """Or one that needs it."""
        self._steer(control.retry, self.between)

    def retry_last(self) -> None:
        """Or the last."""
        self._steer(control.retry, self.last)

    def claim(self) -> None:
        """A worker claims what comes next."""
        found = take(self.database, make_worker(self.database, uuid.uuid4().hex))
        if found is not None:
            self.claims.append(found)

    def sweep(self) -> None:
        """A sweep repeats what was missed."""
        Sweeper(self.database, NoBells(), WorkerSettings()).sweep()

    def _steer(self, do: Callable[[Database, int, str], object], job: int) -> None:
        do(self.database, self.tenant, id_of(self.database, job))


ENDINGS = (Graph.finish_need, Graph.fail_need, Graph.cancel_need, Graph.finish_other, Graph.cancel_other)
STEPS = (
    *(Graph.cancel_between, Graph.cancel_last, Graph.pause_between, Graph.resume_between),
    *(Graph.release_need, Graph.claim, Graph.sweep),
)
RETRIES = (Graph.retry_need, Graph.retry_between, Graph.retry_last)
LATER = (Graph.sweep, Graph.claim, Graph.finish_other, Graph.cancel_other, Graph.cancel_last)
RUNNING = [*combinations_with_replacement(ENDINGS, 2), *product(ENDINGS[:2], STEPS)]
LOST = [*combinations_with_replacement(RETRIES, 2), *product(RETRIES[:2], LATER)]


def set_up(database: Database) -> Graph:
    need, other = make_job(database, TEXTS), make_job(database, TEXTS)
    held, held_other = claimed(database), claimed(database)
    between = make_waiting(database, need)
    last = make_waiting(database, between, other)
    return Graph(database, first_tenant(database), need, other, between, last, held, held_other)


def assert_sound(graph: Graph) -> None:
    """Every count is right, nothing is forgotten, and nothing runs under a job that waits."""
    assert check(graph.database) == []
    running = select(func.count()).join_from(chunks, jobs, jobs.c.key == chunks.c.job_key)
    with graph.database.read() as connection:
        assert connection.scalar(running.where(chunks.c.state == "running", jobs.c.state == JobState.WAITING)) == 0


def bring_to_an_end(graph: Graph) -> None:
    """Do what workers, sweeps and users would do next, until every job has completed."""
    for claim in (graph.held, graph.held_other, *graph.claims):
        with suppress(LeaseLost):
            end(graph.database, claim)
    for job in graph.jobs:
        graph.sweep()
        for steer in (control.resume, control.retry):
            with suppress(Conflict):
                graph._steer(steer, job)
        work(graph.database)


def race_to_the_end(graph: Graph, one: Callable[[Graph], None], other: Callable[[Graph], None]) -> None:
    race(partial(one, graph), partial(other, graph))
    assert_sound(graph)
    bring_to_an_end(graph)
    assert states(graph.database, *graph.jobs) == ["completed"] * 4
    assert [job_row(graph.database, job)["succeeded"] for job in graph.jobs] == [4] * 4
    assert_sound(graph)


@pytest.mark.parametrize(("one", "other"), RUNNING, ids=lambda step: step.__name__)
def test_two_moves_in_a_graph_at_the_same_moment_leave_it_fit_to_be_brought_to_its_end(
    database: Database, one: Callable[[Graph], None], other: Callable[[Graph], None]
) -> None:
    race_to_the_end(set_up(database), one, other)


@pytest.mark.parametrize(("one", "other"), LOST, ids=lambda step: step.__name__)
def test_retry_beside_another_move_revives_what_it_can(
    database: Database, one: Callable[[Graph], None], other: Callable[[Graph], None]
) -> None:
    graph = set_up(database)
    graph.cancel_need()
    graph.database.transact(partial(chunk_rows.close, claim=graph.held))
    assert states(database, *graph.jobs) == ["cancelled", "running", "failed", "failed"]
    race_to_the_end(graph, one, other)


@pytest.mark.postgresql
def test_storm_of_moves_in_one_graph_meets_no_deadlock(postgresql_server: PostgreSQLServer) -> None:
    url = postgresql_server.make_migrated()
    database = open_database(url, connections=8)
    chance = random.Random(5)
    for _ in range(6):
        graph = set_up(database)
        moves = [*ENDINGS, *STEPS, *RETRIES, *RETRIES]
        race(*(partial(chance.choice(moves), graph) for _ in range(8)))
        race(*(partial(chance.choice(moves), graph) for _ in range(8)))
        assert_sound(graph)
        bring_to_an_end(graph)
        assert states(database, *graph.jobs) == ["completed"] * 4
    database.close()
    assert postgresql_server.count_deadlocks(url) == 0
    postgresql_server.drop(url)
