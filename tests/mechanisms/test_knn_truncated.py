import math

import numpy as np
import pytest
from finite_laws import REJECTION, SIGNIFICANCE, VOCABULARIES, slow_distance, with_index_distances, worst_fit

from beam_dp.errors import ArgumentError
from beam_dp.mechanisms import MECHANISMS, FiniteLaw, KnnTruncated

EPSILON = 2.5


def slow_knn_law(space, word, epsilon, neighbours, half=0.5):
    """The word and its nearest others, equal distances by id, with their weights: (V,)."""
    distances = [slow_distance(space, word, y) for y in range(space.size)]
    order = sorted(range(space.size), key=lambda y: (y != word, distances[y], y))[:neighbours]
    law = np.zeros(space.size)
    law[order] = [math.exp(-half * epsilon * distances[y]) for y in order]
    return law / math.fsum(law)


@pytest.mark.parametrize("epsilon", [0, math.nan, "1", 1e-13])
def test_epsilon_out_of_range_is_refused(epsilon):
    with pytest.raises(ArgumentError, match="epsilon must be"):
        KnnTruncated(epsilon)


@pytest.mark.parametrize("neighbours", [1, 257, 2.5, True])
def test_number_of_neighbours_is_checked(neighbours):
    with pytest.raises(ArgumentError, match="neighbours"):
        KnnTruncated(1.0, neighbours)


def test_is_a_value_with_a_name():
    assert repr(KnnTruncated(2, 3)) == "KnnTruncated(epsilon=2.0, neighbours=3)"
    assert MECHANISMS["knn_truncated"] is KnnTruncated


def test_metric_that_delta_is_not_computed_in_is_refused(plain_space):
    space = plain_space(np.eye(3), metric="poincare")
    for call in (KnnTruncated(1.0).guarantee, KnnTruncated(1.0).bind):
        with pytest.raises(ArgumentError, match="not for poincare"):
            call(space)


@pytest.mark.parametrize("neighbours", [2, 7, 256])
@pytest.mark.parametrize("vocabulary", [name for name in VOCABULARIES if name != "equal vectors"])
def test_law_is_the_formula_to_nine_digits_and_draws_follow_it(plain_space, rng, vocabulary, neighbours):
    """Nine: distances of neighbour tables are float32, and alias tables count in units of 2^-33 or less."""
    space = with_index_distances(plain_space(VOCABULARIES[vocabulary]))
    bound = KnnTruncated(EPSILON, neighbours).bind(space)
    assert isinstance(bound, FiniteLaw)
    words = sorted({0, space.size // 2, space.size - 1})
    rows = bound.law_rows(np.array(words, np.int32))
    for word, row in zip(words, rows, strict=True):
        tolerance = 1e-9 + EPSILON * 2.0**-24 * space.diameter
        assert np.abs(row - slow_knn_law(space, word, EPSILON, neighbours)).max() < tolerance
        assert row.sum() == pytest.approx(1, abs=1e-12)
    law = dict(zip(words, rows, strict=True))
    assert worst_fit(bound, law, words, 50_000, rng) > SIGNIFICANCE


def test_planted_bugs_do_not_fit(plain_space, rng):
    space = with_index_distances(plain_space(VOCABULARIES["17 words, d=2"]))
    bound = KnnTruncated(EPSILON, 6).bind(space)
    dropped = {word: slow_knn_law(space, word, EPSILON, 6, half=1) for word in (0, 8)}
    fewer = {word: slow_knn_law(space, word, EPSILON, 5) for word in (0, 8)}
    more = {word: slow_knn_law(space, word, EPSILON, 7) for word in (0, 8)}
    for law in (dropped, fewer, more):
        assert worst_fit(bound, law, (0, 8), 100_000, rng) < REJECTION


def exact_delta(space, epsilon, neighbours):
    """The definition, over the dense matrix of the formula."""
    matrix = np.array([slow_knn_law(space, word, epsilon, neighbours) for word in range(space.size)])
    factor = np.exp(epsilon * space.distances)
    return max(
        np.maximum(matrix[w] - factor[w, v] * matrix[v], 0).sum() for w in range(space.size) for v in range(space.size)
    )


def test_all_words_as_candidates_are_the_exponential_mechanism_and_cost_no_delta(plain_space):
    space = plain_space(VOCABULARIES["17 words, d=2"])
    guarantee = KnnTruncated(EPSILON, 17).guarantee(space)
    assert (guarantee.epsilon, guarantee.basis, guarantee.metric) == (EPSILON, "computed", "euclidean")
    assert guarantee.delta == 0


def test_reasons_for_no_claim_are_a_large_delta_or_disjoint_candidates(plain_space):
    """Words on the corners of a simplex but one, which lies apart and is nobody's sixth neighbour; then two pairs."""
    points = np.vstack([np.eye(6), np.full((1, 6), 3.0)])
    space = plain_space(points)
    epsilon = 2.0
    delta = exact_delta(space, epsilon, 6)
    guarantee = KnnTruncated(epsilon, 6).guarantee(space)
    assert delta > 0.01 and guarantee.epsilon is None and f"is {delta:.3g}, above 0.01" in guarantee.reason
    twins = plain_space(np.vstack([np.eye(6), np.eye(6)[:1] + 20.0, np.eye(6)[:1] + 20.0]))
    assert "nothing in common" in KnnTruncated(epsilon, 2).guarantee(twins).reason


def test_small_delta_is_claimed(plain_space, rng):
    """One of 151 words is left out, at an epsilon so small that each of them is one output among many."""
    space = plain_space(rng.normal(size=(151, 2)))
    epsilon = 0.01
    delta = exact_delta(space, epsilon, 150)
    guarantee = KnnTruncated(epsilon, 150).guarantee(space)
    assert 0.005 < delta < 0.01
    assert (guarantee.epsilon, guarantee.basis) == (epsilon, "computed")
    assert guarantee.delta == pytest.approx(delta, rel=1e-5)


def test_real_vocabularies_get_no_finite_claim(plain_space, rng):
    space = plain_space(VOCABULARIES["300 words, d=2"])
    guarantee = KnnTruncated(EPSILON, 40).guarantee(space)
    assert guarantee.epsilon is None and guarantee.basis == "none" and "nothing in common" in guarantee.reason


def test_tables_are_kept_under_their_parameters(plain_space):
    space = plain_space(VOCABULARIES["17 words, d=2"])
    digests = {KnnTruncated(epsilon, k).bind(space).law_digest() for epsilon in (1.0, 2.0) for k in (3, 4)}
    assert len(set(space.computed)) == len(digests) == 4
    assert KnnTruncated(1.0, 3).bind(space).law_digest() in digests
