"""The sampler of multivariate Laplace noise against its exact law, and the same tests against planted bugs."""

import numpy as np
import pytest
from auditing import audited_epsilon
from scipy import stats

from beam_dp.mechanisms.multivariate_laplace import multivariate_laplace_noise

EPSILON = 12.0
SIGNIFICANCE = 1e-4


def radius_pvalue(noise, dimension, epsilon=EPSILON):
    radius = np.linalg.norm(noise.astype(np.float64), axis=1)
    return stats.kstest(radius, stats.gamma(dimension, scale=1 / epsilon).cdf).pvalue


def direction_pvalue(noise):
    """The mean direction: d * n * |mean|^2 is asymptotically chi-square with d degrees of freedom."""
    unit = noise / np.linalg.norm(noise, axis=1, keepdims=True)
    n, dimension = unit.shape
    return stats.chi2(dimension).sf(n * dimension * np.sum(unit.mean(axis=0) ** 2))


def spread_pvalue(noise):
    """The second moments: each squared coordinate of a uniform direction is Beta(1/2, (d-1)/2)."""
    unit = noise / np.linalg.norm(noise, axis=1, keepdims=True)
    dimension = unit.shape[1]
    pvalues = [stats.kstest(unit[:, i] ** 2, stats.beta(0.5, (dimension - 1) / 2).cdf).pvalue for i in range(3)]
    return min(1.0, 3 * min(pvalues))


@pytest.mark.parametrize("dimension", [2, 10, 50, 300])
def test_radius_is_gamma_and_independent_of_a_uniform_direction(rng, dimension):
    noise = multivariate_laplace_noise(20_000, dimension, EPSILON, rng)
    assert noise.dtype == np.float32
    assert radius_pvalue(noise, dimension) > SIGNIFICANCE
    assert direction_pvalue(noise) > SIGNIFICANCE
    if dimension > 2:
        assert spread_pvalue(noise) > SIGNIFICANCE
    radius = np.linalg.norm(noise, axis=1)
    assert stats.spearmanr(radius, noise[:, 0] / radius).pvalue > SIGNIFICANCE


def test_one_dimension_is_the_laplace_law(rng):
    noise = multivariate_laplace_noise(50_000, 1, EPSILON, rng)[:, 0]
    assert stats.kstest(noise, stats.laplace(scale=1 / EPSILON).cdf).pvalue > SIGNIFICANCE


def scaled(factor):
    return lambda n, d, rng: multivariate_laplace_noise(n, d, EPSILON, rng) * np.float32(factor)


def shape_one_too_small(n, dimension, rng):
    noise = multivariate_laplace_noise(n, dimension, EPSILON, rng)
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    return noise * (rng.standard_gamma(dimension - 1, (n, 1)) / EPSILON)


def gaussian(n, dimension, rng):
    return rng.standard_normal((n, dimension)) * dimension**0.5 / EPSILON


@pytest.mark.parametrize("dimension", [2, 50, 300])
@pytest.mark.parametrize("bug", [scaled(0.5), scaled(0.8), scaled(0.97), shape_one_too_small, gaussian])
def test_planted_bugs_in_the_radius_are_found(rng, dimension, bug):
    # One in 300 is what a shape of d-1 moves the radius at d=300: 1e5 samples see it.
    assert radius_pvalue(bug(100_000, dimension, rng), dimension) < SIGNIFICANCE


def test_planted_bug_of_one_vector_for_a_whole_batch_is_found(rng):
    shared = np.repeat(multivariate_laplace_noise(20, 50, EPSILON, rng), 1000, axis=0)
    assert direction_pvalue(shared) < SIGNIFICANCE


def test_planted_bug_of_a_cube_instead_of_a_sphere_is_found(rng):
    cube = rng.uniform(-1, 1, (20_000, 10))
    assert spread_pvalue(cube) < SIGNIFICANCE


@pytest.mark.parametrize("dimension", [1, 2])
def test_audit_of_the_noisy_vector_reaches_its_claim_and_never_exceeds_it(rng, dimension):
    """epsilon * distance = 4 before projection: the claim holds, and the auditor has the power to say so."""
    claim, n = 4.0, 1_000_000
    shift = np.zeros(dimension)
    shift[0] = claim / EPSILON
    here = multivariate_laplace_noise(n, dimension, EPSILON, rng)
    there = multivariate_laplace_noise(n, dimension, EPSILON, rng) + shift
    # The likelihood ratio of two Laplace densities depends on the difference of the two distances alone.
    bound = audited_epsilon(*(np.linalg.norm(z - shift, axis=1) - np.linalg.norm(z, axis=1) for z in (here, there)))
    assert 0.8 * claim <= bound <= claim


@pytest.mark.parametrize("dimension", [1, 2])
@pytest.mark.parametrize("factor", [0.5, 0.8])
def test_audit_convicts_noise_that_is_too_small(rng, dimension, factor):
    claim, n = 4.0, 1_000_000
    shift = np.zeros(dimension)
    shift[0] = claim / EPSILON
    here = scaled(factor)(n, dimension, rng)
    there = scaled(factor)(n, dimension, rng) + shift
    bound = audited_epsilon(*(np.linalg.norm(z - shift, axis=1) - np.linalg.norm(z, axis=1) for z in (here, there)))
    assert bound > claim
