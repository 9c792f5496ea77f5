"""Train the built-in model gist-tiny from scratch on generated dialogues and write it to models_store/builtin/gist-tiny.

It learns in two phases: first the language of the summaries at equal weights, then, with names weighted more, who did what.

Usage: python scripts/train_gist_tiny.py [--steps 900] [--out DIR]
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import Unigram
from transformers import GenerationConfig, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from gistmill import prompts
from models_store.builtin.dialogues import generate
from models_store.builtin.scenarios import NAMES

OUT = Path(__file__).parent.parent / "models_store" / "builtin" / "gist-tiny"
SEED = 7
# Another number of threads adds in another order and gives slightly other weights.
THREADS = 2
BATCH = 32
# Words and what they share; a part costs more than any word, so that a known word is never cut.
WORD = re.compile(r"▁?\w+|▁?[^\w\s▁]")
BLANKS = re.compile(r"\s+")
PARTS = 420
PART_PENALTY = 12.0
PEAK_RATE = 2e-3
NAME_WEIGHT = 3.0
BIAS = "relative_attention_bias"
NEAR = 6.0
WARMUP_STEPS = 100
# How often each built-in prompt is met in training.
PROMPT_WEIGHTS = {"instruction": 6, "none": 2, "instruction-dialogue": 2}


def main() -> None:
    """Train the tokenizer, then the model, then save both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    torch.manual_seed(SEED)
    torch.set_num_threads(THREADS)
    tokenizer = train_tokenizer()
    model = make_model(len(tokenizer))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer):,} pieces", flush=True)
    train(model, tokenizer, steps=arguments.steps)
    save(model, tokenizer, arguments.out)


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Return a unigram tokenizer of about 1,024 pieces that reads line breaks as spaces, as T5's does.

    Unigram training alone keeps only pieces that several words share, so that it cut "have" into three: the words of the
    generator are added whole, which halves the length, and what training found serves words that are not among them.
    """
    texts = [text for example in generate(5_000, seed=SEED, split="train") for text in (example.dialogue, example.summary)]
    texts += [render("", name) for name in PROMPT_WEIGHTS] * len(texts)
    counts = Counter(word for text in texts for word in WORD.findall(BLANKS.sub("▁", f" {text.strip()}")))
    total = sum(counts.values())
    pieces = {piece: score - PART_PENALTY for piece, score in shared_parts(counts)}
    pieces |= {word: math.log(count / total) for word, count in sorted(counts.items())}
    specials = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -100.0)]
    tokenizer = Tokenizer(Unigram([*specials, *sorted(pieces.items(), key=lambda item: (-item[1], item[0]))], unk_id=2))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def shared_parts(counts: Counter[str]) -> list[tuple[str, float]]:
    """Return the parts of words, with their scores, that unigram training finds; every ASCII character is one."""
    tokenizer = Tokenizer(Unigram())
    trainer = trainers.UnigramTrainer(
        vocab_size=PARTS,
        special_tokens=["<unk>"],
        unk_token="<unk>",
        initial_alphabet=[*(chr(code) for code in range(33, 127)), "▁"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(sorted(counts), trainer)
    vocabulary = json.loads(tokenizer.to_str())["model"]["vocab"]
    # The trainer orders characters that it never met anew in each run, and tells them apart by their fourth digit.
    return [(piece, round(score, 1)) for piece, score in vocabulary if piece != "<unk>"]


def make_model(vocabulary: int) -> T5ForConditionalGeneration:
    """Return an untrained T5 (v1.1, gated GELU) of about 1.3 million parameters."""
    config = T5Config(  # type: ignore[call-arg]
        vocab_size=vocabulary,
        d_model=128,
        d_kv=32,
        d_ff=256,
        num_layers=3,
        num_decoder_layers=3,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    model = T5ForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if BIAS in name:
                look_at_neighbours(parameter)
    return model


def look_at_neighbours(bias: torch.Tensor) -> None:
    """Start two heads on the previous token and one on the next ones.

    Who speaks is a matter of neighbours: a name, a colon, a line. From its flat start the bias would need thousands of steps
    to grow that far (AdamW moves it by about its rate a step), and until then the model mixes the two speakers up.

    Shapes: bias (buckets, heads); buckets 1, 2, … are 1, 2, … tokens back, and in the encoder 17, 18, … as many ahead.
    """
    bias.zero_()
    bias[1, 0] = NEAR
    bias[2, 1] = NEAR
    bias[17:25, 2] = NEAR / 2


def train(model: T5ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, *, steps: int) -> None:
    """Run AdamW with a short warm-up and a linear decay; every batch is new text."""
    biases = [parameter for name, parameter in model.named_parameters() if BIAS in name]
    others = [parameter for name, parameter in model.named_parameters() if BIAS not in name]
    groups: list[dict[str, Any]] = [{"params": others}, {"params": biases, "lr": 10 * PEAK_RATE, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_RATE, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP_STEPS, (steps - step) / max(1, steps - WARMUP_STEPS))
    )
    model.train()
    names = name_tokens(tokenizer)
    started_at = time.monotonic()
    for step, batch in zip(range(steps), batches(tokenizer), strict=False):
        logits = model(**batch).logits
        loss, right = name_weighted_loss(logits, batch["labels"], names)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == steps - 1:
            seconds = time.monotonic() - started_at
            print(f"step {step:5d}  loss {loss.item():.4f}  names right {right:.2f}  {seconds:.0f} s", flush=True)


def name_tokens(tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """Return the ids of the pieces that names begin with."""
    return torch.tensor([tokenizer(name, add_special_tokens=False)["input_ids"][0] for name in NAMES])


def name_weighted_loss(logits: torch.Tensor, labels: torch.Tensor, names: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Return the loss with names counted several times, and the share of names that are right.

    Who did what is decided by one token in twenty; at its plain weight the model takes thousands of steps to care.

    Shapes: logits (B, T, V), labels (B, T) with -100 where padded.
    """
    is_name = torch.isin(labels, names)
    weights = (labels != -100).float() + is_name * (NAME_WEIGHT - 1)
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="none")
    right = (logits.argmax(-1) == labels)[is_name].float().mean().item()
    return (losses * weights.flatten()).sum() / weights.sum(), right


