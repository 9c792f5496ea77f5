"""Rows through the slots of an arena: who joins when, who has left, and what a failure costs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import structlog
import torch
from torch import Tensor

from gistmill.errors import DeviceOutOfMemory, ItemError
from gistmill.specs import GenerationParameters
from workers.engine.base import Failure, More, Outcome, Row
from workers.engine.graph.arena import Arena, Ending, Leaving, View
from workers.engine.graph.desk import Desk
from workers.engine.graph.encoder import align, encode, pad_sources
from workers.engine.graph.lane import Lane
from workers.engine.graph.step import Choice
from workers.engine.graph.transfer import upload
from workers.engine.sampling import row_noise
from workers.engine.transformers import FORWARD_ERRORS, blame, is_device_lost

log = structlog.get_logger(__name__)

ENCODER_TOKENS, GPU_ENCODER_TOKENS = 8_192, 16_384
# The encoder's mask has a number per row, head and pair of positions.
ENCODER_PAIRS = 2**26
# Rows join when a quarter of the slots is free, so that the encoder gets batches, and leave by eighths of those in flight.
JOIN_SHARE, LEAVE_SHARE = 4, 8


class Flight(NamedTuple):
    """A row in a slot, and the number of steps that the stream had run when it joined."""

    row: Row
    since: int


class Ended(NamedTuple):
    """Rows that have left their slots, and the number of steps that the stream had run by then."""

    rows: list[Row]
    leaving: Leaving
    since: int


class Encoded(NamedTuple):
    """Rows on their way to slots: their keys and values (B, S, L * 2HK), lengths (B), noise (B, T) or None, their arrival."""

    rows: list[Row]
    fused: Tensor
    lengths: Tensor
    noise: Tensor | None
    mark: Any


class Stream:
    """The rows of one call on a desk that others may use between two lists of outcomes.

    Those that came together run longest first, and behind those that came before.
    """

    def __init__(
        self,
        desk: Desk,
        parameters: GenerationParameters,
        choice: Choice,
        finish: Callable[[Sequence[tuple[Row, Ending]]], list[Outcome]],
        *,
        adapter: str | None = None,
        more: More | None = None,
    ) -> None:
        self._desk = desk
        self._parameters = parameters
        self._choice = choice
        self._finish = finish
        self._adapter = adapter
        self._more = more
        self._waiting: deque[Row] = deque()
        self._ready: deque[Encoded] = deque()
        self._flights: dict[int, Flight] = {}
        self._arena: Arena | None = None
        self._lane: Lane | None = None
        self._steps = 0
        # The longest source in flight, and when the first of the rows joined; None when rows have come or gone since.
        self._extent: tuple[int, int] | None = None
        self._ended: deque[Ended] = deque()
        self._forget_limits()

    def add(self, rows: Sequence[Row]) -> None:
        """Let these rows wait behind those that do."""
        self._waiting.extend(sorted(rows, key=lambda row: -len(row.tokens)))

    def run(self, should_stop: Callable[[], bool]) -> Iterator[list[Outcome]]:
        """Yield the outcomes of rows as they leave; see `Engine.complete`."""
        try:
            while self._has_rows or self._more is not None:
                if should_stop():
                    return
                self._ask_for_more()
                if not self._has_rows:
                    if self._more is not None:
                        yield []
                    continue
                self._desk.seize(self, self._adapter)
                with torch.inference_mode():
                    outcomes = self._admit() + self._step()
                    self._encode_ahead()
                    outcomes += self._finish_ended()
                    self._harvest()
                if outcomes:
                    yield outcomes
        finally:
            self._desk.release(self)

    @property
    def _has_rows(self) -> bool:
        return bool(self._waiting or self._ready or self._flights or self._ended)

    def _ask_for_more(self) -> None:
        """Take the next rows when fewer wait than there are slots: so encoding ahead never runs out of them."""
        if self._more is None or len(self._waiting) >= self._desk.max_rows:
            return
        rows = self._more()
        if rows is None:
            self._more = None
        elif rows:
            self.add(rows)
            self._forget_limits()

    def _forget_limits(self) -> None:
        """Begin with what the desk allows. What a failure teaches holds until further rows come: memory may be free again."""
        self._encoder_tokens = ENCODER_TOKENS if self._desk.device == "cpu" else GPU_ENCODER_TOKENS
        self._ahead_tokens = self._desk.ahead_tokens
        self._most_rows = self._desk.max_rows

    def withdraw(self) -> None:
        """Take every row out of its slot; they run anew later."""
        with torch.inference_mode():
            self._send_back(list(self._flights))
            self._give_up_ready()
        self._arena = self._lane = None

    def _admit(self) -> list[Outcome]:
        """Let waiting rows join; return the failures of those that cannot."""
        outcomes: list[Outcome] = []
        has_joined = False
        while (self._ready or self._waiting) and (room := self._room(has_joined=has_joined)):
            if self._ready:
                if len(self._ready[0].rows) > room:
                    break
                self._join_ready()
                has_joined = True
                continue
            group = self._next_group(room, self._encoder_tokens)
            try:
                self._join(group)
                has_joined = True
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

    def _room(self, *, has_joined: bool) -> int:
        """Return how many rows may join now; once some have, as many as there is room for."""
        if not self._flights:
            return max(self._most_rows, len(self._ready[0].rows) if self._ready else 0)
        assert self._arena is not None
        size = self._arena.size
        free = min(size.slots, self._most_rows) - len(self._flights)
        is_enough = has_joined or free * JOIN_SHARE >= size.slots
        return free if is_enough and self._is_wide_enough() and not self._is_too_wide(free) else 0

    def _is_wide_enough(self) -> bool:
        """False when the rows in flight have to end first: one that came later is longer than all that came before."""
        assert self._arena is not None
        return self._next_width <= self._arena.size.source

    def _is_too_wide(self, free: int) -> bool:
        """True when the rows in flight had better end first: those that wait would get more slots of their own width."""
        assert self._arena is not None
        if len(self._waiting) + sum(len(ready.rows) for ready in self._ready) <= free:
            return False
        width = self._next_width
        slots = self._desk.size(width, self._parameters.max_new_tokens).slots
        return width * 4 <= self._arena.size.source and slots >= 2 * self._arena.size.slots

    @property
    def _next_width(self) -> int:
        return len((self._ready[0].rows if self._ready else self._waiting)[0].tokens)

    def _next_group(self, rows: int, tokens: int) -> list[Row]:
        group = [self._waiting.popleft()]
        longest = len(group[0].tokens)
        width = align(longest)
        pairs = width * width * self._desk.weights.shape.heads
        most = min(rows, min(self._encoder_tokens, tokens) // width, ENCODER_PAIRS // pairs)
        # A longer one came later than the last of these, and would make all of them as wide.
        while self._waiting and len(group) < most and len(self._waiting[0].tokens) <= longest:
            group.append(self._waiting.popleft())
        return group

    def _join(self, group: list[Row]) -> None:
        """Encode the first rows of a group that fit into slots and put them there; the rest waits again."""
        free = self._open_for(group)
        self._waiting.extendleft(reversed(group[len(free) :]))
        del group[len(free) :]
        self._put(self._encode(group), free)

    def _join_ready(self) -> None:
        """Put the rows that were encoded first into slots; when the arena has too few, they wait again."""
        ready = self._ready[0]
        free = self._open_for(ready.rows)
        if len(free) < len(ready.rows):
            self._give_up_ready()
            return
        assert self._desk.side is not None
        self._desk.side.join(ready.mark, (ready.fused, ready.lengths, *([] if ready.noise is None else [ready.noise])))
        self._put(self._ready.popleft(), free)

    def _encode_ahead(self) -> None:
        """Encode the next group beside the steps, if there is room; when that fails, do so no more."""
        side, tokens = self._desk.side, self._ahead_tokens - sum(_cost(ready.rows) for ready in self._ready)
        if side is None or self._arena is None or not self._flights or not self._waiting:
            return
        if tokens < align(len(self._waiting[0].tokens)):
            return
        if not self._ready:
            side.begin()
        # They join when so many slots are free.
        group = self._next_group(max(1, self._arena.size.slots // JOIN_SHARE), tokens)
        try:
            encoded, mark = side.run(partial(self._encode, group))
        except FORWARD_ERRORS as error:
            if is_device_lost(error):
                raise
            # Whose fault it is shows when they are encoded for slots that are there.
            self._waiting.extendleft(reversed(group))
            self._ahead_tokens = 0
            self._give_up_ready()
            self._desk.give_back_memory()
            log.warning("encoding_ahead_given_up", rows=len(group), error=type(error).__name__)
        else:
            self._ready.append(encoded._replace(mark=mark))

    def _give_up_ready(self) -> None:
        """Let what was encoded ahead wait again, and end what still runs of it."""
        if self._desk.side is not None:
            self._desk.side.end()
        for ready in reversed(self._ready):
            self._waiting.extendleft(reversed(ready.rows))
        self._ready.clear()

    def _encode(self, group: list[Row]) -> Encoded:
        tokens, lengths = pad_sources([row.tokens for row in group], device=self._desk.device)
        return Encoded(group, encode(self._desk.weights, tokens, lengths), lengths, self._noise(group), None)

    def _open_for(self, group: Sequence[Row]) -> list[int]:
        """Return the free slots of the arena, a new one when no row is in flight."""
        if not self._flights or self._arena is None or self._lane is None:
            waiting = self._waiting[0] if self._waiting else group[0]
            self._open(max(group[0], waiting, key=lambda row: len(row.tokens)))
        assert self._arena is not None
        return [slot for slot in range(self._arena.size.slots) if slot not in self._flights]

    def _put(self, encoded: Encoded, free: Sequence[int]) -> None:
        assert self._arena is not None
        assert self._lane is not None
        rows, operations = encoded.rows, self._desk.weights.operations
        slots = upload(torch.tensor(free[: len(rows)]), self._desk.device)
        self._arena.admit(slots, encoded.lengths, encoded.noise, clear=operations.reads_beyond_lengths)
        operations.keep_source(self._arena, slots, encoded.fused, encoded.lengths)
        self._lane.forget()
        self._extent = None
        self._flights.update(zip(free, (Flight(row, self._steps) for row in rows), strict=False))

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
        return upload(torch.from_numpy(table), self._desk.device)

    def _step(self) -> list[Outcome]:
        """Run a step; when it fails, half of the rows go back, and a row alone fails."""
        if not self._flights:
            return []
        assert self._lane is not None
        try:
            self._lane.step(self._view())
        except FORWARD_ERRORS as error:
            if is_device_lost(error):
                raise
            failed = blame(error, [flight.row for flight in self._flights.values()])
        else:
            self._steps += 1
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
        if self._extent is None:
            source = max(len(flight.row.tokens) for flight in self._flights.values())
            self._extent = source, min(flight.since for flight in self._flights.values())
        source, since = self._extent
        return View(slots, source, self._steps - since + 1)

    def _harvest(self) -> None:
        """Take out the rows that are done, when they are enough or the last."""
        if not self._flights:
            return
        left = self._find_at_limit()
        if not self._are_enough(left):
            assert self._lane is not None
            done = self._lane.read_done()
            if done is None:
                return
            at_limit = set(left)
            left = [slot for slot in self._flights if done[slot] or slot in at_limit]
        if self._are_enough(left):
            rows = [self._flights[slot].row for slot in left]
            self._ended.append(Ended(rows, self._take_out(left), self._steps))

    def _find_at_limit(self) -> list[int]:
        """Return the slots of rows that have run as many steps as they may write tokens: that needs no answer of the device."""
        last = self._steps - self._parameters.max_new_tokens
        if self._extent is None or self._extent[1] > last:
            return []
        return [slot for slot, flight in self._flights.items() if flight.since <= last]

    def _are_enough(self, left: Sequence[int]) -> bool:
        return bool(left) and len(left) * LEAVE_SHARE >= len(self._flights)

    def _finish_ended(self) -> list[Outcome]:
        """Return the outcomes of rows that have left, once the device has steps to run while their texts are made."""
        ready: list[tuple[Row, Ending]] = []
        while self._ended and self._has_steps_behind(self._ended[0]):
            ended = self._ended.popleft()
            ready += zip(ended.rows, ended.leaving.read(), strict=True)
        return self._finish(ready) if ready else []

    def _has_steps_behind(self, ended: Ended) -> bool:
        return not self._flights or self._lane is None or self._steps - ended.since > self._lane.lag

    def _take_out(self, slots: Sequence[int]) -> Leaving:
        assert self._arena is not None
        assert self._lane is not None
        leaving = self._arena.leave(slots)
        self._lane.forget()
        self._extent = None
        for slot in slots:
            del self._flights[slot]
        return leaving

    def _send_back(self, slots: Sequence[int]) -> None:
        if slots:
            rows = [self._flights[slot].row for slot in slots]
            self._take_out(slots)
            self._waiting.extendleft(sorted(rows, key=lambda row: len(row.tokens)))


def _cost(group: Sequence[Row]) -> int:
    return len(group) * align(max(len(row.tokens) for row in group))
