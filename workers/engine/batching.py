"""Which prompts share a micro-batch."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from functools import partial


def pack(lengths: Sequence[int], *, budget_tokens: int, max_rows: int, max_scores: int | None = None) -> list[list[int]]:
    """Split rows of these lengths into micro-batches and return their indexes, each row in exactly one.

    A batch costs rows x its longest row, for its pads are computed too; it stays within the budget unless it is a single row
    that exceeds it alone. The attention scores of a head, rows x the square of the longest row, stay within `max_scores` in the
    same way: with long rows, they are what takes the memory. Rows are sorted, longest first: neighbours need few pads, memory
    runs short in the first batch rather than after most of the work, and the last batch, for which everyone waits, is the
    cheapest. Equal lengths keep their order, so that the same prompts always make the same batches.
    """
    if budget_tokens < 1 or max_rows < 1:
        raise ValueError("a batch holds at least one token and one row")
    batches: list[list[int]] = []
    most = width = 0
    for index in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        fits = bool(batches) and len(batches[-1]) < max_rows and (len(batches[-1]) + 1) * width <= most
        if fits:
            batches[-1].append(index)
        else:
            batches.append([index])
            width = lengths[index]
            most = budget_tokens if max_scores is None else min(budget_tokens, max_scores // max(1, width))
    return batches


def pack_evenly(
    lengths: Sequence[int], *, budget_tokens: int, max_rows: int, lanes: int, max_scores: int | None = None
) -> list[list[int]]:
    """Pack as `pack` does, so that several lanes end at about the same time: each gets equally many batches.

    The budget is the least that makes no more batches than that: with two lanes, rows that fill one batch and a half make two
    of three quarters. One lane gets what `pack` makes.
    """
    within = partial(pack, lengths, max_rows=max_rows, max_scores=max_scores)
    batches = within(budget_tokens=budget_tokens)
    wanted = math.ceil(len(batches) / lanes) * lanes
    if lanes == 1 or not batches:
        return batches

    def is_enough(budget: int) -> bool:
        return len(within(budget_tokens=budget)) <= wanted

    least = bisect_left(range(1, budget_tokens), True, key=is_enough) + 1
    return within(budget_tokens=least)


def padded_tokens(lengths: Sequence[int]) -> int:
    """Return what a batch of rows of these lengths costs, pads included."""
    return len(lengths) * max(lengths, default=0)