def batches(tokenizer: PreTrainedTokenizerFast) -> Iterator[dict[str, torch.Tensor]]:
    """Yield batches of similar length without end."""
    source = random.Random(SEED)
    for epoch in range(1_000_000):
        examples = list(generate(BATCH * 16, seed=1_000 + epoch, split="train"))
        names = source.choices(list(PROMPT_WEIGHTS), weights=list(PROMPT_WEIGHTS.values()), k=len(examples))
        pairs = sorted(
            ((render(example.dialogue, name), example.summary) for example, name in zip(examples, names, strict=True)),
            key=lambda pair: len(pair[0]),
        )
        groups = [pairs[start : start + BATCH] for start in range(0, len(pairs), BATCH)]
        source.shuffle(groups)
        for group in groups:
            inputs = tokenizer([text for text, _ in group], padding=True, return_tensors="pt")
            labels = tokenizer([summary for _, summary in group], padding=True, return_tensors="pt")["input_ids"]
            yield {
                "input_ids": inputs["input_ids"],
                "attention_mask": inputs["attention_mask"],
                "labels": labels.masked_fill(labels == 0, -100),
            }


def render(dialogue: str, prompt: str) -> str:
    """Return the text that the model reads."""
    return prompts.get(prompt).render(dialogue)


def save(model: T5ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write bfloat16 safetensors, configuration and tokenizer."""
    out.mkdir(parents=True, exist_ok=True)
    ends: dict[str, int] = {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    model.generation_config = GenerationConfig(**ends)  # type: ignore[no-untyped-call]
    model.bfloat16().save_pretrained(out)
    # Padding of the last batch would otherwise be saved, and count as tokens for whoever reads tokenizer.json alone.
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    main()
