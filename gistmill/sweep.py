"""The sweep: every worker and the api pick up what a lost bell, a dead worker or a half-done request left lying."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass
from functools import partial

import structlog
from sqlalchemy import literal_column, select

from gistmill.db import chunks as chunk_rows
from gistmill.db import crashes, endings
from gistmill.db import workers as worker_rows
from gistmill.db.dependencies import waits_in_vain
from gistmill.db.session import Database
from gistmill.db.tables import chunks, jobs
from gistmill.errors import StoreUnavailable
from gistmill.queue import Bells
from gistmill.settings import WorkerSettings
from gistmill.states import CLAIMABLE_JOB_STATES, FINAL_JOB_STATES, ChunkState, JobState

log = structlog.get_logger(__name__)

PAGE = 20


@dataclass
class Contact:
    """How long this process has had an answer to every statement: only then may it call others dead.

    An answer that came late counts as none: a locked table keeps the others from renewing just as a lost connection does.
    """

    lease_s: float
    since: float | None = None
    last: float = 0.0

    def answered(self) -> None:
        """Note an answer."""
        if self.since is None or self._is_late():
            self.since = time.monotonic()
        self.last = time.monotonic()

    def broke(self) -> None:
        """Note a missing answer."""
        self.since = None

    def has_lasted(self) -> bool:
        """True when every statement was answered, and soon, for one lease."""
        return self.since is not None and not self._is_late() and time.monotonic() - self.since >= self.lease_s

    def _is_late(self) -> bool:
        return time.monotonic() - self.last > self.lease_s / 2


class Sweeper:
    """Runs the sweep every few seconds, jittered, in whichever thread calls `due` and `sweep`, or in one of its own."""

    def __init__(self, database: Database, bells: Bells, settings: WorkerSettings) -> None:
        self.database = database
        self.bells = bells
        self.settings = settings
        self.contact = Contact(settings.lease_s)
        self._next = time.monotonic()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Sweep in a thread of its own until `stop`."""
        self._thread = threading.Thread(target=self._run, name="sweep", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(timeout=10)

    def sweep_if_due(self) -> None:
        """Sweep when the time has come. A database that does not answer is noted, never raised."""
        if time.monotonic() < self._next:
            return
        try:
            self.sweep()
            self.contact.answered()
        except StoreUnavailable as error:
            self.contact.broke()
            log.warning("sweep_failed", reason=error.message)
        self._next = time.monotonic() + self.settings.sweep_s * random.uniform(0.8, 1.2)

    def sweep(self) -> None:
        """Reap, judge, close, settle and ring once."""
        if self.contact.has_lasted():
            reap = partial(crashes.reap, budgets=budgets(self.settings), limit=PAGE, may_reap=self.contact.has_lasted)
            if reaped := self.database.transact(reap):
                log.info("leases_reaped", chunks=reaped)
        for job_key in self._find_unjudged():
            self.database.transact(partial(endings.look_again, job_key=job_key))
        for job_key in self._find_unclosed():
            self.database.transact(partial(chunk_rows.close_ended, job_key=job_key))
        ring_waiting(self.database, self.bells, self.settings)

    def _find_unjudged(self) -> list[int]:
        """Return jobs that wait although their needs have completed, or one of them is lost."""
        with self.database.read() as connection:
            return list(
                connection.execute(select(jobs.c.key).where(waits_in_vain()).order_by(jobs.c.key).limit(PAGE)).scalars()
            )

    def _find_unclosed(self) -> list[int]:
        """Return jobs that ended but hold queued chunks, or hold no chunk but have not ended."""
        has_queued = select(chunks.c.key).where(chunks.c.job_key == jobs.c.key, chunks.c.state == ChunkState.QUEUED).exists()
        ended = select(jobs.c.key).where(
            jobs.c.state.in_((JobState.CANCELLING, *FINAL_JOB_STATES)), jobs.c.chunks_left > literal_column("0"), has_queued
        )
        empty = select(jobs.c.key).where(
            jobs.c.state.in_((JobState.CANCELLING, *CLAIMABLE_JOB_STATES)), jobs.c.chunks_left == 0
        )
        with self.database.read() as connection:
            found = connection.execute(ended.limit(PAGE)).scalars().all()
            return [*found, *connection.execute(empty.limit(PAGE)).scalars()]

    def _run(self) -> None:
        while not self._stopped.is_set():
            self.sweep_if_due()
            self._stopped.wait(min(0.2, self.settings.sweep_s / 4))


def ring_waiting(database: Database, bells: Bells, settings: WorkerSettings) -> None:
    """Ring each queue that holds claimable work which some idle live worker fits."""
    with database.glance() as connection:
        to_ring = worker_rows.bells_to_ring(connection, within_s=live_within_s(settings))
    for kind, listeners in to_ring.items():
        bells.ring(kind, listeners=listeners)


def pass_the_bell_on(database: Database, bells: Bells, settings: WorkerSettings) -> None:
    """Do as `ring_waiting` does, if the database answers; if not, a later sweep rings."""
    try:
        ring_waiting(database, bells, settings)
    except StoreUnavailable as error:
        log.warning("bell_not_passed_on", reason=error.message)


def live_within_s(settings: WorkerSettings) -> float:
    """Return how long a worker that was not seen still counts as live: it is seen at every look at the wish."""
    return max(settings.lease_s, 3 * settings.wish_s)


def budgets(settings: WorkerSettings) -> chunk_rows.Budgets:
    """Return the budgets that these settings give a chunk."""
    return chunk_rows.Budgets(settings.max_failures, settings.max_crashes, settings.retry_base_s, settings.retry_max_s)
