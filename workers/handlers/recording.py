"""Recording: the ends of a chunk's items are written in a thread of its own, so that the device does not wait for SQL."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor, Future
from functools import partial
from types import TracebackType

import structlog

from gistmill.db import results as result_rows
from gistmill.db.claim import Claim
from gistmill.db.results import Found, Lost, Made
from gistmill.db.session import Database
from gistmill.faults import point
from workers.handlers.base import Lease

log = structlog.get_logger(__name__)

# One is being written and one waits: more would only be more to lose, and with none waiting the writer would wait for us.
MOST_UNFINISHED = 2


class Recorder:
    """Writes the ends of one chunk's items in the order in which they are put, each lot in one transaction.

    After a transaction that failed nothing more is written; its error comes up in the thread that puts and finishes. On
    leaving its block everything that was put is written or given up: the writer's thread does nothing for this chunk any more.
    """

    def __init__(self, database: Database, claim: Claim, lease: Lease, *, writer: Executor) -> None:
        self.has_failed = False
        self._database = database
        self._claim = claim
        self._lease = lease
        self._writer = writer
        self._unfinished: deque[Future[int]] = deque()
        self._ended = 0

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for failure in (future.exception() for future in self._unfinished):
            if failure is not None:
                log.warning("not_recorded", chunk=self._claim.chunk_key, reason=str(failure))

    def put(self, *, made: Sequence[Made] = (), found: Sequence[Found] = (), lost: Sequence[Lost] = ()) -> None:
        """Have these ends written; wait while two lots before them are not.

        Raises:
            LeaseLost, JobEnded, StoreUnavailable: what was put before could not be written.
        """
        while self._unfinished and (self._unfinished[0].done() or len(self._unfinished) >= MOST_UNFINISHED):
            self._wait_for_oldest()
        self._unfinished.append(self._writer.submit(self._write, made=made, found=found, lost=lost))

    def finish(self) -> int:
        """Wait until everything is written; return how many items ended since the last call.

        Raises:
            LeaseLost, JobEnded, StoreUnavailable: what was put before could not be written.
        """
        while self._unfinished:
            self._wait_for_oldest()
        ended, self._ended = self._ended, 0
        return ended

    def _wait_for_oldest(self) -> None:
        self._ended += self._unfinished.popleft().result()
        # Noted by the thread that runs the chunk, which waits here: the writer must not vouch for a device that hangs.
        self._lease.tick()

    def _write(self, *, made: Sequence[Made], found: Sequence[Found], lost: Sequence[Lost]) -> int:
        """Write the ends of these items in one transaction; return how many there were. Runs in the writer's thread."""
        if self.has_failed:
            return 0
        try:
            return self._transact(made, found, lost)
        except BaseException:
            self.has_failed = True
            raise

    def _transact(self, made: Sequence[Made], found: Sequence[Found], lost: Sequence[Lost]) -> int:
        self._lease.check_write()
        claim = self._claim
        units = [item.unit for item in made] + [item.unit for item in found] + [item.unit for item in lost]
        rows = [row for unit in units for row in unit.rows]
        point("record.begun", claim=claim, rows=rows)
        recorded = self._database.transact(partial(result_rows.record, claim=claim, made=made, found=found, lost=lost))
        point("record.committed", claim=claim, rows=rows)
        return recorded.succeeded + recorded.failed
