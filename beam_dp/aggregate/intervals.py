"""How far a sum of independent noises is from zero."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from beam_dp.mechanisms.discrete_noise import IntegerNoise

_CELLS = 1 << 13
_NEGLECTED = 1e-9
_HALVINGS = 40


def sum_half_width(terms: Sequence[tuple[float, IntegerNoise]], confidence: float) -> float:
    """t with P[|a·X + b·Y| <= t] >= confidence for independent X and Y, the smallest but for a thousandth or less.

    Sums the law of X over cells of at most a few integers, each as if X lay at the end of its cell that is farther from
    what Y makes of it, so that what is left out can only widen the interval; a mass of 1e-9 of X counts as outside.

    Args:
        terms: (a, law of X) and (b, law of Y), with a and b at least 0.
        confidence: in (0, 1), below 1 - 1e-9.
    """
    (a, x), (b, y) = terms
    if a == 0 or b == 0:
        return a * x.half_width(confidence) + b * y.half_width(confidence)
    reach = x.half_width(1 - _NEGLECTED)
    cell = max(1, math.ceil((reach + 1) / _CELLS))
    ends = np.arange(0, reach + cell + 1, cell)
    # P[|X| <= k] at the ends of the cells of |X|.
    inside = np.maximum(2 * x.at_most((ends - 1).astype(np.float64)) - 1, 0)
    masses = np.diff(inside)
    nearest, farthest = ends[:-1] * a, (ends[1:] - 1) * a

    def covered(t: float) -> float:
        # Given |X| = k, by symmetry: P[-t - ak <= bY <= t - ak].
        upper = y.at_most(np.floor((t - farthest) / b))
        lower = y.at_most(np.ceil((-t - nearest) / b) - 1)
        return float(masses @ np.maximum(upper - lower, 0))

    low, high = 0.0, a * x.half_width((1 + confidence) / 2) + b * y.half_width((1 + confidence) / 2)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if covered(middle) >= confidence else (middle, high)
    return high
