"""The reference engine: any encoder-decoder checkpoint that transformers can read from a local directory.

Shapes: B rows, S tokens of the longest input, T steps, V tokens of the vocabulary.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from gistmill.errors import DeviceOutOfMemory, GenerationFailed, ItemError
from gistmill.specs import GenerationParameters, Precision
from workers.engine.base import Engine, Failure, Outcome, Row
from workers.engine.batched import BatchedEngine, BatchFailed
from workers.engine.checkpoint import LoadedModel, load_model
from workers.engine.sampling import sampling_processors
from workers.engine.tokenizing import ModelTokenizer, completed

if TYPE_CHECKING:
    from workers.engine.adapters import AdapterRack

GPU_BUDGET_TOKENS = 65_536
GPU_MAX_ROWS = 256
CPU_MAX_ROWS = 32
CPU_LEAST_TOKENS, CPU_MOST_TOKENS = 512, 16_384
# A CPU thread did about 25 GFLOP/s on FLAN-T5 shapes, and a token costs about one FLOP per parameter (half the weights, two
# FLOP each), so this is five seconds of work: results are committed, and a pause takes effect, that often.
CPU_FLOP_PER_THREAD = 125e9

FORWARD_ERRORS = (ArithmeticError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)
OUT_OF_MEMORY_TEXTS = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "failed to allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
NEVER = 2**31 - 1


def load(directory: Path, *, device: str, precision: Precision, threads: int = 0, budget_tokens: int = 0) -> TransformersEngine:
    """Load a checkpoint from a local directory; 0 leaves the threads of torch as they are and chooses the budget by device.

    Raises:
        InvalidSpec: the precision is not offered.
        ModelUnreadable, UnsupportedModel: the directory holds no model that can be run.
        ModelUnavailable: the device has no room for the model now.
    """
    if threads:
        torch.set_num_threads(threads)
    loaded = load_model(directory, device=device, precision=precision)
    return TransformersEngine(loaded, budget_tokens=budget_tokens, directory=directory)


class TransformersEngine(BatchedEngine):
    """Greedy, beam and sampled decoding by `transformers` itself, in length-sorted micro-batches.

    Nothing of the checkpoint's generation_config decides a text save its special tokens: what a recipe does not name must not
    change the result. So `min_length`, `no_repeat_ngram_size`, `length_penalty` and their like are not applied.

    Adapters are put onto the model one by one and stay there; `adapted` gives the engine of base and adapter.
    """

    name = "transformers"

    def __init__(self, loaded: LoadedModel, *, budget_tokens: int = 0, directory: Path | None = None) -> None:
        self._model = loaded.model
        self._directory = directory
        self._rack: AdapterRack | None = None
        self._adapter_bytes: dict[str, int] = {}
        self._tokenizer = ModelTokenizer(loaded.tokenizer, loaded.model.get_input_embeddings().num_embeddings)
        self._special = loaded.special_tokens
        self._max_new_positions = loaded.max_decoder_positions
        self._pad = next(p for p in (loaded.tokenizer.pad_token_id, self._special.get("pad_token_id"), 0) if p is not None)
        eos = self._special.get("eos_token_id")
        self._ends = frozenset(eos if isinstance(eos, list) else [eos])
        self.max_positions = loaded.max_positions
        self.device = str(loaded.model.device)
        self.dtype = str(loaded.model.dtype).removeprefix("torch.")
        self.weight_bytes = sum(weight.numel() * weight.element_size() for weight in loaded.model.parameters())
        self.max_rows = CPU_MAX_ROWS if self.device == "cpu" else GPU_MAX_ROWS
        self.budget_tokens = budget_tokens or self._default_budget()

    def add_adapter(self, digest: str, directory: Path) -> None:
        """Put the adapter of a directory onto the model; it counts in `weight_bytes` until it is removed.

        Raises:
            ModelUnreadable, UnsupportedModel: it is no adapter of this base.
            ModelUnavailable: the device has no room for it now.
        """
        assert self._directory is not None, "the engine was made without its files"
        if self._rack is None:
            # peft takes a second to import, and most bases never see an adapter.
            from workers.engine.adapters import AdapterRack

            self._rack = AdapterRack(self._model)
        self._adapter_bytes[digest] = self._rack.add(digest, directory, self._directory)
        self.weight_bytes += self._adapter_bytes[digest]

    def adapted(self, digest: str) -> Engine:
        """Return the engine of the base with this adapter; it ends with the base's."""
        from workers.engine.adapters import AdaptedEngine

        assert self._rack is not None, "no adapter was added"
        return AdaptedEngine(self, self._rack, digest)

    def remove_adapter(self, digest: str) -> None:
        """Take an adapter off the model and give its memory back."""
        if self._rack is not None:
            self._rack.remove(digest)
        self.weight_bytes -= self._adapter_bytes.pop(digest, 0)
        self._give_back_memory()

    def close(self) -> None:
        """Give the model's memory back."""
        self._rack = None
        del self._model
        gc.collect()
        self._give_back_memory()

    def _default_budget(self) -> int:
        if self.device != "cpu":
            return GPU_BUDGET_TOKENS
        tokens = CPU_FLOP_PER_THREAD * torch.get_num_threads() / max(1, self._model.num_parameters())
        return int(min(max(tokens, CPU_LEAST_TOKENS), CPU_MOST_TOKENS))

    def _encode(self, texts: Sequence[str], limit: int | None) -> list[list[int]]:
        return self._tokenizer.encode(texts, limit)

    def _forward(
        self, rows: Sequence[Row], parameters: GenerationParameters, should_stop: Callable[[], bool]
    ) -> list[Outcome] | None:
        try:
            return self._complete(rows, parameters, should_stop)
        except FORWARD_ERRORS as error:
            if is_device_lost(error):
                raise
            failed = BatchFailed(blame(error, rows))
        # Only here are the frames of the failed attempt gone, and with them its tensors.
        self._give_back_memory()
        raise failed

    def _complete(
        self, rows: Sequence[Row], parameters: GenerationParameters, should_stop: Callable[[], bool]
    ) -> list[Outcome] | None:
        poll = _StopPoll(should_stop)
        watch = _FiniteWatch()
        processors: list[LogitsProcessor] = [watch]
        if parameters.do_sample:
            processors += sampling_processors(parameters, [row.prompt.noise for row in rows], self.device)
        with torch.inference_mode():
            sequences = self._model.generate(
                **self._pad_batch(rows),
                generation_config=self._config(parameters),
                logits_processor=LogitsProcessorList(processors),
                stopping_criteria=StoppingCriteriaList([poll]),
            )
        if poll.stopped:
            return None
        bad_steps = watch.first_bad_steps(len(rows))
        written = sequences[:, 1:].tolist()
        return [self._outcome(row, tokens, bad) for row, tokens, bad in zip(rows, written, bad_steps, strict=True)]

    def _pad_batch(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """Return input_ids and attention_mask, (B, S) int64, padded on the right."""
        width = max(len(row.tokens) for row in rows)
        tokens = [row.tokens + [self._pad] * (width - len(row.tokens)) for row in rows]
        mask = [[1] * len(row.tokens) + [0] * (width - len(row.tokens)) for row in rows]
        return {
            "input_ids": torch.tensor(tokens, device=self.device),
            "attention_mask": torch.tensor(mask, device=self.device),
        }

    def _config(self, parameters: GenerationParameters) -> GenerationConfig:
        longest = parameters.max_new_tokens
        if self._max_new_positions is not None:
            longest = min(longest, self._max_new_positions)
        # Sampling is a greedy decode over scores of which the row's noise has left one.
        return GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=longest, num_beams=parameters.num_beams, do_sample=False, use_cache=True, **self._special
        )

    def _outcome(self, row: Row, tokens: list[int], bad_step: int) -> Outcome:
        end = next((step for step, token in enumerate(tokens) if token in self._ends), None)
        count = len(tokens) if end is None else end + 1
        if bad_step < count:
            return Failure(row.prompt.key, not_finite(bad_step))
        return completed(row, tokens[:count], self._tokenizer.decode(tokens[:count]), self._ends)

    def _give_back_memory(self) -> None:
        if self.device != "cpu":
            torch.cuda.empty_cache()


