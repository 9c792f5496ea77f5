"""How good each system is, and how surely one is better than another: means, intervals, paired tests.

Intervals are percentiles of a bootstrap that resamples cases, so that several references of a dialogue are not several
witnesses. All systems and measures see the same resamples, which makes the intervals of differences paired. The p-value is
that of two-sided approximate randomization: under the null a case's two scores may be swapped. (Efron and Tibshirani, An
Introduction to the Bootstrap, 1993; Noreen, Computer-Intensive Methods for Testing Hypotheses, 1989; Phipson and Smyth, 2010,
for the 1 that is added to both counts.)

Letters: C cases, S systems, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from math import fsum

import numpy as np

from workers.evaluation.resampling import Floats, bootstrap_sums, flipped_sums, on_grid

LEVELS = (90, 95, 99)
# Lower limits by level, then upper ones.
QUANTILES = [*((100 - level) / 200 for level in LEVELS), *((100 + level) / 200 for level in LEVELS)]
SUMS_BYTES = 256 * 1024 * 1024

Levels = dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Mean:
    """A system's mean by one measure, with (low, high) by level; no limits for a single case."""

    cases: int
    value: float
    levels: Levels | None


@dataclass(frozen=True)
class Pair:
    """A system less its baseline by one measure. A single case has neither limits nor p-values.

    `p_adjusted` is Holm's, over all pairs of systems by this measure; with two systems it is the p-value itself. Differences of
    no more than a unit of the grid of `resampling` are ties.
    """

    cases: int
    delta: float
    levels: Levels | None
    p_value: float | None
    p_adjusted: float | None
    wins: int
    ties: int
    losses: int


@dataclass(frozen=True)
class Aggregated:
    """Means by (system, measure); pairs by (measure, system, baseline) for all systems greater than their baseline."""

    means: dict[tuple[int, str], Mean] = field(default_factory=dict)
    pairs: dict[tuple[str, int, int], Pair] = field(default_factory=dict)


def aggregate(
    values: Mapping[str, Floats],
    *,
    resamples: int,
    seed: int,
    weights: Floats | None = None,
    tick: Callable[[], None] = lambda: None,
) -> Aggregated:
    """Return means and comparisons of scores (S, C) by measure. The same values and seed give the same bytes, on any machine.

    `weights` (C,) says how many rows a case stands for; its value is then the mean of its rows, and all means are means over
    rows. `tick` is called for every block of resamples and may raise to stop. Memory beside the values: a copy of them, 64 MiB
    for a block, and 256 MiB for sums (more only when one measure needs it: 8 bytes x S x R).

    Raises:
        ValueError: there is no case, shapes differ, or a value is not finite.
    """
    _check(values, weights)
    result = Aggregated()
    for group in _groups(values, resamples):
        _Group(group, weights, resamples=resamples, seed=seed, tick=tick).add_to(result)
    return result


