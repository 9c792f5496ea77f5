"""The memory of rows in flight: fixed slots, so that a recorded step finds everything at the same address.

Shapes: N slots, S source tokens, T steps, H heads, K head width, L decoder layers, B rows that join, E end tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from workers.engine.graph.transfer import Download, upload
from workers.engine.graph.weights import T5Shape


class View(NamedTuple):
    """The part of an arena that a step works on: the first slots, source tokens and steps."""

    slots: int
    source: int
    steps: int


class Arena:
    """Keys, values and progress of up to N rows.

    self_kv (L, 2, N, H, T, K) and cross_kv (L, 2, N, H, S, K); tokens, steps, lengths (N) int64: the token to read next, the
    step it is read at, the tokens of the source; written (N, T) int64; noise (N, T) float64; is_done, is_bad (N) bool. A slot
    without a row is done, and a step leaves what is done as it is. `limit` () int64 is the most tokens a row may write.
    """

    def __init__(self, shape: T5Shape, size: View, *, start: int, ends: Sequence[int], dtype: torch.dtype, device: str) -> None:
        self.size = size
        self.start = start

        def cache(width: int) -> Tensor:
            layout = (shape.layers, 2, size.slots, shape.heads, width, shape.head_width)
            return torch.zeros(layout, dtype=dtype, device=device)

        def numbers(*layout: int) -> Tensor:
            return torch.zeros(layout, dtype=torch.int64, device=device)

        self.self_kv = cache(size.steps)
        self.cross_kv = cache(size.source)
        self.tokens = numbers(size.slots)
        self.steps = numbers(size.slots)
        # No source is empty: a softmax over nothing would be no number.
        self.lengths = numbers(size.slots) + 1
        self.written = numbers(size.slots, size.steps)
        self.noise = torch.zeros((size.slots, size.steps), dtype=torch.float64, device=device)
        self.is_done = torch.ones(size.slots, dtype=torch.bool, device=device)
        self.is_bad = torch.zeros(size.slots, dtype=torch.bool, device=device)
        self.slot_numbers = torch.arange(size.slots, device=device)
        self.limit = numbers()
        self.ends = torch.tensor(list(ends), dtype=torch.int64, device=device)

    def admit(self, slots: Tensor, lengths: Tensor, noise: Tensor | None, *, clear: bool) -> None:
        """Put new rows into these slots (B): lengths (B), noise (B, at most T) or None; their keys and values come next.

        The slots are cleared where steps read beyond a row's length. What an earlier row left there is masked, but a weight of
        0 does not silence a value that is no number.
        """
        if clear:
            self.self_kv[:, :, slots] = 0
            self.cross_kv[:, :, slots] = 0
        # To put a Python number behind an index would copy it to the device, and wait.
        self.tokens.index_fill_(0, slots, self.start)
        self.steps.index_fill_(0, slots, 0)
        self.lengths[slots] = lengths
        if noise is not None:
            self.noise[slots, : noise.shape[1]] = noise
        self.is_bad.index_fill_(0, slots, False)
        self.is_done.index_fill_(0, slots, False)

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Move rows to other slots, which hold none; those that they leave are done."""
        source, target = self._upload(sources), self._upload(targets)
        for cache in (self.self_kv, self.cross_kv):
            cache[:, :, target] = cache[:, :, source]
        for state in (self.tokens, self.steps, self.lengths, self.written, self.noise, self.is_done, self.is_bad):
            state[target] = state[source]
        self.is_done.index_fill_(0, source, True)

    def leave(self, slots: Sequence[int]) -> Leaving:
        """Take rows out of their slots, behind the steps that were launched by now; how each ended is on its way."""
        out = self._upload(slots)
        states = (self.steps[out][:, None], self.is_bad[out][:, None], self.written[out])
        self.is_done.index_fill_(0, out, True)
        return Leaving(Download(torch.cat(states, dim=1)))

    def _upload(self, slots: Sequence[int]) -> Tensor:
        return upload(torch.tensor(slots), str(self.tokens.device))


class Leaving:
    """Rows that have left their slots, which others may have by now."""

    def __init__(self, states: Download) -> None:
        self._states = states

    def read(self) -> list[Ending]:
        """Wait for the steps that the rows took, and return how each ended."""
        return [Ending(written[: step + 1], step if is_bad else None) for step, is_bad, *written in self._states.read()]


class Ending(NamedTuple):
    """What a row wrote, its end token included, and the step at which its scores were no numbers, if any."""

    tokens: list[int]
    bad_step: int | None
