"""The first and second nearest vector: exact against brute force, ties included, and by Annoy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from annoy import AnnoyIndex
from brute_force import squared_distances, whole_numbers
from hypothesis import given

from beam_dp.embeddings import open_index, resolve_index, search
from beam_dp.embeddings.search import AnnoySearch, ExactSearch, build_forest
from beam_dp.errors import ArgumentError


@pytest.mark.parametrize(("query_block", "vocabulary_block"), [(512, 1024), (3, 7), (1, 1)])
@given(case=whole_numbers(least=2))
def test_exact_equals_brute_force_and_ties_go_to_the_lower_id(
    query_block: int, vocabulary_block: int, case: tuple[np.ndarray, np.ndarray]
) -> None:
    vectors, queries = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "QUERY_BLOCK", query_block)
        patch.setattr(search, "VOCABULARY_BLOCK", vocabulary_block)
        ids, distances = ExactSearch(vectors).nearest_two(queries)
    squares = squared_distances(queries, vectors)
    expected = np.argsort(squares, axis=1, kind="stable")[:, :2]
    assert (ids.dtype, distances.dtype) == (np.int32, np.float64)
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_allclose(distances, np.sqrt(np.take_along_axis(squares, expected, axis=1)), atol=1e-12)


@pytest.mark.parametrize("dimension", [2, 50, 300])
def test_exact_on_real_numbers_over_many_tiles(dimension: int, rng: np.random.Generator) -> None:
    vectors = rng.normal(size=(2500, dimension)).astype(np.float32)
    queries = rng.normal(size=(700, dimension)).astype(np.float32)
    exact = ExactSearch(vectors)
    ids, distances = exact.nearest_two(queries)
    np.testing.assert_array_equal(ids[:, 0], exact.nearest(queries))
    squares = squared_distances(queries[:100], vectors)
    best = np.sort(squares, axis=1)[:, :2]
    # float32 scores tell distances apart to about seven digits of the squared lengths.
    slack = 4e-7 * dimension + 1e-5
    assert (np.take_along_axis(squares, ids[:100].astype(np.intp), axis=1) <= best + slack).all()
    np.testing.assert_allclose(distances[:100] ** 2, best, atol=slack)
    assert (ids[:, 0] != ids[:, 1]).all()


def test_exact_takes_any_query_and_no_query() -> None:
    exact = ExactSearch(np.eye(5, dtype=np.float32))
    ids, distances = exact.nearest_two(np.empty((0, 5), np.float32))
    assert ids.shape == distances.shape == (0, 2)
    odd = np.array([[np.nan] * 5, [np.inf] * 5, [1e30] * 5, [3e38, 0, 0, 0, 0]], dtype=np.float32)
    with np.errstate(invalid="ignore"):
        ids, _ = exact.nearest_two(odd)
    assert ((ids >= 0) & (ids < 5)).all()
    assert ids[3, 0] == 0


@pytest.mark.parametrize("search_k", [1, 5000])
def test_annoy_gives_two_different_words_in_order(tmp_path: Path, rng: np.random.Generator, search_k: int) -> None:
    vectors = rng.normal(size=(1000, 8)).astype(np.float32)
    build_forest(vectors, tmp_path / "index.ann", 5, lambda done: None)
    queries = rng.normal(size=(300, 8)).astype(np.float32)
    annoy = AnnoySearch(tmp_path / "index.ann", 1000, 8, search_k)
    ids, distances = annoy.nearest_two(queries)
    assert (ids.dtype, distances.dtype) == (np.int32, np.float64)
    assert ((ids >= 0) & (ids < 1000)).all() and (ids[:, 0] != ids[:, 1]).all()
    assert (distances[:, 0] <= distances[:, 1]).all()
    own = np.sqrt(np.take_along_axis(squared_distances(queries, vectors), ids.astype(np.intp), axis=1))
    np.testing.assert_allclose(distances, own, rtol=1e-4)
    recall = (ids == ExactSearch(vectors).nearest_two(queries)[0]).mean()
    assert recall == 1.0 if search_k == 5000 else recall < 0.9
    assert annoy.nearest_two(queries[:0])[0].shape == (0, 2)


def test_annoy_finds_two_words_where_its_first_leaf_holds_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(20, 1)).astype(np.float32)
    build_forest(vectors, tmp_path / "index.ann", 1, lambda done: None)
    forest = AnnoyIndex(1, "euclidean")
    forest.load(str(tmp_path / "index.ann"))
    queries = rng.normal(size=(300, 1)).astype(np.float32)
    alone = np.array([len(forest.get_nns_by_vector(query.tolist(), 2, 1)) == 1 for query in queries])
    assert alone.any() and not alone.all()
    ids, distances = AnnoySearch(tmp_path / "index.ann", 20, 1, 1).nearest_two(queries)
    assert (ids[:, 0] != ids[:, 1]).all()
    np.testing.assert_array_equal(ids[alone], ExactSearch(vectors).nearest_two(queries[alone])[0])
    own = np.abs(vectors[ids, 0] - queries)
    np.testing.assert_allclose(distances, own, atol=1e-6)


@pytest.mark.parametrize("strategy", ["exact", "annoy"])
def test_an_index_searches_by_its_strategy_and_refuses_other_shapes(strategy: str) -> None:
    index = open_index(resolve_index(), strategy)
    ids, distances = index.nearest_two(index.vectors[:5])
    np.testing.assert_array_equal(ids[:, 0], np.arange(5))
    np.testing.assert_allclose(distances[:, 0], 0, atol=1e-3)
    with pytest.raises(ArgumentError, match=r"queries must have the shape \(n, 50\)"):
        index.nearest_two(np.zeros((2, 49), np.float32))
