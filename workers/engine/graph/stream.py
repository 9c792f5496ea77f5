"""Rows through the slots of an arena: who joins when, who has left, and what a failure costs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import structlog
import torch

from gistmill.errors import DeviceOutOfMemory, ItemError
from gistmill.specs import GenerationParameters
from workers.engine.base import Failure, Outcome, Row
from workers.engine.graph.arena import Arena, Ending, View
from workers.engine.graph.desk import Desk
from workers.engine.graph.encoder import align, encode, pad_sources
from workers.engine.graph.lane import Lane
from workers.engine.graph.step import Choice
from workers.engine.sampling import row_noise
from workers.engine.transformers import FORWARD_ERRORS, blame, is_device_lost

log = structlog.get_logger(__name__)

ENCODER_TOKENS = 8_192
# The encoder's mask has a number per row, head and pair of positions.
ENCODER_PAIRS = 2**26
# Rows join when a quarter of the slots is free, so that the encoder gets batches, and leave by eighths of those in flight.
JOIN_SHARE, LEAVE_SHARE = 4, 8


@dataclass
class Flight:
    """A row in a slot; `steps` were run since it joined."""

    row: Row
    steps: int = 0


class Stream:
    """The rows of one call, longest first, on a desk that others may use between two lists of outcomes."""

    def __init__(
        self,
        desk: Desk,
        rows: Sequence[Row],
        parameters: GenerationParameters,
        choice: Choice,
        finish: Callable[[Row, Ending], Outcome],
        adapter: str | None = None,
    ) -> None:
        self._desk = desk
        self._parameters = parameters
        self._choice = choice
        self._finish = finish
        self._adapter = adapter
        self._waiting = deque(sorted(rows, key=lambda row: -len(row.tokens)))
        self._flights: dict[int, Flight] = {}
        self._arena: Arena | None = None
        self._lane: Lane | None = None
        self._encoder_tokens = ENCODER_TOKENS
        self._most_rows = desk.max_rows

    def run(self, should_stop: Callable[[], bool]) -> Iterator[list[Outcome]]:
        """Yield the outcomes of rows as they leave; see `Engine.generate`."""
        try:
            while self._waiting or self._flights:
                if should_stop():
                    return
                self._desk.seize(self, self._adapter)
                with torch.inference_mode():
                    outcomes = self._admit() + self._step() + self._harvest()
                if outcomes:
                    yield outcomes
        finally:
            self._desk.release(self)

    def withdraw(self) -> None:
        """Take every row out of its slot; they run anew later."""
        with torch.inference_mode():
            self._send_back(list(self._flights))
        self._arena = self._lane = None

    def _admit(self) -> list[Outcome]:
        """Let waiting rows join; return the failures of those that cannot."""
        outcomes: list[Outcome] = []
        while self._waiting and (room := self._room(is_first=not outcomes)):
            group = self._next_group(room)
            try:
                self._join(group)
                continue
            except FORWARD_ERRORS as error:
                if is_device_lost(error):
                    raise
                failed = blame(error, group)
            self._desk.give_back_memory()
            if len(group) == 1:
                outcomes.append(Failure(group[0].prompt.key, failed))
                continue
            self._waiting.extendleft(reversed(group))
            self._encoder_tokens = _cost(group) // 2
            log.warning("batch_split", rows=len(group), tokens=_cost(group), error=failed.code)
        return outcomes

    def _room(self, *, is_first: bool) -> int:
        """Return how many rows may join now."""
        if not self._flights:
            return self._most_rows
        assert self._arena is not None
        size = self._arena.size
        free = min(size.slots, self._most_rows) - len(self._flights)
        is_enough = free * JOIN_SHARE >= size.slots or not is_first
        return free if is_enough and not self._is_too_wide() else 0

    def _is_too_wide(self) -> bool:
        """True when the rows in flight had better end first: those that wait would get more slots of their own width."""
        assert self._arena is not None
        width = len(self._waiting[0].tokens)
        slots = self._desk.size(width, self._parameters.max_new_tokens).slots
        return width * 4 <= self._arena.size.source and slots >= 2 * self._arena.size.slots

    def _next_group(self, room: int) -> list[Row]:
        group = [self._waiting.popleft()]
        width = align(len(group[0].tokens))
        pairs = width * width * self._desk.weights.shape.heads
        most = min(room, self._encoder_tokens // width, ENCODER_PAIRS // pairs)
        while self._waiting and len(group) < most:
            group.append(self._waiting.popleft())
        return group

    def _join(self, group: list[Row]) -> None:
        """Put the first rows of a group that fit into slots; the rest waits again."""
        if not self._flights or self._arena is None or self._lane is None:
            self._open(group[0])
        assert self._arena is not None
        assert self._lane is not None
        free = [slot for slot in range(self._arena.size.slots) if slot not in self._flights]
        self._waiting.extendleft(reversed(group[len(free) :]))
        del group[len(free) :]
        tokens, lengths = pad_sources([row.tokens for row in group], device=self._desk.device)
        cross_kv = encode(self._desk.weights, tokens, lengths)
        self._arena.admit(free[: len(group)], cross_kv, lengths, self._noise(group))
        self._lane.forget()
        self._flights.update(zip(free, map(Flight, group), strict=False))

    def _open(self, longest: Row) -> None:
        self._arena = self._lane = None
        arena = self._desk.open(len(longest.tokens), self._parameters.max_new_tokens)
        arena.is_done.fill_(True)
        arena.limit.fill_(self._parameters.max_new_tokens)
        self._arena, self._lane = arena, self._desk.lane(arena, self._choice)

    def _noise(self, group: Sequence[Row]) -> torch.Tensor | None:
        if not self._parameters.do_sample:
            return None
        seed, steps = self._parameters.seed, self._parameters.max_new_tokens
        table = np.stack([row_noise(seed, row.prompt.noise, steps) for row in group])
        return torch.from_numpy(table).to(self._desk.device)

    def _step(self) -> list[Outcome]:
        """Run a step; when it fails, half of the rows go back, and a row alone fails."""
        if not self._flights:
            return []
        assert self._lane is not None
        rows = [flight.row for flight in self._flights.values()]
        try:
            self._lane.step(self._view())
        except FORWARD_ERRORS as error:
            if is_device_lost(error):
                raise
            failed = blame(error, rows)
        else:
            for flight in self._flights.values():
                flight.steps += 1
            return []
        self._desk.give_back_memory()
        return self._split(failed)

    def _split(self, failed: ItemError) -> list[Outcome]:
        slots = sorted(self._flights)
        if len(slots) == 1:
            key = self._flights[slots[0]].row.prompt.key
            self._take_out(slots)
            if not isinstance(failed, DeviceOutOfMemory):
                self._most_rows = self._desk.max_rows
            return [Failure(key, failed)]
        self._most_rows = len(slots) // 2
        self._send_back(slots[self._most_rows :])
        log.warning("batch_split", rows=len(slots), error=failed.code)
        return []

    def _view(self) -> View:
        """Return the view that holds every row in flight, after rows have moved up where that makes it smaller."""
        assert self._arena is not None
        assert self._lane is not None
        arena, needed = self._arena, self._needed(len(self._flights))
        view = self._lane.fit(needed, arena.size)
        high = [slot for slot in self._flights if slot >= view.slots]
        if high:
            low = [slot for slot in range(view.slots) if slot not in self._flights][: len(high)]
            arena.move(high, low)
            self._lane.forget()
            for source, target in zip(high, low, strict=True):
                self._flights[target] = self._flights.pop(source)
        return view

    def _needed(self, slots: int) -> View:
        source = max(len(flight.row.tokens) for flight in self._flights.values())
        return View(slots, source, max(flight.steps for flight in self._flights.values()) + 1)

    def _harvest(self) -> list[Outcome]:
        """Return the outcomes of the rows that are done, when they are enough or the last."""
        done = self._lane.read_done() if self._lane is not None and self._flights else None
        if done is None:
            return []
        left = [slot for slot in self._flights if done[slot]]
        if not left or len(left) * LEAVE_SHARE < len(self._flights):
            return []
        rows = [self._flights[slot].row for slot in left]
        return [self._finish(row, ending) for row, ending in zip(rows, self._take_out(left), strict=True)]

    def _take_out(self, slots: Sequence[int]) -> list[Ending]:
        assert self._arena is not None
        assert self._lane is not None
        endings = self._arena.leave(slots)
        self._lane.forget()
        for slot in slots:
            del self._flights[slot]
        return endings

    def _send_back(self, slots: Sequence[int]) -> None:
        if slots:
            rows = [self._flights[slot].row for slot in slots]
            self._take_out(slots)
            self._waiting.extendleft(sorted(rows, key=lambda row: len(row.tokens)))


def _cost(group: Sequence[Row]) -> int:
    return len(group) * align(max(len(row.tokens) for row in group))
