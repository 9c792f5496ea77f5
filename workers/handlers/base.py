"""What a handler is: the code that carries out the chunks of one job kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from sqlalchemy import Connection

from gistmill.db.claim import Claim
from gistmill.errors import Stopped


class Lease(Protocol):
    """What a handler sees of its lease. The heartbeat's Watch is one.

    `enter`, `tick`, `should_stop` and `check` note progress and belong to the thread that runs the chunk; `reason` and
    `check_write` may be called by threads that work for it.
    """

    def enter(self, limit_s: float) -> None:
        """Begin a phase that may stand still for at most `limit_s` seconds."""

    def tick(self) -> None:
        """Note progress."""

    def should_stop(self) -> bool:
        """Note progress and tell whether to stop."""
        ...

    def reason(self) -> Stopped | None:
        """Return the reason to stop, if there is one, without noting progress."""

    def check(self) -> None:
        """Raise the reason to stop, if there is one."""

    def check_write(self) -> None:
        """Raise LeaseLost when nothing may be written any more; other reasons to stop let finished work be recorded.

        It notes no progress.
        """


class Done(NamedTuple):
    """What a handler says of a chunk that it is through with.

    `ended` is how many items ended by this run, as the database answered; None where nobody counts them. `last_words` is what
    is to be written last in the transaction that finishes the chunk. `was_short` lets the next one of its job be expected to be
    over as soon, too soon for anything to be claimed beside it.
    """

    ended: int | None = None
    last_words: Callable[[Connection], None] | None = None
    was_short: bool = False


class Handler(Protocol):
    """Carries out one chunk.

    `run` returns when every item of the chunk has its end. It may be called again for the same chunk under another claim, by
    this worker or another, and then does only what is missing.

    Raises:
        Stopped: the lease said so.
        ModelError, InvalidInput: the cause holds for the whole job.
        Unavailable: trying again later is safe.
    """

    def run(self, claim: Claim, lease: Lease) -> Done:
        """Carry out the chunk."""
        ...
