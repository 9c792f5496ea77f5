"""Prompts to the keys and values that decoding attends to.

Shapes: B rows, S tokens of the longest source, aligned to 8; D model width, H heads, K head width, L decoder layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from workers.engine.graph.layers import feed_forward, length_mask, normalize
from workers.engine.graph.weights import EncoderLayer, T5Shape, T5Weights

ALIGNMENT = 8


def align(length: int) -> int:
    """Return the least multiple of 8 that holds so many; matrix kernels want it."""
    return -(-length // ALIGNMENT) * ALIGNMENT


def pad_sources(sources: Sequence[Sequence[int]], *, device: str) -> tuple[Tensor, Tensor]:
    """Return tokens (B, S) int64, padded on the right, and lengths (B) int64.

    What stands in the padding decides nothing, for nothing attends to it; it is token 0.
    """
    width = align(max(len(source) for source in sources))
    tokens = [[*source, *[0] * (width - len(source))] for source in sources]
    return torch.tensor(tokens, device=device), torch.tensor([len(source) for source in sources], device=device)


def encode(weights: T5Weights, tokens: Tensor, lengths: Tensor) -> Tensor:
    """Return the cross-attention's keys and values of all layers, (L, 2, B, H, S, K), of tokens (B, S) with lengths (B)."""
    shape = weights.shape
    rows, width = tokens.shape
    hidden = functional.embedding(tokens, weights.embedding)
    # One mask for all layers; transformers makes it anew in each.
    mask = bidirectional_bias(weights.encoder_bias, width) + length_mask(lengths, width, hidden.dtype)
    for layer in weights.encoder:
        hidden = feed_forward(_attend(hidden, layer, shape, mask), layer, shape)
    encoded = normalize(hidden, weights.encoder_norm, shape)
    fused = functional.linear(encoded, weights.cross_kv)
    return fused.view(rows, width, shape.layers, 2, shape.heads, shape.head_width).permute(2, 3, 0, 4, 1, 5)


def bidirectional_bias(table: Tensor, width: int) -> Tensor:
    """Return the bias of each query (first S) and key, (1, H, S, S), from a table (2M + 1, H) by distance."""
    most = table.shape[0] // 2
    positions = torch.arange(width, device=table.device)
    distances = (positions[None, :] - positions[:, None]).clamp(-most, most)
    return table[distances + most].permute(2, 0, 1)[None]


def _attend(hidden: Tensor, layer: EncoderLayer, shape: T5Shape, mask: Tensor) -> Tensor:
    rows, width, _ = hidden.shape
    fused = functional.linear(normalize(hidden, layer.norm, shape), layer.qkv)
    query, key, value = fused.view(rows, width, 3, shape.heads, shape.head_width).permute(2, 0, 3, 1, 4)
    attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=1.0)
    return hidden + functional.linear(attended.transpose(1, 2).reshape(rows, width, shape.inner_width), layer.out)
