from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from brute_force import squared_distances, whole_numbers
from hypothesis import given

from beam_dp.embeddings import search
from beam_dp.embeddings.search import AnnoySearch, ExactSearch, build_forest, forest_bytes, resolve_strategy
from beam_dp.errors import ArgumentError, IndexArtifactError


@pytest.mark.parametrize(("query_block", "vocabulary_block"), [(512, 1024), (3, 7), (1, 1)])
@given(case=whole_numbers())
def test_exact_equals_brute_force_and_ties_go_to_the_lower_id(
    query_block: int, vocabulary_block: int, case: tuple[np.ndarray, np.ndarray]
) -> None:
    vectors, queries = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "QUERY_BLOCK", query_block)
        patch.setattr(search, "VOCABULARY_BLOCK", vocabulary_block)
        found = ExactSearch(vectors).nearest(queries)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, squared_distances(queries, vectors).argmin(axis=1))


@pytest.mark.parametrize("dimension", [1, 50, 300])
def test_exact_on_real_numbers(dimension: int, rng: np.random.Generator) -> None:
    vectors = rng.normal(size=(2500, dimension)).astype(np.float32)
    queries = rng.normal(size=(700, dimension)).astype(np.float32)
    found = ExactSearch(vectors).nearest(queries)
    squares = squared_distances(queries[:100], vectors)
    best = squares.min(axis=1)
    # float32 scores tell distances apart to about seven digits of the squared lengths.
    slack = 4e-7 * dimension + 1e-5
    assert (squares[np.arange(100), found[:100]] <= best + slack).all()
    if dimension > 1:  # on a line, neighbours are closer than float32 scores can tell
        np.testing.assert_array_equal(ExactSearch(vectors).nearest(vectors), np.arange(2500))


def test_exact_takes_any_query_and_no_query() -> None:
    vectors = np.eye(5, dtype=np.float32)
    exact = ExactSearch(vectors)
    assert exact.nearest(np.empty((0, 5), np.float32)).shape == (0,)
    odd = np.array([[np.nan] * 5, [np.inf] * 5, [1e30] * 5, [3e38, 0, 0, 0, 0]], dtype=np.float32)
    with np.errstate(invalid="ignore"):
        found = exact.nearest(odd)
    assert ((found >= 0) & (found < 5)).all()
    assert found[3] == 0


def test_exact_does_not_copy_or_write_the_vectors(tmp_path: Path, rng: np.random.Generator) -> None:
    np.save(tmp_path / "v.npy", rng.normal(size=(3000, 20)).astype(np.float32))
    mapped = np.load(tmp_path / "v.npy", mmap_mode="r")
    exact = ExactSearch(mapped)
    exact.nearest(mapped[:600])
    assert exact._vectors is mapped


def test_exact_in_many_threads(rng: np.random.Generator) -> None:
    exact = ExactSearch(rng.normal(size=(1500, 10)).astype(np.float32))
    queries = rng.normal(size=(8, 600, 10)).astype(np.float32)
    expected = [exact.nearest(block) for block in queries]
    found: list[np.ndarray] = [np.empty(0)] * 8

    def run(at: int) -> None:
        found[at] = exact.nearest(queries[at])

    threads = [threading.Thread(target=run, args=(at,)) for at in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(found, expected)


def test_annoy_gives_valid_ids_and_finds_most_with_a_large_search_k(tmp_path: Path, rng: np.random.Generator) -> None:
    vectors = rng.normal(size=(1000, 8)).astype(np.float32)
    added: list[int] = []
    build_forest(vectors, tmp_path / "index.ann", 5, added.append)
    assert sum(added) == 1000
    queries = rng.normal(size=(300, 8)).astype(np.float32)
    exact = ExactSearch(vectors).nearest(queries)
    recall = {}
    for search_k in (1, 5000):
        found = AnnoySearch(tmp_path / "index.ann", 1000, 8, search_k).nearest(queries)
        assert found.dtype == np.int32
        assert ((found >= 0) & (found < 1000)).all()
        recall[search_k] = (found == exact).mean()
    assert recall[5000] == 1.0
    assert recall[1] < 0.9
    assert AnnoySearch(tmp_path / "index.ann", 1000, 8, 10).nearest(queries[:0]).shape == (0,)


def test_annoy_forest_is_deterministic_and_within_its_bound(tmp_path: Path, rng: np.random.Generator) -> None:
    for size, dimension, trees in ((2000, 1, 3), (2000, 3, 9), (2, 5, 50), (3000, 40, 20)):
        vectors = rng.normal(size=(size, dimension)).astype(np.float32)
        vectors[size // 2 :] = vectors[: size - size // 2]
        for name in ("one", "two"):
            build_forest(vectors, tmp_path / name, trees, lambda done: None)
        content = (tmp_path / "one").read_bytes()
        assert content == (tmp_path / "two").read_bytes()
        assert len(content) <= forest_bytes(size, dimension, trees)


def test_annoy_refuses_a_file_of_another_size(tmp_path: Path, rng: np.random.Generator) -> None:
    build_forest(rng.normal(size=(50, 4)).astype(np.float32), tmp_path / "index.ann", 2, lambda done: None)
    with pytest.raises(IndexArtifactError, match="holds 50 vectors, the manifest says 60"):
        AnnoySearch(tmp_path / "index.ann", 60, 4, 10)
    with pytest.raises(IndexArtifactError, match="cannot be read as an Annoy index"):
        AnnoySearch(tmp_path / "index.ann", 50, 7, 10)
    with pytest.raises(IndexArtifactError, match="cannot be read as an Annoy index"):
        AnnoySearch(tmp_path / "none.ann", 50, 4, 10)


def test_auto_is_exact_until_the_vocabulary_outgrows_it() -> None:
    assert resolve_strategy("auto", 20_000) == "exact"
    assert resolve_strategy("auto", search.EXACT_UP_TO) == "exact"
    assert resolve_strategy("auto", search.EXACT_UP_TO + 1) == "annoy"
    assert resolve_strategy("exact", 10**9) == "exact"
    assert resolve_strategy("annoy", 2) == "annoy"
    with pytest.raises(ArgumentError, match="search must be one of auto, exact, annoy"):
        resolve_strategy("faiss", 2)
