"""The heartbeat: one thread per worker that renews the lease while the work progresses, reads the job's wish, and sweeps."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable
from functools import partial

import structlog
from sqlalchemy import Connection

from gistmill.db import chunks as chunk_rows
from gistmill.db import workers as worker_rows
from gistmill.db.claim import Claim
from gistmill.db.session import Database
from gistmill.errors import Draining, JobEnded, JobPaused, LeaseLost, Stalled, Stopped, StoreUnavailable
from gistmill.faults import point
from gistmill.settings import WorkerSettings
from gistmill.states import CLAIMABLE_JOB_STATES
from gistmill.sweep import Sweeper

log = structlog.get_logger(__name__)

# A handler that does not stop this long after it lost its chunk sits in a hung kernel: only the end of the process frees it.
STOP_LIMIT_S = 10.0
EXIT_HUNG = 70


class Watch:
    """What the handler of one chunk and the heartbeat share: progress one way, the reason to stop the other way.

    Threads that work for the handler may ask for the reason and `check_write`; only the handler's own thread notes progress.
    """

    def __init__(self, claim: Claim, *, write_until: float, drain: threading.Event) -> None:
        self.claim = claim
        self.write_until = write_until
        self._drain = drain
        self._reason: Stopped | None = None
        self._limit_s = float("inf")
        self._ticked_at = time.monotonic()
        self.stopped_at: float | None = None
        self._stopping = threading.Lock()

    def enter(self, limit_s: float) -> None:
        """Begin a phase that may stand still for at most `limit_s` seconds."""
        self._limit_s = limit_s
        self.tick()

    def tick(self) -> None:
        """Note progress."""
        self._ticked_at = time.monotonic()

    def should_stop(self) -> bool:
        """Note progress and tell whether to stop; cheap enough for every decode step."""
        self.tick()
        return self.reason() is not None

    def reason(self) -> Stopped | None:
        """Return why to stop, or None; notes no progress, for a handler that waits for somebody else's."""
        if time.monotonic() >= self.write_until:
            self.stop(LeaseLost("The lease ended before it could be renewed."))
        elif self._reason is None and self._drain.is_set():
            self.stop(Draining())
        return self._reason

    def check(self) -> None:
        """Return when the work may go on and write.

        Raises:
            Stopped: the reason why not.
        """
        if self.should_stop() and self._reason is not None:
            raise self._reason

    def check_write(self) -> None:
        """Return when finished work may be recorded: also while draining or paused, but never without the lease.

        It notes no progress: a kernel that hangs must lose its lease although what it made before is still being recorded.

        Raises:
            LeaseLost: the lease is lost, or may be.
        """
        reason = self.reason()
        if isinstance(reason, LeaseLost):
            raise reason

    def stop(self, reason: Stopped) -> None:
        """Ask the handler to stop; the first reason stands, save that a lost lease overrules it."""
        with self._stopping:
            if self._reason is None or (isinstance(reason, LeaseLost) and not isinstance(self._reason, LeaseLost)):
                # A handler that was told to end gracefully has its time from when it lost the lease.
                if not isinstance(self._reason, Stalled):
                    self.stopped_at = time.monotonic()
                self._reason = reason

    @property
    def is_stalled(self) -> bool:
        """True when nothing ticked within the phase's limit."""
        return time.monotonic() - self._ticked_at > self._limit_s

    @property
    def must_abandon(self) -> bool:
        """True when the chunk is lost or stalled and the handler has not stopped in time."""
        if self.stopped_at is None or not isinstance(self._reason, LeaseLost | Stalled):
            return False
        return time.monotonic() - self.stopped_at > STOP_LIMIT_S


