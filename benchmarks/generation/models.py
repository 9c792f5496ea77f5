"""Models of FLAN-T5's shapes with random weights, in directories as published ones have them.

A summary has as many tokens as it may have: the output layer is zero at the end token, which is then never the best of the
hundreds of others. It is zero as well at what the tokenizer cannot write. So every peer writes 40 tokens by its own means, with
no rule that one would check faster than another.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.pieces import SPECIAL, make_tokenizer
from tests.support.models import random_t5, save_t5, vary_outputs

SHAPES = {
    # It shows that every path works, and nothing else.
    "tiny": {"vocab_size": 4_096, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4},
    "small": {"vocab_size": 32_128, "d_model": 512, "d_kv": 64, "d_ff": 1024, "num_layers": 8, "num_heads": 6},
    "base": {"vocab_size": 32_128, "d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12, "num_heads": 12},
}
# FLAN-T5's tokenizer makes 1.7 tokens of a word of DialogSum's; with so few pieces ours does on the generated dialogues.
PIECES = 2_000
SEED = 7


def make_model(directory: Path, shape: str, texts: Sequence[str]) -> Path:
    """Write a model of this shape, and a tokenizer trained on the texts, and return the directory."""
    directory.mkdir(parents=True)
    pieces = make_tokenizer(texts, directory, pieces=PIECES)
    torch.manual_seed(SEED)
    model = random_t5(**SHAPES[shape])
    vary_outputs(model)
    with torch.no_grad():
        model.lm_head.weight[: len(SPECIAL)] = 0.0
        model.lm_head.weight[pieces:] = 0.0
    save_t5(model, directory)
    return directory
