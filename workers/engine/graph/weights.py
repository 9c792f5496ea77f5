"""The weights of a T5 as the decode reads them: projections of the same input are one matrix.

Shapes: D model width, H heads, K head width, F feed-forward width, L decoder layers, V tokens, M greatest distance.
All matrices are (out, in), as `torch.nn.functional.linear` takes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gistmill.errors import ModelUnavailable, UnsupportedModel

if TYPE_CHECKING:
    from workers.engine.graph.operations import Operations


@dataclass(frozen=True)
class T5Shape:
    """The sizes that the decode needs. `score_scale` multiplies the last hidden state before the output layer."""

    width: int
    heads: int
    head_width: int
    layers: int
    vocabulary: int
    greatest_distance: int
    epsilon: float
    is_gated: bool
    score_scale: float

    @property
    def inner_width(self) -> int:
        """H * K."""
        return self.heads * self.head_width


@dataclass(frozen=True)
class EncoderLayer:
    """norm (D), qkv (3HK, D), out (D, HK), feed_norm (D), feed_in (2F, D) when gated else (F, D), feed_out (D, F)."""

    norm: Tensor
    qkv: Tensor
    out: Tensor
    feed_norm: Tensor
    feed_in: Tensor
    feed_out: Tensor


@dataclass(frozen=True)
class DecoderLayer(EncoderLayer):
    """An encoder layer with cross_norm (D), cross_query (HK, D) and cross_out (D, HK); its keys and values are `cross_kv`'s."""

    cross_norm: Tensor
    cross_query: Tensor
    cross_out: Tensor


@dataclass(frozen=True)
class T5Weights:
    """A whole model on its device.

    embedding and output (V, D), the same tensor when they are tied; encoder_bias (2M + 1, H) by distance from -M to M,
    decoder_bias (M + 1, H) by distance back from 0 to M; cross_kv (L * 2 * HK, D), of each layer the keys, then the values.
    `parts` has the place of each module's own weight within these, under the module's name in the checkpoint: what is written
    there is what the next step computes with, at the same address. `operations` are those of the device.
    """

    shape: T5Shape
    operations: Operations
    embedding: Tensor
    output: Tensor
    encoder: tuple[EncoderLayer, ...]
    encoder_norm: Tensor
    encoder_bias: Tensor
    decoder: tuple[DecoderLayer, ...]
    decoder_norm: Tensor
    decoder_bias: Tensor
    cross_kv: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """What the weights occupy."""
        return sum({tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in self._tensors()}.values())

    def _tensors(self) -> Iterator[Tensor]:
        for owner in (self, *self.encoder, *self.decoder):
            yield from (value for value in vars(owner).values() if isinstance(value, Tensor))


def take_weights(model: Any, operations: Operations, *, device: str) -> T5Weights:
    """Copy the weights of a loaded T5 of transformers, in its own dtype, onto a device with these operations.

    Raises:
        UnsupportedModel: encoder and decoder read tokens by different embeddings.
        ModelUnavailable: the device has no room for the weights now.
    """
    embedding = model.shared.weight
    if any(stack.embed_tokens.weight is not embedding for stack in (model.encoder, model.decoder)):
        raise UnsupportedModel("The engine graph runs T5 models with one embedding for encoder and decoder only.")
    try:
        with torch.inference_mode():
            return _Taker(model, operations, device).take()
    except torch.OutOfMemoryError as error:
        raise ModelUnavailable(f"The device {device} has no room for the model now. Trying again is safe.") from error


