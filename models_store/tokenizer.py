"""Token counts without torch, for estimates before a job is submitted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from gistmill.errors import ModelUnreadable


def load_counter(directory: Path) -> Callable[[Sequence[str]], list[int]]:
    """Return a function that counts the tokens of each text, special tokens included.

    Raises:
        ModelUnreadable: the model has no tokenizer.json.
    """
    from tokenizers import Tokenizer

    path = directory / "tokenizer.json"
    if not path.is_file():
        raise ModelUnreadable("The model has no tokenizer.json, so tokens cannot be counted without loading it.")
    tokenizer = Tokenizer.from_file(str(path))

    def count(texts: Sequence[str]) -> list[int]:
        return [len(encoding.ids) for encoding in tokenizer.encode_batch(list(texts))]

    return count
