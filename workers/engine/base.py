"""What an engine is: prompts in, completions out as they finish. Imports no torch, so that any worker can name these types.

An engine works in two steps, so that a caller can read the next prompts while the model is busy with these: `read` is the
tokenizer's work, `complete` the model's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from gistmill.errors import ItemError
from gistmill.specs import GenerationParameters, Overflow

# Few enough that another worker's generations are soon seen.
PAGE_ROWS = 1_024


class Prompt(NamedTuple):
    """One row to complete. `key` is the caller's handle and comes back with the outcome.

    `noise` is (dialogue digest, draw): together with the seed it decides a sampled text, whatever batch the row runs in.
    """

    key: int
    text: str
    noise: tuple[str, int] = ("", 0)


class Row(NamedTuple):
    """A prompt as the model reads it."""

    prompt: Prompt
    tokens: list[int]
    truncated: bool


class Completion(NamedTuple):
    """What the model wrote for one row.

    `tokens_in` counts what the model read (special tokens included, after truncation); `tokens_out` what it wrote, its end
    token included. `finish_reason` is "length" when no end token came within the limit.
    """

    key: int
    text: str
    finish_reason: Literal["stop", "length"]
    tokens_in: int
    tokens_out: int
    truncated: bool


@dataclass(frozen=True)
class Failure:
    """This row alone could not be completed; the others are not touched by it."""

    key: int
    error: ItemError


Outcome = Completion | Failure

# Gives an engine that completes rows the next ones; see `Engine.complete`.
More = Callable[[], Sequence[Row] | None]


class Engine(Protocol):
    """A loaded model that completes prompts.

    `device` and `dtype` say how it runs ("cpu", "cuda:0"; "float32", "bfloat16", "int8"); `weight_bytes` is what its weights
    occupy. `page_rows` is how many rows it wants at a time: several times those that it works on at once.
    """

    name: str
    device: str
    dtype: str
    weight_bytes: int
    page_rows: int

    def read(
        self, prompts: Sequence[Prompt], *, max_input_tokens: int, on_overflow: Overflow, should_stop: Callable[[], bool]
    ) -> list[Row | Failure]:
        """Return each prompt as the model reads it, in their order, or why the model must not see it.

        Another thread may call it while `complete` runs. `should_stop` is polled every few prompts; once it says True, what
        was read by then is returned.
        """
        ...

    def complete(
        self,
        rows: Sequence[Row],
        parameters: GenerationParameters,
        should_stop: Callable[[], bool],
        more: More | None = None,
    ) -> Iterator[list[Outcome]]:
        """Yield the outcomes of each micro-batch as soon as it is finished; every row has exactly one.

        With `more`, the rows are the first of a stream whose keys are all different. It is asked, by the calling thread, when
        there is or soon will be room for others, and returns the next ones, or none when they are not ready yet, or None when
        no more will come. It must be quick, for the device may be waiting, and must not raise. An engine that is told of none
        while it has rows goes on with those and asks again. One that has nothing left to do yields an empty list: it is for
        the caller to wait before it asks for the next list.

        `should_stop` is polled at every decode step, by the calling thread or by one of the engine's while that one waits,
        never by two at once; it must be quick and must not raise. Once it says True, complete returns without the unfinished
        micro-batch: what was yielded stays.
        """
        ...

    def generate(
        self,
        prompts: Sequence[Prompt],
        parameters: GenerationParameters,
        *,
        max_input_tokens: int,
        on_overflow: Overflow,
        should_stop: Callable[[], bool],
    ) -> Iterator[list[Outcome]]:
        """Read and complete these prompts in one thread.

        The first list holds those that failed before the model saw them, if there are any; see `read` and `complete`.
        """
        ...

    def close(self) -> None:
        """Give the model's memory back. The engine cannot be used afterwards."""
        ...
