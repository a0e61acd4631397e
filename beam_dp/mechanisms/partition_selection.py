"""Which partitions may be shown: rules that look at the number of privacy units in a partition alone.

That a partition exists can give a person away, so where the set of partitions is not public, each is kept with a
probability that grows with the number n of distinct units in it and is 0 at n = 0. A unit is in at most k partitions.
Each rule is (epsilon/k, delta')-differentially private in one partition, delta' = 1 - (1 - delta)^(1/k), so that all
of a unit's partitions together are (epsilon, delta): k-fold composition of (epsilon', delta') mechanisms is
(k·epsilon', 1 - (1-delta')^k) (Kairouz, Oh, Viswanath 2015, Theorem 3.3 at its largest epsilon).

A pre-threshold m keeps nothing with fewer than m units and applies the rule to n - m + 1 beyond: that number also
changes by at most one with one unit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Context, Decimal
from fractions import Fraction
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from beam_dp.errors import ArgumentError, require_count, require_positive
from beam_dp.mechanisms.coins import Words, enclose_exp, random_words
from beam_dp.mechanisms.discrete_noise import LARGEST_SCALE, SMALLEST_SCALE, DiscreteLaplace, Integers

_ONE = 1 << 64
_BITS = 160
_DECIMAL_SLACK = Fraction(1, 10**90)
_MOST_UNITS = 1 << 20
# With delta' at least 2^-64, every epsilon' beyond gives the same table to the last bit.
_LARGEST_TABLE_EPSILON = 64


class KeepRule(Protocol):
    """A rule as the release uses it."""

    def keep(self, units: Integers, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
        """Which partitions to show, (n,) bool, given the number of distinct units in each, (n,) int64."""


@dataclass(frozen=True)
class _Rule:
    """What every rule needs.

    Attributes:
        epsilon: of all partitions of one unit together.
        delta: the same; in (0, 1).
        partitions: k, the most partitions that one unit is in.
        pre_threshold: m, the least number of units of a partition that may be kept.
    """

    epsilon: float
    delta: float
    partitions: int = 1
    pre_threshold: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "epsilon", require_positive("epsilon", self.epsilon))
        object.__setattr__(self, "delta", require_positive("delta", self.delta))
        if self.delta >= 1:
            raise ArgumentError("delta must be below 1")
        for name in ("partitions", "pre_threshold"):
            object.__setattr__(self, name, require_count(name, getattr(self, name)))
        if self.partition_delta < Fraction(1, _ONE):
            raise ArgumentError(
                f"delta must be at least 2^-64 for each partition, not {self.delta:g} over {self.partitions} partitions"
            )

    @property
    def partition_epsilon(self) -> Fraction:
        """epsilon/k exactly."""
        return Fraction(self.epsilon) / self.partitions

    @cached_property
    def partition_delta(self) -> Fraction:
        """A multiple of 2^-160 that is at most delta' = 1 - (1 - delta)^(1/k) and within 2^-159 of it; delta for k = 1.

        `decimal` rounds every operation correctly, and 1 - delta is at least 2^-53: so four of them at 120 digits are
        off by less than 1e-100.
        """
        if self.partitions == 1:
            return Fraction(self.delta)
        context = Context(prec=120, rounding=ROUND_HALF_EVEN)
        left = context.subtract(Decimal(1), Decimal(self.delta))
        root = context.exp(context.divide(context.ln(left), Decimal(self.partitions)))
        return max(Fraction(math.floor((1 - Fraction(root) - _DECIMAL_SLACK) * (1 << _BITS)), 1 << _BITS), Fraction(0))

    def _counted(self, units: Integers) -> Integers:
        """The number that the rule looks at: units beyond the pre-threshold, 0 for none."""
        return np.maximum(units - (self.pre_threshold - 1), 0)


@dataclass(frozen=True)
class TruncatedGeometric(_Rule):
    """Keeps a partition of n units with the largest probability π(n) that any (ε', δ') rule can have.

    π(0) = 0 and π(n+1) = min(e^ε'·π(n) + δ', 1 - e^-ε'·(1 - π(n) - δ'), 1) (Desfontaines, Voss, Gipson,
    Mandayam 2022, "Differentially private partition selection", Theorem 1). The first two terms are what (ε', δ')
    leaves for keeping and for dropping when a unit is added; removal is then looser since π grows.

    π is computed as whole multiples of 2^-64, each step rounded down with rational bounds of e^ε' and e^-ε', from the
    rounded π(n): so the two inequalities hold exactly for the table that is used, and a word of 64 random bits below
    π(n)·2^64 has exactly that probability. Optimal among all rules for k = 1.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        # π leaves 0 by about δ'·e^(nε') and comes to 1 the same way.
        if 2 * math.log(2 / self.delta * self.partitions) * self.partitions / self.epsilon > _MOST_UNITS:
            raise ArgumentError(
                f"epsilon of selection is too small: {self.epsilon:g} over {self.partitions} partitions would keep "
                f"partitions of more than {_MOST_UNITS:,} units only"
            )

    @cached_property
    def table(self) -> Words:
        """π(n)·2^64 for n = 0, 1, ... up to the last n with π(n) < 1."""
        delta = math.floor(self.partition_delta * (1 << _BITS))
        epsilon = min(self.partition_epsilon, Fraction(_LARGEST_TABLE_EPSILON))
        grow = math.floor(enclose_exp(epsilon, _BITS)[0] * (1 << _BITS))
        shrink = math.ceil(enclose_exp(-epsilon, _BITS)[1] * (1 << _BITS))
        one = 1 << _BITS
        kept, table = 0, []
        while kept < _ONE:
            table.append(kept)
            up = (grow * kept + delta * _ONE) >> _BITS
            left = max(one - (kept << (_BITS - 64)) - delta, 0)
            kept = min(up, _ONE - -(-(shrink * left) >> (2 * _BITS - 64)), _ONE)
        return np.array(table, np.uint64)

    def keep(self, units: Integers, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
        """See `KeepRule.keep`."""
        counted = self._counted(units)
        certain = counted >= len(self.table)
        return certain | (random_words(len(units), rng) < self.table[np.where(certain, 0, counted)])


@dataclass(frozen=True)
class LaplaceThreshold(_Rule):
    """Keeps a partition of n >= 1 units if n + X reaches a threshold, X discrete Laplace of scale 1/ε' (rounded up).

    The noisy count is (ε', 0); a partition that one unit alone is in, and which does not exist without it, is kept with
    probability P[1 + X >= threshold] = α^(threshold-1)/(1+α) <= δ' (Korolova et al. 2009; Wilson et al. 2020,
    section 5.3). Larger n on either side: (ε', 0) by the noise.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 / Fraction(LARGEST_SCALE) <= self.partition_epsilon <= 1 / Fraction(SMALLEST_SCALE):
            raise ArgumentError(
                f"epsilon of selection, {self.epsilon:g} over {self.partitions} partitions, is out of range: noise of "
                f"scale {SMALLEST_SCALE:g} to {LARGEST_SCALE:g} is supported"
            )

    @cached_property
    def noise(self) -> DiscreteLaplace:
        """The law of X."""
        return DiscreteLaplace(scale_up(1 / self.partition_epsilon))

    @cached_property
    def threshold(self) -> int:
        """The least integer whose keep probability at n = 1 is at most δ'."""
        rate = 1 / Fraction(self.noise.scale)
        low_one_plus = 1 + enclose_exp(-rate, _BITS)[0]

        def reached(threshold: int) -> bool:
            return enclose_exp(-(threshold - 1) * rate, _BITS)[1] <= self.partition_delta * low_one_plus

        # In float64 it comes out right or one off; then the exact condition decides.
        threshold = max(1, math.ceil(1 - math.log(self.partition_delta * low_one_plus) * self.noise.scale))
        while reached(threshold) and threshold > 1:
            threshold -= 1
        while not reached(threshold):
            threshold += 1
        return threshold

    def keep(self, units: Integers, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
        """See `KeepRule.keep`."""
        counted = self._counted(units)
        return (counted + self.noise.sample(len(units), rng) >= self.threshold) & (counted > 0)


def scale_up(exact: Fraction) -> float:
    """The least float that is not below ``exact``: a noise scale is rounded up, never down."""
    nearest = float(exact)
    return nearest if Fraction(nearest) >= exact else math.nextafter(nearest, math.inf)
