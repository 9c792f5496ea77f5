"""Several micro-batches worked on at once, each in a thread of its own, for one caller who takes them as they finish."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager

from gistmill.errors import ItemError
from workers.engine.base import Outcome, Row
from workers.engine.waiting import Waiting

# How often a lane that has nothing to do asks for further rows while others work.
ASK_EVERY_S = 0.02

Result = list[Outcome] | ItemError | None
Attempt = Callable[[list[Row], Callable[[], bool]], Result]


def complete_side_by_side(
    waiting: Waiting, attempt: Attempt, *, lanes: int, should_stop: Callable[[], bool]
) -> Iterator[list[Outcome]]:
    """Yield the outcomes of micro-batches in the order in which they finish; at most `lanes` are worked on at once.

    `attempt` gets a batch and what tells it to stop, and returns None when told so. The next batch is begun before one is
    yielded, so that the lanes work while the caller does something with it; more than that they do not work ahead.

    However this ends, by the last row, a stop, an error of a lane (which comes up here) or by being closed, no lane runs any
    more when it has ended: they are told to stop and waited for.
    """
    asking = Asking(should_stop)
    with ThreadPoolExecutor(lanes, thread_name_prefix="lane") as pool, asking.until_left():
        work = _Work(waiting, attempt, lanes=lanes, pool=pool, asking=asking)
        while not asking.ask():
            while not work.finished and work.go_on():
                pass
            if work.is_stopped:
                return
            if work.finished:
                work.begin(work.take())
                yield work.finished.popleft()
            elif waiting.is_over:
                return
            else:
                yield []


class _Work:
    """What the lanes are at, and what is finished and not yet yielded."""

    def __init__(self, waiting: Waiting, attempt: Attempt, *, lanes: int, pool: Executor, asking: Asking) -> None:
        self._waiting = waiting
        self._attempt = attempt
        self._lanes = lanes
        self._pool = pool
        self._asking = asking
        self.running: dict[Future[Result], list[Row]] = {}
        self.finished: deque[list[Outcome]] = deque()
        self.is_stopped = False

    def take(self) -> list[list[Row]]:
        """Return a batch for every idle lane, as far as there are any."""
        taken: list[list[Row]] = []
        while (beside := len(self.running) + len(taken)) < self._lanes:
            batch = self._waiting.take(beside=beside)
            if batch is None:
                break
            taken.append(batch)
        return taken

    def begin(self, batches: list[list[Row]]) -> None:
        """Give these batches to idle lanes."""
        for batch in batches:
            self.running[self._pool.submit(self._attempt, batch, self._asking)] = batch

    def go_on(self) -> bool:
        """Keep the lanes busy until one ends, or several together, or an idle one may ask again for further rows.

        Return False when there is no batch, or a stop.
        """
        batches = self.take()
        if not batches and not self.running:
            return False
        with self._asking.by_lanes():
            # From its first step on a lane may ask.
            self.begin(batches)
            idle_s = ASK_EVERY_S if len(self.running) < self._lanes and self._waiting.may_grow else None
            done = wait(self.running, timeout=idle_s, return_when=FIRST_COMPLETED).done
        # Those that end together stay in the order in which they were begun.
        for future in [future for future in self.running if future in done]:
            batch, result = self.running.pop(future), future.result()
            if result is None:
                self.is_stopped = True
            elif outcomes := self._waiting.settle(batch, result):
                self.finished.append(outcomes)
        return not self.is_stopped


class Asking:
    """Lets many threads ask whether to stop, of which one at a time really asks; the others go by the last answer.

    Whose turn it is to ask is a lock: the caller's thread holds it, save while it waits for the lanes.
    """

    def __init__(self, should_stop: Callable[[], bool]) -> None:
        self._should_stop = should_stop
        self._turn = threading.Lock()
        self._is_over = False

    def __call__(self) -> bool:
        """Tell a lane whether to stop; at once, whoever else is asking."""
        if not self._is_over and self._turn.acquire(blocking=False):
            try:
                self.ask()
            finally:
                self._turn.release()
        return self._is_over

    def ask(self) -> bool:
        """Ask, by the thread whose turn it is; after the first yes nobody is asked any more."""
        self._is_over = self._is_over or self._should_stop()
        return self._is_over

    @contextmanager
    def until_left(self) -> Iterator[None]:
        """Hold the turn for the caller's thread, and tell all lanes to stop when the block is left."""
        self._turn.acquire()
        try:
            yield
        finally:
            self._is_over = True

    @contextmanager
    def by_lanes(self) -> Iterator[None]:
        """Leave the turn to the lanes while the caller's thread waits for them."""
        self._turn.release()
        try:
            yield
        finally:
            self._turn.acquire()
