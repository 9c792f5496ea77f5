"""What a job would cost: tokens of its prompts, and the time that they take at the speed that was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil
from typing import NamedTuple

from gistmill.db.clock import as_datetime
from gistmill.db.speed import Speed
from gistmill.views import TRAINED_TOKENS, SpeedView, TokensIn

CountTokens = Callable[[Sequence[str]], list[int]]

UNMEASURED = "not measured yet on this fleet"


class Prompt(NamedTuple):
    """A counted prompt: its tokens, special ones included, and the rows of the job that have this dialogue."""

    tokens: int
    rows: int


def sum_up(prompts: Sequence[Prompt], *, distinct: int, limit_tokens: int) -> TokensIn:
    """Return the sums over the prompts of `distinct` dialogues, of which these, at least one, were counted."""
    tokens = sorted(prompt.tokens for prompt in prompts)
    scale = distinct / len(prompts)

    def count_rows(longest: int) -> int:
        return round(sum(prompt.rows for prompt in prompts if prompt.tokens > longest) * scale)

    return TokensIn(
        total=round(sum(tokens) * scale),
        p50=_quantile(tokens, 0.5),
        p95=_quantile(tokens, 0.95),
        max=tokens[-1],
        counted=len(prompts),
        is_sample=len(prompts) < distinct,
        over_limit_rows=count_rows(limit_tokens),
        over_trained_rows=count_rows(TRAINED_TOKENS),
    )


def expect(
    prompts: Sequence[Prompt], speeds: Sequence[Speed], *, to_generate: int, limit_tokens: int, cuts: bool, workers: int
) -> float | None:
    """Return the seconds in which so many workers write the summaries of prompts like these; None at unknown speed.

    `cuts` says that longer prompts are cut to the limit; otherwise they fail and take no time.
    """
    if to_generate == 0:
        return 0.0
    if not speeds or not prompts:
        return None
    read = [min(prompt.tokens, limit_tokens) for prompt in prompts if cuts or prompt.tokens <= limit_tokens]
    tokens_out = _mean([speed.tokens_out_per_dialogue for speed in speeds])
    tokens_per_prompt = (sum(read) + len(read) * tokens_out) / len(prompts)
    return to_generate * tokens_per_prompt / (_mean([speed.tokens_per_s for speed in speeds]) * max(1, workers))


def explain(speeds: Sequence[Speed], model_digest: str) -> str:
    """Return in words what an expected time of this model at these speeds rests on."""
    return "; ".join(dict.fromkeys(_explain(speed, model_digest) for speed in speeds)) or UNMEASURED


def view_of(speed: Speed) -> SpeedView:
    """Return a speed as users see it."""
    return SpeedView(
        engine=speed.engine,
        device_name=speed.device_name,
        tokens_per_s=speed.tokens_per_s,
        load_s=speed.load_s,
        warmup_s=speed.warmup_s,
        measured_at=as_datetime(speed.measured_at),
    )


def _explain(speed: Speed, model_digest: str) -> str:
    moment = as_datetime(speed.measured_at)
    assert moment is not None
    return (
        f"measured{'' if speed.model_digest == model_digest else ' with the model that it is tuned from'}:"
        f" {speed.tokens_per_s:,.0f} tokens/s on {speed.device_name} with {speed.engine}, last {moment:%Y-%m-%d %H:%M} UTC"
    )


def _quantile(ascending: Sequence[int], part: float) -> int:
    return ascending[max(0, ceil(part * len(ascending)) - 1)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
