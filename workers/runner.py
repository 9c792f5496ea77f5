"""Claim, handle, finish: what a worker does from one bell until nothing fits it any more."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import structlog
from sqlalchemy import Connection, update

from gistmill.db import chunks as chunk_rows
from gistmill.db import workers as worker_rows
from gistmill.db.claim import Claim, Claimant, claim
from gistmill.db.session import Database
from gistmill.db.tables import jobs
from gistmill.errors import (
    DeviceFull,
    DeviceTooSmall,
    EvaluationFailed,
    GistmillError,
    InvalidInput,
    JobEnded,
    LeaseLost,
    ModelError,
    ModelUnavailable,
    Stalled,
    Stopped,
    StoreUnavailable,
)
from gistmill.faults import point
from gistmill.queue import Bells
from gistmill.settings import WorkerSettings
from gistmill.sweep import budgets, pass_the_bell_on
from workers.ahead import Ahead
from workers.handlers.base import Done, Handler
from workers.heartbeat import Heartbeat

log = structlog.get_logger(__name__)

Ending = Callable[[Connection], None]

# An empty claim passes the bell on at most this often: many bells for little work would otherwise ring each other.
RING_AFTER_EMPTY_S = 1.0
REST_S = 10.0
EXIT_LOST_DEVICE = 71
LONGEST_WAIT_FOR_SQL_S = 5.0
# Whoever may hold a chunk asks again well within a lease after SQL is back: others take it for dead a lease later.
ASKS_PER_LEASE = 4


class Runner:
    """Runs chunks one after the other."""

    def __init__(
        self,
        database: Database,
        claimant: Claimant,
        handlers: Mapping[str, Handler],
        *,
        heartbeat: Heartbeat,
        bells: Bells,
        settings: WorkerSettings,
        drain: threading.Event,
        resident: Callable[[], tuple[str, ...]] = tuple,
        ahead: Ahead | None = None,
    ) -> None:
        self.database = database
        self.claimant = claimant
        self.handlers = handlers
        self.heartbeat = heartbeat
        self.bells = bells
        self.settings = settings
        self.drain = drain
        self.resident = resident
        self.ahead = ahead or Ahead(database, claimant, heartbeat=heartbeat, bells=bells, settings=settings)
        self._is_unsure = False
        self._taken_up: Claim | None = None
        self._has_lost_device = False
        self._rang_empty_at = -RING_AFTER_EMPTY_S

    def work(self) -> None:
        """Claim and run chunks until nothing fits or the worker drains."""
        try:
            self._work()
        except Exception:
            # Bells are rung for idle workers: one that was left busy would wait for work for ever.
            self._rest_if_possible()
            raise
        finally:
            self._give_back_reserved()

    def _work(self) -> None:
        while not self.drain.is_set():
            requested_at = time.monotonic()
            found = self._claim()
            if found is None:
                self._pass_the_bell_on(found)
                return
            self.run(found, requested_at=requested_at)
            # Its end may have released jobs of a kind that only others take: the next empty claim rings for them.
            self._rang_empty_at = -RING_AFTER_EMPTY_S
            if self._has_lost_device:
                self.heartbeat.exit(EXIT_LOST_DEVICE)
                return

    def run(self, chunk: Claim, *, requested_at: float) -> None:
        """Carry out one chunk and write down how it ended."""
        watch = self.heartbeat.watch(chunk, requested_at=requested_at)
        # Only now: a Redis that does not answer takes a second, in which the lease must be renewed. For a chunk that was
        # claimed ahead it was done then, but not for the one that was reserved when this one began.
        if chunk is not self._taken_up or self.ahead.somebody_idles:
            self._pass_the_bell_on(chunk)
        log.info("chunk_started", job_id=chunk.job_id, chunk=chunk.chunk_key, epoch=chunk.epoch)
        started_at = time.monotonic()
        try:
            ending = self._handle(chunk, partial(self.handlers[chunk.kind].run, chunk, watch))
            point("ending.begun", claim=chunk, ending=ending)
            self.database.transact(ending)
            point("ending.committed", claim=chunk, ending=ending)
        except LeaseLost:
            # It may have run out while SQL did not answer: then nobody took the chunk, and it goes back without a crash.
            self._is_unsure = True
            log.warning("lease_lost", job_id=chunk.job_id, chunk=chunk.chunk_key, epoch=chunk.epoch)
        except StoreUnavailable as error:
            self._is_unsure = True
            log.warning("store_unavailable", job_id=chunk.job_id, chunk=chunk.chunk_key, reason=error.message)
        finally:
            self.heartbeat.unwatch()
        log.info("chunk_left", job_id=chunk.job_id, chunk=chunk.chunk_key, seconds=round(time.monotonic() - started_at, 3))

    def _handle(self, chunk: Claim, handle: Callable[[], Done]) -> Ending:
        """Run the handler; return the statement that ends the chunk."""
        try:
            done = handle()
        except (LeaseLost, StoreUnavailable):
            raise
        except JobEnded:
            return partial(chunk_rows.close, claim=chunk)
        except DeviceTooSmall as error:
            return partial(_ask_for_larger_device, chunk=chunk, needed_bytes=int(error.fields["needed_bytes"]))
        except (DeviceFull, ModelUnavailable) as error:
            # No room, or no way to the model: that passes or needs a person, and must not cost good items their retries.
            log.warning("chunk_rests", job_id=chunk.job_id, chunk=chunk.chunk_key, code=error.code, reason=error.message)
            return partial(chunk_rows.release, claim=chunk, delay_s=REST_S)
        except Stalled as error:
            return partial(chunk_rows.fail, claim=chunk, error=error, budgets=budgets(self.settings))
        except Stopped as error:
            log.info("chunk_released", job_id=chunk.job_id, chunk=chunk.chunk_key, reason=error.code)
            return partial(chunk_rows.release, claim=chunk)
        except (ModelError, EvaluationFailed, InvalidInput) as error:
            log.error("job_failed", job_id=chunk.job_id, code=error.code, reason=error.message)
            return partial(chunk_rows.fail_job, claim=chunk, error=error)
        except Exception as error:
            known = error if isinstance(error, GistmillError) else GistmillError(f"{type(error).__name__}: {error}")
            # Such an error stays with the process: every later chunk would fail too, so the launcher must start a new one.
            self._has_lost_device = "CUDA error" in str(error)
            log.error("chunk_failed", job_id=chunk.job_id, chunk=chunk.chunk_key, failures=chunk.failures + 1, exc_info=error)
            return partial(chunk_rows.fail, claim=chunk, error=known, budgets=budgets(self.settings))
        if done.was_short:
            self.ahead.expect_short(chunk)
        return partial(chunk_rows.finish, claim=chunk, ended=done.ended, last_words=done.last_words)

    def _claim(self) -> Claim | None:
        """Return the next chunk, waiting for the database as long as it takes."""
        wait_s = 0.2
        while not self.drain.is_set():
            try:
                if self._is_unsure or self.ahead.is_unsure:
                    self._settle_doubt()
                self._taken_up = found = self.ahead.take_up()
                if found is not None:
                    point("claim.committed", claim=found)
                    return found
                claimant = replace(self.claimant, resident=self.resident())
                lease_s = self.settings.lease_s
                found = self.ahead.begin(partial(claim, claimant=claimant, lease_s=lease_s))
                point("claim.committed", claim=found)
                if found is None:
                    self.database.transact(partial(worker_rows.rest, worker=claimant.worker))
                return found
            except StoreUnavailable as error:
                self._is_unsure = True
                log.warning("claim_failed", reason=error.message)
                self.drain.wait(random.uniform(0.1, wait_s))
                wait_s = min(LONGEST_WAIT_FOR_SQL_S, self.settings.lease_s / ASKS_PER_LEASE, wait_s * 2)
        return None

    def _settle_doubt(self) -> None:
        """Give back what this worker holds without knowing: a claim or release may have lost its answer."""
        self.ahead.forget()
        released = self.database.transact(partial(chunk_rows.release_owned, worker=self.claimant.worker))
        self._is_unsure = self.ahead.is_unsure = False
        log.info("doubt_settled", released=released)

    def _give_back_reserved(self) -> None:
        try:
            self.ahead.give_back()
        except StoreUnavailable as error:
            self._is_unsure = True
            log.warning("reservation_not_given_back", reason=error.message)

    def _rest_if_possible(self) -> None:
        try:
            self.database.transact(partial(worker_rows.rest, worker=self.claimant.worker))
        except Exception as error:
            self._is_unsure = True
            log.error("not_noted_idle", exc_info=error)

    def _pass_the_bell_on(self, found: Claim | None) -> None:
        """Wake the next idle worker when more waits; one bell at submit so wakes the whole fleet."""
        if found is None:
            if time.monotonic() - self._rang_empty_at < RING_AFTER_EMPTY_S:
                return
            self._rang_empty_at = time.monotonic()
        pass_the_bell_on(self.database, self.bells, self.settings)


def _ask_for_larger_device(connection: Connection, chunk: Claim, needed_bytes: int) -> None:
    chunk_rows.release(connection, chunk)
    connection.execute(update(jobs).where(jobs.c.key == chunk.job_key).values(min_device_bytes=needed_bytes))
