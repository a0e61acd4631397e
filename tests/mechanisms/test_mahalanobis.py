import math
from types import SimpleNamespace

import numpy as np
import pytest
from projections import (
    Recorder,
    distances_from,
    independence_pvalue,
    matrix_pvalue,
    noise_grid,
)
from scipy import linalg, stats

from beam_dp.errors import ArgumentError
from beam_dp.mechanisms import MECHANISMS, Mahalanobis, mahalanobis
from beam_dp.mechanisms.base import diameter_of
from beam_dp.mechanisms.mahalanobis import mahalanobis_noise, regularised_matrix
from beam_dp.mechanisms.multivariate_laplace import multivariate_laplace_noise

SIGNIFICANCE = 1e-4
DIMENSIONS = [1, 2, 10]


def stretched(rng, size, dimension):
    """Vectors of very unequal and correlated coordinates, far from the origin."""
    scales = np.geomspace(4, 0.2, dimension) if dimension > 1 else np.ones(1)
    turn = linalg.qr(rng.normal(size=(dimension, dimension)))[0]
    return (rng.normal(size=(size, dimension)) * scales) @ turn + 3.0


def exact_matrix(vectors, weight):
    """λΣ + (1-λ)I by numpy's covariance."""
    vectors = vectors.astype(np.float32).astype(np.float64)
    covariance = np.atleast_2d(np.cov(vectors.T))
    covariance *= len(covariance) / np.trace(covariance)
    return weight * covariance + (1 - weight) * np.eye(len(covariance))


def whitened_noise(space, weight, epsilon, n, rng):
    ids = rng.integers(0, space.size, n).astype(np.int32)
    noise = space.noise_of(Mahalanobis(epsilon, weight), ids, rng)
    return linalg.solve(np.real(linalg.sqrtm(exact_matrix(space.vectors, weight))), noise.T).T


def radius_pvalue(white, epsilon):
    radius = np.linalg.norm(white, axis=1)
    return stats.kstest(radius, stats.gamma(white.shape[1], scale=1 / epsilon).cdf).pvalue


def moments_pvalue(white):
    """All second moments of the directions: of a uniform one they are I/d, with known variances and covariances."""
    n, d = white.shape
    unit = white / np.linalg.norm(white, axis=1, keepdims=True)
    excess = unit.T @ unit / n - np.eye(d) / d
    crossed = n * d * (d + 2) * np.sum(excess[np.triu_indices(d, 1)] ** 2)
    squared = n * d * (d + 2) / 2 * np.sum(np.diag(excess) ** 2)
    return stats.chi2(d * (d - 1) / 2 + d - 1).sf(crossed + squared)


def mean_pvalue(white):
    n, d = white.shape
    unit = white / np.linalg.norm(white, axis=1, keepdims=True)
    return stats.chi2(d).sf(n * d * np.sum(unit.mean(axis=0) ** 2))


@pytest.mark.parametrize("epsilon", [0, -1, math.nan, math.inf, "1", True, None])
def test_epsilon_that_is_no_positive_finite_number_is_refused(epsilon):
    with pytest.raises(ArgumentError, match="epsilon must be a finite number above 0, not "):
        Mahalanobis(epsilon)


@pytest.mark.parametrize("weight", [-0.1, 1.0, 0.991, math.nan, math.inf, "0.2", True, None])
def test_weight_that_is_no_number_from_0_to_99_hundredths_is_refused(weight):
    with pytest.raises(ArgumentError, match=r"covariance_weight must be a number from 0 to 0\.99, not "):
        Mahalanobis(1.0, weight)


def test_is_a_value_with_a_name():
    assert Mahalanobis(2) == Mahalanobis(2.0, covariance_weight=0.2) != Mahalanobis(2.0, 0.3)
    assert repr(Mahalanobis(2, 0)) == "Mahalanobis(epsilon=2.0, covariance_weight=0.0)"
    assert MECHANISMS["mahalanobis"] is Mahalanobis


@pytest.mark.parametrize(
    ("weight", "metric"),
    [
        (0.2, "mahalanobis(lambda=0.2)"),
        (1 / 3, "mahalanobis(lambda=0.3333333333333333)"),
        (0, "euclidean"),
        (-0.0, "euclidean"),
    ],
)
def test_guarantee_names_the_norm_with_all_digits(plain_space, rng, weight, metric):
    space = plain_space(stretched(rng, 9, 3))
    guarantee = Mahalanobis(3, weight).guarantee(space)
    assert (guarantee.epsilon, guarantee.delta, guarantee.basis) == (3.0, 0.0, "proved")
    assert (guarantee.metric, guarantee.index_digest) == (metric, space.digest)


def test_a_metric_of_its_own_needs_a_diameter_in_it(plain_space, rng):
    space = plain_space(stretched(rng, 9, 3))
    wrapped = SimpleNamespace(name="wrapped", guarantee=None, bind=None)
    assert diameter_of(wrapped, space, "euclidean") == space.diameter
    with pytest.raises(ArgumentError, match=r"metric mahalanobis, which is not that of the index.*diameter\(space\)"):
        diameter_of(wrapped, space, "mahalanobis")


