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


def audited_epsilon(one: npt.NDArray, other: npt.NDArray, events: int = 100) -> float:
    """A lower bound of ln(P[one in S] / P[other in S]) over half-lines S of a real statistic, both directions.

    Args:
        one: (n,) values of the statistic on one input.
        other: (n,) values on the neighbouring input.
        events: number of thresholds tried for S; the first half of the samples chooses among them.
    """
    best = -math.inf
    for a, b in ((one, other), (other, one)):
        half = len(a) // 2
        thresholds = np.quantile(np.concatenate([a[:half], b[:half]]), np.linspace(0.002, 0.998, events))
        for sign in (1, -1):
            hits_a = np.array([np.count_nonzero(sign * a[:half] >= sign * t) for t in thresholds])
            hits_b = np.array([np.count_nonzero(sign * b[:half] >= sign * t) for t in thresholds])
            chosen = thresholds[int(np.argmax(np.log(hits_a + 1) - np.log(hits_b + 1) - 2 / np.sqrt(hits_a + 1)))]
            fresh_a, fresh_b = a[half:], b[half:]
            # Four events are bounded in all, two bounds each: a union bound keeps the whole audit at ALPHA.
            low, _ = clopper_pearson(int(np.count_nonzero(sign * fresh_a >= sign * chosen)), len(fresh_a), ALPHA / 8)
            _, high = clopper_pearson(int(np.count_nonzero(sign * fresh_b >= sign * chosen)), len(fresh_b), ALPHA / 8)
            if low > 0:
                best = max(best, math.log(low / high))
    return best
