"""The micro-batches of one call that are still to be completed: halved when they fail, and rows that fail alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import structlog

from gistmill.errors import DeviceOutOfMemory, ItemError
from workers.engine.base import Failure, More, Outcome, Row
from workers.engine.batching import padded_tokens

log = structlog.get_logger(__name__)


class Waiting:
    """A queue of micro-batches of a stream of rows, which gives every row one outcome. For one thread.

    `pack` makes batches of rows; `more` gives the next rows, see `Engine.complete`. With `side_by_side` others may run beside a
    batch: a row that lacks memory then is tried once more when none does.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        more: More | None = None,
        *,
        pack: Callable[[Sequence[Row]], list[list[Row]]],
        side_by_side: bool = False,
    ) -> None:
        self._pack = pack
        self._batches = deque(pack(rows))
        self._more = more
        self._side_by_side = side_by_side
        self._lonely: deque[list[Row]] = deque()
        self._alone: list[Row] | None = None
        # After a lack of memory, no later batch of these rows is as large as the one that failed: finding the limit out
        # again costs a whole attempt each time.
        self._largest: int | None = None

    @property
    def is_over(self) -> bool:
        """Whether there is no batch, and none will come but for those that were taken and fail."""
        return not (self._batches or self._lonely or self._more)

    @property
    def may_grow(self) -> bool:
        """Whether further rows may come."""
        return self._more is not None

    def take(self, *, beside: int = 0) -> list[Row] | None:
        """Return the batch to complete next beside so many others, or None when there is none for now."""
        if not self._batches and self._more is not None:
            self._ask_for_more(self._more)
        while self._batches:
            batch = self._batches.popleft()
            if len(batch) == 1 or self._largest is None or _cost(batch) <= self._largest:
                return batch
            self._put_back(_halves(batch))
        if not self._lonely or beside:
            return None
        self._alone = self._lonely.popleft()
        return self._alone

    def settle(self, batch: list[Row], result: list[Outcome] | ItemError) -> list[Outcome]:
        """Return the outcomes of a batch that was taken: none when it failed, and comes again in parts."""
        if not isinstance(result, ItemError):
            return result
        lacks_memory = isinstance(result, DeviceOutOfMemory)
        if len(batch) > 1:
            log.warning("batch_split", rows=len(batch), tokens=_cost(batch), error=result.code)
            parts = _halves(batch)
            if lacks_memory:
                self._largest = max(_cost(part) for part in parts)
            self._put_back(parts)
        elif lacks_memory and self._side_by_side and batch is not self._alone:
            self._lonely.append(batch)
        else:
            return [Failure(batch[0].prompt.key, result)]
        return []

    def _ask_for_more(self, more: More) -> None:
        further = more()
        if further is None:
            self._more = None
        elif further:
            self._batches.extend(self._pack(further))
            self._largest = None

    def _put_back(self, parts: list[list[Row]]) -> None:
        self._batches.extendleft(reversed(parts))


def _cost(batch: Sequence[Row]) -> int:
    return padded_tokens([len(row.tokens) for row in batch])


def _halves(batch: list[Row]) -> list[list[Row]]:
    middle = len(batch) // 2
    return [batch[:middle], batch[middle:]]
