"""What the tests of exact samplers share: chosen random words, rational bounds of exp, and goodness of fit."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import numpy.typing as npt
from scipy import stats

SIGNIFICANCE = 1e-4
LARGEST = (1 << 64) - 1
_WORKING_BITS = 800


class ChosenWords:
    """A generator that returns the words it was made with, one after the other, and has no others."""

    def __init__(self, *words: int) -> None:
        self.words = list(words)

    def integers(self, low: int, high: int, size: int, dtype: type) -> npt.NDArray:
        assert (low, high, dtype) == (0, 1 << 64, np.uint64)
        drawn, self.words = self.words[:size], self.words[size:]
        assert len(drawn) == size, "more words were asked for than decide the draw"
        return np.array(drawn, np.uint64)


def exp_bounds(exponent: Fraction, bits: int = 600) -> tuple[Fraction, Fraction]:
    """Two rationals around exp(exponent), their quotient below 1 + 2^-bits, by Taylor's theorem; up to some hundred."""
    if exponent == 0:
        return Fraction(1), Fraction(1)
    if exponent < 0:
        low, high = exp_bounds(-exponent, bits)
        return 1 / high, 1 / low
    halvings = max(0, int(exponent).bit_length() + 1)
    small = Fraction(exponent) / (1 << halvings)
    term, total, order = Fraction(1), Fraction(1), 1
    while term > Fraction(1, 1 << _WORKING_BITS):
        term *= small / order
        total += term
        order += 1
    # The terms that are left fall by a factor below 1/2 each.
    low, high = total, total + 2 * term
    for _ in range(halvings):
        low, high = _floor(low * low), _floor(high * high) + Fraction(1, 1 << _WORKING_BITS)
    assert high <= low * (1 + Fraction(1, 1 << bits))
    return low, high


def _floor(number: Fraction) -> Fraction:
    return Fraction(int(number * (1 << _WORKING_BITS)), 1 << _WORKING_BITS)


def counts_pvalue(observed: npt.ArrayLike, probabilities: npt.ArrayLike) -> float:
    """Chi-square of counts against a law; cells of fewer than ten expected are pooled, an impossible one gives 0."""
    observed, expected = np.asarray(observed, float), np.asarray(probabilities, float)
    assert abs(expected.sum() - 1) < 1e-9
    if observed[expected == 0].any():
        return 0.0
    expected = expected * observed.sum()
    few = expected < 10
    if few.any():
        observed = np.append(observed[~few], observed[few].sum())
        expected = np.append(expected[~few], expected[few].sum())
        if expected[-1] < 1e-3 and not observed[-1]:
            observed, expected = observed[:-1], expected[:-1]
    return float(stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue)


def integers_pvalue(sample: npt.NDArray, law: Callable[[npt.NDArray], npt.NDArray], reach: int) -> float:
    """Chi-square of integers against P[X = k] = law(k), everything beyond ±reach in two cells of their own."""
    support = np.arange(-reach, reach + 1)
    probabilities = law(support)
    tail = max(0.0, (1 - probabilities.sum()) / 2)
    inside = np.bincount(sample[np.abs(sample) <= reach] + reach, minlength=2 * reach + 1)
    observed = np.concatenate([[np.sum(sample < -reach)], inside, [np.sum(sample > reach)]])
    return counts_pvalue(observed, np.concatenate([[tail], probabilities, [tail]]))
