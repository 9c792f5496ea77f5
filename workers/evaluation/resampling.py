"""Seeded resamples of cases, as sums that are exact.

Scores are rounded to a grid so fine that nobody sees it and so coarse that every sum over a resample is a whole number below
2**53. Such sums do not depend on the order of their terms, so the size of a block, the number of threads and the processor's
instructions change no bit of a result. The draws come from the raw words of PCG64, whose stream numpy keeps across versions;
it promises no such thing of the distributions built on it.

Letters: C cases, S series (a system's scores by one measure), B resamples of a block, R all resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Fill = Callable[[np.random.PCG64, Floats], None]

BLOCK_BYTES = 64 * 1024 * 1024
MANTISSA_BITS = 53


def on_grid(values: Floats) -> tuple[Floats, float]:
    """Return whole numbers (S, C) and their unit: whole * unit is `values` to half a unit.

    The sum of C of them, also of the differences of two series, is below 2**53 in size. A score of 0 to 1 among 1,500 cases is
    kept to 1e-12.
    """
    largest = float(np.abs(values).max())
    bits = MANTISSA_BITS - 2 - (values.shape[-1] - 1).bit_length()
    # frexp: the largest value is below 2**exponent.
    shift = int(np.frexp(largest)[1]) - bits
    return np.rint(np.ldexp(values, -shift)), float(np.ldexp(1.0, shift))


def bootstrap_sums(whole: Floats, *, resamples: int, seed: int, tick: Callable[[], None]) -> Floats:
    """Return the sums (R, S) of resamples of C cases, drawn with replacement: the same cases for all series (S, C)."""
    sums = np.empty((resamples, len(whole)))
    for first, weights in _blocks(_draw_cases, whole.shape[1], resamples, seed=seed, stream=0):
        tick()
        sums[first : first + len(weights)] = weights @ whole.T
    return sums


def flipped_sums(whole: Floats, *, resamples: int, seed: int, tick: Callable[[], None]) -> Iterator[Floats]:
    """Yield the sums (B, S) of all cases, each with a sign by the toss of a coin: the same signs for all series (S, C)."""
    for _, signs in _blocks(_toss_signs, whole.shape[1], resamples, seed=seed, stream=1):
        tick()
        yield signs @ whole.T


def _blocks(fill: Fill, cases: int, resamples: int, *, seed: int, stream: int) -> Iterator[tuple[int, Floats]]:
    """Yield the first resample of each block and a weight for every case (B, C). The next block overwrites the memory."""
    words = np.random.PCG64(np.random.SeedSequence([seed, stream]))
    rows = min(resamples, max(1, BLOCK_BYTES // (8 * cases)))
    block = np.empty((rows, cases))
    for first in range(0, resamples, rows):
        weights = block[: resamples - first]
        for row in weights:
            fill(words, row)
        yield first, weights


def _draw_cases(words: np.random.PCG64, counts: Floats) -> None:
    """Draw as many cases as there are, with replacement, and count each."""
    cases = len(counts)
    halves = words.random_raw((cases + 1) // 2).view(np.uint32)[:cases]
    # The upper word of the product spreads 32 bits over the cases; the bias is at most cases / 2**32.
    drawn = (halves.astype(np.uint64) * np.uint64(cases)) >> np.uint64(32)
    counts[:] = np.bincount(drawn.view(np.int64), minlength=cases)


def _toss_signs(words: np.random.PCG64, signs: Floats) -> None:
    bits = np.unpackbits(words.random_raw((len(signs) + 63) // 64).view(np.uint8), count=len(signs))
    np.multiply(bits, 2.0, out=signs)
    signs -= 1.0
