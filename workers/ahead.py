"""The chunk that this worker has claimed ahead: asked for while another runs, kept, and taken up or given back."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import structlog
from sqlalchemy import Connection

from gistmill.db import ahead
from gistmill.db import workers as worker_rows
from gistmill.db.claim import Claim, Claimant
from gistmill.db.session import Database
from gistmill.errors import StoreUnavailable
from gistmill.faults import point
from gistmill.queue import Bells
from gistmill.settings import WorkerSettings
from gistmill.sweep import live_within_s, pass_the_bell_on
from workers.heartbeat import Heartbeat

log = structlog.get_logger(__name__)

# A chunk that is reserved behind one that should be short is held for so long: if that one lasts, others may have it.
EXPECTED_S = 5.0


def _do_nothing() -> None:
    """Nobody is to be told of a loss."""


class Ahead:
    """Holds at most one reserved chunk.

    A chunk is claimed ahead while another runs. Where those of a job are over too soon for that, the next one is reserved in
    the transaction in which one begins, so that its pages are looked up while that one is recorded.

    `claim` is called by a thread that works for the handler while a chunk runs, everything else by the runner's between two
    chunks; never both at once, for the handler waits for its threads.
    """

    def __init__(
        self,
        database: Database,
        claimant: Claimant,
        *,
        heartbeat: Heartbeat,
        bells: Bells,
        settings: WorkerSettings,
        resident: Callable[[], tuple[str, ...]] = tuple,
    ) -> None:
        self.database = database
        self.claimant = claimant
        self.heartbeat = heartbeat
        self.bells = bells
        self.settings = settings
        self.resident = resident
        self.is_unsure = False
        self._reserved: Claim | None = None
        self._lost: Callable[[], None] = _do_nothing
        self._until = math.inf
        self._short_job: int | None = None
        self.somebody_idles = False

    def claim(self, running: Claim, lost: Callable[[], None]) -> Claim | None:
        """Return the chunk that comes after the running one, reserved now if it was not before, or None when none may be.

        `lost` is called, by the runner's thread, when it is not to run after all.
        """
        if self._reserved is not None:
            self._lost = lost
            return self._reserved
        asking = partial(
            ahead.claim_ahead,
            claimant=self._who_asks(),
            running=running,
            lease_s=self.settings.lease_s,
            live_within_s=live_within_s(self.settings),
        )
        try:
            found = self.database.transact(asking)
            point("ahead.committed", claim=found)
        except StoreUnavailable as error:
            # It may be ours all the same. Until the running chunk has ended nobody can tell it apart from that one.
            self.is_unsure = True
            log.warning("claim_ahead_failed", reason=error.message)
            return None
        if found is not None:
            self._keep(found, lost)
            pass_the_bell_on(self.database, self.bells, self.settings)
        return found

    @property
    def is_held(self) -> bool:
        """True when a chunk is reserved, and not only because another one was to be short that now lasts."""
        return self._reserved is not None and time.monotonic() < self._until

    def expect_short(self, ended: Claim) -> None:
        """Let the next chunk of this one's job, if it comes next, begin with one reserved behind it."""
        self._short_job = ended.job_key

    def begin(self, claim: Callable[[Connection], Claim | None]) -> Claim | None:
        """Return the chunk that this claims, or None, and reserve one behind it in the same transaction if they are short.

        Raises:
            StoreUnavailable: the database did not answer; both may be ours all the same.
        """
        short_job, self._short_job = self._short_job, None
        found, behind = self.database.transact(partial(self._begin_both, claim=claim, short_job=short_job))
        if behind is not None:
            point("ahead.committed", claim=behind)
            self._keep(behind, _do_nothing, until=time.monotonic() + EXPECTED_S)
        return found

    def take_up(self) -> Claim | None:
        """Let the reserved chunk run, or None when there is none, it was lost, or its job may not run now.

        Raises:
            StoreUnavailable: the database did not answer; the chunk may run all the same.
        """
        claim = self._let_go()
        if claim is None:
            return None
        lost, found = self._lost, None
        try:
            found = self.begin(partial(self._take_up, claim=claim))
        finally:
            if found is None:
                lost()
        if found is not None:
            return found
        log.info("reservation_lost", job_id=claim.job_id, chunk=claim.chunk_key, epoch=claim.epoch)
        return None

    def give_back(self) -> None:
        """Let others have the reserved chunk.

        Raises:
            StoreUnavailable: the database did not answer. What carries this worker's uuid is released when it ends.
        """
        claim = self.forget()
        if claim is not None:
            self.database.transact(partial(ahead.give_back, claim=claim))
            log.info("reservation_given_back", job_id=claim.job_id, chunk=claim.chunk_key, epoch=claim.epoch)

    def forget(self) -> Claim | None:
        """Renew the reserved chunk no more, for it is not to run; return it."""
        claim = self._let_go()
        if claim is not None:
            self._lost()
        return claim

    def _take_up(self, connection: Connection, claim: Claim) -> Claim | None:
        return claim if ahead.begin(connection, claim, lease_s=self.settings.lease_s) else None

    def _begin_both(
        self, connection: Connection, claim: Callable[[Connection], Claim | None], short_job: int | None
    ) -> tuple[Claim | None, Claim | None]:
        self.somebody_idles = False
        found = claim(connection)
        if found is None or found.job_key != short_job:
            return found, None
        live = worker_rows.live(connection, within_s=live_within_s(self.settings))
        self.somebody_idles = any(row.state == "idle" for row in live)
        # A lease of its own: the first renewal may be due later.
        lease_s = min(self.settings.lease_s, EXPECTED_S)
        return found, ahead.claim_behind(connection, self._who_asks(), found, live, lease_s=lease_s)

    def _who_asks(self) -> Claimant:
        return replace(self.claimant, resident=self.resident())

    def _keep(self, found: Claim, lost: Callable[[], None], *, until: float = math.inf) -> None:
        self._reserved, self._lost, self._until = found, lost, until
        self.heartbeat.keep(found, until=until)
        log.info("chunk_reserved", job_id=found.job_id, chunk=found.chunk_key, epoch=found.epoch)

    def _let_go(self) -> Claim | None:
        claim, self._reserved = self._reserved, None
        self.heartbeat.keep(None)
        return claim
