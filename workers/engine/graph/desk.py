"""The one place where rows of a model run: its arena, its lane, and which stream has them now."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from workers.engine.graph.adapters import Merger
from workers.engine.graph.arena import Arena, View
from workers.engine.graph.encoder import align
from workers.engine.graph.lane import Lane, Side
from workers.engine.graph.step import Choice
from workers.engine.graph.weights import T5Weights
from workers.engine.transformers import is_out_of_memory

LEAST_SOURCE = 64
AHEAD_SHARE = 4
MOST_LANES = 4


class Holder(Protocol):
    """Who has the desk."""

    def withdraw(self) -> None:
        """Take every row out of its slot; they run anew later."""
        ...


class Desk:
    """Gives its arena to one stream at a time.

    A stream that comes while another one has rows in flight sends those back to where they waited: they run anew, and give the
    same texts. `budget_tokens` bounds the positions of all slots together, those of source and output; `max_rows` the slots.
    `merger` changes the weights, once adapters were added. With a `side`, rows are encoded while others are in flight, at most
    `AHEAD_SHARE` of the budget.
    """

    def __init__(
        self,
        weights: T5Weights,
        make_lane: Callable[[T5Weights, Arena, Choice], Lane],
        *,
        start: int,
        ends: Sequence[int],
        budget_tokens: int,
        max_rows: int,
        side: Side | None = None,
    ) -> None:
        self.weights = weights
        self.side = side
        self.budget_tokens = budget_tokens
        self.max_rows = max_rows
        self._make_lane = make_lane
        self._start = start
        self._ends = tuple(ends)
        self._arena: Arena | None = None
        self._lanes: OrderedDict[Choice, Lane] = OrderedDict()
        self._holder: Holder | None = None
        self.merger: Merger | None = None

    @property
    def ahead_tokens(self) -> int:
        """How many tokens of sources may be encoded before there are slots for them."""
        return 0 if self.side is None else self.budget_tokens // AHEAD_SHARE

    @property
    def device(self) -> str:
        """Where the model is."""
        return str(self.weights.embedding.device)

    def seize(self, stream: Holder, adapter: str | None) -> None:
        """Make this stream the one that has the desk, and the weights those of the base with its adapter, if it has one.

        Weights change only while no row is in flight: what a row has cached is of the weights that it began with.
        """
        if self._holder is stream:
            return
        self.clear()
        if self.merger is not None:
            self.merger.merge(adapter)
        self._holder = stream

    def clear(self) -> None:
        """Send back the rows in flight, if there are any; whoever has the desk has to seize it again."""
        if self._holder is not None:
            self._holder.withdraw()
        self._holder = None

    def release(self, stream: Holder) -> None:
        """Let the next one come, if this stream has the desk."""
        if self._holder is stream:
            self.clear()

    def size(self, source: int, steps: int) -> View:
        """Return the size of an arena for rows of so many tokens in and out."""
        width, steps = max(LEAST_SOURCE, 1 << (source - 1).bit_length()), align(steps)
        return View(max(1, min(self.max_rows, self.budget_tokens // (width + steps))), width, steps)

    def open(self, source: int, steps: int) -> Arena:
        """Return an arena without rows that holds such; with fewer slots when memory is short.

        Raises:
            RuntimeError, MemoryError: there is no memory for a single slot.
        """
        size = self.size(source, steps)
        if self._arena is None or not self._suffices(self._arena.size, size):
            self._lanes.clear()
            self._arena = None
            self._arena = self._make_arena(size)
        return self._arena

    def _suffices(self, held: View, size: View) -> bool:
        """True when an arena is wide enough, and a new one would not have twice its slots: another one is recorded anew."""
        return held.source >= size.source and held.steps >= size.steps and size.slots < 2 * held.slots

    def lane(self, arena: Arena, choice: Choice) -> Lane:
        """Return the lane that runs the steps of the open arena with this choice; the latest ones keep what they recorded."""
        assert arena is self._arena
        if choice not in self._lanes:
            if len(self._lanes) >= MOST_LANES:
                self._lanes.popitem(last=False)
            self._lanes[choice] = self._make_lane(self.weights, arena, choice)
        self._lanes.move_to_end(choice)
        self._lanes[choice].forget()
        return self._lanes[choice]

    def give_back_memory(self) -> None:
        """Return what is not in use to the device."""
        if self.weights.embedding.is_cuda:
            torch.cuda.empty_cache()

    def _make_arena(self, size: View) -> Arena:
        while True:
            try:
                return Arena(
                    self.weights.shape,
                    size,
                    start=self._start,
                    ends=self._ends,
                    dtype=self.weights.embedding.dtype,
                    device=self.device,
                )
            except (RuntimeError, MemoryError) as error:
                if size.slots == 1 or not is_out_of_memory(error):
                    raise
            self.give_back_memory()
            size = size._replace(slots=size.slots // 2)
