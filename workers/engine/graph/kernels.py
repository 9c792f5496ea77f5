"""Triton kernels of the operations: they read of every row what it has and no more, so that nothing is padded and masked.

A decode step at a few hundred rows takes as long as the reading of their keys and values. torch's attention kernels compute 64
queries where a row has one, and read what is beyond its length as well; these read every number once. Not imported on a CPU.

Shapes: B rows, S tokens of the longest source, n slots in view, D model width, F feed-forward width, H heads, K head width, M
greatest distance, N slots and T steps of the arena, L decoder layers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from workers.engine.graph.arena import Arena, View
from workers.engine.graph.operations import DecoderAttention, EncoderAttention, bidirectional_bias
from workers.engine.graph.weights import T5Weights

# Positions that a program of the decode takes at a time, queries and keys that one of the encoder takes: the fastest of some
# twenty on an H200, at FLAN-T5-base's shape, 1,024 rows of 190 tokens, 20 steps.
SOURCE_LAUNCH = {"POSITIONS": 32, "num_warps": 4, "num_stages": 3}
SELF_LAUNCH = {"POSITIONS": 8, "num_warps": 1}
ENCODER_LAUNCH = {"QUERIES": 64, "KEYS": 64, "num_warps": 4, "num_stages": 3}
GATE_BLOCK = 1024
# Triton multiplies no matrices with less than 16 columns.
LEAST_HEAD_WIDTH = 16


class TritonOperations:
    """Runs on a CUDA device, in float32 and bfloat16."""

    reads_beyond_lengths = False

    def normalize(self, hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """Return (…, D) scaled to root mean square 1 and by the weight (D)."""
        width = hidden.shape[-1]
        normal = torch.empty_like(hidden)
        rows = hidden.numel() // width
        _normalize[(rows,)](hidden, weight, normal, epsilon, width, triton.next_power_of_2(width))
        return normal

    def gate(self, inner: Tensor) -> Tensor:
        """Return the GELU (its tanh form) of the first half of (…, 2F) times the second half."""
        width = inner.shape[-1] // 2
        gated = inner.new_empty(*inner.shape[:-1], width)
        _gate[(gated.numel() // width, triton.cdiv(width, GATE_BLOCK))](inner, gated, width, GATE_BLOCK)
        return gated

    def encoder_attention(self, weights: T5Weights, lengths: Tensor, width: int) -> EncoderAttention:
        """Return the attention of sources with these lengths (B), padded to a width."""
        heads, head_width = weights.shape.heads, weights.shape.head_width
        bias = bidirectional_bias(weights.encoder_bias, width).contiguous()
        grid = (triton.cdiv(width, ENCODER_LAUNCH["QUERIES"]), len(lengths) * heads)
        block = max(LEAST_HEAD_WIDTH, triton.next_power_of_2(head_width))

        def attend(fused: Tensor) -> Tensor:
            attended = fused.new_empty(fused.shape[0], heads * head_width)
            _attend_in_encoder[grid](fused, bias, lengths, attended, width, heads, head_width, block, **ENCODER_LAUNCH)
            return attended

        return attend

    def decoder_attention(self, weights: T5Weights, arena: Arena, view: View) -> DecoderAttention:
        """Return the attention of the next step of an arena."""
        return _DecoderAttention(weights, arena, view)

    def keep_source(self, arena: Arena, slots: Tensor, fused: Tensor, lengths: Tensor) -> None:
        """Put the cross-attention's keys and values (B, S, L * 2HK) of sources with lengths (B) into their slots (B)."""
        layers, _, size, heads, length, head_width = arena.cross_kv.shape
        rows, width, _ = fused.shape
        block = triton.next_power_of_2(heads * head_width)
        _keep_source[(rows * width, 2 * layers)](
            fused, arena.cross_kv, slots, lengths, width, 2 * layers, size, heads, length, head_width, block
        )


class _DecoderAttention:
    def __init__(self, weights: T5Weights, arena: Arena, view: View) -> None:
        self._arena, self._slots, self._shape = arena, view.slots, weights.shape
        self._table = weights.decoder_bias
        self._block = triton.next_power_of_2(weights.shape.head_width)

    def to_self(self, layer: int, fused: Tensor) -> Tensor:
        arena, shape = self._arena, self._shape
        attended = fused.new_empty(self._slots, shape.inner_width)
        _attend_to_self[(self._slots, shape.heads)](
            fused,
            arena.self_kv[layer, 0],
            arena.self_kv[layer, 1],
            self._table,
            arena.steps,
            arena.is_done,
            attended,
            self._table.shape[0] - 1,
            arena.size.steps,
            shape.heads,
            shape.head_width,
            self._block,
            **SELF_LAUNCH,
        )
        return attended

    def to_source(self, layer: int, query: Tensor) -> Tensor:
        arena, shape = self._arena, self._shape
        attended = query.new_empty(self._slots, shape.inner_width)
        _attend_to_source[(self._slots, shape.heads)](
            query,
            arena.cross_kv[layer, 0],
            arena.cross_kv[layer, 1],
            arena.lengths,
            arena.is_done,
            attended,
            arena.size.source,
            shape.heads,
            shape.head_width,
            self._block,
            **SOURCE_LAUNCH,
        )
        return attended


