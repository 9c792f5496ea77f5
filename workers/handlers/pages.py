"""The pages of a chunk: what is to do next, looked up and tokenized while the device works on the page before."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, wait
from itertools import chain
from types import TracebackType
from typing import NamedTuple

from gistmill.db.claim import Claim
from gistmill.db.pending import Unit, load_pending
from gistmill.db.results import Found, find_generations
from gistmill.db.session import Database
from gistmill.prompts import PromptTemplate
from gistmill.specs import SummarizeSpec
from workers.engine.base import PAGE_ROWS, Engine, Failure, Prompt, Row


class Page(NamedTuple):
    """Units that had no end when they were looked up: those whose generation exists, and those to generate.

    `prompts` are those of the missing units, in their order; no two pages of a chunk have a key in common. `read` is what an
    engine has read of them. `next_rank` is where the next page begins, None where no more is pending. `is_cut` says that a
    dialogue has, or may have, more items than this page and the next ones hold.
    """

    found: list[Found]
    missing: list[Unit]
    prompts: list[Prompt]
    read: list[Row | Failure]
    next_rank: int | None
    is_cut: bool

    @property
    def items(self) -> int:
        """How many items wait for these units."""
        return sum(len(unit.rows) for unit in chain(self.missing, (item.unit for item in self.found)))

    @property
    def is_read(self) -> bool:
        """True when an engine has read every prompt."""
        return len(self.read) == len(self.prompts)


class Pages:
    """The pages of one chunk. No two that follow each other have a dialogue in common, so they may be worked on at once.

    `find_template` gives the job's prompt, and is asked only when something is missing. `keys` gives those of the prompts,
    which are different from those of other chunks in the same stream. On leaving its block the reader's thread does nothing
    for this chunk any more.
    """

    def __init__(
        self,
        database: Database,
        claim: Claim,
        spec: SummarizeSpec,
        *,
        find_template: Callable[[], PromptTemplate],
        reader: Executor,
        keys: Iterator[int],
    ) -> None:
        self._database = database
        self._claim = claim
        self._spec = spec
        self._find_template = find_template
        self._reader = reader
        self._is_over = threading.Event()
        self._coming: Future[Page | None] | None = None
        self._rows = PAGE_ROWS
        self._keys = keys

    def __enter__(self) -> Pages:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def look(self) -> Page | None:
        """Return the first page of what is pending in the whole chunk, or None when the chunk is done.

        The first time it is the one that `look_ahead` has begun, if that was called.
        """
        self._rows = PAGE_ROWS
        return self._load(None, None, self._rows) if self._coming is None else self.take()

    def look_ahead(self, engine: Engine | None) -> None:
        """Let the reader's thread take the first look, before the chunk runs, and read the page if there is an engine."""
        self._coming = self._reader.submit(self._load, None, engine, self._rows)

    def close(self) -> None:
        """See to it that the reader's thread does nothing for this chunk any more."""
        self._is_over.set()
        if self._coming is not None and not self._coming.cancel():
            wait([self._coming])

    def count_behind(self) -> int | None:
        """Return how many rows are to be generated behind the page that was taken, or None while that is not known."""
        if self._coming is None:
            return 0
        if not self._coming.done() or self._coming.exception() is not None:
            return None
        page = self._coming.result()
        if page is None:
            return 0
        return len(page.missing) if page.next_rank is None else None

    def begin(self, first_rank: int | None, engine: Engine | None) -> None:
        """Let the reader's thread look up the page that begins at this rank, and read it if there is an engine.

        Pages double until they are as large as the engine wants them: a small one is soon there, when it has little yet.
        """
        assert self._coming is None, "the page before is still to be taken"
        if engine is not None:
            self._rows = min(engine.page_rows, 2 * self._rows)
        if first_rank is not None:
            self._coming = self._reader.submit(self._load, first_rank, engine, self._rows)

    def take(self) -> Page | None:
        """Return the page that was begun, waiting for it, or None when there is no more.

        Raises:
            StoreUnavailable: the reader got no answer.
        """
        coming, self._coming = self._coming, None
        return None if coming is None else coming.result()

    @property
    def is_ready(self) -> bool:
        """True when nobody has to wait for the page that was begun, if one was."""
        return self._coming is None or self._coming.done()

    def peek(self) -> Page | None:
        """Return the page that was begun and is ready without taking it, or None when there is no more, or an error."""
        return None if self._coming is None or self._coming.exception() is not None else self._coming.result()

    def find(self) -> Page | None:
        """Return the page that was begun and is ready, or None when there is no more, or an error that `take` raises."""
        return None if self._coming is None or self._coming.exception() is not None else self.take()

    def wait(self) -> None:
        """Return as soon as the page that was begun is ready."""
        if self._coming is not None:
            wait([self._coming])

    def read(self, page: Page, engine: Engine, should_stop: Callable[[], bool]) -> Page:
        """Return the page with its prompts as the engine reads them; some are missing when told to stop."""
        if page.is_read:
            return page
        spec = self._spec
        read = engine.read(
            page.prompts, max_input_tokens=spec.max_input_tokens, on_overflow=spec.on_overflow, should_stop=should_stop
        )
        return page._replace(read=read)

    def _load(self, first_rank: int | None, engine: Engine | None, rows: int) -> Page | None:
        units, found, next_rank = self._look_up(first_rank, rows)
        if not units:
            return None
        known = {(item.unit.dialogue_key, item.unit.draw) for item in found}
        missing = [unit for unit in units if (unit.dialogue_key, unit.draw) not in known]
        prompts = self._render(missing) if missing else []
        page = Page(found, missing, prompts, [], next_rank, is_cut=sum(len(unit.rows) for unit in units) > rows)
        return page if engine is None else self.read(page, engine, self._is_over.is_set)

    def _look_up(self, first_rank: int | None, rows: int) -> tuple[list[Unit], list[Found], int | None]:
        """Return the units of a page of so many rows, those that exist already, and the rank behind it."""
        spec, claim = self._spec, self._claim
        with self._database.glance() as connection:
            units = load_pending(
                connection, claim, limit=rows + 1, is_sampling=spec.generation.do_sample, first_rank=first_rank
            )
            units, next_rank = _cut(units, rows)
            with_truncated = spec.on_overflow == "truncate"
            found = find_generations(connection, claim, units, with_truncated=with_truncated) if units else []
        return units, found, next_rank

    def _render(self, units: Sequence[Unit]) -> list[Prompt]:
        template = self._find_template()
        return [Prompt(next(self._keys), template.render(unit.text), noise=(unit.digest, unit.draw)) for unit in units]


def _cut(units: list[Unit], rows: int) -> tuple[list[Unit], int | None]:
    """Leave the last dialogue to the next page when that was begun, for it may have more items than were looked up.

    A dialogue that fills a page alone stays; what is left of it is found by the next look at the whole chunk.
    """
    if sum(len(unit.rows) for unit in units) <= rows:
        return units, None
    last = units[-1].rank
    whole = [unit for unit in units if unit.rank != last]
    return (whole, last) if whole else (units, last + 1)
