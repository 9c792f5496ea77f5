"""What all engines share: limits on the input, batching, halving on lack of memory, and rows that fail alone.

An engine fills in two steps, `_encode` and `_forward`. Because the fake and the real engines share everything else, a fault
drill on the fake runs the code that runs in production.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import structlog

from gistmill.errors import DeviceOutOfMemory, GenerationFailed, InputTooLong, ItemError
from gistmill.specs import GenerationParameters, Overflow
from workers.engine.base import Failure, Outcome, Prompt, Row
from workers.engine.batching import pack, padded_tokens

log = structlog.get_logger(__name__)

ENCODE_ROWS = 256


class BatchFailed(Exception):
    """`_forward` failed on this batch; `error` is what the row gets if it is the only one."""

    def __init__(self, error: ItemError) -> None:
        super().__init__(error.message)
        self.error = error


class BatchedEngine(ABC):
    """An engine that completes prompts in length-sorted micro-batches.

    `max_positions` is the most tokens that the model can read at all, or None when its positions are relative.
    """

    name: str
    device: str
    dtype: str
    weight_bytes: int
    max_positions: int | None = None
    budget_tokens: int
    max_rows: int

    @abstractmethod
    def _encode(self, texts: Sequence[str], limit: int | None) -> list[list[int]]:
        """Return the tokens of each text, special tokens included; cut to `limit` when one is given.

        Raises:
            ValueError, TypeError, OverflowError: a text cannot be encoded, or the limit leaves no room for text.
        """

    @abstractmethod
    def _forward(
        self, rows: Sequence[Row], parameters: GenerationParameters, should_stop: Callable[[], bool]
    ) -> list[Outcome] | None:
        """Complete one micro-batch, or return None as soon as `should_stop` says so.

        Raises:
            BatchFailed: the batch as a whole failed; it may succeed in parts.
        """

    @abstractmethod
    def close(self) -> None:
        """Give the model's memory back."""

    def generate(
        self,
        prompts: Sequence[Prompt],
        parameters: GenerationParameters,
        *,
        max_input_tokens: int,
        on_overflow: Overflow,
        should_stop: Callable[[], bool],
    ) -> Iterator[list[Outcome]]:
        """Read and complete these prompts; see `Engine.generate`."""
        read = self.read(prompts, max_input_tokens=max_input_tokens, on_overflow=on_overflow, should_stop=should_stop)
        if len(read) < len(prompts):
            return
        if refused := [item for item in read if isinstance(item, Failure)]:
            yield list[Outcome](refused)
        yield from self.complete([item for item in read if isinstance(item, Row)], parameters, should_stop)

    def read(
        self, prompts: Sequence[Prompt], *, max_input_tokens: int, on_overflow: Overflow, should_stop: Callable[[], bool]
    ) -> list[Row | Failure]:
        """Return each prompt as the model reads it, or why it must not; see `Engine.read`."""
        read: list[Row | Failure] = []
        for start in range(0, len(prompts), ENCODE_ROWS):
            if should_stop():
                break
            read += self._read(prompts[start : start + ENCODE_ROWS], max_input_tokens, on_overflow)
        return read

    def _read(self, prompts: Sequence[Prompt], max_input_tokens: int, on_overflow: Overflow) -> Iterator[Row | Failure]:
        limit = min(max_input_tokens, self.max_positions or max_input_tokens)
        for prompt, tokens in zip(prompts, self._encode_all(prompts), strict=True):
            if isinstance(tokens, ItemError):
                yield Failure(prompt.key, tokens)
            elif len(tokens) <= limit:
                yield Row(prompt, tokens, truncated=False)
            elif on_overflow == "fail":
                yield Failure(prompt.key, _too_long(len(tokens), limit, hard=limit < max_input_tokens))
            else:
                yield self._cut(prompt, limit)

    def _encode_all(self, prompts: Sequence[Prompt]) -> list[list[int] | ItemError]:
        try:
            return list(self._encode([prompt.text for prompt in prompts], None))
        except (ValueError, TypeError, OverflowError):
            return [self._encode_alone(prompt) for prompt in prompts]

    def _encode_alone(self, prompt: Prompt) -> list[int] | ItemError:
        try:
            return self._encode([prompt.text], None)[0]
        except (ValueError, TypeError, OverflowError) as error:
            return GenerationFailed(f"The model's tokenizer cannot read this prompt ({type(error).__name__}).")

    def _cut(self, prompt: Prompt, limit: int) -> Row | Failure:
        try:
            return Row(prompt, self._encode([prompt.text], limit)[0], truncated=True)
        except (ValueError, TypeError, OverflowError):
            message = f"A limit of {limit} input tokens leaves no room for text. Raise --max-input-tokens."
            return Failure(prompt.key, InputTooLong(message, limit=limit))

    def complete(
        self, rows: Sequence[Row], parameters: GenerationParameters, should_stop: Callable[[], bool]
    ) -> Iterator[list[Outcome]]:
        """Yield the outcomes of each micro-batch as soon as it is finished; see `Engine.complete`."""
        beams = parameters.num_beams
        batches = pack(
            [len(row.tokens) for row in rows],
            budget_tokens=max(1, self.budget_tokens // beams),
            max_rows=max(1, self.max_rows // beams),
        )
        waiting = deque([rows[index] for index in batch] for batch in batches)
        # After a lack of memory, no later batch of this call is as large as the one that failed: finding the limit out
        # again costs a whole attempt each time.
        largest: int | None = None
        while waiting:
            batch = waiting.popleft()
            if len(batch) > 1 and largest is not None and _cost(batch) > largest:
                waiting.extendleft(reversed(_halves(batch)))
                continue
            if should_stop():
                return
            try:
                outcomes = self._forward(batch, parameters, should_stop)
            except BatchFailed as failed:
                if len(batch) == 1:
                    yield [Failure(batch[0].prompt.key, failed.error)]
                    continue
                log.warning("batch_split", rows=len(batch), tokens=_cost(batch), error=failed.error.code)
                parts = _halves(batch)
                if isinstance(failed.error, DeviceOutOfMemory):
                    largest = max(_cost(part) for part in parts)
                waiting.extendleft(reversed(parts))
                continue
            if outcomes is None:
                return
            yield outcomes


def _cost(batch: Sequence[Row]) -> int:
    return padded_tokens([len(row.tokens) for row in batch])


def _halves(batch: list[Row]) -> list[list[Row]]:
    middle = len(batch) // 2
    return [batch[:middle], batch[middle:]]


def _too_long(tokens: int, limit: int, *, hard: bool) -> InputTooLong:
    advice = "This model reads no more; use" if hard else "Raise --max-input-tokens or use"
    return InputTooLong(
        f"The prompt has {tokens:,} tokens; at most {limit:,} are allowed. {advice} --on-overflow truncate.",
        tokens=tokens,
        limit=limit,
    )
