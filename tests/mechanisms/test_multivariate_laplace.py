import math

import numpy as np
import pytest
from scipy import stats

from beam_dp.errors import ArgumentError
from beam_dp.mechanisms import MECHANISMS, MultivariateLaplace

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


@pytest.mark.parametrize("n", [0, 1, 511, 512, 513, 1300])
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
    for epsilon in (1e-300, 1e-30):  # radii beyond float32
        draws = [MultivariateLaplace(epsilon).bind(space).sample(np.full(4000, w, np.int32), rng) for w in (0, 1)]
        table = np.array([np.bincount(d, minlength=20) for d in draws])
        assert stats.chi2_contingency(table[:, table.sum(axis=0) > 0]).pvalue > 1e-3


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