def test_spaces_without_the_norm_are_refused(plain_space):
    for space, message in (
        (plain_space(np.eye(3), metric="poincare"), "not for poincare"),
        (plain_space(np.ones((4, 3))), "all its vectors are equal"),
    ):
        for call in (Mahalanobis(1.0).guarantee, Mahalanobis(1.0).bind, Mahalanobis(1.0).diameter):
            with pytest.raises(ArgumentError, match=message):
                call(space)


@pytest.mark.parametrize("weight", [0.0, 0.2, 0.99])
@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_matrix_is_that_of_the_scaled_covariance(plain_space, rng, dimension, weight):
    space = plain_space(stretched(rng, 60, dimension))
    matrix = regularised_matrix(space, weight)
    np.testing.assert_allclose(matrix, exact_matrix(space.vectors, weight), atol=1e-12)
    assert np.trace(matrix) == pytest.approx(dimension)


@pytest.mark.parametrize("weight", [0.0, 0.2, 0.9, 0.99])
@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_diameter_is_an_upper_bound_in_the_norm_of_the_guarantee(plain_space, rng, dimension, weight):
    space = plain_space(stretched(rng, 80, dimension))
    inverse = linalg.inv(exact_matrix(space.vectors, weight))
    points = space.vectors.astype(np.float64)
    gaps = points[:, None] - points[None]
    largest = np.sqrt(np.einsum("abi,ij,abj->ab", gaps, inverse, gaps)).max()
    bound = diameter_of(Mahalanobis(1.0, weight), space, "mahalanobis")
    assert largest <= bound <= 2 * largest
    if weight == 0:
        assert bound == pytest.approx(space.diameter, rel=1e-6)


def test_diameter_reaches_beyond_the_euclidean_one_where_words_differ_in_a_narrow_direction(plain_space):
    """Two pairs of words a hair apart, along the axis on which the vocabulary hardly varies."""
    space = plain_space(np.array([[10.0, 0.0], [-10, 0], [0, 2], [0, -2]]))
    mechanism = Mahalanobis(1.0, 0.9)
    narrow = 4 / math.sqrt(exact_matrix(space.vectors, 0.9)[1, 1])
    assert mechanism.diameter(space) >= narrow
    assert diameter_of(mechanism, space, "mahalanobis") == mechanism.diameter(space) != space.diameter


@pytest.mark.parametrize("weight", [0.2, 0.99])
@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_noise_has_a_gamma_radius_in_the_norm_and_the_second_moments_of_the_matrix(rng, dimension, weight):
    space, epsilon = Recorder(stretched(rng, 50, dimension)), 3.0
    white = whitened_noise(space, weight, epsilon, 3000, rng)
    assert radius_pvalue(white, epsilon) > SIGNIFICANCE
    assert mean_pvalue(white) > SIGNIFICANCE
    assert len(np.unique(np.linalg.norm(white, axis=1))) > 0.99 * len(white)
    if dimension > 1:
        assert moments_pvalue(white) > SIGNIFICANCE
        assert stats.spearmanr(np.linalg.norm(white, axis=1), np.abs(white[:, 0])).pvalue < SIGNIFICANCE
    moments = white.T @ white / len(white)
    np.testing.assert_allclose(moments, np.eye(dimension) * (dimension + 1) / epsilon**2, atol=0.25 * dimension / 9)


def renormalised(n, root, epsilon, rng):
    """A peer's fault: the direction is brought back to length 1 after the root."""
    direction = mahalanobis_noise(n, root, epsilon, rng)
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    return direction * (rng.standard_gamma(len(root), (n, 1)) / epsilon).astype(np.float32)


def times(factor):
    return lambda n, root, epsilon, rng: mahalanobis_noise(n, root, epsilon / factor, rng)


def euclidean(n, root, epsilon, rng):
    return multivariate_laplace_noise(n, len(root), epsilon, rng)


def matrix_for_root(n, root, epsilon, rng):
    return mahalanobis_noise(n, root @ root, epsilon, rng)


def inverse_root(n, root, epsilon, rng):
    return mahalanobis_noise(n, np.linalg.inv(root), epsilon, rng)


def shape_one_too_small(n, root, epsilon, rng):
    noise = multivariate_laplace_noise(n, len(root), epsilon, rng)
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    return (noise * (rng.standard_gamma(len(root) - 1, (n, 1)) / epsilon).astype(np.float32)) @ root


def shared_by_a_batch(n, root, epsilon, rng):
    return np.repeat(mahalanobis_noise(1, root, epsilon, rng), n, axis=0)


BUGS = {
    "renormalised": renormalised,
    "half": times(0.5),
    "four fifths": times(0.8),
    "euclidean": euclidean,
    "matrix for root": matrix_for_root,
    "inverse root": inverse_root,
    "shape": shape_one_too_small,
    "shared": shared_by_a_batch,
}


