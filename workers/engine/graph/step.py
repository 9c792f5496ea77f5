"""One decode step of all slots in view. It never waits for the device and allocates no state, so it can be recorded.

Shapes: n slots in view, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LogitsProcessor

from workers.engine.graph.arena import Arena, View
from workers.engine.graph.layers import add_product, feed_forward, normalize
from workers.engine.graph.weights import T5Weights
from workers.engine.sampling import choose

# Takes scores (n, V) in the weights' dtype and noise (n, 1) float64 and returns tokens (n) int64.
Choice = Callable[[Tensor, Tensor], Tensor]


def choose_best(scores: Tensor, noise: Tensor) -> Tensor:
    """Return the token of the best score of each row, (n) int64; the noise decides nothing."""
    return scores.argmax(dim=-1)


def choose_by_noise(scores: Tensor, noise: Tensor, *, warp: Sequence[LogitsProcessor]) -> Tensor:
    """Return the token (n) int64 that the noise chooses from the scores after temperature, top-k and top-p."""
    scores = scores.float()
    # None of them looks at the tokens so far.
    for processor in warp:
        scores = processor(None, scores)
    return choose(scores, noise)[:, 0]


def decode_step(weights: T5Weights, arena: Arena, view: View, choice: Choice) -> None:
    """Write the next token of every row in view that is not done, and its keys and values; see `Arena`.

    A row becomes done by an end token, by the limit, or by scores that are no numbers. On rows that are done nothing changes,
    so that a step run twice, or once too often, does no harm.
    """
    hidden = functional.embedding(arena.tokens[: view.slots], weights.embedding)
    attention = weights.operations.decoder_attention(weights, arena, view)
    for number, layer in enumerate(weights.decoder):
        fused = functional.linear(normalize(hidden, layer.norm, weights), layer.qkv)
        hidden = add_product(hidden, attention.to_self(number, fused), layer.out)
        query = functional.linear(normalize(hidden, layer.cross_norm, weights), layer.cross_query)
        hidden = add_product(hidden, attention.to_source(number, query), layer.cross_out)
        hidden = feed_forward(hidden, layer, weights)
    hidden = normalize(hidden, weights.decoder_norm, weights) * weights.shape.score_scale
    scores = functional.linear(hidden, weights.output)
    chosen = choice(scores, arena.noise[: view.slots].gather(1, arena.steps[: view.slots, None]))
    _record(arena, view, chosen, is_finite=scores.amax(dim=-1).isfinite())


def _record(arena: Arena, view: View, chosen: Tensor, *, is_finite: Tensor) -> None:
    """Note the tokens that were chosen (n), and which rows end with them."""
    tokens, steps, is_done = (state[: view.slots] for state in (arena.tokens, arena.steps, arena.is_done))
    written, is_bad = arena.written[: view.slots], arena.is_bad[: view.slots]
    place = steps[:, None]
    written.scatter_(1, place, torch.where(is_done[:, None], written.gather(1, place), chosen[:, None]))
    is_bad |= ~is_done & ~is_finite
    is_done |= (chosen[:, None] == arena.ends).any(dim=1) | (steps + 1 >= arena.limit) | is_bad
    steps += ~is_done
    tokens.copy_(torch.where(is_done, tokens, chosen))
