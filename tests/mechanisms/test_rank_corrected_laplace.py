import math

import numpy as np
import pytest
from projections import Recorder, distances_from, fit_pvalue, independence_pvalue, line_law, matrix_pvalue, noise_grid
from scipy import stats

from beam_dp.errors import ArgumentError
from beam_dp.mechanisms import MECHANISMS, RankCorrectedLaplace, rank_corrected_laplace
from beam_dp.mechanisms.multivariate_laplace import multivariate_laplace_noise, noisy_blocks
from beam_dp.mechanisms.rank_corrected_laplace import BoundRankCorrectedLaplace, rank_law

SIGNIFICANCE = 1e-4
LINE = np.array([-2.0, 0.4, -0.5, 3.0, 0.0, 0.7, -4.0])
EPSILON, DECAY = 1.3, 0.3


def resampling_law(distances, decay, ranks):
    """P[x*, x] of the second draw, (V, V): by the formula of the paper, its ranks cut."""
    rank = np.argsort(np.argsort(distances, axis=1, kind="stable"), axis=1)
    law = np.where(rank < ranks, np.exp(-decay * rank), 0.0)
    return law / law.sum(axis=1, keepdims=True)


def exact_line_law(ranks):
    distances = np.abs(LINE[:, None] - LINE[None])
    return line_law(LINE, EPSILON) @ resampling_law(distances, DECAY * EPSILON, ranks)


@pytest.mark.parametrize("epsilon", [0, -1, math.nan, math.inf, "1", True, None])
def test_epsilon_that_is_no_positive_finite_number_is_refused(epsilon):
    with pytest.raises(ArgumentError, match="epsilon must be a finite number above 0, not "):
        RankCorrectedLaplace(epsilon)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"rank_decay": 0}, "rank_decay must be a finite number above 0, not zero"),
        ({"rank_decay": math.inf}, "rank_decay must be a finite number above 0, not infinite"),
        ({"neighbours": 1}, "neighbours must be at least 2, not 1"),
        ({"neighbours": 1001}, "neighbours must be at most 1000, not 1001"),
        ({"neighbours": 2.5}, "neighbours must be a whole number"),
    ],
)
def test_other_parameters_out_of_range_are_refused(parameters, message):
    with pytest.raises(ArgumentError, match=message):
        RankCorrectedLaplace(1.0, **parameters)


def test_is_a_value_with_a_name():
    assert RankCorrectedLaplace(2) == RankCorrectedLaplace(2.0, rank_decay=0.04, neighbours=100)
    assert repr(RankCorrectedLaplace(2, 1, 9)) == "RankCorrectedLaplace(epsilon=2.0, rank_decay=1.0, neighbours=9)"
    assert MECHANISMS["rank_corrected_laplace"] is RankCorrectedLaplace


def test_guarantee_is_that_of_multivariate_laplace(plain_space):
    space = plain_space(np.eye(3))
    guarantee = RankCorrectedLaplace(3).guarantee(space)
    assert (guarantee.epsilon, guarantee.delta, guarantee.basis) == (3.0, 0.0, "proved")
    assert (guarantee.metric, guarantee.index_digest) == ("euclidean", space.digest)
    for call in (RankCorrectedLaplace(1.0).guarantee, RankCorrectedLaplace(1.0).bind):
        with pytest.raises(ArgumentError, match="not for poincare"):
            call(plain_space(np.eye(3), metric="poincare"))


@pytest.mark.parametrize("decay", [1e-9, 0.4, 5.0, 1e300, math.inf])
def test_rank_law_falls_by_the_same_factor_at_each_rank(decay):
    law = rank_law(30, decay)
    assert law.sum() == pytest.approx(1)
    np.testing.assert_allclose(law[1:], law[:-1] * math.exp(-min(decay, 700)), atol=1e-300)
    assert law[0] >= 1 / 30


@pytest.mark.parametrize("ranks", [2, 4, 7, 50])
def test_law_on_the_line_is_the_projection_and_then_the_draw_by_rank(plain_space, rng, ranks):
    bound = RankCorrectedLaplace(EPSILON, DECAY, ranks).bind(plain_space(LINE[:, None]))
    assert matrix_pvalue(bound, exact_line_law(ranks), range(7), 40_000, rng) > SIGNIFICANCE


@pytest.mark.parametrize("size", [3, 40])
def test_law_in_the_plane_is_the_projection_and_then_the_draw_by_rank(plain_space, rng, size):
    space = plain_space(rng.normal(size=(size, 2)) * [3, 0.5])
    points = noise_grid(2, 2.0, 300)
    nearest = [distances_from(space.vectors, points + v).argmin(axis=1) for v in space.vectors[:3]]
    projected = np.array([np.bincount(ids, minlength=size) for ids in nearest]) / len(points)
    law = np.zeros((size, size))
    law[:3] = projected @ resampling_law(space.distances, 0.1 * 2.0, 20)
    assert matrix_pvalue(RankCorrectedLaplace(2.0, 0.1, 20).bind(space), law, range(3), 20_000, rng) > SIGNIFICANCE


