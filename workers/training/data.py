"""Training rows as tensors. Shapes: B rows, S tokens of the longest input, T of the longest target, both rounded up to 8."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from workers.engine.checkpoint import LoadedModel
from workers.training.failures import InvalidRows

IGNORED = -100
# Widths in multiples of 8 are what matrix units of GPUs want; on a CPU they cost next to nothing.
WIDTH_STEP = 8
ENCODE_ROWS = 1_024


class Row(NamedTuple):
    """A prompt and its references, the first of which is the target of training."""

    prompt: str
    references: tuple[str, ...]


class Example(NamedTuple):
    """A row as the model reads it: int32 tokens, special tokens included."""

    tokens: npt.NDArray[np.int32]
    target: npt.NDArray[np.int32]


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a JSON Lines file in file order.

    Raises:
        InvalidRows: it holds none, or one without prompt or reference; the message names the line.
    """
    with path.open(encoding="utf-8") as file:
        rows = [_read_row(line, number, path.name) for number, line in enumerate(file, start=1)]
    if not rows:
        raise InvalidRows(f"{path.name} holds no rows. Select at least one row that has a reference.")
    return rows


def encode(
    rows: Sequence[Row],
    loaded: LoadedModel,
    *,
    max_input_tokens: int,
    max_target_tokens: int,
    tick: Callable[[], None] = lambda: None,
) -> list[Example]:
    """Return the rows as tokens, cut to these limits and to what the model's positions allow; ticks at every 1,024 rows."""
    input_limit = min(max_input_tokens, loaded.max_positions or max_input_tokens)
    target_limit = min(max_target_tokens, loaded.max_decoder_positions or max_target_tokens)
    examples: list[Example] = []
    for start in range(0, len(rows), ENCODE_ROWS):
        part = rows[start : start + ENCODE_ROWS]
        tick()
        inputs = loaded.tokenizer([row.prompt for row in part], truncation=True, max_length=input_limit)
        targets = loaded.tokenizer(text_target=[row.references[0] for row in part], truncation=True, max_length=target_limit)
        pairs = zip(inputs["input_ids"], targets["input_ids"], strict=True)
        examples += [Example(np.asarray(tokens, np.int32), np.asarray(target, np.int32)) for tokens, target in pairs]
    return examples


def pad_token(loaded: LoadedModel) -> int:
    """Return the token to pad with; it is masked, so any will do when the tokenizer names none."""
    pad = loaded.tokenizer.pad_token_id
    return 0 if pad is None else int(pad)


class Collator:
    """Makes one batch of examples, the longest input first, so that its parts need fewer pads than the whole.

    The batch holds input_ids and attention_mask (B, S), labels (B, T) with -100 where padded, all int64, and the lengths of
    its rows as plain numbers, which the device need not be asked for.
    """

    def __init__(self, pad: int) -> None:
        self._pad = pad

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Return the batch of these examples."""
        ordered = sorted(examples, key=lambda example: (-len(example.tokens), -len(example.target)))
        input_ids = _pad([example.tokens for example in ordered], self._pad)
        lengths = [len(example.tokens) for example in ordered]
        return {
            "input_ids": input_ids,
            "attention_mask": (torch.arange(input_ids.shape[1]) < torch.tensor(lengths)[:, None]).long(),
            "labels": _pad([example.target for example in ordered], IGNORED),
            "input_lengths": lengths,
            "target_lengths": [len(example.target) for example in ordered],
        }


def micro_batches(batch: dict[str, Any], rows: int) -> Iterator[tuple[dict[str, torch.Tensor], float]]:
    """Yield the batch in parts of at most `rows` rows, each with its share of the batch's target tokens.

    A part is as wide as its own longest row. The model's mean loss times the share, added up over the parts, is the mean over
    all target tokens: how a batch is cut does not change its gradient.
    """
    total = sum(batch["target_lengths"])
    for start in range(0, len(batch["input_lengths"]), rows):
        part = slice(start, start + rows)
        width, target_width = _width(batch["input_lengths"][part]), _width(batch["target_lengths"][part])
        tensors = {
            "input_ids": batch["input_ids"][part, :width].contiguous(),
            "attention_mask": batch["attention_mask"][part, :width].contiguous(),
            "labels": batch["labels"][part, :target_width].contiguous(),
        }
        yield tensors, sum(batch["target_lengths"][part]) / total


def _read_row(line: str, number: int, name: str) -> Row:
    try:
        fields = json.loads(line)
        row = Row(fields["prompt"], tuple(fields["references"]))
    except (ValueError, LookupError, TypeError) as error:
        raise InvalidRows(f"Line {number} of {name} is not an object with a prompt and references.") from error
    if not isinstance(row.prompt, str) or not row.references or not all(isinstance(text, str) for text in row.references):
        raise InvalidRows(f"Line {number} of {name} has no reference to learn from. Leave out rows without references.")
    return row


def _pad(rows: Sequence[npt.NDArray[np.int32]], filler: int) -> torch.Tensor:
    padded = torch.full((len(rows), _width([len(row) for row in rows])), filler, dtype=torch.int64)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = torch.from_numpy(row)
    return padded


def _width(lengths: Sequence[int]) -> int:
    return -(-max(lengths) // WIDTH_STEP) * WIDTH_STEP
