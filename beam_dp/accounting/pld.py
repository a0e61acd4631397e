"""The epsilon of many central mechanisms together, by privacy loss distributions.

All losses are put on one grid (see `beam_dp.accounting.loss`), where dp_accounting composes them by fast Fourier
transform, and the curve of the whole is read off at delta. Every step rounds upwards except the floats themselves, for
which a small part of delta is set aside.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from beam_dp.accounting.loss import PrivacyLoss

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

# How many points the losses of the whole are spread over. The first is enough up to some thousand coordinates: the
# chords cost about 1e-5 of epsilon, and composing takes some milliseconds a mechanism. With more, the chords of each
# matter unless its losses span many points, so the interval is also at most a part of the typical loss, to the second.
_POINTS, _MOST_POINTS = 2**15, 2**18
_PART_OF_LOSS = 16
# The interval is a power of two, so that all losses are exact floats. Below 2**-24 the falls of the curve, which the
# masses are made of, would drown in rounding.
_FINEST, _COARSEST = -24, 0
# Of delta set aside for each coordinate: 2**-51·(4 + its largest loss). That is more than twice the rounding of its
# curve (see `PrivacyLoss.divergence`) and ten times that of the transforms, as measured against extended precision.
_ROUNDING = 2.0**-51
# dp_accounting cuts what is finite away where it weighs less than 1e-15.
_MOST_DELTA = 1 - 1e-9
# With more coordinates what is set aside exceeds any delta worth stating.
_MOST_COORDINATES = 2**32


@functools.lru_cache(maxsize=256)
def pld_epsilon(losses: tuple[tuple[PrivacyLoss, int], ...], delta: float) -> float | None:
    """The least epsilon found for which all applications together are (epsilon, delta)-private.

    Args:
        losses: each with the number of its applications to one privacy unit; not empty.
        delta: of the whole, in [0, 1).

    Returns:
        An upper bound, at least 0; None where this way gives none, for instance because delta is 0 or below what is set
        aside for rounding.
    """
    counts: Counter[PrivacyLoss] = Counter()
    for loss, applications in losses:
        counts[replace(loss, times=1)] += loss.times * applications  # type: ignore[type-var]
    if counts.total() > _MOST_COORDINATES:
        return None
    usable = delta - sum(count * _ROUNDING * (4 + one.reach) for one, count in counts.items())
    interval = _interval(counts)
    if interval is None or not _infinite(counts) < usable < _MOST_DELTA:
        return None
    whole = _composed(tuple(counts.items()), interval)
    try:
        with np.errstate(over="ignore"):
            epsilon = whole.get_epsilon_for_delta(usable)
    except OverflowError:  # exp of a loss below -700, met only on the way to an epsilon of 0
        return None
    return float(epsilon) if math.isfinite(epsilon) else None


# A curve asks at many deltas, one after the other. A distribution takes some megabytes.
@functools.lru_cache(maxsize=4)
def _composed(counts: tuple[tuple[PrivacyLoss, int], ...], interval: float) -> PrivacyLossDistribution:
    """The distribution of the whole on one grid."""
    return functools.reduce(
        lambda composed, other: composed.compose(other),
        (one.distribution(interval, count) for one, count in counts),
    )


def _infinite(counts: Counter[PrivacyLoss]) -> float:
    """The mass that the whole has at infinity, below which no delta has an epsilon."""
    finite = 0.0
    for one, count in counts.items():
        finite += count * math.log1p(-float(one.divergence(np.array([one.reach]))[0]))
    return -math.expm1(finite)


def _interval(counts: Counter[PrivacyLoss]) -> float | None:
    """The power of two that spreads the losses of the whole over the grid, or None where they reach too far for one.

    A sum of independent losses stays within nine standard deviations of its mean but for a mass below 1e-15, where
    dp_accounting cuts the tails, or within the sum of what they can reach, if that is less.
    """
    farthest = sum(count * one.reach for one, count in counts.items())
    deviation = math.sqrt(sum(count * one.deviation * one.deviation for one, count in counts.items()))
    spread = 2 * min(farthest, 9 * deviation + max(one.reach for one in counts))
    if not spread < _POINTS * 2.0**_COARSEST:
        return None
    typical = deviation / math.sqrt(counts.total())
    interval = max(min(spread / _POINTS, typical / _PART_OF_LOSS), spread / _MOST_POINTS)
    return 2.0 ** math.floor(math.log2(max(interval, 2.0**_FINEST)))
