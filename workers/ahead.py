"""The chunk that this worker has claimed ahead: asked for while another runs, kept, and taken up or given back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import structlog

from gistmill.db import ahead
from gistmill.db.claim import Claim, Claimant
from gistmill.db.session import Database
from gistmill.errors import StoreUnavailable
from gistmill.faults import point
from gistmill.queue import Bells
from gistmill.settings import WorkerSettings
from gistmill.sweep import live_within_s, pass_the_bell_on
from workers.heartbeat import Heartbeat

log = structlog.get_logger(__name__)


class Ahead:
    """Holds at most one reserved chunk.

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
        self._lost: Callable[[], None] = lambda: None

    def claim(self, running: Claim, lost: Callable[[], None]) -> Claim | None:
        """Reserve the chunk that comes after the running one, or None when none may be reserved.

        `lost` is called, by the runner's thread, when it is not to run after all.
        """
        asking = partial(
            ahead.claim_ahead,
            claimant=replace(self.claimant, resident=self.resident()),
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
            self._reserved, self._lost = found, lost
            self.heartbeat.keep(found)
            log.info("chunk_reserved", job_id=found.job_id, chunk=found.chunk_key, epoch=found.epoch)
            pass_the_bell_on(self.database, self.bells, self.settings)
        return found

    def take_up(self) -> Claim | None:
        """Let the reserved chunk run, or None when there is none, it was lost, or its job may not run now.

        Raises:
            StoreUnavailable: the database did not answer; the chunk may run all the same.
        """
        claim = self._let_go()
        if claim is None:
            return None
        has_begun = False
        try:
            has_begun = self.database.transact(partial(ahead.begin, claim=claim, lease_s=self.settings.lease_s))
        finally:
            if not has_begun:
                self._lost()
        if has_begun:
            return claim
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

    def _let_go(self) -> Claim | None:
        claim, self._reserved = self._reserved, None
        self.heartbeat.keep(None)
        return claim