def mean(values: Floats, weights: Floats | None = None) -> float:
    """Return the weighted mean of values (C,), rounded once, so that it depends on no order of summing."""
    if weights is None:
        return fsum(values.tolist()) / len(values)
    return fsum((values * weights).tolist()) / fsum(weights.tolist())


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values of a family of tests, adjusted so that one false alarm among all is as rare as p says (Holm 1979)."""
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted


class _Group:
    """Measures whose resampled sums fit into memory together."""

    def __init__(
        self,
        values: Mapping[str, Floats],
        weights: Floats | None,
        *,
        resamples: int,
        seed: int,
        tick: Callable[[], None],
    ) -> None:
        self.values, self.weights = values, weights
        self.resamples, self.seed, self.tick = resamples, seed, tick
        self.systems, self.cases = next(iter(values.values())).shape
        # One series after another: the first measure's systems, the second's, and so on.
        self.whole = np.empty((len(values) * self.systems, self.cases))
        self.units = {}
        for measure, scores in values.items():
            rows = scores if weights is None else scores * weights
            self.whole[self._series(measure)], self.units[measure] = on_grid(rows)

    def add_to(self, result: Aggregated) -> None:
        """Put means and pairs of the group's measures into `result`."""
        p_values = self._randomize() if self.cases > 1 else {}
        resampled = self._bootstrap() if self.cases > 1 else None
        for measure in self.values:
            for system in range(self.systems):
                levels = self._levels(resampled, measure, system)
                result.means[system, measure] = Mean(self.cases, self._mean(measure, system), levels)
            pairs = {
                (measure, system, baseline): Pair(
                    cases=self.cases,
                    delta=self._mean(measure, system) - self._mean(measure, baseline),
                    levels=self._levels(resampled, measure, system, baseline),
                    p_value=p_values.get((measure, system, baseline)),
                    p_adjusted=None,
                    **self._outcomes(measure, system, baseline),
                )
                for system, baseline in _pairs(self.systems)
            }
            result.pairs.update(_adjusted(pairs))

    def _outcomes(self, measure: str, system: int, baseline: int) -> dict[str, int]:
        whole = self.whole[self._series(measure)]
        # What was equal may lie on two sides of a border between units.
        wins = int((whole[system] > whole[baseline] + 1).sum())
        losses = int((whole[system] < whole[baseline] - 1).sum())
        return {"wins": wins, "ties": self.cases - wins - losses, "losses": losses}

    def _mean(self, measure: str, system: int) -> float:
        return mean(self.values[measure][system], self.weights)

    def _levels(self, resampled: Floats | None, measure: str, system: int, baseline: int | None = None) -> Levels | None:
        """Return the limits of a system's mean, or of what it lies above its baseline's."""
        if resampled is None:
            return None
        first = self._series(measure).start
        sums = resampled[:, first + system]
        if baseline is not None:
            # They are subtracted while they are whole, so that equal systems differ by nothing.
            sums = sums - resampled[:, first + baseline]
        limits = np.quantile(sums / resampled[:, -1] * self.units[measure], QUANTILES).tolist()
        return {str(level): (limits[place], limits[place + len(LEVELS)]) for place, level in enumerate(LEVELS)}

    def _bootstrap(self) -> Floats:
        """Return the resampled sums (R, measures x S + 1) in units of their grids, and last the rows of each resample."""
        rows = np.ones(self.cases) if self.weights is None else self.weights
        series = np.concatenate([self.whole, rows[None]])
        return bootstrap_sums(series, resamples=self.resamples, seed=self.seed, tick=self.tick)

    def _randomize(self) -> dict[tuple[str, int, int], float]:
        """Return the two-sided p-value of each measure and pair: how often swapping at random gives as large a difference."""
        tests = [(measure, *pair) for measure in self.values for pair in _pairs(self.systems)]
        columns = [(self._series(name).start + one, self._series(name).start + other) for name, one, other in tests]
        observed = self.whole.sum(axis=1)
        # Each difference is rounded by up to a unit, and so a sum that equals the observed one may seem to miss it.
        rounding = 2 * self.cases
        reached = [0] * len(tests)
        for sums in flipped_sums(self.whole, resamples=self.resamples, seed=self.seed, tick=self.tick):
            for number, (one, other) in enumerate(columns):
                least = abs(observed[one] - observed[other]) - rounding
                reached[number] += int(np.count_nonzero(np.abs(sums[:, one] - sums[:, other]) >= least))
        return {test: (1 + count) / (1 + self.resamples) for test, count in zip(tests, reached, strict=True)}

    def _series(self, measure: str) -> slice:
        first = list(self.values).index(measure) * self.systems
        return slice(first, first + self.systems)


def _adjusted(pairs: Mapping[tuple[str, int, int], Pair]) -> dict[tuple[str, int, int], Pair]:
    """Return the pairs of a measure with Holm's p-values."""
    p_values = [pair.p_value for pair in pairs.values() if pair.p_value is not None]
    if len(p_values) < len(pairs):
        return dict(pairs)
    return {key: replace(pairs[key], p_adjusted=value) for key, value in zip(pairs, holm(p_values), strict=True)}


def _pairs(systems: int) -> list[tuple[int, int]]:
    return [(system, baseline) for baseline, system in combinations(range(systems), 2)]


def _groups(values: Mapping[str, Floats], resamples: int) -> Iterator[Mapping[str, Floats]]:
    """Yield the measures in parts whose sums fit into memory. Each part draws anew from the same seed: the same resamples."""
    systems = len(next(iter(values.values())))
    size = max(1, SUMS_BYTES // (8 * systems * resamples))
    names = list(values)
    for first in range(0, len(names), size):
        yield {name: values[name] for name in names[first : first + size]}


def _check(values: Mapping[str, Floats], weights: Floats | None) -> None:
    shapes = {scores.shape for scores in values.values()}
    if len(shapes) != 1 or len(shape := shapes.pop()) != 2 or 0 in shape:
        raise ValueError("scores of every measure need the same shape, systems x cases, with at least one of each")
    if not all(np.isfinite(scores).all() for scores in values.values()):
        raise ValueError("a score is not a finite number")
    if weights is not None and (weights.shape != shape[1:] or not (weights > 0).all()):
        raise ValueError("every case needs a weight above zero")