class _StopPoll(StoppingCriteria):
    """Asks at every step whether to stop, and ends all rows at once when so."""

    def __init__(self, should_stop: Callable[[], bool]) -> None:
        self._should_stop = should_stop
        self.stopped = False

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.stopped = self.stopped or self._should_stop()
        return torch.full((input_ids.shape[0],), self.stopped, dtype=torch.bool, device=input_ids.device)


class _FiniteWatch(LogitsProcessor):
    """Notes on the device, without waiting for it, the first step at which the best score of a row is not a number."""

    def __init__(self) -> None:
        self._first_bad: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        best = scores.amax(dim=-1)
        bad = torch.where(best.isfinite(), NEVER, input_ids.shape[1] - 1)
        self._first_bad = bad if self._first_bad is None else torch.minimum(self._first_bad, bad)
        return scores

    def first_bad_steps(self, rows: int) -> list[int]:
        """Return the first bad step of each row over all of its beams, or NEVER."""
        if self._first_bad is None:
            return [NEVER] * rows
        steps: list[int] = self._first_bad.reshape(rows, -1).amin(dim=1).tolist()
        return steps


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether torch raised this because memory ran out, on a GPU or a CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY_TEXTS)


def is_device_lost(error: BaseException) -> bool:
    """Say whether the device is unusable from here on (an assertion, ECC, a fallen bus): no row is to blame for it."""
    if is_out_of_memory(error):
        return False
    return isinstance(error, torch.AcceleratorError) or (isinstance(error, RuntimeError) and "CUDA error" in str(error))


def blame(error: BaseException, rows: Sequence[Row]) -> ItemError:
    """Return the error of a row that failed alone in this way."""
    tokens = max(len(row.tokens) for row in rows)
    if is_out_of_memory(error):
        return DeviceOutOfMemory(
            f"The device ran out of memory on this item alone ({tokens:,} tokens in). Lower --max-input-tokens or --num-beams.",
            tokens=tokens,
        )
    return GenerationFailed(f"The model failed on this item: {type(error).__name__}: {str(error)[:300]}")


def not_finite(step: int) -> GenerationFailed:
    """Return the error of a row whose best score was no number at this step."""
    return GenerationFailed(f"The model's scores were not finite at step {step} of this item. Try --precision float32.")
