"""What engines share that read text with a tokenizer: limits on the input, and prompts that fail before the model sees them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence

from gistmill.errors import GenerationFailed, InputTooLong, ItemError
from gistmill.specs import GenerationParameters, Overflow
from workers.engine.base import PAGE_ROWS, Failure, More, Outcome, Prompt, Row

ENCODE_ROWS = 256


class ReadingEngine(ABC):
    """An engine that fills in `_encode` and `complete`.

    `max_positions` is the most tokens that the model can read at all, or None when its positions are relative.
    """

    name: str
    device: str
    dtype: str
    weight_bytes: int
    max_positions: int | None = None
    page_rows = PAGE_ROWS

    @abstractmethod
    def _encode(self, texts: Sequence[str], limit: int | None) -> list[list[int]]:
        """Return the tokens of each text, special tokens included; cut to `limit` when one is given.

        Raises:
            ValueError, TypeError, OverflowError: a text cannot be encoded, or the limit leaves no room for text.
        """

    @abstractmethod
    def complete(
        self,
        rows: Sequence[Row],
        parameters: GenerationParameters,
        should_stop: Callable[[], bool],
        more: More | None = None,
    ) -> Iterator[list[Outcome]]:
        """Yield the outcomes of rows as soon as they are finished; see `Engine.complete`."""

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


def _too_long(tokens: int, limit: int, *, hard: bool) -> InputTooLong:
    advice = "This model reads no more; use" if hard else "Raise --max-input-tokens or use"
    return InputTooLong(
        f"The prompt has {tokens:,} tokens; at most {limit:,} are allowed. {advice} --on-overflow truncate.",
        tokens=tokens,
        limit=limit,
    )
