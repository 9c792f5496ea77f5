"""Streaming: what an engine makes without a pause, of the chunk that runs and, behind it, of the one that was claimed ahead."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from typing import NamedTuple

from gistmill.db.claim import Claim
from gistmill.specs import GenerationParameters
from workers.engine.base import Engine, Outcome, Row
from workers.handlers.feeding import Feed
from workers.handlers.pages import Page, Pages

Timed = Callable[[Iterable[list[Outcome]]], Iterator[list[Outcome]]]
# Gives the feed of the chunk behind this one in this engine, with its first rows, or none while that may still come, or None.
Follow = Callable[[Feed, Engine], tuple[Feed, list[Row]] | list[Row] | None]


class Stream:
    """Rows through one engine: those of the chunk whose turn it is, and behind them those of the next one.

    Each chunk takes its own outcomes; those of the next one are kept until its turn. An engine that does not ask for rows
    before it is through with those that it has never gets the next chunk's.
    """

    def __init__(
        self,
        engine: Engine,
        parameters: GenerationParameters,
        feed: Feed,
        page: Page,
        *,
        should_stop: Callable[[], bool],
        follow: Follow,
    ) -> None:
        self.engine = engine
        self.behind: Feed | None = None
        self.feed = feed
        self._should_stop = should_stop
        self._follow = follow
        self._kept: list[Outcome] = []
        self._is_ending = False
        self._batches = engine.complete(feed.enter(page, engine), parameters, lambda: self._should_stop(), self._more)

    def turn(self, *, should_stop: Callable[[], bool], follow: Follow) -> None:
        """Go on with the chunk behind."""
        assert self.behind is not None, "no chunk stands behind this one"
        self.feed, self.behind = self.behind, None
        self._should_stop = should_stop
        self._follow = follow

    def outcomes(self, timed: Timed) -> Iterator[list[Outcome]]:
        """Yield what is made of the chunk whose turn it is until it has all; an empty list says that the engine waits.

        `timed` measures the time in which the engine is asked, whosever rows it makes.
        """
        kept, self._kept = self._kept, []
        if kept:
            yield kept
        if self._is_through():
            return
        for outcomes in timed(self._batches):
            mine = outcomes if self.behind is None else self._sort(outcomes)
            if mine or not outcomes:
                yield mine
            if self._is_through():
                return

    def close(self) -> None:
        """Let the engine stop whatever it does for this stream."""
        if isinstance(self._batches, Generator):
            self._batches.close()

    def _is_through(self) -> bool:
        """Return whether the chunk has all and the engine is at the next one. With none behind, it is let come to its end."""
        if self.feed.count_left() != 0:
            return False
        self._is_ending = self.behind is None
        return not self._is_ending

    def _sort(self, outcomes: list[Outcome]) -> list[Outcome]:
        mine: list[Outcome] = []
        for outcome in outcomes:
            (mine if self.feed.holds(outcome) else self._kept).append(outcome)
        return mine

    def _more(self) -> list[Row] | None:
        if self.behind is not None:
            return self.behind.more(self.engine)
        if self._is_ending:
            return None
        rows = self.feed.more(self.engine)
        # Behind a reader that failed nothing follows: its chunk is to end.
        if rows is not None or self.feed.count_behind() != 0:
            return rows
        following = self._follow(self.feed, self.engine)
        if not isinstance(following, tuple):
            return following
        self.behind, rows = following
        return rows


class Next(NamedTuple):
    """The chunk that was claimed ahead, its pages, of which the reader takes the first look, and whether an engine can make its
    rows in one stream with those of the chunk that runs.
    """

    claim: Claim
    pages: Pages
    is_alike: bool


class Succession:
    """What goes over from one chunk to the next: the pages that were begun of it, and the stream that has begun with it.

    The thread that runs chunks has it alone, save for `announce`, and the runner between two chunks.
    """

    def __init__(self) -> None:
        self._next: Next | None = None
        self._stream: Stream | None = None

    def announce(self, following: Next) -> None:
        """Note the chunk that comes next. The reader's thread calls it."""
        self._next = following

    def follow(self, claim: Claim, feed: Feed, engine: Engine) -> tuple[Feed, list[Row]] | list[Row] | None:
        """Let the announced chunk, if there is one, go into the engine behind this one; see `Follow`.

        Not where one of the two has failed before: of two chunks in one stream the first one pays for both.
        """
        following = self._next
        # What is pending of this chunk a second time has to begin a stream of its own.
        if following is None or not following.is_alike or feed.pending is None or claim.failures or following.claim.failures:
            return None
        if not following.pages.is_ready:
            return []
        page = following.pages.peek()
        if page is None or not page.missing or not page.is_read:
            return None
        following.pages.take()
        behind = Feed(following.pages)
        behind.note(page)
        return behind, behind.enter(page, engine)

    def take_pages(self, claim: Claim) -> Pages | None:
        """Return the pages that were begun of this chunk, if it is the announced one; those of another are given up."""
        following = self._next
        if following is not None and following.claim is claim:
            self._next = None
            return following.pages
        self.give_up()
        return None

    def begin(self, stream: Stream) -> Stream:
        """Let this be the stream; one before it ends."""
        self.end_stream()
        self._stream = stream
        return stream

    def find_stream(self) -> Stream | None:
        """Return the stream if it has begun with the chunk whose turn comes."""
        return self._stream if self._stream is not None and self._stream.behind is not None else None

    def leave(self, stream: Stream) -> None:
        """The chunk whose turn it was has all: the stream ends unless it has begun with the next one."""
        if stream.behind is None:
            self.end_stream()

    def end_stream(self) -> None:
        """Let the engine stop; with what it has made of the next chunk, what was begun of that is given up."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()
            if stream.behind is not None:
                self.give_up()

    def give_up(self) -> None:
        """Forget what was begun of the next chunk: it does not run, or has to begin anew."""
        following, self._next = self._next, None
        if following is not None:
            following.pages.close()
        if self.find_stream() is not None:
            self.end_stream()
