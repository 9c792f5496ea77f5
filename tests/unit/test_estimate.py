"""What a job would cost, from the tokens of its prompts and the speeds that were measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gistmill.db.speed import Speed
from gistmill.estimate import UNMEASURED, Prompt, expect, explain, sum_up

SPEED = Speed("a" * 64, "ctranslate2", "CPU", 2.0, 300.0, 50.0, load_s=None, warmup_s=None, measured_at=1_790_000_000.0)


def test_sums_of_counted_prompts() -> None:
    tokens = sum_up([Prompt(n, 2) for n in range(1, 101)], distinct=100, limit_tokens=90)
    assert (tokens.total, tokens.p50, tokens.p95, tokens.max) == (5050, 50, 95, 100)
    assert (tokens.counted, tokens.is_sample, tokens.over_limit_rows, tokens.over_trained_rows) == (100, False, 20, 0)


def test_sample_stands_for_all() -> None:
    tokens = sum_up([Prompt(100, 1), Prompt(600, 3)], distinct=1000, limit_tokens=2048)
    assert (tokens.total, tokens.counted, tokens.is_sample, tokens.over_trained_rows) == (350_000, 2, True, 1500)


@pytest.mark.parametrize(("workers", "expected"), [(0, 5.0), (1, 5.0), (2, 2.5)])
def test_time_is_tokens_read_and_written_at_the_measured_speed(workers: int, expected: float) -> None:
    # 10 summaries of 100 tokens in and 50 out, at 300 tokens/s.
    prompts = [Prompt(100, 1)] * 4
    assert expect(prompts, [SPEED], to_generate=10, limit_tokens=2048, cuts=False, workers=workers) == expected


@pytest.mark.parametrize(("cuts", "expected"), [(False, 2.5), (True, 5.0)])
def test_prompts_over_the_limit_fail_and_take_no_time_or_are_cut(cuts: bool, expected: float) -> None:
    prompts = [Prompt(100, 1), Prompt(900, 1)]
    assert expect(prompts, [SPEED], to_generate=10, limit_tokens=100, cuts=cuts, workers=1) == expected


def test_workers_of_different_speed_share_the_work() -> None:
    speeds = [SPEED, replace(SPEED, device_name="GPU", tokens_per_s=1200.0)]
    assert expect([Prompt(100, 1)], speeds, to_generate=10, limit_tokens=512, cuts=False, workers=2) == 1.0
    assert explain(speeds, "a" * 64) == (
        "measured: 300 tokens/s on CPU with ctranslate2, last 2026-09-21 14:13 UTC; "
        "measured: 1,200 tokens/s on GPU with ctranslate2, last 2026-09-21 14:13 UTC"
    )


def test_unknown_speed_is_no_time_unless_nothing_is_left_to_do() -> None:
    assert expect([Prompt(9, 1)], [], to_generate=1, limit_tokens=512, cuts=False, workers=1) is None
    assert expect([Prompt(9, 1)], [], to_generate=0, limit_tokens=512, cuts=False, workers=1) == 0.0
    assert explain([], "a" * 64) == UNMEASURED
