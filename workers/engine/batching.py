"""Which prompts share a micro-batch."""

from __future__ import annotations

from collections.abc import Sequence


def pack(lengths: Sequence[int], *, budget_tokens: int, max_rows: int) -> list[list[int]]:
    """Split rows of these lengths into micro-batches and return their indexes, each row in exactly one.

    A batch costs rows x its longest row, for its pads are computed too; it stays within the budget unless it is a single row
    that exceeds it alone. Rows are sorted, longest first: neighbours need few pads, memory runs short in the first batch
    rather than after most of the work, and the last batch, for which everyone waits, is the cheapest. Equal lengths keep
    their order, so that the same prompts always make the same batches.
    """
    if budget_tokens < 1 or max_rows < 1:
        raise ValueError("a batch holds at least one token and one row")
    batches: list[list[int]] = []
    width = 0
    for index in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        fits = bool(batches) and len(batches[-1]) < max_rows and (len(batches[-1]) + 1) * width <= budget_tokens
        if fits:
            batches[-1].append(index)
        else:
            batches.append([index])
            width = lengths[index]
    return batches


def padded_tokens(lengths: Sequence[int]) -> int:
    """Return what a batch of rows of these lengths costs, pads included."""
    return len(lengths) * max(lengths, default=0)
