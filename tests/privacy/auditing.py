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


def clopper_pearson(successes: int, trials: int, alpha: float) -> tuple[float, float]:
    """Lower and upper bound of a probability, each of them wrong with probability at most ``alpha``."""
    low = stats.beta.ppf(alpha, successes, trials - successes + 1) if successes else 0.0
    high = stats.beta.ppf(1 - alpha, successes + 1, trials - successes) if successes < trials else 1.0
    return float(low), float(high)


def audited_epsilon(one: npt.NDArray, other: npt.NDArray, events: int = 1000) -> float:
    """A lower bound of ln(P[one in S] / P[other in S]) over half-lines S of a real statistic, both directions.

    Args:
        one: (n,) values of the statistic on one input.
        other: (n,) values on the neighbouring input.
        events: number of thresholds tried for S; the first half of the samples chooses among them.
    """
    half = len(one) // 2
    thresholds = np.quantile(
        np.concatenate([one[:half], other[:half]]), np.linspace(2 / events, 1 - 2 / events, events)
    )
    best, choice = -math.inf, (one, other, 1, thresholds[0])
    for a, b in ((one, other), (other, one)):
        for sign in (1, -1):
            hits_a, hits_b = (_hits(sign * x[:half], sign * thresholds) for x in (a, b))
            # Two standard errors of the logarithm keep events that are too rare to bound from being chosen.
            scores = np.log((hits_a + 1) / (hits_b + 1)) - 2 / np.sqrt(hits_a + 1) - 2 / np.sqrt(hits_b + 1)
            if scores.max() > best:
                best, choice = scores.max(), (a, b, sign, thresholds[int(scores.argmax())])
    a, b, sign, threshold = choice
    low, _ = clopper_pearson(int(_hits(sign * a[half:], sign * threshold)), len(a) - half, ALPHA / 2)
    _, high = clopper_pearson(int(_hits(sign * b[half:], sign * threshold)), len(b) - half, ALPHA / 2)
    return math.log(low / high) if low > 0 else -math.inf


def _hits(values: npt.NDArray, thresholds: npt.NDArray) -> npt.NDArray:
    """How many values are at least each threshold."""
    return len(values) - np.searchsorted(np.sort(values), thresholds, side="left")