@triton.jit
def _normalize(hidden, weight, normal, epsilon, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    x = tl.load(hidden + row * width + column, mask=inside, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(x * x, 0) / width + epsilon)
    # As transformers does: scaled in float32, rounded, then weighted.
    kind = normal.dtype.element_ty
    scaled = (x * scale).to(kind).to(tl.float32)
    w = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(normal + row * width + column, (scaled * w).to(kind), mask=inside)


@triton.jit
def _gate(inner, gated, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    x = tl.load(inner + row * 2 * width + column, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(inner + (row * 2 + 1) * width + column, mask=inside, other=0.0).to(tl.float32)
    # sqrt(2 / pi)
    u = 0.7978845608028654 * (x + 0.044715 * x * x * x)
    # 1 + tanh(u), which overflows on neither side.
    gelu = x * (1.0 - 1.0 / (tl.exp(2.0 * u) + 1.0))
    kind = gated.dtype.element_ty
    tl.store(gated + row * width + column, (gelu.to(kind).to(tl.float32) * y).to(kind), mask=inside)


@triton.jit(do_not_specialize=["width"])
def _attend_in_encoder(
    fused,
    bias,
    lengths,
    attended,
    width,
    heads,
    head_width: tl.constexpr,
    BLOCK: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    first = tl.program_id(0) * QUERIES
    row = (tl.program_id(1) // heads).to(tl.int64)
    head = tl.program_id(1) % heads
    length = tl.load(lengths + row)
    kind = attended.dtype.element_ty
    channel = tl.arange(0, BLOCK)
    has_channel = (channel < head_width)[None, :]
    query_at = first + tl.arange(0, QUERIES)
    stride = 3 * heads * head_width
    base = fused + row * width * stride + head * head_width
    part = heads * head_width
    q = tl.load(base + query_at[:, None] * stride + channel[None, :], mask=(query_at < width)[:, None] & has_channel, other=0.0)
    most = tl.full((QUERIES,), -1.0e30, tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    sums = tl.zeros((QUERIES, BLOCK), tl.float32)
    # Queries in the padding need no more than a number: nothing is ever read of them.
    end = tl.where(first < length, length, 0)
    for start in range(0, end, KEYS):
        key_at = start + tl.arange(0, KEYS)
        is_key = key_at < length
        at = base + key_at[:, None] * stride + channel[None, :]
        k = tl.load(at + part, mask=is_key[:, None] & has_channel, other=0.0)
        v = tl.load(at + 2 * part, mask=is_key[:, None] & has_channel, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        bias_at = bias + (head * width + query_at[:, None]) * width + key_at[None, :]
        seen = (query_at < width)[:, None] & is_key[None, :]
        scores += tl.load(bias_at, mask=seen, other=0.0).to(tl.float32)
        scores = tl.where(is_key[None, :], scores, -1.0e30)
        now = tl.maximum(most, tl.max(scores, 1))
        weight = tl.where(is_key[None, :], tl.exp(scores - now[:, None]), 0.0)
        fade = tl.exp(most - now)
        total = total * fade + tl.sum(weight, 1)
        sums = sums * fade[:, None] + tl.dot(weight.to(kind), v, input_precision="ieee")
        most = now
    sums = sums / tl.where(total == 0.0, 1.0, total)[:, None]
    out = attended + (row * width + query_at[:, None]) * part + head * head_width + channel[None, :]
    tl.store(out, sums.to(kind), mask=(query_at < width)[:, None] & has_channel)


@triton.jit
def _attend_over(
    q,
    keys,
    values,
    most,
    total,
    sums,
    length,
    table,
    step,
    farthest,
    heads,
    head,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
    POSITIONS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    """Take cached positions in, in lanes of their own: the loop exchanges nothing between threads."""
    channel = tl.arange(0, BLOCK)
    lane = tl.arange(0, POSITIONS)
    for start in range(0, length, POSITIONS):
        position = start + lane
        inside = position < length
        mask = inside[:, None] & (channel < K)[None, :]
        at = position[:, None] * K + channel[None, :]
        k = tl.load(keys + at, mask=mask, other=0.0).to(tl.float32)
        v = tl.load(values + at, mask=mask, other=0.0).to(tl.float32)
        scores = tl.sum(k * q[None, :], 1)
        if HAS_BIAS:
            back = tl.minimum(step - position, farthest)
            scores += tl.load(table + back * heads + head, mask=inside, other=0.0).to(tl.float32)
        scores = tl.where(inside, scores, -1.0e30)
        now = tl.maximum(most, scores)
        weight = tl.where(inside, tl.exp(scores - now), 0.0)
        fade = tl.exp(most - now)
        total = total * fade + weight
        sums = sums * fade[:, None] + weight[:, None] * v
        most = now
    fade = tl.exp(most - tl.max(most, 0))
    return tl.sum(sums * fade[:, None], 0) / tl.sum(total * fade, 0)


@triton.jit(do_not_specialize=["width"])
def _attend_to_source(
    queries,
    keys,
    values,
    lengths,
    is_done,
    attended,
    width,
    heads,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    slot = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    channel = tl.arange(0, BLOCK)
    has_channel = channel < K
    out = attended + (slot * heads + head) * K + channel
    kind = attended.dtype.element_ty
    if tl.load(is_done + slot):
        tl.store(out, tl.zeros((BLOCK,), tl.float32).to(kind), mask=has_channel)
    else:
        q = tl.load(queries + (slot * heads + head) * K + channel, mask=has_channel, other=0.0).to(tl.float32)
        cache = (slot * heads + head) * width * K
        most = tl.full((POSITIONS,), -1.0e30, tl.float32)
        total = tl.zeros((POSITIONS,), tl.float32)
        sums = tl.zeros((POSITIONS, BLOCK), tl.float32)
        length = tl.load(lengths + slot).to(tl.int32)
        result = _attend_over(
            q, keys + cache, values + cache, most, total, sums, length, keys, 0, 0, heads, head, K, BLOCK, POSITIONS, False
        )
        tl.store(out, result.to(kind), mask=has_channel)


@triton.jit(do_not_specialize=["width", "farthest"])
def _attend_to_self(
    fused,
    keys,
    values,
    table,
    steps,
    is_done,
    attended,
    farthest,
    width,
    heads,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    slot = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    channel = tl.arange(0, BLOCK)
    has_channel = channel < K
    out = attended + (slot * heads + head) * K + channel
    kind = attended.dtype.element_ty
    if tl.load(is_done + slot):
        tl.store(out, tl.zeros((BLOCK,), tl.float32).to(kind), mask=has_channel)
    else:
        step = tl.load(steps + slot).to(tl.int32)
        at = fused + slot * 3 * heads * K + head * K + channel
        q = tl.load(at, mask=has_channel, other=0.0).to(tl.float32)
        k = tl.load(at + heads * K, mask=has_channel, other=0.0)
        v = tl.load(at + 2 * heads * K, mask=has_channel, other=0.0)
        cache = (slot * heads + head) * width * K
        tl.store(keys + cache + step * K + channel, k, mask=has_channel)
        tl.store(values + cache + step * K + channel, v, mask=has_channel)
        # The step's own position is the first in lane 0; the cache is read up to it.
        lane = tl.arange(0, POSITIONS)
        is_first = lane == 0
        score = tl.sum(q * k.to(tl.float32), 0) + tl.load(table + head).to(tl.float32)
        most = tl.where(is_first, score, -1.0e30)
        total = tl.where(is_first, 1.0, 0.0)
        sums = tl.where(is_first[:, None], v.to(tl.float32)[None, :], 0.0)
        result = _attend_over(
            q,
            keys + cache,
            values + cache,
            most,
            total,
            sums,
            step,
            table,
            step,
            farthest,
            heads,
            head,
            K,
            BLOCK,
            POSITIONS,
            True,
        )
        tl.store(out, result.to(kind), mask=has_channel)


@triton.jit(do_not_specialize=["width", "length"])
def _keep_source(fused, cross_kv, slots, lengths, width, parts, size, heads, length, K: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    row = token // width
    position = token % width
    if position < tl.load(lengths + row):
        slot = tl.load(slots + row)
        column = tl.arange(0, BLOCK)
        inside = column < heads * K
        kept = tl.load(fused + (token * parts + part) * heads * K + column, mask=inside)
        head = column // K
        at = ((part * size + slot) * heads + head) * length + position
        tl.store(cross_kv + at * K + column % K, kept, mask=inside)
