"""Tokens without torch: counted for estimates before a job is submitted, and shown with the text that they mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gistmill.errors import ModelUnreadable
from models_store.config import read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CountTokens = Callable[[Sequence[str]], list[int]]


@dataclass(frozen=True)
class Tokens:
    """A text as a model reads it: pieces and ids, special ones included, and the text that the ids mean without those."""

    pieces: list[str]
    ids: list[int]
    decoded: str


def load_counter(directory: Path) -> CountTokens:
    """Return a function that counts the tokens of each whole text, special tokens included.

    Raises:
        ModelUnreadable: the model has no tokenizer.json, or a broken one.
    """
    tokenizer = _load(directory)

    def count(texts: Sequence[str]) -> list[int]:
        return [len(encoding.ids) for encoding in tokenizer.encode_batch(list(texts))]

    return count


def tokenize(directory: Path, text: str) -> Tokens:
    """Return the tokens of a whole text.

    Raises:
        ModelUnreadable: the model has no tokenizer.json, or a broken one.
    """
    tokenizer = _load(directory)
    ids = list(tokenizer.encode(text).ids)
    # By their ids: what the vocabulary lacks stands in the encoding as it was written, and reaches the model as unknown.
    pieces = [str(tokenizer.id_to_token(number)) for number in ids]
    return Tokens(pieces, ids, tokenizer.decode(ids, skip_special_tokens=True))


def _load(directory: Path) -> Tokenizer:
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
    return tokenizer