def test_ranks_around_the_projected_word_in_ten_dimensions(plain_space, rng):
    """300 words: whatever word was projected to, the rank of the output around it has the law of the paper."""
    space = plain_space(rng.normal(size=(300, 10)))
    projected = []
    search = space.nearest
    space.nearest = lambda queries: projected.append(search(queries)) or projected[-1]
    ids = rng.integers(0, 300, 20_000).astype(np.int32)
    out = RankCorrectedLaplace(2.0, 0.05, 60).bind(space).sample(ids, rng)
    pivots = np.concatenate(projected)
    rank = np.argsort(np.argsort(space.distances - np.eye(300), axis=1, kind="stable"), axis=1)
    law = np.exp(-0.1 * np.arange(60)) / np.exp(-0.1 * np.arange(60)).sum()
    assert fit_pvalue(np.bincount(rank[pivots, out], minlength=60), law) > SIGNIFICANCE
    assert fit_pvalue(np.bincount(np.minimum(rank[ids, out], 59), minlength=60), law) < SIGNIFICANCE


def test_exact_law_keeps_its_claim_between_all_words():
    law = exact_line_law(4)
    allowed = np.exp(EPSILON * np.abs(LINE[:, None] - LINE[None]))
    assert (law[:, None, :] <= allowed[:, :, None] * law[None, :, :] * (1 + 1e-9)).all()


@pytest.mark.parametrize("dimension", [1, 2, 10])
def test_what_is_searched_for_is_the_words_vector_plus_noise_of_the_claimed_law(rng, dimension):
    space, epsilon = Recorder(rng.normal(size=(7, dimension))), 3.0
    noise = space.noise_of(RankCorrectedLaplace(epsilon), rng.integers(0, 7, 3000).astype(np.int32), rng)
    radius = np.linalg.norm(noise, axis=1)
    assert stats.kstest(radius, stats.gamma(dimension, scale=1 / epsilon).cdf).pvalue > SIGNIFICANCE
    assert len(np.unique(radius)) > 0.99 * len(radius)


def ranks_of_the_true_word(self, ids, rng):
    """The planted bug that looks at the word again after the noise; it also never searches."""
    draws = np.searchsorted(self._thresholds, rng.random(len(ids)), side="right")
    return self._ranked[ids, draws]


def ranks_of_the_true_word_where_it_is_near(self, ids, rng):
    """The same, hidden better: only where the projection is already one of the word's own neighbours."""
    out = np.empty(len(ids), np.int32)

    def noise(n):
        return multivariate_laplace_noise(n, self._space.dimension, self._epsilon, rng)

    for block, noisy in noisy_blocks(ids, self._space.vectors, noise):
        projected, own = self._space.nearest(noisy), ids[block]
        near = (self._ranked[own, :2] == projected[:, None]).any(axis=1)
        draws = np.searchsorted(self._thresholds, rng.random(len(own)), side="right")
        out[block] = self._ranked[np.where(near, own, projected), draws]
    return out


@pytest.mark.parametrize("bug", [ranks_of_the_true_word, ranks_of_the_true_word_where_it_is_near])
def test_planted_rank_table_of_the_true_word_is_found(monkeypatch, plain_space, rng, bug):
    monkeypatch.setattr(BoundRankCorrectedLaplace, "sample", bug)
    bound = RankCorrectedLaplace(EPSILON, DECAY, 4).bind(plain_space(LINE[:, None]))
    assert matrix_pvalue(bound, exact_line_law(4), range(7), 40_000, rng) < SIGNIFICANCE


def too_small(n, dimension, epsilon, rng):
    return multivariate_laplace_noise(n, dimension, epsilon / 0.8, rng)


def shared_by_a_batch(n, dimension, epsilon, rng):
    return np.repeat(multivariate_laplace_noise(1, dimension, epsilon, rng), n, axis=0)


@pytest.mark.parametrize(
    ("name", "bug"),
    [
        ("multivariate_laplace_noise", too_small),
        ("rank_law", lambda ranks, decay: np.full(ranks, 1 / ranks)),
        ("rank_law", lambda ranks, decay: rank_law(ranks, decay / EPSILON)),
        ("rank_law", lambda ranks, decay: np.roll(rank_law(ranks, decay), 1)),
    ],
    ids=["too_small", "uniform", "epsilon_left_out", "itself_left_out"],
)
def test_planted_bugs_do_not_fit_the_law(monkeypatch, plain_space, rng, name, bug):
    monkeypatch.setattr(rank_corrected_laplace, name, bug)
    bound = RankCorrectedLaplace(EPSILON, DECAY, 4).bind(plain_space(LINE[:, None]))
    assert matrix_pvalue(bound, exact_line_law(4), range(7), 40_000, rng) < SIGNIFICANCE


def test_words_of_one_batch_are_drawn_independently(monkeypatch, plain_space, rng):
    bound = RankCorrectedLaplace(0.5, 1.0).bind(plain_space(LINE[:, None]))
    assert independence_pvalue(bound, 1, 20_000, rng) > SIGNIFICANCE
    monkeypatch.setattr(rank_corrected_laplace, "multivariate_laplace_noise", shared_by_a_batch)
    assert independence_pvalue(bound, 1, 20_000, rng) < SIGNIFICANCE


@pytest.mark.parametrize("n", [0, 1, 2049])
def test_every_block_size_gives_one_valid_word_for_each(plain_space, rng, n):
    space = plain_space(rng.normal(size=(300, 10)))
    out = RankCorrectedLaplace(1).bind(space).sample(rng.integers(0, 300, n).astype(np.int32), rng)
    assert out.dtype == np.int32 and out.shape == (n,)
    assert np.all((out >= 0) & (out < 300))


def test_little_noise_and_a_steep_decay_change_nothing(plain_space, rng):
    space = plain_space(rng.normal(size=(300, 10)))
    ids = np.arange(300, dtype=np.int32)
    assert np.array_equal(RankCorrectedLaplace(1e9).bind(space).sample(ids, rng), ids)
