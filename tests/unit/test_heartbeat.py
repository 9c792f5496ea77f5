"""One beat at a time: when a worker renews, stops, is told to stop, and ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
from sqlalchemy import Connection, update

from gistmill.control import cancel
from gistmill.db.claim import Claim
from gistmill.db.session import Database
from gistmill.db.tables import chunks, jobs
from gistmill.errors import Draining, JobEnded, JobPaused, LeaseLost, Stalled, StoreUnavailable
from gistmill.settings import WorkerSettings
from gistmill.sweep import Sweeper
from tests.support.jobs import chunk_rows_of, first_tenant, job_row, make_job, make_worker, take
from tests.support.servers import wait_until
from tests.unit.test_sweep import Chimes
from workers.heartbeat import STOP_LIMIT_S, Heartbeat, Watch

SETTINGS = WorkerSettings(lease_s=30, renew_s=10, wish_s=60, sweep_s=60, margin_s=2)
ANSWER_S = 0.3


@pytest.fixture
def claim(sqlite_only: Database) -> Claim:
    make_job(sqlite_only, ["one", "two"])
    found = take(sqlite_only, make_worker(sqlite_only, "w"))
    assert found is not None
    return found


@pytest.fixture
def heartbeat(sqlite_only: Database) -> Heartbeat:
    """A heartbeat without its thread that has just looked at the wish and swept."""
    made = Heartbeat(sqlite_only, "w", SETTINGS, Sweeper(sqlite_only, Chimes(), SETTINGS), threading.Event())
    made.beat()
    return made


def change_chunks(database: Database, **values: object) -> None:
    database.transact(lambda connection: connection.execute(update(chunks).values(**values)))


def test_worker_stops_a_margin_before_its_lease_ends_counted_from_the_request(heartbeat: Heartbeat, claim: Claim) -> None:
    watch = heartbeat.watch(claim, requested_at=1000.0)
    assert watch.write_until == 1000.0 + SETTINGS.lease_s - SETTINGS.margin_s


def test_renewal_that_was_answered_late_counts_from_its_request(
    heartbeat: Heartbeat, claim: Claim, sqlite_only: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sqlite_only.transact

    def slow(work: Callable[[Connection], object]) -> object:
        answer = real(work)
        time.sleep(ANSWER_S)
        return answer

    asked_at = time.monotonic()
    watch = heartbeat.watch(claim, requested_at=asked_at - SETTINGS.renew_s)
    before = watch.write_until
    monkeypatch.setattr(sqlite_only, "transact", slow)
    heartbeat.beat()
    assert before < watch.write_until <= time.monotonic() - ANSWER_S + SETTINGS.lease_s - SETTINGS.margin_s


def test_polling_is_progress(claim: Claim) -> None:
    watch = Watch(claim, write_until=float("inf"), drain=threading.Event())
    watch.enter(60.0)
    watch._ticked_at -= 61.0
    assert watch.is_stalled
    assert not watch.should_stop()
    assert not watch.is_stalled


def test_work_that_stands_still_is_told_to_stop(heartbeat: Heartbeat, claim: Claim) -> None:
    watch = heartbeat.watch(claim, requested_at=time.monotonic())
    watch.enter(0.05)
    wait_until(lambda: watch.is_stalled)
    heartbeat.beat()
    with pytest.raises(Stalled):
        watch.check()


def test_lost_lease_ends_the_process_only_after_the_limit(heartbeat: Heartbeat, claim: Claim) -> None:
    exits: list[int] = []
    heartbeat.exit = exits.append
    watch = heartbeat.watch(claim, requested_at=time.monotonic())
    watch.stop(LeaseLost())
    heartbeat.beat()
    assert exits == []
    assert watch.stopped_at is not None
    watch.stopped_at -= STOP_LIMIT_S
    heartbeat.beat()
    assert len(exits) == 1


def test_reserved_chunk_is_renewed_with_the_running_one(heartbeat: Heartbeat, claim: Claim, sqlite_only: Database) -> None:
    job = make_job(sqlite_only, ["three"])
    reserved = take(sqlite_only, make_worker(sqlite_only, "v"))
    assert reserved is not None
    change_chunks(sqlite_only, lease_until=1.0)
    heartbeat.keep(reserved)
    heartbeat.watch(claim, requested_at=time.monotonic() - SETTINGS.renew_s)
    heartbeat.beat()
    assert chunk_rows_of(sqlite_only, job)[0]["lease_until"] > 1.0
    for no_more in (partial(heartbeat.keep, None), partial(heartbeat.keep, reserved, until=time.monotonic())):
        no_more()
        change_chunks(sqlite_only, lease_until=1.0)
        heartbeat.watch(claim, requested_at=time.monotonic() - SETTINGS.renew_s)
        heartbeat.beat()
        assert chunk_rows_of(sqlite_only, job)[0]["lease_until"] == 1.0
    assert chunk_rows_of(sqlite_only, claim.job_key)[0]["lease_until"] > 1.0


def test_loss_of_the_reserved_chunk_stops_nobody(heartbeat: Heartbeat, claim: Claim, sqlite_only: Database) -> None:
    make_job(sqlite_only, ["three"])
    reserved = take(sqlite_only, make_worker(sqlite_only, "v"))
    assert reserved is not None
    heartbeat.keep(replace(reserved, epoch=reserved.epoch - 1))
    watch = heartbeat.watch(claim, requested_at=time.monotonic() - SETTINGS.renew_s)
    before = watch.write_until
    heartbeat.beat()
    assert watch.write_until > before
    watch.check()


def test_renewal_in_vain_tells_the_handler(heartbeat: Heartbeat, claim: Claim, sqlite_only: Database) -> None:
    watch = heartbeat.watch(claim, requested_at=time.monotonic() - SETTINGS.renew_s)
    change_chunks(sqlite_only, epoch=claim.epoch + 1)
    heartbeat.beat()
    with pytest.raises(LeaseLost):
        watch.check_write()


def test_lost_lease_overrules_every_other_reason(claim: Claim) -> None:
    watch = Watch(claim, write_until=float("inf"), drain=threading.Event())
    watch.stop(Draining())
    watch.check_write()
    watch.stop(LeaseLost())
    watch.stop(Draining())
    with pytest.raises(LeaseLost):
        watch.check_write()


@pytest.mark.parametrize(("wish", "reason"), [("cancel", JobEnded), ("pause", JobPaused)])
def test_wish_of_the_user_reaches_the_handler(
    heartbeat: Heartbeat, claim: Claim, sqlite_only: Database, wish: str, reason: type[Exception]
) -> None:
    heartbeat.settings = SETTINGS.model_copy(update={"wish_s": 1e-9})
    heartbeat._next_wish = 0.0
    watch = heartbeat.watch(claim, requested_at=time.monotonic())
    heartbeat.beat()
    watch.check()
    if wish == "cancel":
        cancel(sqlite_only, first_tenant(sqlite_only), job_row(sqlite_only, claim.job_key)["id"])
    else:
        sqlite_only.transact(lambda connection: connection.execute(update(jobs).values(paused=True)))
    heartbeat.beat()
    with pytest.raises(reason):
        watch.check()


def test_beat_without_an_answer_ends_the_contact(
    heartbeat: Heartbeat, claim: Claim, sqlite_only: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def transact(_work: object) -> object:
        raise StoreUnavailable("away")

    assert heartbeat.sweeper.contact.since is not None
    heartbeat.watch(claim, requested_at=time.monotonic() - SETTINGS.renew_s)
    monkeypatch.setattr(sqlite_only, "transact", transact)
    heartbeat._beat_or_wait_for_sql()
    assert heartbeat.sweeper.contact.since is None


def test_asking_for_the_reason_to_stop_is_no_progress(claim: Claim) -> None:
    watch = Watch(claim, write_until=float("inf"), drain=threading.Event())
    watch.enter(0.05)
    wait_until(lambda: watch.reason() is None and watch.is_stalled, timeout_s=5)


def test_asking_whether_to_write_is_no_progress(claim: Claim) -> None:
    watch = Watch(claim, write_until=float("inf"), drain=threading.Event())
    watch.enter(0.05)

    def has_stalled() -> bool:
        watch.check_write()
        return watch.is_stalled

    wait_until(has_stalled, timeout_s=5)


def test_draining_worker_notices_by_its_own_clock_that_its_lease_may_have_ended(claim: Claim) -> None:
    watch = Watch(claim, write_until=float("inf"), drain=threading.Event())
    watch.stop(Draining())
    assert watch.stopped_at is not None
    watch.stopped_at -= STOP_LIMIT_S
    watch.write_until = time.monotonic()
    with pytest.raises(LeaseLost):
        watch.check_write()
    assert not watch.must_abandon, "its time to stop begins when it lost the lease"
