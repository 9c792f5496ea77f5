"""Token counts without torch, for estimates before a job is submitted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from gistmill.errors import ModelUnreadable
from models_store.config import read_json

CountTokens = Callable[[Sequence[str]], list[int]]


def load_counter(directory: Path) -> CountTokens:
    """Return a function that counts the tokens of each whole text, special tokens included.

    Raises:
        ModelUnreadable: the model has no tokenizer.json, or a broken one.
    """
    from tokenizers import Tokenizer

    path = directory / "tokenizer.json"
    if not path.is_file():
        raise ModelUnreadable("The model has no tokenizer.json, so tokens cannot be counted without loading it.")
    read_json(path)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        # The library raises bare Exception for whatever it cannot parse.
        raise ModelUnreadable(f"The model's tokenizer.json cannot be read: {error}") from error
    # Published files carry limits of their own (512 tokens, padded), which would make every longer text count as 512.
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count(texts: Sequence[str]) -> list[int]:
        return [len(encoding.ids) for encoding in tokenizer.encode_batch(list(texts))]

    return count
