"""The operations that a device may have kernels of its own for, and how torch runs them anywhere.

Shapes: B rows, S tokens of the longest source, n slots in view, D model width, F feed-forward width, H heads, K head width,
M greatest distance, T steps of the arena.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from workers.engine.graph.arena import Arena, View
    from workers.engine.graph.weights import T5Weights

# Takes the fused projections (B * S, 3HK) and returns what was attended to, (B * S, HK).
EncoderAttention = Callable[[Tensor], Tensor]


class DecoderAttention(Protocol):
    """The attention of one step, for all layers."""

    def to_self(self, layer: int, fused: Tensor) -> Tensor:
        """Return what was attended to, (n, HK), from the fused projections (n, 3HK); the arena gets their keys and values."""
        ...

    def to_source(self, layer: int, query: Tensor) -> Tensor:
        """Return what was attended to, (n, HK), from a query (n, HK)."""
        ...


class Operations(Protocol):
    """How the parts that are no matrix products are computed."""

    # What an arena's slots held before is read, if only with a weight of 0.
    reads_beyond_lengths: bool

    def normalize(self, hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """Return (…, D) scaled to root mean square 1 and by the weight (D)."""
        ...

    def gate(self, inner: Tensor) -> Tensor:
        """Return the GELU (its tanh form) of the first half of (…, 2F) times the second half."""
        ...

    def encoder_attention(self, weights: T5Weights, lengths: Tensor, width: int) -> EncoderAttention:
        """Return the attention of sources with these lengths (B), padded to a width."""
        ...

    def decoder_attention(self, weights: T5Weights, arena: Arena, view: View) -> DecoderAttention:
        """Return the attention of the next step of an arena."""
        ...

    def keep_source(self, arena: Arena, slots: Tensor, fused: Tensor, lengths: Tensor) -> None:
        """Put the cross-attention's keys and values (B, S, L * 2HK) of sources with lengths (B) into their slots (B)."""
        ...


class TorchOperations:
    """Runs on every device that torch knows."""

    reads_beyond_lengths = True

    def normalize(self, hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """Return (…, D) scaled to root mean square 1 and by the weight (D)."""
        return functional.rms_norm(hidden, weight.shape, weight, epsilon)

    def gate(self, inner: Tensor) -> Tensor:
        """Return the GELU (its tanh form) of the first half of (…, 2F) times the second half."""
        gate, linear = inner.chunk(2, dim=-1)
        return functional.gelu(gate, approximate="tanh") * linear

    def encoder_attention(self, weights: T5Weights, lengths: Tensor, width: int) -> EncoderAttention:
        """Return the attention of sources with these lengths (B), padded to a width."""
        shape = weights.shape
        # One mask for all layers; transformers makes it anew in each.
        mask = bidirectional_bias(weights.encoder_bias, width)[None] + length_mask(lengths, width, weights.embedding.dtype)

        def attend(fused: Tensor) -> Tensor:
            query, key, value = fused.view(len(lengths), width, 3, shape.heads, shape.head_width).permute(2, 0, 3, 1, 4)
            attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=1.0)
            return attended.transpose(1, 2).reshape(-1, shape.inner_width)

        return attend

    def decoder_attention(self, weights: T5Weights, arena: Arena, view: View) -> DecoderAttention:
        """Return the attention of the next step of an arena."""
        return TorchDecoderAttention(weights, arena, view)

    def keep_source(self, arena: Arena, slots: Tensor, fused: Tensor, lengths: Tensor) -> None:
        """Put the cross-attention's keys and values (B, S, L * 2HK) of sources with lengths (B) into their slots (B)."""
        layers, _, _, heads, _, head_width = arena.cross_kv.shape
        rows, width, _ = fused.shape
        cross_kv = fused.view(rows, width, layers, 2, heads, head_width).permute(2, 3, 0, 4, 1, 5)
        arena.cross_kv[:, :, slots, :, :width] = cross_kv


class TorchDecoderAttention:
    """Computes on everything in view; masks, the same for all layers, leave out what is beyond a row's own length."""

    def __init__(self, weights: T5Weights, arena: Arena, view: View) -> None:
        self._arena, self._view, self._shape = arena, view, weights.shape
        self._steps = arena.steps[: view.slots]
        self._self_mask = causal_bias(weights.decoder_bias, self._steps, view.steps)
        self._cross_mask = length_mask(arena.lengths[: view.slots], view.source, weights.embedding.dtype)

    def to_self(self, layer: int, fused: Tensor) -> Tensor:
        """Return what was attended to, (n, HK), from the fused projections (n, 3HK); the arena gets their keys and values."""
        view, shape = self._view, self._shape
        query, key, value = fused.view(view.slots, 3, shape.heads, 1, shape.head_width).unbind(1)
        keys, values = self._arena.self_kv[layer, :, : view.slots]
        where = self._steps[:, None, None, None].expand_as(key)
        keys.scatter_(2, where, key)
        values.scatter_(2, where, value)
        return self._attend(query, keys[:, :, : view.steps], values[:, :, : view.steps], self._self_mask)

    def to_source(self, layer: int, query: Tensor) -> Tensor:
        """Return what was attended to, (n, HK), from a query (n, HK)."""
        view, shape = self._view, self._shape
        keys, values = self._arena.cross_kv[layer, :, : view.slots, :, : view.source]
        return self._attend(query.view(view.slots, shape.heads, 1, shape.head_width), keys, values, self._cross_mask)

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        attended = functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=1.0)
        return attended.reshape(self._view.slots, self._shape.inner_width)


def bidirectional_bias(table: Tensor, width: int) -> Tensor:
    """Return the bias of each query (first S) and key, (H, S, S), from a table (2M + 1, H) by distance."""
    most = table.shape[0] // 2
    positions = torch.arange(width, device=table.device)
    distances = (positions[None, :] - positions[:, None]).clamp(-most, most)
    return table[distances + most].permute(2, 0, 1)


def causal_bias(table: Tensor, steps: Tensor, width: int) -> Tensor:
    """Return the bias of each row's step (n) to the positions up to it, (n, H, 1, width), and -inf to those after it.

    The table (M + 1, H) goes by the distance back. Rows that joined at different times are at different steps.
    """
    back = steps[:, None] - torch.arange(width, device=steps.device)
    bias = table[back.clamp(0, table.shape[0] - 1)].masked_fill_((back < 0)[..., None], -torch.inf)
    return bias.permute(0, 2, 1)[:, :, None]


def length_mask(lengths: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Return (B, 1, 1, width), 0 where a position is below its row's length (B), else -inf."""
    positions = torch.arange(width, device=lengths.device)
    outside = positions >= lengths[:, None]
    return torch.zeros(outside.shape, dtype=dtype, device=lengths.device).masked_fill_(outside, -torch.inf)[:, None, None]