class _Taker:
    """Fuses and copies, and notes where each module's weight went."""

    def __init__(self, model: Any, operations: Operations, device: str) -> None:
        self._model = model
        self._operations = operations
        self._device = device
        self._modules: dict[str, Any] = dict(model.named_modules())
        self._parts: dict[str, Tensor] = {}

    def take(self) -> T5Weights:
        model, shape = self._model, _read_shape(self._model)
        embedding = self._copy(model.shared.weight)
        is_tied = model.lm_head.weight is model.shared.weight
        return T5Weights(
            shape=shape,
            operations=self._operations,
            embedding=embedding,
            output=embedding if is_tied else self._fuse(["lm_head"]),
            encoder=tuple(self._encoder_layer(number) for number in range(len(model.encoder.block))),
            encoder_norm=self._copy(model.encoder.final_layer_norm.weight),
            encoder_bias=self._bias(model.encoder, shape, is_bidirectional=True),
            decoder=tuple(self._decoder_layer(number) for number in range(shape.layers)),
            decoder_norm=self._copy(model.decoder.final_layer_norm.weight),
            decoder_bias=self._bias(model.decoder, shape, is_bidirectional=False),
            cross_kv=self._fuse(
                [f"decoder.block.{number}.layer.1.EncDecAttention.{kind}" for number in range(shape.layers) for kind in "kv"]
            ),
            parts=self._parts,
        )

    def _encoder_layer(self, number: int) -> EncoderLayer:
        return EncoderLayer(**self._shared_fields(f"encoder.block.{number}", feed=1))

    def _decoder_layer(self, number: int) -> DecoderLayer:
        cross = f"decoder.block.{number}.layer.1"
        return DecoderLayer(
            **self._shared_fields(f"decoder.block.{number}", feed=2),
            cross_norm=self._copy(self._modules[f"{cross}.layer_norm"].weight),
            cross_query=self._fuse([f"{cross}.EncDecAttention.q"]),
            cross_out=self._fuse([f"{cross}.EncDecAttention.o"]),
        )

    def _shared_fields(self, block: str, *, feed: int) -> dict[str, Tensor]:
        attention, dense = f"{block}.layer.0.SelfAttention", f"{block}.layer.{feed}.DenseReluDense"
        gated = [f"{dense}.wi_0", f"{dense}.wi_1"]
        return {
            "norm": self._copy(self._modules[f"{block}.layer.0.layer_norm"].weight),
            "qkv": self._fuse([f"{attention}.{kind}" for kind in "qkv"]),
            "out": self._fuse([f"{attention}.o"]),
            "feed_norm": self._copy(self._modules[f"{block}.layer.{feed}.layer_norm"].weight),
            "feed_in": self._fuse(gated if gated[0] in self._modules else [f"{dense}.wi"]),
            "feed_out": self._fuse([f"{dense}.wo"]),
        }

    def _fuse(self, names: Sequence[str]) -> Tensor:
        fused = self._copy(torch.cat([self._modules[name].weight.to(self._model.dtype) for name in names]))
        start = 0
        for name in names:
            end = start + self._modules[name].weight.shape[0]
            self._parts[name] = fused[start:end]
            start = end
        return fused

    def _copy(self, weight: Tensor) -> Tensor:
        return weight.to(device=self._device, dtype=self._model.dtype, copy=True).contiguous()

    def _bias(self, stack: Any, shape: T5Shape, *, is_bidirectional: bool) -> Tensor:
        """Return a stack's bias by distance. Beyond the greatest distance all buckets are one, so the table ends there."""
        attention = stack.block[0].layer[0].SelfAttention
        most = shape.greatest_distance
        offsets = torch.arange(-most, most + 1) if is_bidirectional else -torch.arange(most + 1)
        buckets = attention._relative_position_bucket(
            offsets,
            bidirectional=is_bidirectional,
            num_buckets=attention.relative_attention_num_buckets,
            max_distance=most,
        )
        return self._copy(attention.relative_attention_bias.weight[buckets.to(attention.relative_attention_bias.weight.device)])


def _read_shape(model: Any) -> T5Shape:
    config = model.config
    # transformers 5 says `tie_word_embeddings` of every T5 and keeps the checkpoint's own here; mT5 has no such and no scale.
    is_scaled = bool(getattr(config, "scale_decoder_outputs", False))
    return T5Shape(
        width=config.d_model,
        heads=config.num_heads,
        head_width=config.d_kv,
        layers=len(model.decoder.block),
        vocabulary=model.shared.num_embeddings,
        greatest_distance=config.relative_attention_max_distance,
        epsilon=config.layer_norm_epsilon,
        is_gated=config.feed_forward_proj.startswith("gated-"),
        score_scale=config.d_model**-0.5 if is_scaled else 1.0,
    )
