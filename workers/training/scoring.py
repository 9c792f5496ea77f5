"""How good the model is on the validation rows: its loss, and ROUGE of what it writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import structlog
import torch

from gistmill.specs import GenerationParameters
from workers.engine.base import Completion, Prompt
from workers.engine.batching import pack
from workers.engine.checkpoint import LoadedModel
from workers.engine.transformers import TransformersEngine, is_out_of_memory
from workers.evaluation.rouge import MEASURES, score_pairs
from workers.evaluation.rules import combine
from workers.training.data import Collator, Example, Row, micro_batches, pad_token
from workers.training.memory import free_memory

log = structlog.get_logger(__name__)

LOSS_BUDGET_TOKENS = 16_384


@dataclass(frozen=True)
class Scores:
    """Means over the validation rows; the loss is per target token, ROUGE the best F-measure over a row's references."""

    loss: float
    rouge: dict[str, float]


class Evaluator:
    """Scores a model on fixed rows. What runs out of memory is halved, so that an evaluation ends no run."""

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        rows: Sequence[Row],
        examples: Sequence[Example],
        most_new_tokens: int,
        most_input_tokens: int,
    ) -> None:
        self._loaded = loaded
        self._rows = rows
        self._examples = examples
        self._parameters = GenerationParameters(max_new_tokens=most_new_tokens)
        self._most_input_tokens = most_input_tokens

    def evaluate(self, model: Any, should_stop: Callable[[], bool]) -> Scores | None:
        """Return the scores of the model, adapters included, or None as soon as `should_stop` says so.

        It consumes no random numbers, so that a run is the same with an evaluation and without.
        """
        model.eval()
        loss = self._loss(model, should_stop)
        texts = None if loss is None else self._write(model, should_stop)
        rouge = None if texts is None else mean_rouge(texts, [row.references for row in self._rows], should_stop)
        model.train()
        return None if loss is None or rouge is None else Scores(loss, rouge)

    def _loss(self, model: Any, should_stop: Callable[[], bool]) -> float | None:
        collate = Collator(pad_token(self._loaded))
        lengths = [len(example.tokens) + len(example.target) for example in self._examples]
        total = tokens = 0.0
        for batch in pack(lengths, budget_tokens=LOSS_BUDGET_TOKENS, max_rows=64):
            if should_stop():
                return None
            examples = [self._examples[index] for index in batch]
            count = sum(len(example.target) for example in examples)
            total += count * _batch_loss(model, collate(examples))
            tokens += count
        return total / tokens

    def _write(self, model: Any, should_stop: Callable[[], bool]) -> list[str] | None:
        """Return the greedy text of every row; one that cannot be written is empty, and so scores 0."""
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        engine = TransformersEngine(replace(self._loaded, model=inner))
        prompts = [Prompt(number, row.prompt) for number, row in enumerate(self._rows)]
        texts = [""] * len(prompts)
        written = 0
        for outcomes in engine.generate(
            prompts,
            self._parameters,
            max_input_tokens=self._most_input_tokens,
            on_overflow="truncate",
            should_stop=should_stop,
        ):
            written += len(outcomes)
            for outcome in outcomes:
                if isinstance(outcome, Completion):
                    texts[outcome.key] = outcome.text
                else:
                    log.warning("validation_row_failed", row=outcome.key, error=outcome.error.code)
        return texts if written == len(prompts) else None


def mean_rouge(
    texts: Sequence[str], references: Sequence[Sequence[str]], should_stop: Callable[[], bool] = lambda: False
) -> dict[str, float] | None:
    """Return the mean F-measures, with stemming, of each text against the reference that suits it best."""
    sums = dict.fromkeys(MEASURES, 0.0)
    for text, allowed in zip(texts, references, strict=True):
        if should_stop():
            return None
        (best,) = combine(score_pairs([text] * len(allowed), allowed, stemming=True), "max")
        for name in MEASURES:
            sums[name] += best[name].fmeasure
    return {name: value / len(texts) for name, value in sums.items()}


def _batch_loss(model: Any, batch: dict[str, Any]) -> float:
    """Return the mean loss of a batch, in parts that fit into memory."""
    rows = len(batch["input_lengths"])
    while True:
        try:
            return _loss_in_parts(model, batch, rows)
        except (RuntimeError, MemoryError) as error:
            if rows == 1 or not is_out_of_memory(error):
                raise
        # Only here are the frames of the failed attempt gone, and with them its tensors.
        free_memory()
        rows //= 2
        log.warning("validation_batch_split", rows=rows)


def _loss_in_parts(model: Any, batch: dict[str, Any], rows: int) -> float:
    total = 0.0
    with torch.inference_mode():
        for tensors, share in micro_batches(batch, rows):
            total += share * model(**{name: tensor.to(model.device) for name, tensor in tensors.items()}).loss.item()
    return total
