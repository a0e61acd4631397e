"""Distances of words to all words: bounds that hold, and figures that are exact to float64."""

import math

import numpy as np
import pytest

from beam_dp import open_index, resolve_index
from beam_dp.embeddings.neighbours import DistanceBounds, pair_distances


def slow_distances(vectors, word):
    """|x - y| of one word to all, summed without rounding."""
    own = vectors[word].tolist()
    return np.array(
        [math.sqrt(math.fsum((a - b) ** 2 for a, b in zip(own, row, strict=True))) for row in vectors.tolist()]
    )


def vocabulary(kind, rng):
    points = rng.normal(size=(200, 60))
    if kind == "far from 0":
        points = 300 + points * 0.2
    elif kind == "of very different length":
        points *= np.geomspace(1e-3, 1e3, 200)[:, None]
    elif kind == "equal vectors":
        points[100:] = points[:100]
    elif kind == "one dimension":
        points = points[:, :1]
    elif kind == "tiny":
        points *= 1e-30
    return points.astype(np.float32)


KINDS = ["plain", "far from 0", "of very different length", "equal vectors", "one dimension", "tiny"]


@pytest.mark.parametrize("kind", KINDS)
def test_bounds_hold_for_all_pairs_and_are_zero_from_a_word_to_itself(rng, kind):
    vectors = vocabulary(kind, rng)
    words = np.array([0, 3, 99, 100, 199, 3])
    low, high = DistanceBounds(vectors).of(words)
    assert low.dtype == high.dtype == np.float32 and low.shape == high.shape == (6, 200)
    for row, word in enumerate(words):
        exact = slow_distances(vectors, word)
        assert np.all(low[row] <= exact) and np.all(exact <= high[row])
        assert low[row, word] == high[row, word] == 0


def test_bounds_of_words_far_apart_are_close(rng):
    vectors = vocabulary("plain", rng)
    low, high = DistanceBounds(vectors).of(np.arange(100))
    apart = low > 5
    assert apart.mean() > 0.9
    assert np.max((high - low)[apart]) < 1e-3


def test_bounds_without_their_error_do_not_hold(rng):
    """A planted bug: float32 distances taken as they are."""
    vectors = vocabulary("far from 0", rng)
    bounds = DistanceBounds(vectors)
    bounds._error[:] = 0
    low, high = bounds.of(np.array([150]))
    exact = slow_distances(vectors, 150)
    assert np.any(low[0] > exact) or np.any(high[0] < exact)


def test_more_words_than_one_block_are_bounded_alike(rng):
    """Several passes of rows that stay in a cache."""
    vectors = rng.normal(size=(3000, 3)).astype(np.float32)
    words = rng.integers(0, 3000, 200)
    low, high = DistanceBounds(vectors).of(words)
    exact = np.linalg.norm(vectors[words].astype(float)[:, None] - vectors.astype(float)[None], axis=2)
    assert np.all(low <= exact * (1 + 1e-15)) and np.all(exact <= high * (1 + 1e-15))


@pytest.mark.parametrize("kind", KINDS)
def test_pair_distances_are_exact_to_float64(rng, kind):
    vectors = vocabulary(kind, rng)
    every = np.arange(200)
    exact = slow_distances(vectors, 7)
    assert pair_distances(vectors, np.full(200, 7), every) == pytest.approx(exact, rel=1e-14, abs=0)


def test_the_index_gives_all_three_in_its_own_vectors():
    index = open_index(resolve_index())
    ids = np.array([0, 19_999, 512], np.int32)
    low, high = index.distance_bounds(ids)
    exact = index.exact_distances(ids)
    assert exact.shape == (3, index.size) and exact.dtype == np.float64
    assert np.all(low <= exact) and np.all(exact <= high) and np.max(high - low) < 0.05
    assert low[1, 19_999] == high[1, 19_999] == exact[1, 19_999] == 0
    right = np.arange(0, index.size, 7)
    pairs = index.pair_distances(np.full(len(right), 512), right)
    assert pairs == pytest.approx(exact[2, right], rel=1e-14, abs=0)
    assert exact[0, 512] == pytest.approx(slow_distances(index.vectors[[0, 512]], 0)[1], rel=1e-14)
