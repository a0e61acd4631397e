"""An auditor of sampled mechanisms: a lower confidence bound of the epsilon that two samples betray.

One half of the samples chooses the event that separates two inputs best; a fresh half bounds both probabilities by
Clopper-Pearson. The bound exceeds the true epsilon with probability at most ``ALPHA``.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import stats

ALPHA = 1e-3


def audited_epsilon(one: npt.NDArray, other: npt.NDArray, events: int = 1000) -> float:
    """A lower bound of ln(P[one in S] / P[other in S]) over half-lines S of a real statistic, both directions.

    Args:
        one: (n,) values of the statistic on one input.
        other: (n,) values on the neighbouring input.
        events: number of thresholds tried for S; the first half of the samples chooses among them.
    """
    choices = [(*_choice(a, b, 0.0, events), i) for i, (a, b) in enumerate(((one, other), (other, one)))]
    _, sign, threshold, swapped = max(choices)
    a, b = (other, one) if swapped else (one, other)
    return _bound(a[len(a) // 2 :], b[len(b) // 2 :], sign, threshold, 0.0)


def directed_epsilon(one: npt.NDArray, other: npt.NDArray, delta: float = 0.0, events: int = 1000) -> float:
    """A lower bound of ln((P[one in S] - delta) / P[other in S]), in this direction alone; else as `audited_epsilon`.

    (epsilon, delta)-differential privacy says that for neighbours it is at most epsilon, whatever S is.
    """
    _, sign, threshold = _choice(one, other, delta, events)
    return _bound(one[len(one) // 2 :], other[len(other) // 2 :], sign, threshold, delta)


def _choice(a: npt.NDArray, b: npt.NDArray, delta: float, events: int) -> tuple[float, int, float]:
    """The event with the largest bound on the first half: the bound, the sign of the statistic, the threshold."""
    a, b = a[: len(a) // 2], b[: len(b) // 2]
    thresholds = np.quantile(np.concatenate([a, b]), np.linspace(2 / events, 1 - 2 / events, events))
    best = (-math.inf, 1, float(thresholds[0]))
    for sign in (1, -1):
        bounds = _bounds(_hits(sign * a, sign * thresholds), len(a), _hits(sign * b, sign * thresholds), len(b), delta)
        best = max(best, (float(bounds.max()), sign, float(thresholds[int(bounds.argmax())])))
    return best


def _bound(a: npt.NDArray, b: npt.NDArray, sign: int, threshold: float, delta: float) -> float:
    hits_a, hits_b = (_hits(sign * x, sign * np.array([threshold])) for x in (a, b))
    return float(_bounds(hits_a, len(a), hits_b, len(b), delta)[0])


def _bounds(hits_a: npt.NDArray, n_a: int, hits_b: npt.NDArray, n_b: int, delta: float) -> npt.NDArray:
    """ln((low - delta) / high) with Clopper-Pearson bounds of the two probabilities, each of ALPHA/2."""
    low = np.where(hits_a > 0, stats.beta.ppf(ALPHA / 2, np.maximum(hits_a, 1), n_a - hits_a + 1), 0.0)
    high = np.where(hits_b < n_b, stats.beta.ppf(1 - ALPHA / 2, hits_b + 1, np.maximum(n_b - hits_b, 1)), 1.0)
    with np.errstate(divide="ignore"):
        return np.log(np.maximum(low - delta, 0) / high)


def _hits(values: npt.NDArray, thresholds: npt.NDArray) -> npt.NDArray:
    """How many values are at least each threshold."""
    return len(values) - np.searchsorted(np.sort(values), thresholds, side="left")
