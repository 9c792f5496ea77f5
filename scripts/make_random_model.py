"""Make a model of FLAN-T5's shape with random weights: the real cost of a real model, where its weights cannot be had.

    python scripts/make_random_model.py --shape small --tokenizer DIR --out DIR --seed 0

It writes no useful summaries. The tokenizer is copied from a directory that holds tokenizer.json and tokenizer_config.json.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

SHAPES = {
    "small": {"d_model": 512, "d_kv": 64, "d_ff": 1024, "num_layers": 8, "num_heads": 6},
    "base": {"d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12, "num_heads": 12},
}
VOCABULARY = 32_128
# What the published checkpoints have; a tied output layer would give fewer.
PARAMETERS = {"small": 76_961_152, "base": 247_577_856}
END_SCALE = 2.0
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def make(shape: str, *, tokenizer: Path, out: Path, seed: int) -> int:
    """Write the model and its tokenizer into a new directory and return the number of parameters."""
    import torch

    from tests.support.models import random_t5, save_t5, vary_outputs

    torch.manual_seed(seed)
    model = random_t5(vocab_size=VOCABULARY, **SHAPES[shape])
    vary_outputs(model, end_scale=END_SCALE)
    parameters = int(sum(weight.numel() for weight in model.parameters()))
    if parameters != PARAMETERS[shape]:
        raise SystemExit(f"The model has {parameters:,} parameters; FLAN-T5-{shape} has {PARAMETERS[shape]:,}.")
    out.mkdir(parents=True)
    save_t5(model, out)
    for name in TOKENIZER_FILES:
        if (tokenizer / name).exists():
            shutil.copyfile(tokenizer / name, out / name)
    return parameters


def main() -> None:
    """Read the command line and make the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="small")
    parser.add_argument("--tokenizer", type=Path, required=True, help="directory of the tokenizer's files")
    parser.add_argument("--out", type=Path, required=True, help="directory to make")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    if not (asked.tokenizer / "tokenizer.json").is_file():
        parser.error(f"{asked.tokenizer} holds no tokenizer.json")
    if asked.out.exists():
        parser.error(f"{asked.out} exists already")
    parameters = make(asked.shape, tokenizer=asked.tokenizer, out=asked.out, seed=asked.seed)
    print(f"made {asked.out}: FLAN-T5-{asked.shape} shape, {parameters:,} parameters, seed {asked.seed}")


if __name__ == "__main__":
    main()
