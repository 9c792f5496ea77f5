"""What all contestants share: rows, a tokenizer trained on them, and a random model of FLAN-T5-small's shape."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import T5Config, T5ForConditionalGeneration
from transformers.utils import logging

from benchmarks.pieces import make_tokenizer
from gistmill import prompts
from models_store.builtin.dialogues import generate
from workers.engine.checkpoint import load_model
from workers.training.data import Collator, Example, encode, micro_batches, read_rows

SHAPE = {"vocab_size": 32_128, "d_model": 512, "d_kv": 64, "d_ff": 1024, "num_layers": 8, "num_heads": 6}
# Its pieces are about as long as those of T5's own tokenizer on such text; the rest of the vocabulary stays unused.
PIECES = 8_000
SEED = 7
PROMPT = "instruction"


@dataclass(frozen=True)
class Stage:
    """Files that every contestant starts from."""

    base: Path
    train_file: Path
    held_out_file: Path


def set_up(directory: Path, *, data: Path | None, rows: int, held_out: int) -> Stage:
    """Write the base model and the rows: of a JSON Lines file with dialogue and summary, or generated ones."""
    pairs = _read_pairs(data)[: rows + held_out] if data else _generate_pairs(rows + held_out)
    template = prompts.get(PROMPT)
    lines = [json.dumps({"prompt": template.render(dialogue), "references": [summary]}) + "\n" for dialogue, summary in pairs]
    stage = Stage(directory / "base", directory / "train.jsonl", directory / "held-out.jsonl")
    stage.train_file.write_text("".join(lines[:-held_out]), encoding="utf-8")
    stage.held_out_file.write_text("".join(lines[-held_out:]), encoding="utf-8")
    make_tokenizer([text for pair in pairs for text in pair], stage.base, pieces=PIECES)
    torch.manual_seed(SEED)
    # FLAN-T5's layout: gated, and with an output layer of its own.
    layout = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "decoder_start_token_id": 0}
    model: Any = T5ForConditionalGeneration(T5Config.from_dict(layout | SHAPE))  # type: ignore[arg-type]
    # Scaled as a trained one is: scores of a random one would be in the hundreds.
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * SHAPE["d_model"] ** -0.5)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model.save_pretrained(stage.base)
    return stage


def load_examples(stage: Stage, file: Path) -> list[Example]:
    """Return the rows of a file as tokens, not cut."""
    loaded = load_model(stage.base, device="cpu", precision="float32")
    return encode(read_rows(file), loaded, max_input_tokens=512, max_target_tokens=512)


def masked_loss(model: Any, examples: list[Example]) -> float:
    """Return the mean loss per target token, pads left out, whatever the model was trained with."""
    model.eval()
    with torch.inference_mode():
        parts = micro_batches(Collator(0)(examples), 8)
        return sum(share * model(**tensors).loss.item() for tensors, share in parts)


def _read_pairs(path: Path) -> list[tuple[str, str]]:
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [(row["dialogue"], row["summary"]) for row in rows]


def _generate_pairs(count: int) -> list[tuple[str, str]]:
    return [(example.dialogue, example.summary) for example in generate(count, seed=SEED, split="train")]
