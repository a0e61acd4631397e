"""Nearest-neighbour search over the vectors of an index: exact by blocked GEMM, or approximate by Annoy.

Both are read-only after construction and safe in many threads at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
from annoy import AnnoyIndex

from beam_dp.errors import ArgumentError, IndexArtifactError, require_choice
from beam_dp.mechanisms.base import Doubles, Floats, Points, WordIds

Strategy = Literal["exact", "annoy"]
SEARCH_OPTIONS = ("auto", "exact", "annoy")

# BLAS packs a tile of the vocabulary once a product, so many queries share that cost; the scores of a tile (4 MB) are
# corrected and reduced while they are still in a cache.
QUERY_BLOCK = 2048
VOCABULARY_BLOCK = 512


class Search(Protocol):
    """Finds the vocabulary words nearest to each query."""

    def nearest(self, queries: Points) -> WordIds:
        """The ids (n,) int32 of the vectors nearest to ``queries`` (n, d)."""

    def nearest_two(self, queries: Points) -> tuple[WordIds, Doubles]:
        """The two vectors nearest to ``queries`` (n, d), the nearest first: ids int32 and distances, (n, 2) each."""


def half_squared_norms(vectors: Floats) -> Floats:
    """|v|²/2 of each row (V,) float32, summed in float64, block by block."""
    halves = np.empty(len(vectors), dtype=np.float32)
    for start in range(0, len(vectors), VOCABULARY_BLOCK):
        block = vectors[start : start + VOCABULARY_BLOCK].astype(np.float64)
        halves[start : start + len(block)] = np.einsum("ij,ij->i", block, block) / 2
    return halves


class ExactSearch:
    """The nearest vector by Euclidean distance, among all of them.

    Nearest is the largest ``q·v - |v|²/2``, so one float32 matrix product ranks a block of queries against a block
    of the vocabulary, and a running best joins the blocks: memory is bounded by the block sizes at any V. Equal
    scores go to the lower id. Scores are float32, so two words whose distances to the query agree to about
    seven digits may be told apart wrongly.

    Args:
        vectors: (V, d) float32, C-contiguous, V >= 1. Not copied: a memory map stays one.
    """

    def __init__(self, vectors: Floats) -> None:
        self._vectors = vectors
        self._halves = half_squared_norms(vectors)

    def nearest(self, queries: Points) -> WordIds:
        """The ids (n,) int32 of the vectors nearest to ``queries`` (n, d) float32; an id for any query, even NaN."""
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        ids = np.empty(len(queries), dtype=np.int32)
        scratch = self._scratch(len(queries))
        for start in range(0, len(queries), QUERY_BLOCK):
            block = slice(start, start + QUERY_BLOCK)
            ids[block] = self._nearest_of_block(queries[block], scratch)
        return ids

    def nearest_two(self, queries: Points) -> tuple[WordIds, Doubles]:
        """The two vectors nearest to ``queries`` (n, d) float32, the nearest first: (n, 2) each.

        At nearly the speed of `nearest`, since few tiles of the vocabulary hold a new first or second.

        Returns:
            ids int32, two different ones for finite queries if V >= 2; distances float64, computed from the
            differences, not from the scores.
        """
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        ids = np.empty((len(queries), 2), dtype=np.int32)
        distances = np.empty((len(queries), 2))
        scratch = self._scratch(len(queries))
        for start in range(0, len(queries), QUERY_BLOCK):
            block = slice(start, start + QUERY_BLOCK)
            ids[block] = self._two_nearest_of_block(queries[block], scratch).T
            for place in range(2):
                difference = queries[block].astype(np.float64)
                difference -= self._vectors[ids[block, place]]
                distances[block, place] = np.sqrt(np.einsum("ij,ij->i", difference, difference))
        return ids, distances

    def _scratch(self, queries: int) -> Floats:
        """Room for the scores of one tile."""
        return np.empty(min(queries, QUERY_BLOCK) * min(len(self._vectors), VOCABULARY_BLOCK), np.float32)

    def _tiles(self, queries: Floats, scratch: Floats) -> Iterator[tuple[int, Floats]]:
        """The scores of a block of queries against each block of the vocabulary, and the id that it starts at."""
        for start in range(0, len(self._vectors), VOCABULARY_BLOCK):
            part = self._vectors[start : start + VOCABULARY_BLOCK]
            scores = scratch[: len(queries) * len(part)].reshape(len(queries), len(part))
            np.dot(queries, part.T, out=scores)
            scores -= self._halves[start : start + len(part)]
            yield start, scores

    def _nearest_of_block(self, queries: Floats, scratch: Floats) -> WordIds:
        rows = np.arange(len(queries))
        best = np.full(len(queries), -np.inf, dtype=np.float32)
        ids = np.zeros(len(queries), dtype=np.int32)
        for start, scores in self._tiles(queries, scratch):
            local = scores.argmax(axis=1)
            score = scores[rows, local]
            better = score > best
            np.copyto(best, score, where=better)
            np.copyto(ids, local + start, where=better, casting="same_kind")
        return ids

    def _two_nearest_of_block(self, queries: Floats, scratch: Floats) -> WordIds:
        """The ids of the first and of the second, (2, n); equal scores go to the lower id."""
        rows = np.arange(len(queries))
        first, second = np.full((2, len(queries)), -np.inf, dtype=np.float32)
        ids = np.zeros((2, len(queries)), dtype=np.int32)
        for start, scores in self._tiles(queries, scratch):
            local = scores.argmax(axis=1)
            top = scores[rows, local]
            placed = np.flatnonzero(top > second)
            wins = top[placed] > first[placed]
            ahead, behind = placed[wins], placed[~wins]
            second[behind], ids[1, behind] = top[behind], local[behind] + start
            # Where the tile holds a new first, its runner-up may be the new second, else the old first is.
            scores[ahead, local[ahead]] = -np.inf
            runner = scores[ahead].argmax(axis=1)
            score = scores[ahead, runner]
            overtaken = score > first[ahead]
            second[ahead] = np.where(overtaken, score, first[ahead])
            ids[1, ahead] = np.where(overtaken, runner + start, ids[0, ahead])
            first[ahead], ids[0, ahead] = top[ahead], local[ahead] + start
        return ids


class AnnoySearch:
    """An approximately nearest vector by Euclidean distance, from a memory-mapped forest of random trees.

    Safe for privacy wherever the search sees only the noisy vector (post-processing); it costs utility, and how much
    is measured when the index is built and recorded in its manifest.

    Args:
        path: the forest, written by `build_forest`.
        size, dimension: V and d that it must have.
        search_k: how many candidates a query inspects; larger finds better neighbours, more slowly.

    Raises:
        IndexArtifactError: the file is not a forest of that size.
    """

    def __init__(self, path: Path, size: int, dimension: int, search_k: int) -> None:
        self.search_k = search_k
        self._forest = AnnoyIndex(dimension, "euclidean")
        try:
            self._forest.load(str(path))
        except OSError as error:
            raise IndexArtifactError(
                f"{path} cannot be read as an Annoy index: {error}; build the index again"
            ) from None
        if self._forest.get_n_items() != size:
            raise IndexArtifactError(
                f"{path} holds {self._forest.get_n_items()} vectors, the manifest says {size}; build the index again"
            )

    def nearest(self, queries: Points) -> WordIds:
        """The ids (n,) int32 of vectors near ``queries`` (n, d) float32."""
        find, search_k = self._forest.get_nns_by_vector, self.search_k
        rows = np.asarray(queries, dtype=np.float32).tolist()  # Annoy has no call for a batch
        return np.fromiter((find(row, 1, search_k)[0] for row in rows), dtype=np.int32, count=len(rows))

    def nearest_two(self, queries: Points) -> tuple[WordIds, Doubles]:
        """Two different vectors near ``queries`` (n, d) float32, the nearer first, if V >= 2: (n, 2) each.

        Returns:
            ids int32 and distances float64.
        """
        rows = np.asarray(queries, dtype=np.float32).tolist()
        found = [self._two(row) for row in rows]
        ids = np.array([ids for ids, _ in found], dtype=np.int32).reshape(-1, 2)
        return ids, np.array([distances for _, distances in found], dtype=np.float64).reshape(-1, 2)

    def _two(self, row: list[float]) -> tuple[list[int], list[float]]:
        """Ids and distances of the two nearest that the search finds; with a small search_k it may find one alone."""
        ids, distances = self._forest.get_nns_by_vector(row, 2, self.search_k, include_distances=True)
        if len(ids) < 2:
            every = self._forest.get_n_items() * self._forest.get_n_trees()
            ids, distances = self._forest.get_nns_by_vector(row, 2, every, include_distances=True)
        return ids, distances


def build_forest(vectors: Floats, path: Path, trees: int, progress: Callable[[int], object]) -> None:
    """Writes the Annoy forest of ``vectors`` (V, d) to ``path``: built on disk, by one thread, from a fixed seed.

    So the same vectors give the same bytes, and memory stays in the page cache. ``progress`` is called with the number
    of vectors added since the last call.
    """
    forest = AnnoyIndex(vectors.shape[1], "euclidean")
    forest.on_disk_build(str(path))
    forest.set_seed(0)
    for start in range(0, len(vectors), VOCABULARY_BLOCK):
        rows = vectors[start : start + VOCABULARY_BLOCK].tolist()
        for item, row in enumerate(rows, start):
            forest.add_item(item, row)
        progress(len(rows))
    forest.build(trees, n_jobs=1)
    forest.unload()


def forest_bytes(size: int, dimension: int, trees: int) -> int:
    """An upper bound of the room that `build_forest` needs while it runs.

    A node holds a vector and 16 bytes; a tree has under 4V/(d + 2) nodes, as a leaf holds up to d + 2 words and is on
    average more than half full; Annoy grows its file by factors of 1.3.
    """
    return math.ceil(1.3 * (size + trees * (4 * size / (dimension + 2) + 1)) * (16 + 4 * dimension))


# Up to so many words `auto` is exact. Measured by `python -m benchmarks.search` on one core (AMD EPYC, OpenBLAS):
# queries per CPU second of exact search over those of Annoy with 50 trees at recall@1 0.9, for noise along a line of
# half the median neighbour distance.
#   d=50:  10.5 at 20,000 words, 7.2 at 100,000, 4.0 at 400,000 (GloVe 6B), 1.2 at 1,600,000 (synthetic)
#   d=300: above 8 at 33,849 (GloVe 840B), 9.2 at 100,000, 5.6 at 400,000 (synthetic)
# Extrapolated from there, they meet at about two million words. At recall@1 0.5 they meet between 20,000 and
# 400,000: who is content with that asks for annoy.
EXACT_UP_TO = 2_000_000


def resolve_strategy(search: str, size: int, metric: str = "euclidean") -> Strategy:
    """The strategy that ``search`` (auto, exact or annoy) means for a vocabulary of ``size`` words.

    Raises:
        ArgumentError: ``search`` is none of the three, or annoy for a metric other than the euclidean one.
    """
    require_choice("search", search, SEARCH_OPTIONS)
    if metric != "euclidean":
        if search == "annoy":
            raise ArgumentError(f"search must be exact or auto for an index with the {metric} metric, not annoy")
        return "exact"
    if search == "auto":
        return "exact" if size <= EXACT_UP_TO else "annoy"
    return search  # type: ignore[return-value]


def require_queries(queries: npt.NDArray, dimension: int) -> None:
    """ArgumentError unless ``queries`` has the shape (n, ``dimension``)."""
    if queries.ndim != 2 or queries.shape[1] != dimension:
        raise ArgumentError(f"queries must have the shape (n, {dimension}), not {queries.shape}")
