"""Workers that are killed as they end a job that others wait for, beside one that is idle and hears no bell of it."""

from __future__ import annotations

import signal

import pytest

from gistmill.db.session import Database
from tests.support.faults import kill_at
from tests.support.fleet import Fleet
from tests.support.graphs import make_waiting, states
from tests.support.invariants import assert_all_ended, wait_for_end
from tests.support.jobs import job_row, make_job
from tests.support.servers import wait_until

TEXTS = [f"dialogue number {number:02} about something" for number in range(24)]


@pytest.mark.parametrize("moment", ["begun", "committed"])
def test_worker_killed_as_it_releases_what_waits_loses_nothing(database: Database, fleet: Fleet, moment: str) -> None:
    need = make_job(database, TEXTS)
    between = make_waiting(database, need, texts=TEXTS[:6])
    last = make_waiting(database, between, need, texts=TEXTS)
    drill = [kill_at(f"ending.{moment}", ending="finish")]
    # Long enough for a look at what it leaves before another one ends the job in its place.
    victim = fleet.start(seconds_per_row=0.1, drill=drill, GISTMILL_WORKER__LEASE_S="6")
    wait_until(lambda: job_row(database, need)["state"] == "running", timeout_s=20)
    fleet.start()
    assert victim.wait(30.0) == -signal.SIGKILL
    assert states(database, between) == ["waiting"] or moment == "committed"
    wait_for_end(database, last)
    for job in (need, between, last):
        assert_all_ended(database, job, fleet.ledger)
