"""Sampling whose noise belongs to the row, not to its batch. Shapes: B rows, T steps, V tokens of the vocabulary.

Every row has its own generator, keyed by (seed, dialogue digest, draw); its number for step t decides the token of step t.
So the text of a row is the same alone, in any batch, in any order and on any worker. One number per step is enough, by
inverting the cumulative distribution over token ids. Gumbel-max was rejected: it needs a number per token of the vocabulary
at each step: 0.2 ms a row for V = 32,128 with numpy, so 50 ms a step for 256 rows, more than the model takes on a GPU.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from transformers import LogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from gistmill.specs import GenerationParameters


def row_noise(seed: int, noise: tuple[str, int], steps: int) -> npt.NDArray[np.float64]:
    """Return a row's numbers in [0, 1), one per step. More steps only append: the first ones stay."""
    digest, draw = noise
    key = hashlib.sha256(f"{seed}:{digest}:{draw}".encode()).digest()[:16]
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little"))).random(steps)


class SeededChoice(LogitsProcessor):
    """Leaves only the token that the row's noise chooses, so that the greedy argmax after it is a sample.

    Takes scores (B, V) and returns them with -inf everywhere but at the choice. `noise` is (B, T) float64 on the device.
    """

    def __init__(self, noise: torch.Tensor) -> None:
        self._noise = noise

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Choose by the step that follows from the tokens so far: (B, 1 + step)."""
        step = input_ids.shape[1] - 1
        return torch.full_like(scores, -torch.inf).scatter_(1, choose(scores, self._noise[:, step : step + 1]), 0.0)


def choose(scores: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Return the token of each row, (B, 1) int64, by inverting the cumulative distribution of softmax(scores).

    Shapes: scores (B, V), noise (B, 1) float64 in [0, 1). Tokens at -inf are never chosen. In float64, because a float32 sum
    over V tokens is off by more than the scores of a row differ between two batches.
    """
    cumulative = torch.softmax(scores.double(), dim=-1).cumsum(dim=-1)
    total = cumulative[:, -1:]
    chosen = (cumulative <= noise * total).sum(dim=-1, keepdim=True)
    last = (cumulative < total).sum(dim=-1, keepdim=True)
    return torch.minimum(chosen, last)


def warpers(parameters: GenerationParameters) -> list[LogitsProcessor]:
    """Return what changes the scores before a token is chosen, in transformers' order: temperature, top-k, top-p."""
    processors: list[LogitsProcessor] = []
    if parameters.temperature != 1.0:
        processors.append(TemperatureLogitsWarper(parameters.temperature))
    if parameters.top_k > 0:
        processors.append(TopKLogitsWarper(parameters.top_k))
    if parameters.top_p < 1.0:
        processors.append(TopPLogitsWarper(parameters.top_p))
    return processors


def sampling_processors(
    parameters: GenerationParameters, noises: Sequence[tuple[str, int]], device: torch.device | str
) -> list[LogitsProcessor]:
    """Return what turns a greedy decode into sampling: the warpers, then the choice."""
    table = np.stack([row_noise(parameters.seed, noise, parameters.max_new_tokens) for noise in noises])
    return [*warpers(parameters), SeededChoice(torch.from_numpy(table).to(device))]
