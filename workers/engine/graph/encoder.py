"""Prompts to the keys and values that decoding attends to.

Shapes: B rows, S tokens of the longest source, aligned to 8; D model width, H heads, K head width, L decoder layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from workers.engine.graph.layers import add_product, feed_forward, normalize
from workers.engine.graph.transfer import upload
from workers.engine.graph.weights import T5Weights

ALIGNMENT = 8


def align(length: int) -> int:
    """Return the least multiple of 8 that holds so many; matrix kernels want it."""
    return -(-length // ALIGNMENT) * ALIGNMENT


def pad_sources(sources: Sequence[Sequence[int]], *, device: str) -> tuple[Tensor, Tensor]:
    """Return tokens (B, S) int64, padded on the right, and lengths (B) int64.

    What stands in the padding decides nothing, for nothing attends to it; it is token 0.
    """
    tokens = np.zeros((len(sources), align(max(len(source) for source in sources))), dtype=np.int64)
    for row, source in zip(tokens, sources, strict=True):
        row[: len(source)] = source
    return upload(torch.from_numpy(tokens), device), upload(torch.tensor([len(source) for source in sources]), device)


def encode(weights: T5Weights, tokens: Tensor, lengths: Tensor) -> Tensor:
    """Return the cross-attention's keys and values of all layers, (B, S, L * 2HK), of tokens (B, S) with lengths (B)."""
    rows, width = tokens.shape
    hidden = functional.embedding(tokens.view(-1), weights.embedding)
    attend = weights.operations.encoder_attention(weights, lengths, width)
    for layer in weights.encoder:
        fused = functional.linear(normalize(hidden, layer.norm, weights), layer.qkv)
        hidden = feed_forward(add_product(hidden, attend(fused), layer.out), layer, weights)
    encoded = normalize(hidden, weights.encoder_norm, weights)
    return functional.linear(encoded, weights.cross_kv).view(rows, width, -1)
