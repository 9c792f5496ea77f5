"""Feeding: an engine gets the pages of a chunk one behind the other as one stream, and what it makes finds its items again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from gistmill.db.pending import Unit
from gistmill.db.results import Found
from workers.engine.base import Engine, Failure, Outcome, Row
from workers.handlers.pages import Page, Pages


class Feed:
    """What goes into an engine, and what comes out, in one pass over a chunk. The thread that runs the chunk has it alone.

    `pending` is how many items the pages hold that came by now, or None once a dialogue has, or may have, more than they hold.
    """

    def __init__(self, pages: Pages) -> None:
        self.pending: int | None = 0
        self._pages = pages
        self._units: dict[int, Unit] = {}
        self._found: list[Found] = []
        self._refused: list[Outcome] = []
        self._in_flight = 0

    def enter(self, page: Page, engine: Engine) -> list[Row]:
        """Return the rows of a page, and let the reader begin the next one."""
        self._pages.begin(page.next_rank, engine)
        self._units |= {prompt.key: unit for prompt, unit in zip(page.prompts, page.missing, strict=True)}
        self._refused += [item for item in page.read if isinstance(item, Failure)]
        rows = [item for item in page.read if isinstance(item, Row)]
        self._in_flight += len(rows)
        return rows

    def note(self, page: Page) -> None:
        """Count the items of a page, and keep those whose generation exists for `take_found`."""
        self.pending = None if self.pending is None or page.is_cut else self.pending + page.items
        self._found += page.found

    def more(self, engine: Engine) -> list[Row] | None:
        """Return the rows of the next page, none when it is not there yet, or None behind the last one; see `Engine.complete`.

        None is also returned when the reader failed: what is in flight is made before the error comes up.
        """
        while self._pages.is_ready:
            page = self._pages.find()
            if page is None:
                return None
            self.note(page)
            if rows := self.enter(page, engine):
                return rows
        return []

    def through(self, batches: Iterable[list[Outcome]]) -> Iterator[list[Outcome]]:
        """Pass micro-batches on, and the failures of prompts that no model sees; wait while the engine has nothing to do."""
        if self._refused:
            yield self._take_refused()
        for outcomes in batches:
            if self._refused:
                yield self._take_refused()
            self._in_flight -= len(outcomes)
            yield outcomes
            if not outcomes:
                self._pages.wait()
        if self._refused:
            yield self._take_refused()

    def count_left(self) -> int | None:
        """Return how many rows the engine has still to make, or None while the reader has pages of this chunk to read."""
        behind = self.count_behind()
        return None if behind is None else self._in_flight + behind

    def count_behind(self) -> int | None:
        """Return how many rows the engine has not been given yet, or None while that is not known."""
        return self._pages.count_behind()

    def holds(self, outcome: Outcome) -> bool:
        """True when an outcome is of a unit of this chunk that has none yet."""
        return outcome.key in self._units

    def unit_of(self, outcome: Outcome) -> Unit:
        """Return what an outcome is of; it is forgotten, for there is only one."""
        return self._units.pop(outcome.key)

    def take_found(self) -> list[Found]:
        """Return what exists already of the pages that came since the last call."""
        found, self._found = self._found, []
        return found

    def _take_refused(self) -> list[Outcome]:
        refused, self._refused = self._refused, []
        return refused
