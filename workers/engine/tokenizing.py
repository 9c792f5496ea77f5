"""A checkpoint's own tokenizer, as every engine that runs checkpoints uses it: the same tokens in, the same text out."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

from workers.engine.base import Completion, Row


class ModelTokenizer:
    """Reads and writes the tokens of one model, whose embedding has `vocabulary` rows."""

    def __init__(self, tokenizer: Any, vocabulary: int) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary

    def encode(self, texts: Sequence[str], limit: int | None) -> list[list[int]]:
        """Return the tokens of each text, special tokens included; cut to `limit` when one is given.

        Raises:
            ValueError, TypeError, OverflowError: a text cannot be encoded, or the limit leaves no room for text.
        """
        cut = {} if limit is None else {"truncation": True, "max_length": limit}
        if limit is not None and limit <= self._tokenizer.num_special_tokens_to_add():
            raise ValueError("the limit leaves no room for text")
        encoded: list[list[int]] = self._tokenizer(list(texts), return_attention_mask=False, **cut)["input_ids"]
        # On a GPU an unknown token is a device-side assertion, which ends the process rather than the row.
        if any(not tokens or max(tokens) >= self._vocabulary for tokens in encoded):
            raise ValueError("the tokenizer gives no token, or one that the model does not know")
        return encoded

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of the tokens, without special ones and without space around it."""
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return text.strip()

    def decode_all(self, texts: Sequence[Sequence[int]]) -> list[str]:
        """Return the text of each sequence of tokens, as `decode` does, many at a time."""
        if not self._tokenizer.is_fast or self._tokenizer.clean_up_tokenization_spaces:
            return [self.decode(tokens) for tokens in texts]
        decoded: list[str] = self._tokenizer.backend_tokenizer.decode_batch(texts, skip_special_tokens=True)
        return [text.strip() for text in decoded]


def completed(row: Row, tokens: Sequence[int], text: str, ends: Container[int]) -> Completion:
    """Return what was written for a row: at least one token, and none behind an end token."""
    return Completion(
        key=row.prompt.key,
        text=text,
        finish_reason="stop" if tokens[-1] in ends else "length",
        tokens_in=len(row.tokens),
        tokens_out=len(tokens),
        truncated=row.truncated,
    )
