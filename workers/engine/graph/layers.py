"""The pieces that encoder and decoder share. Shapes: D model width, F feed-forward width; any leading dimensions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from workers.engine.graph.weights import EncoderLayer, T5Shape


def normalize(hidden: Tensor, weight: Tensor, shape: T5Shape) -> Tensor:
    """Return (…, D) scaled to root mean square 1 and by the weight."""
    return functional.rms_norm(hidden, (shape.width,), weight, shape.epsilon)


def feed_forward(hidden: Tensor, layer: EncoderLayer, shape: T5Shape) -> Tensor:
    """Return (…, D) with the layer's feed-forward part added."""
    inner = functional.linear(normalize(hidden, layer.feed_norm, shape), layer.feed_in)
    if shape.is_gated:
        gate, linear = inner.chunk(2, dim=-1)
        inner = functional.gelu(gate, approximate="tanh") * linear
    else:
        inner = functional.relu(inner)
    return hidden + functional.linear(inner, layer.feed_out)


def length_mask(lengths: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Return (B, 1, 1, width), 0 where a position is below its row's length (B), else -inf."""
    positions = torch.arange(width, device=lengths.device)
    outside = positions >= lengths[:, None]
    return torch.zeros(outside.shape, dtype=dtype, device=lengths.device).masked_fill_(outside, -torch.inf)[:, None, None]
