"""What engines share that complete whole batches: packing, halving on lack of memory, and rows that fail alone.

An engine fills in two steps, `_encode` and `_forward`. Because the fake and the real engines share everything else, a fault
drill on the fake runs the code that runs in production.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from gistmill.errors import ItemError
from gistmill.specs import GenerationParameters
from workers.engine.base import More, Outcome, Row
from workers.engine.batching import pack_evenly
from workers.engine.lanes import complete_side_by_side
from workers.engine.reading import ReadingEngine
from workers.engine.waiting import Waiting


class BatchFailed(Exception):
    """`_forward` failed on this batch; `error` is what the row gets if it is the only one."""

    def __init__(self, error: ItemError) -> None:
        super().__init__(error.message)
        self.error = error


class BatchedEngine(ReadingEngine):
    """An engine that completes prompts in length-sorted micro-batches, `lanes` of them at once.

    A batch holds at most `budget_tokens`, `max_rows` and, where that is limited, `max_scores`; see `pack`.
    """

    budget_tokens: int
    max_rows: int
    max_scores: int | None = None
    lanes: int = 1

    @abstractmethod
    def _forward(
        self, rows: Sequence[Row], parameters: GenerationParameters, should_stop: Callable[[], bool]
    ) -> list[Outcome] | None:
        """Complete one micro-batch, or return None as soon as `should_stop` says so. With several lanes, in a thread of one.

        Raises:
            BatchFailed: the batch as a whole failed; it may succeed in parts.
        """

    def complete(
        self,
        rows: Sequence[Row],
        parameters: GenerationParameters,
        should_stop: Callable[[], bool],
        more: More | None = None,
    ) -> Iterator[list[Outcome]]:
        """Yield the outcomes of each micro-batch as soon as it is finished; see `Engine.complete`."""

        def attempt(batch: list[Row], should_stop: Callable[[], bool]) -> list[Outcome] | ItemError | None:
            try:
                return self._forward(batch, parameters, should_stop)
            except BatchFailed as failed:
                return failed.error

        lanes = self.lanes
        waiting = Waiting(rows, more, pack=partial(self._pack, beams=parameters.num_beams), side_by_side=lanes > 1)
        if lanes > 1:
            yield from complete_side_by_side(waiting, attempt, lanes=lanes, should_stop=should_stop)
            return
        while not should_stop():
            batch = waiting.take()
            if batch is None:
                if waiting.is_over:
                    return
                yield []
                continue
            result = attempt(batch, should_stop)
            if result is None:
                return
            if outcomes := waiting.settle(batch, result):
                yield outcomes

    def _pack(self, rows: Sequence[Row], *, beams: int) -> list[list[Row]]:
        batches = pack_evenly(
            [len(row.tokens) for row in rows],
            budget_tokens=max(1, self.budget_tokens // beams),
            max_rows=max(1, self.max_rows // beams),
            lanes=self.lanes,
            max_scores=self.max_scores,
        )
        return [[rows[index] for index in batch] for batch in batches]