@pytest.mark.parametrize("weight", [0.8, 0.99])
@pytest.mark.parametrize("dimension", [2, 10])
@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_in_the_noise_are_found(monkeypatch, rng, dimension, weight, bug):
    monkeypatch.setattr(mahalanobis, "mahalanobis_noise", BUGS[bug])
    white = whitened_noise(Recorder(stretched(rng, 50, dimension)), weight, 3.0, 3000, rng)
    assert min(radius_pvalue(white, 3.0), moments_pvalue(white)) < SIGNIFICANCE


def plane_law(vectors, weight, epsilon):
    """P[w, y] in the plane: equally likely points of the whitened noise, mapped back by another root than ours."""
    root = np.linalg.cholesky(exact_matrix(vectors, weight))
    points = noise_grid(2, epsilon, 300) @ root.T
    law = np.empty((len(vectors), len(vectors)))
    for word, vector in enumerate(vectors.astype(np.float64)):
        nearest = distances_from(vectors, points + vector).argmin(axis=1)
        law[word] = np.bincount(nearest, minlength=len(vectors)) / len(points)
    return law


@pytest.mark.parametrize("size", [3, 8])
def test_projected_law_in_the_plane_is_that_of_an_integration(plain_space, rng, size):
    space = plain_space(stretched(rng, size, 2))
    law = plane_law(space.vectors, 0.9, 2.0)
    assert matrix_pvalue(Mahalanobis(2.0, 0.9).bind(space), law, range(size), 20_000, rng) > SIGNIFICANCE
    # The law tells the norm from others: that of half the weight, and the Euclidean one, do not fit.
    for other in (0.3, 0.0):
        assert matrix_pvalue(Mahalanobis(2.0, other).bind(space), law, range(size), 20_000, rng) < SIGNIFICANCE


@pytest.mark.parametrize("bug", ["renormalised", "four fifths", "euclidean"])
def test_planted_bugs_in_the_noise_do_not_fit_the_projected_law(monkeypatch, plain_space, rng, bug):
    space = plain_space(stretched(rng, 8, 2))
    law = plane_law(space.vectors, 0.9, 2.0)
    monkeypatch.setattr(mahalanobis, "mahalanobis_noise", BUGS[bug])
    assert matrix_pvalue(Mahalanobis(2.0, 0.9).bind(space), law, range(8), 20_000, rng) < SIGNIFICANCE


def test_in_one_dimension_it_is_multivariate_laplace_whatever_the_weight(plain_space, rng):
    """The only coordinate's variance is scaled to 1."""
    space = plain_space(np.array([-20.0, -5, 0, 4, 30])[:, None])
    n = 40_000
    for word in range(5):
        edges = np.concatenate([[-np.inf], (space.vectors[1:, 0] + space.vectors[:-1, 0]) / 2, [np.inf]])
        law = np.diff(stats.laplace(loc=space.vectors[word, 0], scale=1 / 0.13).cdf(edges))
        drawn = Mahalanobis(0.13, 0.7).bind(space).sample(np.full(n, word, np.int32), rng)
        assert stats.chisquare(np.bincount(drawn, minlength=5), law * n).pvalue > SIGNIFICANCE


def test_words_of_one_batch_are_drawn_independently(monkeypatch, plain_space, rng):
    bound = Mahalanobis(0.5).bind(plain_space(stretched(rng, 4, 2)))
    assert independence_pvalue(bound, 1, 20_000, rng) > SIGNIFICANCE
    monkeypatch.setattr(mahalanobis, "mahalanobis_noise", shared_by_a_batch)
    assert independence_pvalue(bound, 1, 20_000, rng) < SIGNIFICANCE


@pytest.mark.parametrize("n", [0, 1, 2049])
def test_every_block_size_gives_one_valid_word_for_each(plain_space, rng, n):
    space = plain_space(stretched(rng, 300, 10))
    out = Mahalanobis(1).bind(space).sample(rng.integers(0, 300, n).astype(np.int32), rng)
    assert out.dtype == np.int32 and out.shape == (n,)
    assert np.all((out >= 0) & (out < 300))


def test_little_noise_changes_nothing(plain_space, rng):
    ids = np.arange(300, dtype=np.int32)
    assert np.array_equal(Mahalanobis(1e9).bind(plain_space(stretched(rng, 300, 10))).sample(ids, rng), ids)


def test_rounding_the_root_never_makes_the_noise_shorter(plain_space, rng):
    """The epsilon that is drawn with keeps the claim for the matrix that was rounded to float32."""
    for weight in (0.2, 0.99):
        space = plain_space(stretched(rng, 50, 10))
        bound = Mahalanobis(3.0, weight).bind(space)
        inverse = linalg.inv(bound._root.astype(np.float64))
        norm = linalg.norm(inverse @ np.real(linalg.sqrtm(exact_matrix(space.vectors, weight))), 2)
        assert 3.0 * (1 - 1e-5) < bound._epsilon <= 3.0 / max(1.0, norm)
