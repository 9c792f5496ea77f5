"""What engines share that complete whole batches: packing, halving on lack of memory, and rows that fail alone.

An engine fills in two steps, `_encode` and `_forward`. Because the fake and the real engines share everything else, a fault
drill on the fake runs the code that runs in production.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import structlog

from gistmill.errors import DeviceOutOfMemory, ItemError
from gistmill.specs import GenerationParameters
from workers.engine.base import Failure, More, Outcome, Row
from workers.engine.batching import pack, padded_tokens
from workers.engine.reading import ReadingEngine

log = structlog.get_logger(__name__)


class BatchFailed(Exception):
    """`_forward` failed on this batch; `error` is what the row gets if it is the only one."""

    def __init__(self, error: ItemError) -> None:
        super().__init__(error.message)
        self.error = error


class BatchedEngine(ReadingEngine):
    """An engine that completes prompts in length-sorted micro-batches."""

    budget_tokens: int
    max_rows: int

    @abstractmethod
    def _forward(
        self, rows: Sequence[Row], parameters: GenerationParameters, should_stop: Callable[[], bool]
    ) -> list[Outcome] | None:
        """Complete one micro-batch, or return None as soon as `should_stop` says so.

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
        waiting = self._batches(rows, parameters)
        # After a lack of memory, no later batch of these rows is as large as the one that failed: finding the limit out
        # again costs a whole attempt each time.
        largest: int | None = None
        while True:
            if not waiting:
                if more is None or should_stop() or (further := more()) is None:
                    return
                waiting, largest = self._batches(further, parameters), None
                if not waiting:
                    yield []
                continue
            batch = waiting.popleft()
            if len(batch) > 1 and largest is not None and _cost(batch) > largest:
                waiting.extendleft(reversed(_halves(batch)))
                continue
            if should_stop():
                return
            try:
                outcomes = self._forward(batch, parameters, should_stop)
            except BatchFailed as failed:
                if len(batch) == 1:
                    yield [Failure(batch[0].prompt.key, failed.error)]
                    continue
                log.warning("batch_split", rows=len(batch), tokens=_cost(batch), error=failed.error.code)
                parts = _halves(batch)
                if isinstance(failed.error, DeviceOutOfMemory):
                    largest = max(_cost(part) for part in parts)
                waiting.extendleft(reversed(parts))
                continue
            if outcomes is None:
                return
            yield outcomes

    def _batches(self, rows: Sequence[Row], parameters: GenerationParameters) -> deque[list[Row]]:
        beams = parameters.num_beams
        batches = pack(
            [len(row.tokens) for row in rows],
            budget_tokens=max(1, self.budget_tokens // beams),
            max_rows=max(1, self.max_rows // beams),
        )
        return deque([rows[index] for index in batch] for batch in batches)


def _cost(batch: Sequence[Row]) -> int:
    return padded_tokens([len(row.tokens) for row in batch])


def _halves(batch: list[Row]) -> list[list[Row]]:
    middle = len(batch) // 2
    return [batch[:middle], batch[middle:]]
