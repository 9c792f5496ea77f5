"""One decode step of all slots in view. It never waits for the device and allocates no state, so it can be recorded.

Shapes: n slots in view, s source tokens, t steps, D model width, H heads, K head width, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LogitsProcessor

from workers.engine.graph.arena import Arena, View
from workers.engine.graph.layers import feed_forward, length_mask, normalize
from workers.engine.graph.weights import DecoderLayer, T5Weights
from workers.engine.sampling import choose

# Takes scores (n, V) float32 and noise (n, 1) float64 and returns tokens (n) int64.
Choice = Callable[[Tensor, Tensor], Tensor]


def choose_best(scores: Tensor, noise: Tensor) -> Tensor:
    """Return the token of the best score of each row, (n) int64; the noise decides nothing."""
    return scores.argmax(dim=-1)


def choose_by_noise(scores: Tensor, noise: Tensor, *, warp: Sequence[LogitsProcessor]) -> Tensor:
    """Return the token (n) int64 that the noise chooses from the scores after temperature, top-k and top-p."""
    # None of them looks at the tokens so far.
    for processor in warp:
        scores = processor(None, scores)
    return choose(scores, noise)[:, 0]


def decode_step(weights: T5Weights, arena: Arena, view: View, choice: Choice) -> None:
    """Write the next token of every row in view that is not done, and its keys and values; see `Arena`.

    A row becomes done by an end token, by the limit, or by scores that are no numbers. On rows that are done nothing changes,
    so that a step run twice, or once too often, does no harm.
    """
    shape = weights.shape
    steps = arena.steps[: view.slots]
    hidden = functional.embedding(arena.tokens[: view.slots], weights.embedding)
    self_mask = causal_bias(weights.decoder_bias, steps, view.steps)
    cross_mask = length_mask(arena.lengths[: view.slots], view.source, hidden.dtype)
    for number, layer in enumerate(weights.decoder):
        hidden = _attend_to_self(hidden, layer, weights, arena.self_kv[number], steps, view, self_mask)
        hidden = _attend_to_source(hidden, layer, weights, arena.cross_kv[number], view, cross_mask)
        hidden = feed_forward(hidden, layer, shape)
    hidden = normalize(hidden, weights.decoder_norm, shape) * shape.score_scale
    scores = functional.linear(hidden, weights.output).float()
    chosen = choice(scores, arena.noise[: view.slots].gather(1, steps[:, None]))
    _record(arena, view, chosen, is_finite=scores.amax(dim=-1).isfinite())


def causal_bias(table: Tensor, steps: Tensor, width: int) -> Tensor:
    """Return the bias of each row's step (n) to the positions up to it, (n, H, 1, width), and -inf to those after it.

    The table (M + 1, H) goes by the distance back. Rows that joined at different times are at different steps.
    """
    back = steps[:, None] - torch.arange(width, device=steps.device)
    bias = table[back.clamp(0, table.shape[0] - 1)].masked_fill_((back < 0)[..., None], -torch.inf)
    return bias.permute(0, 2, 1)[:, :, None]


def _attend_to_self(
    hidden: Tensor, layer: DecoderLayer, weights: T5Weights, cache: Tensor, steps: Tensor, view: View, mask: Tensor
) -> Tensor:
    """Return hidden (n, D) with self-attention added. Writes the step's keys and values into the cache (2, N, H, T, K)."""
    shape = weights.shape
    fused = functional.linear(normalize(hidden, layer.norm, shape), layer.qkv)
    query, key, value = fused.view(view.slots, 3, shape.heads, 1, shape.head_width).unbind(1)
    where = steps[:, None, None, None].expand_as(key)
    keys, values = cache[0, : view.slots], cache[1, : view.slots]
    keys.scatter_(2, where, key)
    values.scatter_(2, where, value)
    attended = functional.scaled_dot_product_attention(
        query, keys[:, :, : view.steps], values[:, :, : view.steps], attn_mask=mask, scale=1.0
    )
    return hidden + functional.linear(attended.reshape(view.slots, shape.inner_width), layer.out)


def _attend_to_source(
    hidden: Tensor, layer: DecoderLayer, weights: T5Weights, cache: Tensor, view: View, mask: Tensor
) -> Tensor:
    """Return hidden (n, D) with attention to the source added, from the cache (2, N, H, S, K)."""
    shape = weights.shape
    query = functional.linear(normalize(hidden, layer.cross_norm, shape), layer.cross_query)
    attended = functional.scaled_dot_product_attention(
        query.view(view.slots, shape.heads, 1, shape.head_width),
        cache[0, : view.slots, :, : view.source],
        cache[1, : view.slots, :, : view.source],
        attn_mask=mask,
        scale=1.0,
    )
    return hidden + functional.linear(attended.reshape(view.slots, shape.inner_width), layer.cross_out)


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
