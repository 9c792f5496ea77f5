"""An engine that gets its rows page by page: as one stream, as in a worker, or one page after the other."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

from gistmill.specs import GenerationParameters
from workers.engine.base import PAGE_ROWS, Completion, Engine, Outcome, Prompt, Row
from workers.engine.graph.arena import View
from workers.engine.graph.engine import GraphEngine
from workers.engine.graph.lane import Lane

Run = Callable[[Engine, Sequence[Sequence[Prompt]], GenerationParameters], Iterator[list[Outcome]]]


def never() -> bool:
    """Do not stop."""
    return False


def read(engine: Engine, prompts: Sequence[Prompt]) -> list[Row]:
    """Return the prompts as the engine reads them."""
    found = engine.read(prompts, max_input_tokens=2_048, on_overflow="fail", should_stop=never)
    return [item for item in found if isinstance(item, Row)]


def cut(prompts: Sequence[Prompt], page_rows: int) -> list[Sequence[Prompt]]:
    """Return pages as a worker makes them: a small one first, each twice the last, none above `page_rows`."""
    pages, rows = [], min(PAGE_ROWS, page_rows)
    while prompts:
        pages.append(prompts[:rows])
        prompts, rows = prompts[rows:], min(2 * rows, page_rows)
    return pages


class Pages:
    """Pages that are read on a thread of their own, one beyond those that were taken."""

    def __init__(self, engine: Engine, pages: Sequence[Sequence[Prompt]], reader: ThreadPoolExecutor) -> None:
        self._engine = engine
        self._left = deque(pages)
        self._reader = reader
        self._coming: Future[list[Row]] | None = None
        self._begin()

    def take(self) -> list[Row] | None:
        """Return the rows of the next page, waiting for it, or None behind the last one."""
        if self._coming is None:
            return None
        rows = self._coming.result()
        self._begin()
        return rows

    def more(self) -> list[Row] | None:
        """Return the rows of the next page, none when it is not there yet, or None behind the last one."""
        return self.take() if self._coming is None or self._coming.done() else []

    def wait(self) -> None:
        """Return when the next page is there."""
        if self._coming is not None:
            wait([self._coming])

    def _begin(self) -> None:
        self._coming = self._reader.submit(read, self._engine, self._left.popleft()) if self._left else None


def as_stream(engine: Engine, pages: Sequence[Sequence[Prompt]], parameters: GenerationParameters) -> Iterator[list[Outcome]]:
    """Complete all pages in one call that asks for them."""
    with ThreadPoolExecutor(1) as reader:
        ahead = Pages(engine, pages, reader)
        for outcomes in engine.complete(ahead.take() or [], parameters, never, ahead.more):
            yield outcomes
            if not outcomes:
                ahead.wait()


def page_by_page(
    engine: Engine, pages: Sequence[Sequence[Prompt]], parameters: GenerationParameters
) -> Iterator[list[Outcome]]:
    """Complete each page in a call of its own while the next is read."""
    with ThreadPoolExecutor(1) as reader:
        ahead = Pages(engine, pages, reader)
        while (rows := ahead.take()) is not None:
            yield from engine.complete(rows, parameters, never)


@dataclass
class Count:
    """Steps, and the rows that were in flight, over all of them."""

    steps: int = 0
    rows: int = 0
    most: int = 0


class CountingLane:
    """A lane that counts what passes through it."""

    def __init__(self, lane: Lane, count: Count) -> None:
        self._lane = lane
        self._count = count
        self.lag, self.step, self.read_done, self.forget = lane.lag, lane.step, lane.read_done, lane.forget

    def fit(self, needed: View, size: View) -> View:
        """Note a step that is about to run."""
        self._count.steps += 1
        self._count.rows += needed.slots
        self._count.most = max(self._count.most, needed.slots)
        return self._lane.fit(needed, size)


@contextmanager
def counted(engine: GraphEngine) -> Iterator[Count]:
    """Count the steps of an engine, in lanes made for that; on a GPU they are recorded anew, and again afterwards."""
    desk, count = engine._desk, Count()
    make = desk._make_lane
    desk._lanes.clear()
    desk._make_lane = lambda *parts: CountingLane(make(*parts), count)
    try:
        yield count
    finally:
        desk._make_lane = make
        desk._lanes.clear()


WAYS: dict[str, Run] = {"stream": as_stream, "page_by_page": page_by_page}


def measure_ways(
    engine: GraphEngine, texts: Sequence[str], parameters: GenerationParameters, *, rounds: int, sizes: Sequence[int]
) -> dict[str, Any]:
    """Return by the size of pages dialogues/s, tokenization included, steps, and rows in flight of both ways.

    The ways take turns. Shorter dialogues come first, as in a chunk.
    """
    texts = sorted(texts, key=len)
    items = [Prompt(key, text, (str(key), 0)) for key, text in enumerate(texts)]
    found: dict[str, Any] = {}
    for page_rows in sizes:
        pages = cut(items, page_rows)
        seconds: dict[str, list[float]] = {name: [] for name in WAYS}
        for _ in range(rounds):
            for name, run in WAYS.items():
                seconds[name].append(time_run(run(engine, pages, parameters), len(items)))
        found[str(page_rows)] = {"pages": len(pages)} | {
            name: {
                "per_s": round(len(items) / median(seconds[name]), 1),
                "all_per_s": [round(len(items) / each, 1) for each in seconds[name]],
                **_count(engine, run(engine, pages, parameters), len(items)),
            }
            for name, run in WAYS.items()
        }
    return found


def _count(engine: GraphEngine, outcomes: Iterator[list[Outcome]], rows: int) -> dict[str, float]:
    with counted(engine) as count:
        time_run(outcomes, rows)
    return {"steps": count.steps, "rows_in_flight": round(count.rows / count.steps, 1), "most_in_flight": count.most}


def time_run(outcomes: Iterator[list[Outcome]], rows: int) -> float:
    """Return the seconds that it takes until all of so many rows are completed.

    Raises:
        RuntimeError: fewer or more are.
    """
    begun = time.perf_counter()
    done = sum(isinstance(outcome, Completion) for some in outcomes for outcome in some)
    if done != rows:
        raise RuntimeError(f"{done} of {rows} rows were completed")
    return time.perf_counter() - begun
