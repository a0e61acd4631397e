"""From a share of the budget to noise: never less than the guarantee needs, and hardly more."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from beam_dp.accounting.loss import DiscreteGaussianLoss, DiscreteLaplaceLoss, ParametersLoss
from beam_dp.accounting.pld import pld_epsilon
from beam_dp.aggregate.bounds import Bounds
from beam_dp.aggregate.noise import GaussianNoise, LaplaceNoise, analytic_gaussian_sigma
from beam_dp.aggregate.statistics import (
    BinCounts,
    LeafCounts,
    RowCount,
    Statistic,
    Total,
    UnitCount,
    ValueCount,
)
from beam_dp.errors import ArgumentError
from beam_dp.mechanisms.discrete_noise import DiscreteGaussian, DiscreteLaplace

UNIT = 1 << 30
STATISTICS: list[Statistic] = [
    RowCount(),
    UnitCount(),
    ValueCount(column="v"),
    Total(column="v", low=-2, high=5),
    Total(column="v", low=0, high=10, of="centred"),
    Total(column="v", low=-1e150, high=1e150, of="squares"),
    Total(column="v", low=3, high=3),
    BinCounts(column="v", edges=(0, 1, 2)),
    LeafCounts(column="v", low=0, high=1),
]
SINGLE = [statistic for statistic in STATISTICS if statistic.single]
bounds = st.builds(Bounds, st.integers(1, 300), st.integers(1, 300))


def in_partition(statistic: Statistic, limits: Bounds) -> int:
    """L1 sensitivity in one partition, in units, from what a row can do."""
    rows = limits.rows_per_partition
    return {UnitCount: 1, Total: rows * UNIT, LeafCounts: 4 * rows}.get(type(statistic), rows)


def laplace(statistic: Statistic, limits: Bounds, epsilon: float) -> Any:
    return LaplaceNoise().plan("x", statistic, limits, "user", epsilon=epsilon, delta=0.0)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(STATISTICS), bounds, st.floats(1e-5, 1e2))
def test_laplace_noise_has_at_least_the_scale_of_its_proof(
    statistic: Statistic, limits: Bounds, epsilon: float
) -> None:
    release = laplace(statistic, limits, epsilon)
    assert isinstance(release.noise, DiscreteLaplace)
    exact = in_partition(statistic, limits)
    # Whole steps: the sensitivity in steps is exactly that in units.
    assert release.partition_sensitivity << release.shift == exact
    assert (release.shift == 0) != isinstance(statistic, Total)
    needed = Fraction(limits.partitions * release.partition_sensitivity) / Fraction(epsilon)
    scale = Fraction(release.noise.scale)
    assert needed <= scale <= needed * (1 + Fraction(1, 2**52))
    assert release.guarantee.epsilon == epsilon and release.guarantee.delta == 0
    assert release.guarantee.privacy_unit == "user" and release.guarantee.basis == "proved"
    # The dominating pair that the ledger composes: L0 coordinates of the same sensitivity and scale.
    times = limits.partitions
    if statistic.single:
        assert release.loss == DiscreteLaplaceLoss(release.noise.scale, release.partition_sensitivity, times)
    else:
        assert isinstance(release.loss, ParametersLoss) and release.loss.times == times and release.loss.delta == 0
        pure = Fraction(release.partition_sensitivity) / scale
        assert pure <= Fraction(release.loss.epsilon) <= pure * (1 + Fraction(1, 2**52))


@settings(deadline=None, max_examples=200)
@given(st.sampled_from([s for s in STATISTICS if isinstance(s, Total)]), bounds, st.floats(1e-5, 1e2))
def test_steps_are_a_thousandth_of_the_noise_or_as_fine_as_can_be(
    statistic: Total, limits: Bounds, epsilon: float
) -> None:
    release = laplace(statistic, limits, epsilon)
    assert 15 <= release.shift <= 30
    assert 2**9 < release.noise.scale <= 2**11 or release.shift in {15, 30}
    assert release.noise.scale > 2**9 or release.shift == 15
    assert release.step == pytest.approx(statistic.magnitude * 2.0 ** (release.shift - 30))
    scale = limits.partitions * limits.rows_per_partition * statistic.magnitude / epsilon
    assert release.noise.scale * release.step == pytest.approx(scale)


@pytest.mark.parametrize("statistic", STATISTICS, ids=repr)
@pytest.mark.parametrize("epsilon", [5e-324, 1e-310, 1e-200, 1e-12, 1e9, 1e100, 1.7e308])
def test_an_epsilon_without_noise_for_it_is_refused_by_label(statistic: Statistic, epsilon: float) -> None:
    with pytest.raises(ArgumentError, match=r"epsilon of the sum, .* is out of range"):
        LaplaceNoise().plan("the sum", statistic, Bounds(2, 3), "user", epsilon=epsilon, delta=0.0)


@pytest.mark.parametrize("statistic", SINGLE, ids=repr)
@pytest.mark.parametrize(("limits", "epsilon", "delta"), [(Bounds(1, 1), 0.5, 1e-6), (Bounds(8, 2), 1.0, 1e-9)])
def test_gaussian_noise_keeps_its_epsilon_and_delta(
    statistic: Statistic, limits: Bounds, epsilon: float, delta: float
) -> None:
    release = GaussianNoise().plan("x", statistic, limits, "user", epsilon=epsilon, delta=delta)
    assert isinstance(release.noise, DiscreteGaussian)
    assert release.partition_sensitivity << release.shift == in_partition(statistic, limits)
    assert (release.guarantee.epsilon, release.guarantee.delta) == (epsilon, delta)
    assert release.guarantee.basis == "computed"
    assert release.loss == DiscreteGaussianLoss(release.noise.sigma, release.partition_sensitivity, limits.partitions)
    composed = pld_epsilon(((release.loss, 1),), delta)
    assert composed is not None and composed <= epsilon
    # No more than a few per cent above what the continuous mechanism needs for the L2 sensitivity.
    least = continuous_sigma(epsilon, delta) * math.sqrt(limits.partitions) * release.partition_sensitivity
    assert least * (1 - 1e-9) <= release.noise.sigma <= least * 1.05


def continuous_sigma(epsilon: float, delta: float) -> float:
    """The least sigma by the definition of the hockey-stick divergence between N(0, σ²) and N(1, σ²)."""

    def divergence(sigma: float) -> float:
        a, b = 1 / (2 * sigma) - epsilon * sigma, -1 / (2 * sigma) - epsilon * sigma
        return float(stats.norm.cdf(a) - math.exp(epsilon + stats.norm.logcdf(b)))

    low, high = 1e-3, 1e6
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if divergence(middle) > delta else (low, middle)
    return high


@pytest.mark.parametrize("epsilon", [1e-3, 0.1, 1.0, 10.0, 50.0])
@pytest.mark.parametrize("delta", [1e-12, 1e-6, 0.1])
def test_the_analytic_sigma_is_the_least(epsilon: float, delta: float) -> None:
    assert analytic_gaussian_sigma(epsilon, delta) == pytest.approx(continuous_sigma(epsilon, delta), rel=1e-6)


def test_a_discrete_gaussian_meets_its_delta_by_its_law() -> None:
    # One integer of sensitivity 1 where the lattice is coarse: the hockey-stick sum over the law itself.
    for epsilon, delta in ((2.0, 1e-3), (0.7, 1e-2), (4.0, 1e-6)):
        release = GaussianNoise().plan("x", UnitCount(), Bounds(1, 1), "user", epsilon=epsilon, delta=delta)
        k = np.arange(-400, 401)
        assert isinstance(release.noise, DiscreteGaussian)
        law = np.exp(-np.square(k / release.noise.sigma) / 2)
        law /= law.sum()
        excess = np.maximum(law[1:] - math.exp(epsilon) * law[:-1], 0).sum()
        assert excess <= delta


@pytest.mark.parametrize("statistic", [s for s in STATISTICS if not s.single], ids=repr)
def test_gaussian_noise_is_for_single_integers(statistic: Statistic) -> None:
    with pytest.raises(ArgumentError, match="gaussian noise is not offered for bins; use laplace"):
        GaussianNoise().plan("bins", statistic, Bounds(1, 1), "user", epsilon=1.0, delta=1e-6)


@pytest.mark.parametrize(("epsilon", "delta"), [(1e5, 1e-6), (1.0, 1e-300), (1e-12, 1e-30)])
def test_a_gaussian_that_cannot_be_had_is_refused(epsilon: float, delta: float) -> None:
    with pytest.raises(ArgumentError):
        GaussianNoise().plan("x", RowCount(), Bounds(2, 3), "user", epsilon=epsilon, delta=delta)


def test_families_say_whether_they_need_delta() -> None:
    assert GaussianNoise.needs_delta and not LaplaceNoise.needs_delta
