from __future__ import annotations

import math
from statistics import median

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from beam_dp.embeddings import neighbours as module
from beam_dp.embeddings.neighbours import count_duplicates, measure_distances, neighbours, neighbours_of, score_error


def brute_distances(vectors: np.ndarray) -> np.ndarray:
    points = vectors.astype(np.float64)
    return np.sqrt(((points[:, None] - points[None]) ** 2).sum(axis=2))


def brute_neighbours(vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    distances = brute_distances(vectors)
    own_first = distances - np.eye(len(vectors))
    ids = np.argsort(own_first, axis=1, kind="stable")[:, :k]
    return ids, np.take_along_axis(distances, ids, axis=1)


def clustered(seed: int, size: int, dimension: int) -> np.ndarray:
    """Few tight clusters far from the origin, with duplicates: float32 scores cannot order them."""
    rng = np.random.default_rng(seed)
    centres = 100 * rng.normal(size=(3, dimension))
    points = centres[rng.integers(0, 3, size)] + 1e-4 * rng.normal(size=(size, dimension))
    points[size // 2 : size // 2 + size // 10] = points[: size // 10]
    return points.astype(np.float32)


small = hnp.arrays(np.float32, st.tuples(st.integers(2, 60), st.integers(1, 3)), elements=st.integers(-3, 3).map(float))


@settings(max_examples=60)
@given(vectors=small, k=st.integers(1, 70))
def test_neighbours_equal_brute_force_with_ties_and_duplicates(vectors: np.ndarray, k: int) -> None:
    ids, distances = neighbours(vectors, k)
    expected_ids, expected = brute_neighbours(vectors, k)
    assert ids.shape == (len(vectors), min(k, len(vectors)))
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_array_equal(distances, expected.astype(np.float32))
    np.testing.assert_array_equal(ids[:, 0], np.arange(len(vectors)))


@pytest.mark.parametrize("k", [1, 5, 41])
@pytest.mark.parametrize("dimension", [1, 12, 120])
def test_neighbours_of_tight_clusters(dimension: int, k: int) -> None:
    vectors = clustered(7, 600, dimension)
    ids, distances = neighbours(vectors, k)
    exact = brute_distances(vectors)
    np.testing.assert_array_equal(ids[:, 0], np.arange(600))
    np.testing.assert_array_equal(distances, np.take_along_axis(exact, ids, axis=1).astype(np.float32))
    own_first = np.sort(exact - np.eye(600), axis=1)[:, :k]
    own_first[:, 0] = 0
    np.testing.assert_allclose(distances, own_first, rtol=1e-6)


def test_neighbours_use_groups_where_the_vocabulary_is_large(rng: np.random.Generator) -> None:
    vectors = rng.normal(size=(3000, 10)).astype(np.float32)
    ids, distances = neighbours(vectors, 20)
    expected_ids, expected = brute_neighbours(vectors, 20)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_array_equal(distances, expected.astype(np.float32))


def test_neighbours_of_some_words(rng: np.random.Generator) -> None:
    vectors = rng.normal(size=(900, 7)).astype(np.float32)
    words = np.array([5, 899, 5, 0])
    for part, whole in zip(neighbours_of(vectors, words, 6), neighbours(vectors, 6), strict=True):
        np.testing.assert_array_equal(part, whole[words])


def test_the_threshold_is_reached_by_at_least_k(rng: np.random.Generator) -> None:
    scores = rng.normal(size=(50, 4000)).astype(np.float32)
    for k in (1, 41, 60, 100):
        bound = module._kth_largest_at_least(scores, k)
        assert ((scores >= bound[:, None]).sum(axis=1) >= k).all()


@pytest.mark.parametrize("dimension", [1, 50, 300])
def test_the_error_bound_holds(dimension: int, rng: np.random.Generator) -> None:
    vectors = (30 * rng.normal(size=(700, dimension))).astype(np.float32)
    exact = vectors.astype(np.float64)
    halves = (exact**2).sum(axis=1) / 2
    scores = np.dot(vectors, vectors.T) - halves.astype(np.float32)
    lengths = np.sqrt(2 * halves)
    off = np.abs(scores - (exact @ exact.T - halves))
    bound = score_error(dimension, lengths, float(lengths.max()))
    assert (off <= bound[:, None]).all()
    assert bound.max() < 1e-3 * halves.max()


@settings(max_examples=60)
@given(vectors=small)
def test_distances_equal_brute_force(vectors: np.ndarray) -> None:
    done: list[int] = []
    found = measure_distances(vectors, done.append)
    exact = brute_distances(vectors)
    np.fill_diagonal(exact, np.inf)
    nearest = exact.min(axis=1)
    assert math.isclose(found.min_neighbour, nearest.min(), rel_tol=1e-15)
    assert math.isclose(found.median_neighbour, median(nearest.tolist()), rel_tol=1e-15)
    largest = exact[np.isfinite(exact)].max()
    assert largest <= found.diameter <= 1.001 * largest + 0.01
    assert found.duplicate_vectors == len(vectors) - len(np.unique(vectors, axis=0))
    assert sum(done) == len(vectors)


@pytest.mark.parametrize("dimension", [1, 20, 200])
@pytest.mark.parametrize("kind", ["spread", "clustered"])
def test_distances_over_many_tiles(kind: str, dimension: int, rng: np.random.Generator) -> None:
    spread = rng.normal(size=(2101, dimension)).astype(np.float32)
    vectors = spread if kind == "spread" else clustered(3, 1201, dimension)
    found = measure_distances(vectors, lambda done: None)
    nearest, largest = np.full(len(vectors), np.inf), 0.0
    for word in range(len(vectors)):
        gaps = np.sqrt(((vectors.astype(np.float64) - vectors[word].astype(np.float64)) ** 2).sum(axis=1))
        largest = max(largest, gaps.max())
        gaps[word] = np.inf
        nearest[word] = gaps.min()
    assert math.isclose(found.min_neighbour, nearest.min(), rel_tol=1e-14)
    assert math.isclose(found.median_neighbour, np.median(nearest), rel_tol=1e-14)
    assert largest <= found.diameter <= 1.001 * largest


def test_duplicates_are_counted_over_blocks() -> None:
    vectors = np.random.default_rng(1).normal(size=(2500, 3)).astype(np.float32)
    vectors[2400:] = vectors[:100]
    vectors[7] = vectors[3]
    vectors[5], vectors[9] = [0.0, 1, 2], [-0.0, 1, 2]
    assert count_duplicates(vectors) == 2500 - len(np.unique(vectors + 0, axis=0))
    assert count_duplicates(np.tile(vectors[:1], (40, 1))) == 39
    assert count_duplicates(vectors[10:2400]) == 0
