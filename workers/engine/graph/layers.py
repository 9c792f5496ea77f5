"""The part that encoder and decoder layers share. Shapes: D model width, F feed-forward width; n positions."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from workers.engine.graph.weights import EncoderLayer, T5Weights


def normalize(hidden: Tensor, weight: Tensor, weights: T5Weights) -> Tensor:
    """Return (n, D) scaled to root mean square 1 and by the weight."""
    return weights.operations.normalize(hidden, weight, weights.shape.epsilon)


def add_product(hidden: Tensor, inner: Tensor, matrix: Tensor) -> Tensor:
    """Add the product of inner (n, F) and a matrix (D, F) to hidden (n, D), in place, and return it."""
    return hidden.addmm_(inner, matrix.t())


def feed_forward(hidden: Tensor, layer: EncoderLayer, weights: T5Weights) -> Tensor:
    """Return hidden (n, D), to which the layer's feed-forward part was added in place."""
    inner = functional.linear(normalize(hidden, layer.feed_norm, weights), layer.feed_in)
    inner = weights.operations.gate(inner) if weights.shape.is_gated else inner.relu_()
    return add_product(hidden, inner, layer.feed_out)
