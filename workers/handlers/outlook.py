"""How much work is left in a chunk, and the one question for the next chunk when it is little."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, wait
from types import TracebackType

import structlog

from workers.engine.base import Engine, Outcome

log = structlog.get_logger(__name__)

# Whoever claims ahead keeps the chunk from others for so long. Claiming it and reading its first page take far less.
AHEAD_S = 5.0
# A chunk of less work than this is over before the claim is: with an engine that takes no time, asking ahead for each chunk
# made a job of small ones last three times as long.
LEAST_S = 0.1
# Behind a chunk that took no longer, the next one of its job begins with one reserved behind it.
SHORT_S = 0.25


class Outlook:
    """Lets the reader ask for the next chunk, once, when this one has less than `AHEAD_S` of work left.

    The time left is that of the rows left at the speed of the rows so far. In a chunk of little work nobody is asked, unless
    the next one `is_reserved` already: then as soon as the reader is through with the pages of this one, so that those of that
    one are looked up while this one is made and recorded. On leaving its block the reader asks no more.
    """

    def __init__(self, ask: Callable[[Engine | None], None] | None, *, is_reserved: bool, reader: Executor) -> None:
        self._ask = ask
        self._is_reserved = is_reserved
        self._reader = reader
        self._began_at: float | None = None
        self._done = 0
        self._asked: Future[None] | None = None

    def __enter__(self) -> Outlook:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._asked is None or self._asked.cancel():
            return
        wait([self._asked])
        failure = self._asked.exception()
        if failure is not None:
            log.error("not_asked_ahead", exc_info=failure)

    @property
    def is_open(self) -> bool:
        """True while it is not known whether a chunk comes next: nobody was asked yet, or there is no answer."""
        return self._ask is not None and (self._asked is None or not self._asked.done())

    def watched(
        self, batches: Iterable[list[Outcome]], count_left: Callable[[], int | None], engine: Engine
    ) -> Iterator[list[Outcome]]:
        """Pass micro-batches on, and look after each how much is left. The engine is handed to who asks.

        `count_left` returns how many rows are still to be made, or None while the reader has pages of this chunk to read: those
        come first.
        """
        self._began_at = self._began_at or time.monotonic()
        self.look(count_left(), engine)
        for outcomes in batches:
            self._done += len(outcomes)
            self.look(count_left(), engine)
            yield outcomes

    def look(self, left: int | None, engine: Engine | None = None) -> None:
        """Ask if it is time, with so many rows still to be made; `left` is None while pages of this chunk are to be read."""
        if self._ask is None or self._asked is not None:
            return
        if self._is_little(left) or (self._is_reserved and left is not None):
            self._asked = self._reader.submit(self._ask, engine)

    def _is_little(self, left: int | None) -> bool:
        if not left or not self._done or self._began_at is None:
            return False
        seconds = time.monotonic() - self._began_at
        is_worth_it = (left + self._done) * seconds / self._done >= LEAST_S
        return is_worth_it and left * seconds / self._done < AHEAD_S
