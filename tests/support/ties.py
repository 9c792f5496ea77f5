"""Near-ties: steps at which two tokens score all but equally, so that another order of summing may choose the other one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

RELATIVE = 1e-4


def is_near_tie(model: Any, source: Sequence[int], written: Sequence[int]) -> bool:
    """Say whether the reference's two best scores after these tokens differ by under 1e-4 relative.

    Shapes: source and written are tokens of one row, `written` from the start token on.
    """
    with torch.inference_mode():
        scores = model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([written])).logits[0, -1]
    best, second = scores.topk(2).values.tolist()
    return bool(best - second < RELATIVE * max(abs(best), abs(second)))


def first_difference(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the first step at which two rows differ."""
    return next(
        (step for step, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), min(len(one), len(other))
    )
