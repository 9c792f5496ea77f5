"""Train the built-in model gist-tiny from scratch on generated dialogues and write it to models_store/builtin/gist-tiny.

It learns in two phases: first the language of the summaries at equal weights, then, with names weighted more, who did what.

Usage: python scripts/train_gist_tiny.py [--out DIR] [--start DIR]
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import Unigram
from transformers import GenerationConfig, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from gistmill import prompts
from models_store.builtin.dialogues import Example, generate
from models_store.builtin.scenarios import NAMES

OUT = Path(__file__).parent.parent / "models_store" / "builtin" / "gist-tiny"
SEED = 7
BATCH = 16
VOCABULARY = 1024
PEAK_RATE = 2e-3
NAME_WEIGHT = 5.0
WARMUP_STEPS = 100
# How often each built-in prompt is met in training.
PROMPT_WEIGHTS = {"instruction": 6, "none": 2, "instruction-dialogue": 2}


def main() -> None:
    """Train the tokenizer, then the model, then save both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--language-steps", type=int, default=2000)
    parser.add_argument("--name-steps", type=int, default=1500)
    parser.add_argument("--start", type=Path, help="a saved model to go on from, instead of the first phase")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    torch.manual_seed(SEED)
    tokenizer = train_tokenizer()
    if arguments.start is None:
        model = make_model()
        print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
        train(model, tokenizer, steps=arguments.language_steps, name_weight=1.0, first_seed=1_000)
        save(model, tokenizer, arguments.out)
    model = T5ForConditionalGeneration.from_pretrained(arguments.start or arguments.out, dtype=torch.float32)
    train(model, tokenizer, steps=arguments.name_steps, name_weight=NAME_WEIGHT, first_seed=50_000)
    save(model, tokenizer, arguments.out)


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Return a unigram tokenizer of 1,024 pieces that reads line breaks as spaces, as T5's does."""
    tokenizer = Tokenizer(Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(_whitespace(), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        initial_alphabet=[chr(code) for code in range(33, 127)],
        show_progress=False,
    )
    texts = (render(example, name) for example in generate(5_000, seed=SEED, split="train") for name in PROMPT_WEIGHTS)
    summaries = (example.summary for example in generate(5_000, seed=SEED, split="train"))
    tokenizer.train_from_iterator([*texts, *summaries], trainer)
    end = tokenizer.token_to_id("</s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", end)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def _whitespace() -> object:
    from tokenizers import Regex

    return Regex(r"\s+")


def make_model() -> T5ForConditionalGeneration:
    """Return an untrained T5 (v1.1, gated GELU) of about 1.3 million parameters."""
    config = T5Config(
        vocab_size=VOCABULARY,
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
    return T5ForConditionalGeneration(config)


def train(
    model: T5ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, *, steps: int, name_weight: float, first_seed: int
) -> None:
    """Run AdamW with a short warm-up and a linear decay; every batch is new text."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP_STEPS, (steps - step) / max(1, steps - WARMUP_STEPS))
    )
    model.train()
    names = name_tokens(tokenizer)
    started_at = time.monotonic()
    for step, batch in zip(range(steps), batches(tokenizer, first_seed), strict=False):
        logits = model(**batch).logits
        loss, right = name_weighted_loss(logits, batch["labels"], names, name_weight)
        loss.backward()
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


def name_weighted_loss(
    logits: torch.Tensor, labels: torch.Tensor, names: torch.Tensor, weight: float
) -> tuple[torch.Tensor, float]:
    """Return the loss with names counted `weight` times, and the share of names that are right.

    Who did what is decided by one token in twenty; at its plain weight the model takes thousands of steps to care.

    Shapes: logits (B, T, V), labels (B, T) with -100 where padded.
    """
    is_name = torch.isin(labels, names)
    weights = (labels != -100).float() + is_name * (weight - 1)
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="none")
    right = (logits.argmax(-1) == labels)[is_name].float().mean().item()
    return (losses * weights.flatten()).sum() / weights.sum(), right


def batches(tokenizer: PreTrainedTokenizerFast, first_seed: int) -> Iterator[dict[str, torch.Tensor]]:
    """Yield batches of similar length without end."""
    source = random.Random(SEED)
    for epoch in range(1_000_000):
        examples = list(generate(BATCH * 16, seed=first_seed + epoch, split="train"))
        names = source.choices(list(PROMPT_WEIGHTS), weights=list(PROMPT_WEIGHTS.values()), k=len(examples))
        pairs = sorted(
            ((render(example, name), example.summary) for example, name in zip(examples, names, strict=True)),
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


def render(example: Example, prompt: str) -> str:
    """Return the text that the model reads."""
    return prompts.get(prompt).render(example.dialogue)


def save(model: T5ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write bfloat16 safetensors, configuration and tokenizer."""
    out.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(decoder_start_token_id=0, eos_token_id=1, pad_token_id=0)
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    main()