class Heartbeat:
    """Beats for a worker process; `watch` adds the chunk it works on."""

    def __init__(
        self, database: Database, worker: str, settings: WorkerSettings, sweeper: Sweeper, drain: threading.Event
    ) -> None:
        self.database = database
        self.worker = worker
        self.settings = settings
        self.sweeper = sweeper
        self.drain = drain
        self.exit: Callable[[int], None] = os._exit
        self.resident: Callable[[], tuple[str, ...]] = tuple
        self._watch: Watch | None = None
        self._reserved: Claim | None = None
        self._keep_until = math.inf
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._next_wish = self._next_renewal = time.monotonic()

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self._thread.join(timeout=10)

    def watch(self, claim: Claim, *, requested_at: float) -> Watch:
        """Renew this claim's lease from now on. `requested_at` is the monotonic time just before the claim was asked for."""
        watch = Watch(claim, write_until=self._write_until(requested_at), drain=self.drain)
        self._next_renewal = requested_at + self.settings.renew_s
        self._watch = watch
        return watch

    def unwatch(self) -> None:
        """Forget the chunk."""
        self._watch = None

    def keep(self, claim: Claim | None, *, until: float = math.inf) -> None:
        """Renew this chunk, which was claimed ahead, with the running one, until this monotonic time; None: no more."""
        self._reserved, self._keep_until = claim, until

    def beat(self) -> None:
        """Do what is due: renew, read the wish, sweep."""
        point("heart.beat")
        watch, now = self._watch, time.monotonic()
        if watch is not None and watch.must_abandon:
            log.error("handler_hangs", chunk=watch.claim.chunk_key, job_id=watch.claim.job_id)
            self.exit(EXIT_HUNG)
        if watch is not None and watch.is_stalled:
            watch.stop(Stalled("The work stood still for too long."))
        if watch is not None and now >= self._next_renewal and not watch.is_stalled:
            self._renew(watch)
        if now >= self._next_wish:
            self._next_wish = now + self.settings.wish_s
            self._read_wish(watch)
        self.sweeper.sweep_if_due()

    def _renew(self, watch: Watch) -> None:
        requested_at = time.monotonic()
        self._next_renewal = requested_at + self.settings.renew_s
        if watch.claim in self.database.transact(partial(self._renew_all, claims=self._held(watch))):
            watch.write_until = self._write_until(requested_at)
        else:
            watch.stop(LeaseLost())

    def _held(self, watch: Watch) -> list[Claim]:
        """Return the running chunk and the reserved one, in lock order."""
        reserved = self._reserved
        if reserved is None or time.monotonic() >= self._keep_until:
            return [watch.claim]
        return sorted([watch.claim, reserved], key=lambda claim: claim.chunk_key)

    def _renew_all(self, connection: Connection, claims: list[Claim]) -> list[Claim]:
        """Renew these; return those that are not lost. Whether a reserved one is, shows when its turn comes."""
        return [claim for claim in claims if chunk_rows.renew(connection, claim, lease_s=self.settings.lease_s)]

    def _read_wish(self, watch: Watch | None) -> None:
        wish = self.database.transact(lambda connection: self._see(connection, watch))
        if watch is None or wish is None:
            return
        if not wish.is_owned:
            watch.stop(LeaseLost())
        elif wish.job_state not in CLAIMABLE_JOB_STATES:
            watch.stop(JobEnded())
        elif wish.is_paused:
            watch.stop(JobPaused())

    def _see(self, connection: Connection, watch: Watch | None) -> chunk_rows.Wish | None:
        worker_rows.see(connection, self.worker, resident=list(self.resident()))
        return None if watch is None else chunk_rows.read_wish(connection, watch.claim)

    def _write_until(self, requested_at: float) -> float:
        return requested_at + self.settings.lease_s - self.settings.margin_s

    def _run(self) -> None:
        pause_s = min(0.25, self.settings.renew_s / 4, self.settings.wish_s / 4)
        try:
            while not self._stopped.is_set():
                self._beat_or_wait_for_sql()
                self._stopped.wait(pause_s)
        finally:
            # A worker without a heart would lose every lease it takes: its launcher starts it anew.
            if not self._stopped.is_set():
                log.error("heartbeat_died")
                self.exit(EXIT_HUNG)

    def _beat_or_wait_for_sql(self) -> None:
        try:
            self.beat()
        except StoreUnavailable as error:
            self.sweeper.contact.broke()
            log.warning("heartbeat_failed", reason=error.message)
