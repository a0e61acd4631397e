import math

import numpy as np
import pytest
from scipy import stats

from beam_dp.errors import ArgumentError
from beam_dp.mechanisms import MECHANISMS, MultivariateLaplace
from beam_dp.mechanisms.multivariate_laplace import multivariate_laplace_noise

BAD_EPSILONS = [0, 0.0, -1, math.nan, math.inf, "1", True, None]


@pytest.mark.parametrize("epsilon", BAD_EPSILONS)
def test_epsilon_that_is_no_positive_finite_number_is_refused(epsilon):
    with pytest.raises(ArgumentError, match="epsilon must be a finite number above 0, not "):
        MultivariateLaplace(epsilon)


def test_is_a_value_with_a_name():
    assert MultivariateLaplace(2) == MultivariateLaplace(2.0)
    assert repr(MultivariateLaplace(2)) == "MultivariateLaplace(epsilon=2.0)"
    assert MECHANISMS["multivariate_laplace"] is MultivariateLaplace


def test_guarantee_is_bound_to_metric_and_index(plain_space):
    space = plain_space(np.eye(3))
    guarantee = MultivariateLaplace(3).guarantee(space)
    assert (guarantee.epsilon, guarantee.delta, guarantee.basis) == (3.0, 0.0, "proved")
    assert (guarantee.metric, guarantee.index_digest) == ("euclidean", space.digest)


@pytest.mark.parametrize("n", [0, 1, 2047, 2048, 2049, 5000])
def test_every_block_size_gives_one_valid_word_for_each(plain_space, rng, n):
    space = plain_space(rng.normal(size=(40, 5)))
    ids = rng.integers(0, 40, n).astype(np.int32)
    out = MultivariateLaplace(1).bind(space).sample(ids, rng)
    assert out.dtype == np.int32 and out.shape == (n,)
    assert np.all((out >= 0) & (out < 40))


def test_little_noise_changes_nothing_and_much_noise_forgets_the_word(plain_space, rng):
    space = plain_space(rng.normal(size=(20, 3)))
    ids = np.arange(20, dtype=np.int32)
    assert np.array_equal(MultivariateLaplace(1e9).bind(space).sample(ids, rng), ids)
    draws = [MultivariateLaplace(1e-12).bind(space).sample(np.full(4000, w, np.int32), rng) for w in (0, 1)]
    table = np.array([np.bincount(d, minlength=20) for d in draws])
    assert stats.chi2_contingency(table[:, table.sum(axis=0) > 0]).pvalue > 1e-3


def test_epsilon_too_small_for_float32_vectors_is_refused():
    with pytest.raises(ArgumentError, match="epsilon must be at least 1e-12, not 1e-30"):
        MultivariateLaplace(1e-30)


def test_metric_that_the_proof_is_not_about_is_refused(plain_space):
    space = plain_space(np.eye(3), metric="poincare")
    for call in (MultivariateLaplace(1.0).guarantee, MultivariateLaplace(1.0).bind):
        with pytest.raises(ArgumentError, match="not for poincare"):
            call(space)


@pytest.mark.parametrize("dimension", [1, 2, 50, 300])
def test_queries_are_the_words_vectors_plus_fresh_noise_of_the_claimed_law(rng, dimension):
    """What is really searched for, over several blocks and a partial one: the radius, the direction, independence."""

    class Recorder:
        metric = "euclidean"
        size = 7

        def __init__(self):
            self.dimension = dimension
            self.vectors = rng.normal(size=(7, dimension)).astype(np.float32)
            self.queries = []

        def nearest(self, queries):
            self.queries.append(queries.copy())
            return np.zeros(len(queries), np.int32)

    space, n, epsilon = Recorder(), 10_007, 3.0
    ids = rng.integers(0, 7, n).astype(np.int32)
    MultivariateLaplace(epsilon).bind(space).sample(ids, rng)
    noise = np.concatenate(space.queries).astype(np.float64) - space.vectors[ids]
    radius = np.linalg.norm(noise, axis=1)
    assert stats.kstest(radius, stats.gamma(dimension, scale=1 / epsilon).cdf).pvalue > 1e-4
    unit = noise / radius[:, None]
    assert stats.chi2(dimension).sf(n * dimension * np.sum(unit.mean(axis=0) ** 2)) > 1e-4
    # No two words share a vector, neighbours in a block or words at the same place of two blocks least of all.
    assert len(np.unique(radius)) > 0.99 * n


def test_a_draw_without_direction_still_gets_noise():
    class Zeros:
        """The once-in-2^52 case of normals that are all exactly zero."""

        def standard_normal(self, shape, dtype):
            return np.zeros(shape, dtype)

        def standard_gamma(self, shape, n):
            return np.full(n, 5.0)

    noise = multivariate_laplace_noise(4, 3, 2.0, Zeros())
    assert np.array_equal(np.linalg.norm(noise, axis=1), np.full(4, 2.5, np.float32))


def test_projected_law_in_one_dimension_is_the_closed_form(plain_space, rng):
    """d = 1: the noise is a Laplace variable, and each word owns an interval between midpoints."""
    points = np.array([-2.0, -0.5, 0.0, 0.4, 3.0])
    space, epsilon, n = plain_space(points[:, None]), 1.3, 40_000
    edges = np.concatenate([[-np.inf], (points[1:] + points[:-1]) / 2, [np.inf]])
    bound = MultivariateLaplace(epsilon).bind(space)
    for word, centre in enumerate(points):
        exact = np.diff(stats.laplace(loc=centre, scale=1 / epsilon).cdf(edges))
        counts = np.bincount(bound.sample(np.full(n, word, np.int32), rng), minlength=5)
        assert stats.chisquare(counts, exact * n).pvalue > 1e-4


def test_words_of_one_batch_are_drawn_independently(plain_space, rng):
    space = plain_space(np.array([[-1.0], [1.0]]))
    pairs = MultivariateLaplace(0.5).bind(space).sample(np.zeros(40_000, np.int32), rng).reshape(-1, 2)
    table = np.array([[np.sum((pairs[:, 0] == a) & (pairs[:, 1] == b)) for b in (0, 1)] for a in (0, 1)])
    assert stats.chi2_contingency(table).pvalue > 1e-3
