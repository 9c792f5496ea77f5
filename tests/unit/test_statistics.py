"""Means, intervals and paired tests: against scipy, against what they promise, and bit for bit against themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple
from typing import Any

import numpy as np
import pytest
from scipy import stats

from workers.evaluation import resampling, statistics
from workers.evaluation.resampling import Floats
from workers.evaluation.statistics import aggregate, holm

DRAWS = 10_000
# Data sets that share their resamples, so that ten thousand of them take seconds.
TOGETHER = 500
CASES = 300
# (1 + 999) * 0.05 is whole: a p-value of 0.05 exists, and a true null is rejected in 5 % exactly.
RESAMPLES = 999


def skewed(seed: int, *shape: int) -> Floats:
    """Return scores as ROUGE gives them: between 0 and 1, most of them low."""
    return np.random.default_rng(seed).beta(2.0, 4.0, shape)


def related(seed: int, cases: int, *, gain: float = 0.0) -> Floats:
    """Return the scores (2, C) of two systems that find the same cases hard."""
    draw = np.random.default_rng(seed)
    first = draw.beta(2.0, 4.0, cases)
    return np.stack([first, first + gain + draw.normal(0.0, 0.1, cases)])


@pytest.mark.parametrize("level", statistics.LEVELS)
def test_interval_is_the_percentile_interval_of_scipy(level: int) -> None:
    scores = skewed(1, 120)
    found = aggregate({"m": scores[None]}, resamples=20_000, seed=3).means[0, "m"]
    wanted = stats.bootstrap(
        (scores,), np.mean, n_resamples=20_000, confidence_level=level / 100, method="percentile", rng=np.random.default_rng(4)
    ).confidence_interval
    assert found.value == pytest.approx(scores.mean(), abs=1e-15)
    assert found.levels is not None
    # Two independent draws of the limits: their own error is about 1.5 % of the width, at the far tails 3 %.
    assert found.levels[str(level)] == pytest.approx(tuple(wanted), abs=0.04 * (wanted.high - wanted.low))


@pytest.mark.parametrize("gain", [0.0, 0.015, 0.03])
def test_paired_comparison_is_that_of_scipy(gain: float) -> None:
    scores = related(5, 100, gain=gain)
    found = aggregate({"m": scores}, resamples=20_000, seed=3).pairs["m", 1, 0]
    test = stats.permutation_test(
        (scores[1], scores[0]),
        lambda one, other, axis: np.mean(one - other, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=20_000,
        rng=np.random.default_rng(4),
    )
    wanted = stats.bootstrap(
        tuple(scores[::-1]),
        lambda one, other, axis: np.mean(one - other, axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(4),
    ).confidence_interval
    assert found.delta == pytest.approx(test.statistic, abs=1e-12)
    assert found.p_value == pytest.approx(test.pvalue, abs=0.015)
    assert found.levels is not None
    assert found.levels["95"] == pytest.approx(tuple(wanted), abs=0.04 * (wanted.high - wanted.low))


def test_p_value_of_few_cases_is_that_of_all_ways_to_swap() -> None:
    scores = np.array([[0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.2, 0.4, 0.2, 0.8, 1.0, 0.9]])
    found = aggregate({"m": scores}, resamples=50_000, seed=0).pairs["m", 1, 0]
    exact = stats.permutation_test(
        (scores[1], scores[0]), lambda one, other: np.mean(one - other), permutation_type="samples", n_resamples=np.inf
    )
    assert found.p_value == pytest.approx(exact.pvalue, abs=0.005)


def test_interval_covers_the_truth_and_a_true_null_is_rejected_as_often_as_they_say() -> None:
    covered = paired = rejected = 0
    for seed in range(DRAWS // TOGETHER):
        draw = np.random.default_rng([11, seed])
        hardness = draw.beta(2.0, 4.0, (TOGETHER, 1, CASES))
        scores = 0.5 * hardness + 0.5 * draw.beta(2.0, 4.0, (TOGETHER, 2, CASES))
        found = aggregate({str(number): both for number, both in enumerate(scores)}, resamples=RESAMPLES, seed=seed)
        covered += sum(within(found.means[0, str(number)].levels, 1 / 3) for number in range(TOGETHER))
        pairs = [found.pairs[str(number), 1, 0] for number in range(TOGETHER)]
        paired += sum(within(pair.levels, 0.0) for pair in pairs)
        rejected += sum(pair.p_value is not None and pair.p_value <= 0.05 for pair in pairs)
    # The share of 10,000 draws is itself known to 0.22 % only.
    assert 0.94 <= covered / DRAWS <= 0.96
    assert 0.94 <= paired / DRAWS <= 0.96
    assert 0.043 <= rejected / DRAWS <= 0.057


def within(levels: statistics.Levels | None, truth: float) -> bool:
    assert levels is not None
    low, high = levels["95"]
    return low <= truth <= high


def test_levels_contain_each_other_and_the_mean() -> None:
    found = aggregate({"m": skewed(2, 1, 50)}, resamples=1000, seed=0).means[0, "m"]
    assert found.levels is not None
    (low90, high90), (low95, high95), (low99, high99) = (found.levels[name] for name in ("90", "95", "99"))
    assert low99 < low95 < low90 < found.value < high90 < high95 < high99


def test_same_seed_gives_the_same_bytes_whatever_the_size_of_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"one": skewed(1, 3, 101), "two": 1000 * skewed(2, 3, 101)}
    weights = np.arange(1.0, 102.0)

    def run(seed: int = 9) -> bytes:
        plain, weighted = (aggregate(values, resamples=500, seed=seed, weights=rows) for rows in (None, weights))
        return repr((plain, weighted)).encode()

    whole = run()
    assert run() == whole
    assert run(seed=10) != whole
    for block_bytes in (1, 7 * 8 * 101):
        monkeypatch.setattr(resampling, "BLOCK_BYTES", block_bytes)
        assert run() == whole
    monkeypatch.setattr(statistics, "SUMS_BYTES", 1)
    assert run() == whole


def test_result_does_not_depend_on_the_other_measures_and_systems() -> None:
    values = {"one": skewed(1, 3, 80), "two": skewed(2, 3, 80)}
    alone = aggregate({"two": values["two"][:2]}, resamples=500, seed=1)
    among = aggregate(values, resamples=500, seed=1)
    assert alone.means[1, "two"] == among.means[1, "two"]
    assert alone.pairs["two", 1, 0].levels == among.pairs["two", 1, 0].levels
    assert alone.pairs["two", 1, 0].p_value == among.pairs["two", 1, 0].p_value


def test_draws_of_a_seed_stay_the_same_for_all_time() -> None:
    # What was computed once must come out again: a change of the draws is a change of everybody's figures.
    found = aggregate({"m": np.array([[0.0, 0.25, 0.5, 1.0, 0.5], [0.5, 0.5, 1.0, 1.0, 0.25]])}, resamples=100, seed=2)
    assert found.means[0, "m"].levels == {"90": (0.15, 0.7), "95": (0.15, pytest.approx(0.7525)), "99": (0.1, 0.8)}
    assert found.pairs["m", 1, 0].p_value == 29 / 101


def test_every_pair_has_the_earlier_system_as_its_baseline() -> None:
    scores = np.array([[0.1, 0.2, 0.3], [0.4, 0.2, 0.1], [0.5, 0.9, 0.3]])
    found = aggregate({"m": scores}, resamples=200, seed=0).pairs
    assert sorted(found) == [("m", 1, 0), ("m", 2, 0), ("m", 2, 1)]
    pair = found["m", 2, 0]
    assert pair.delta == pytest.approx(0.11 / 0.3)
    assert (pair.wins, pair.ties, pair.losses) == (2, 1, 0)
    assert (found["m", 1, 0].wins, found["m", 1, 0].ties, found["m", 1, 0].losses) == (1, 1, 1)


def test_equal_systems_differ_in_nothing() -> None:
    scores = np.stack([skewed(1, 500)] * 2)
    pair = aggregate({"m": scores}, resamples=200, seed=0).pairs["m", 1, 0]
    assert pair.levels == {"90": (0.0, 0.0), "95": (0.0, 0.0), "99": (0.0, 0.0)}
    # What comes out of another order of adding up is no difference, on whichever side of a border it falls.
    scores[1] += np.random.default_rng(2).choice([-1e-14, 1e-14], 500)
    nearly = aggregate({"m": scores}, resamples=200, seed=0).pairs["m", 1, 0]
    for found in (pair, nearly):
        assert found.p_value == found.p_adjusted == 1.0
        assert (found.wins, found.ties, found.losses) == (0, 500, 0)


def test_large_difference_has_the_least_p_value_that_resamples_can_show() -> None:
    pair = aggregate({"m": related(1, 200, gain=0.3)}, resamples=999, seed=0).pairs["m", 1, 0]
    assert pair.p_value == 1 / 1000


def test_single_case_has_no_interval_and_no_p_value() -> None:
    found = aggregate({"m": np.array([[0.25], [0.5]])}, resamples=100, seed=0)
    assert astuple(found.means[1, "m"]) == (1, 0.5, None)
    assert astuple(found.pairs["m", 1, 0]) == (1, 0.25, None, None, None, 1, 0, 0)


def test_holm_is_that_of_the_textbook() -> None:
    # 4 x 0.01, 3 x 0.02 and 2 x 0.03 = 0.06, and 0.04, which may not be smaller than the one before.
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


def test_p_values_are_adjusted_within_a_measure_over_all_its_pairs() -> None:
    base = skewed(1, 60)
    noise = np.random.default_rng(2).normal(0.0, 0.05, (3, 60))
    values = {"m": base + noise + [[0.0], [0.01], [0.02]], "other": base + noise[::-1]}
    found = aggregate(values, resamples=999, seed=0).pairs
    for measure in values:
        mine = [pair for (name, _, _), pair in found.items() if name == measure]
        assert len(mine) == 3
        p_values = [pair.p_value for pair in mine if pair.p_value is not None]
        assert [pair.p_adjusted for pair in mine] == holm(p_values)
        assert holm(p_values) != p_values


def test_case_counts_as_many_times_as_it_has_rows_and_is_drawn_whole() -> None:
    rows = np.array([1.0, 3.0, 2.0, 4.0] * 10)
    scores = related(3, 40)
    found = aggregate({"m": scores}, resamples=4000, seed=0, weights=rows)
    mean = found.means[0, "m"]
    assert mean.cases == 40
    assert mean.value == pytest.approx(np.repeat(scores[0], rows.astype(int)).mean())
    wanted = stats.bootstrap(
        (scores[0] * rows, rows),
        lambda sums, counts, axis: sums.sum(axis=axis) / counts.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=4000,
        method="percentile",
        rng=np.random.default_rng(4),
    ).confidence_interval
    assert mean.levels is not None
    assert mean.levels["95"] == pytest.approx(tuple(wanted), abs=0.06 * (wanted.high - wanted.low))
    # As if every row were a witness of its own, the interval would be narrower.
    alone = aggregate({"m": np.repeat(scores, rows.astype(int), axis=1)}, resamples=4000, seed=0).means[0, "m"]
    assert alone.value == pytest.approx(mean.value)
    assert alone.levels is not None
    assert width(alone.levels) < 0.8 * width(mean.levels)


def width(levels: statistics.Levels) -> float:
    low, high = levels["95"]
    return high - low


def test_equal_numbers_of_rows_change_nothing_but_rounding() -> None:
    values = {"m": related(3, 40)}
    plain, weighted = (aggregate(values, resamples=500, seed=0, weights=rows) for rows in (None, np.full(40, 3.0)))
    assert weighted.means[0, "m"].levels == {
        level: pytest.approx(limits, abs=1e-12) for level, limits in (plain.means[0, "m"].levels or {}).items()
    }
    assert weighted.pairs["m", 1, 0].p_value == plain.pairs["m", 1, 0].p_value


def test_work_can_be_stopped_at_every_block(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stop(Exception):
        pass

    def stopping(after: int) -> Callable[[], None]:
        ticks = iter(range(after))

        def tick() -> None:
            if next(ticks, None) is None:
                raise Stop

        return tick

    monkeypatch.setattr(resampling, "BLOCK_BYTES", 8 * 10 * 50)
    values = {"m": related(1, 50)}
    with pytest.raises(Stop):
        aggregate(values, resamples=100, seed=0, tick=stopping(19))
    aggregate(values, resamples=100, seed=0, tick=stopping(20))


@pytest.mark.parametrize(
    ("values", "options", "said"),
    [
        ({}, {}, "same shape"),
        ({"m": np.empty((2, 0))}, {}, "at least one"),
        ({"m": np.empty((0, 2))}, {}, "at least one"),
        ({"m": np.zeros(3)}, {}, "same shape"),
        ({"m": np.zeros((2, 3)), "n": np.zeros((2, 4))}, {}, "same shape"),
        ({"m": np.array([[0.5, np.nan]])}, {}, "finite"),
        ({"m": np.array([[0.5, np.inf]])}, {}, "finite"),
        ({"m": np.zeros((2, 3))}, {"weights": np.array([1.0, 0.0, 1.0])}, "weight"),
        ({"m": np.zeros((2, 3))}, {"weights": np.ones(2)}, "weight"),
    ],
)
def test_scores_that_make_no_sense_are_a_mistake(values: dict[str, Floats], options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        aggregate(values, resamples=100, seed=0, **options)


@pytest.mark.parametrize("scale", [1e-200, 1e-9, 1.0, 1e6, 1e200])
def test_scores_of_any_size_keep_their_precision(scale: float) -> None:
    scores = related(1, 30)
    found, scaled = (aggregate({"m": factor * scores}, resamples=300, seed=0) for factor in (1.0, scale))
    assert scaled.pairs["m", 1, 0].p_value == found.pairs["m", 1, 0].p_value
    for level, limits in (found.means[0, "m"].levels or {}).items():
        assert (scaled.means[0, "m"].levels or {})[level] == pytest.approx(tuple(scale * limit for limit in limits), rel=1e-11)
