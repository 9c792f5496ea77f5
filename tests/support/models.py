"""Small random models, made in seconds, whose outputs vary: for every test that needs a real checkpoint.

Untouched random weights repeat one token for ever, so that comparing token for token shows nothing. Strong relative positions
and a separate, larger output layer make the tokens vary, and a longer vector of the end token makes rows end. The figures
that these choices give are checked by the engine conformance suite.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

PAD, END, UNKNOWN, BEGIN = 0, 1, 2, 3
SPECIAL = ["<pad>", "</s>", "<unk>", "<s>"]
TALK = (
    "Anna Ben Carla Dave bring red blue umbrella book tomorrow station seven clock sure maybe no thanks see you later where "
    "is the cat dog house car fixed lost found again summarize conversation"
)


def dialogues(count: int, *, seed: int = 0, most_words: int = 60) -> list[str]:
    """Return texts of 1 to `most_words` words, distinct in all likelihood, the same for the same seed."""
    chance = random.Random(seed)
    words = TALK.split()
    return [" ".join(chance.choice(words) for _ in range(chance.randint(1, most_words))) for _ in range(count)]


def make_tiny_tokenizer(directory: Path, *, begins: bool = False) -> int:
    """Write a byte-level tokenizer that reads any unicode, and return the size of its vocabulary.

    It appends the end token as T5's does; with `begins` it also prepends the begin token as BART's does.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=384, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([TALK], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if begins else "$A </s>", special_tokens=[("<s>", BEGIN), ("</s>", END)]
    )
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", bos_token="<s>"
    )
    fast.save_pretrained(directory)
    return int(tokenizer.get_vocab_size())


def make_tiny_t5(directory: Path, *, seed: int = 0) -> Path:
    """Write a T5 of about 240,000 parameters in FLAN-T5's layout (gated, output layer of its own) and return its directory."""
    return make_t5(directory, seed=seed, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4)


def make_odd_t5(directory: Path) -> Path:
    """Write a T5 whose heads do not divide its width, with an odd number of layers, and few and short distance buckets."""
    size = {"d_model": 56, "d_kv": 20, "d_ff": 72, "num_layers": 3, "num_heads": 3}
    return make_t5(directory, seed=7, relative_attention_num_buckets=12, relative_attention_max_distance=20, **size)


def make_t5(directory: Path, *, seed: int, **shape: Any) -> Path:
    """Write a T5 of this shape, with random weights and texts that vary, and its tokenizer, and return the directory."""
    import torch

    directory.mkdir(parents=True, exist_ok=True)
    size = make_tiny_tokenizer(directory)
    torch.manual_seed(seed)
    model = random_t5(vocab_size=size, **shape)
    vary_outputs(model)
    save_t5(model, directory)
    return directory


def random_t5(**shape: Any) -> Any:
    """Return a T5 in FLAN-T5's layout with random weights; the caller seeds torch."""
    from transformers import T5Config, T5ForConditionalGeneration

    layout = {
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "decoder_start_token_id": PAD,
        "dropout_rate": 0.0,
    }
    config: Any = T5Config.from_dict(layout | shape)
    return T5ForConditionalGeneration(config)


def vary_outputs(model: Any, *, end_scale: float = 1.7) -> None:
    """Give a random T5 an output layer of its own and weights with which its greedy texts vary.

    The larger the vocabulary, the larger `end_scale` has to be for rows to end.
    """
    import torch

    with torch.no_grad():
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
        model.lm_head.weight[END] *= end_scale
        for stack in (model.encoder, model.decoder):
            stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight.normal_(0, 2.0)
        for block in model.decoder.block:
            block.layer[0].SelfAttention.q.weight *= 2
            block.layer[1].EncDecAttention.q.weight *= 2


def save_t5(model: Any, directory: Path) -> None:
    """Save a T5 with an output layer of its own as FLAN-T5 is published: `tie_word_embeddings` false.

    transformers 5 writes true whatever the model is, which other readers of the checkpoint would believe.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model.save_pretrained(directory)
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": False}, indent=2) + "\n")


def make_tiny_bart(directory: Path, *, seed: int = 0, max_positions: int = 64) -> Path:
    """Write a BART (absolute positions, a hard limit) whose generation_config asks for what no recipe names.

    An engine that obeyed it would give other texts: at least 20 tokens, no repeated pair, 4 beams.
    """
    import torch
    from transformers import BartConfig, BartForConditionalGeneration, GenerationConfig
    from transformers.utils import logging

    directory.mkdir(parents=True, exist_ok=True)
    size = make_tiny_tokenizer(directory, begins=True)
    config = BartConfig(
        vocab_size=size,
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        max_position_embeddings=max_positions,
        pad_token_id=PAD,
        eos_token_id=END,
        bos_token_id=BEGIN,
        decoder_start_token_id=END,
        forced_eos_token_id=None,
        init_std=0.5,
        dropout=0.0,
    )
    torch.manual_seed(seed)
    model = BartForConditionalGeneration(config)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        pad_token_id=PAD,
        eos_token_id=END,
        bos_token_id=BEGIN,
        decoder_start_token_id=END,
        min_length=20,
        no_repeat_ngram_size=2,
        num_beams=4,
        length_penalty=2.0,
        max_length=30,
    )
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model.save_pretrained(directory)
    return directory
