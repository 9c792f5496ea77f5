"""How much arithmetic a dialogue takes, and how much the device can do.

A multiplication with its addition counts as two operations. Embedding, norms and softmax are left out: under 1 % of it.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

GEMM_SIZE, GEMM_TIMES = 2048, 5


@dataclass(frozen=True)
class Shape:
    """The sizes of a T5: d_model D, heads x d_kv as `inner`, d_ff, layers of either stack, and the vocabulary V."""

    d_model: int
    inner: int
    d_ff: int
    encoder_layers: int
    decoder_layers: int
    vocabulary: int
    is_gated: bool

    @property
    def feed_forward_flop(self) -> int:
        """Operations of one feed-forward layer on one token."""
        return 2 * (3 if self.is_gated else 2) * self.d_model * self.d_ff

    @property
    def projection_flop(self) -> int:
        """Operations of one of the four projections of attention on one token."""
        return 2 * self.d_model * self.inner


@dataclass(frozen=True)
class Work:
    """Operations for one dialogue by its parts."""

    encoder: float
    cross_keys: float
    decoder: float

    @property
    def total(self) -> float:
        """All operations."""
        return self.encoder + self.cross_keys + self.decoder


@dataclass(frozen=True)
class Accelerator:
    """What a maker publishes of a device for dense bfloat16: operations and bytes of memory per second."""

    flop_per_s: float
    bytes_per_s: float


# NVIDIA's data sheets, SXM form, without sparsity.
ACCELERATORS = {"H200": Accelerator(990e12, 4.8e12), "H100": Accelerator(990e12, 3.35e12), "A100": Accelerator(312e12, 2.0e12)}


def read_shape(directory: Path) -> Shape:
    """Return the shape of the T5 in a directory."""
    config: dict[str, Any] = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    layers = config["num_layers"]
    return Shape(
        d_model=config["d_model"],
        inner=config["num_heads"] * config["d_kv"],
        d_ff=config["d_ff"],
        encoder_layers=layers,
        decoder_layers=config.get("num_decoder_layers") or layers,
        vocabulary=config["vocab_size"],
        is_gated=str(config.get("feed_forward_proj", "relu")).startswith("gated"),
    )


def count_work(shape: Shape, *, tokens_in: float, tokens_out: float) -> Work:
    """Return the operations for a dialogue of so many tokens in and out, with a cache and without pads."""
    attention_in = 4 * tokens_in * shape.inner
    # A step attends to the steps before it, half of them on average.
    attention_self = 4 * tokens_out / 2 * shape.inner
    encoder = shape.encoder_layers * (4 * shape.projection_flop + shape.feed_forward_flop + attention_in)
    step = shape.decoder_layers * (6 * shape.projection_flop + shape.feed_forward_flop + attention_self + attention_in)
    return Work(
        encoder=encoder * tokens_in,
        cross_keys=shape.decoder_layers * 2 * shape.projection_flop * tokens_in,
        decoder=(step + 2 * shape.d_model * shape.vocabulary) * tokens_out,
    )


def count_step_bytes(shape: Shape, *, rows: int, tokens_in: float, tokens_out: float, bytes_per_number: int = 2) -> float:
    """Return what one decode step of so many rows reads: the decoder's weights, and keys and values of every row."""
    weights = shape.decoder_layers * (6 * shape.projection_flop + shape.feed_forward_flop) / 2
    cached = shape.decoder_layers * 2 * shape.inner * (tokens_in + tokens_out / 2) * rows
    return bytes_per_number * (weights + shape.d_model * shape.vocabulary + cached)


def limit_rows_per_s(device: Accelerator, shape: Shape, *, rows: int, tokens_in: float, tokens_out: float) -> float:
    """Return the most dialogues per second of a device that encodes a batch and then decodes it, each at its limit."""
    work = count_work(shape, tokens_in=tokens_in, tokens_out=tokens_out)
    step_bytes = count_step_bytes(shape, rows=rows, tokens_in=tokens_in, tokens_out=tokens_out)
    encode_s = (work.encoder + work.cross_keys) * rows / device.flop_per_s
    decode_s = max(work.decoder * rows / device.flop_per_s, step_bytes * tokens_out / device.bytes_per_s)
    return rows / (encode_s + decode_s)


def find_accelerator(name: str) -> Accelerator | None:
    """Return what is published of a device by its name, or None."""
    return next((device for key, device in ACCELERATORS.items() if key in name), None)


def measure_peak_flop_per_s(threads: int) -> float:
    """Return the operations per second of the best of a few large float32 matrix products on the CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    left, right = torch.rand(GEMM_SIZE, GEMM_SIZE), torch.rand(GEMM_SIZE, GEMM_SIZE)
    seconds = []
    for _ in range(GEMM_TIMES):
        begun = time.perf_counter()
        torch.mm(left, right)
        seconds.append(time.perf_counter() - begun)
    torch.set_num_threads(before)
    return 2 * GEMM_SIZE**3 / min(seconds)
