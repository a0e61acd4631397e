"""Exact distances and the exact nearest-neighbour search of a vocabulary in the Poincaré ball of curvature -1."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist

from beam_dp.embeddings.manifest import Distances
from beam_dp.embeddings.neighbours import count_duplicates, round_up
from beam_dp.mechanisms.base import Doubles, Floats, Points, WordIds
from beam_dp.mechanisms.poincare_ball import boundary_gaps, log_coordinates, polar, separated, separation

_UNIT = 2.0**-53
_BLOCK_CELLS = 1 << 18  # of one block of rows against all words: 2 MB


class PoincareDistances:
    """Distances between the words, from their float32 coordinates: d = 2·arsinh(|x - y| / sqrt((1-|x|²)(1-|y|²))).

    Args:
        vectors: (V, d) float32 inside the ball.
    """

    def __init__(self, vectors: Floats) -> None:
        self._points = vectors.astype(np.float64)
        self._gaps = boundary_gaps(vectors)
        # More than differences, their squares' sum, the gaps, root and arsinh add: each a few units in the last place.
        self._error = (vectors.shape[1] + 64) * _UNIT

    def pairs(self, left: npt.NDArray[np.integer], right: npt.NDArray[np.integer]) -> Doubles:
        """The distance of each pair of ids, (n,) float64."""
        distances = np.empty(len(left))
        step = max(1, _BLOCK_CELLS // self._points.shape[1])
        for start in range(0, len(left), step):
            one, other = left[start : start + step], right[start : start + step]
            difference = self._points[one] - self._points[other]
            squares = np.einsum("ij,ij->i", difference, difference)
            squares /= self._gaps[one] * self._gaps[other]
            distances[start : start + step] = _distance(squares)
        return distances

    def to_all(self, words: npt.NDArray[np.integer]) -> Doubles:
        """The distances of ``words`` (n,) to all, (n, V) float64."""
        squares = self._relative(words)
        squares /= self._gaps[words][:, None]
        return _distance(squares)

    def bounds(self, words: npt.NDArray[np.integer]) -> tuple[Floats, Floats]:
        """low, high (n, V) float32 with low <= d <= high for the distances of ``words`` (n,) to all words."""
        exact = self.to_all(words)
        low = np.nextafter((exact * (1 - self._error)).astype(np.float32), np.float32(0))
        high = np.nextafter((exact * (1 + self._error)).astype(np.float32), np.float32(np.inf))
        every = np.arange(len(words))
        low[every, words] = high[every, words] = 0
        return low, high

    def neighbours(self, k: int) -> tuple[WordIds, Floats]:
        """The exact k <= V nearest words of every word: ids (V, k) int32 and distances (V, k) float32.

        A word's own id comes first, then by distance, equal distances by lower id.
        """
        size = len(self._points)
        ids = np.empty((size, k), dtype=np.int32)
        distances = np.empty((size, k), dtype=np.float32)
        for words in _blocks(size):
            ranks = self._relative(words)
            ranks[np.arange(len(words)), words] = -1
            row, column = np.nonzero(ranks <= np.partition(ranks, k - 1, axis=1)[:, k - 1 : k])
            chosen = _best(row, column, ranks[row, column], k)
            ids[words] = column[chosen]
            distances[words] = self.pairs(np.repeat(words, k), ids[words].ravel()).reshape(-1, k)
        return ids, distances

    def measure(self, vectors: Floats, progress: Callable[[int], object]) -> Distances:
        """The distances of the manifest, from all pairs.

        Args:
            vectors: the same as in the constructor.
            progress: called with the number of words done since the last call.
        """
        size = len(self._points)
        nearest = np.empty(size, dtype=np.intp)
        largest = 0.0
        for words in _blocks(size):
            ranks = self._relative(words)
            largest = max(largest, float((ranks.max(axis=1) / self._gaps[words]).max()))
            ranks[np.arange(len(words)), words] = np.inf
            nearest[words] = ranks.argmin(axis=1)
            progress(len(words))
        everyone = np.arange(size)
        order = np.argsort(self.pairs(everyone, nearest), kind="stable")
        middle = [self._reproducible(at, int(nearest[at])) for at in order[[(size - 1) // 2, size // 2]].tolist()]
        return Distances(
            diameter=round_up(2 * math.asinh(math.sqrt(largest)) * (1 + self._error)),
            min_neighbour=self._reproducible(int(order[0]), int(nearest[order[0]])),
            median_neighbour=sum(middle) / 2,
            duplicate_vectors=count_duplicates(vectors),
        )

    def _relative(self, words: npt.NDArray[np.integer]) -> Doubles:
        """|x - y|² / (1 - |y|²) of ``words`` x to all words y, (n, V): it ranks by distance."""
        squares = cdist(self._points[words], self._points, "sqeuclidean")
        squares /= self._gaps
        return squares

    def _reproducible(self, one: int, other: int) -> float:
        """The distance of two words, the same on every machine: the sum of squares is rounded once."""
        difference = self._points[one] - self._points[other]
        square = math.fsum(difference * difference) / float(self._gaps[one] * self._gaps[other])
        return 2 * math.asinh(math.sqrt(square))


class PoincareSearch:
    """The nearest word by hyperbolic distance, among all of them.

    With z and the words y in hyperboloid coordinates (cosh ρ, sinh ρ · direction), cosh(d) = z₀y₀ - z·y rises with d.
    Divided by z₀ > 0 it is y₀ - tanh(ρ)·direction·y, which no distance makes overflow: one matrix product ranks a block
    of queries. That difference loses digits near the boundary, so a bound of what it can have lost goes with every
    word, and wherever it leaves a doubt the words in doubt are compared by `separation`, in which nothing cancels.
    Equal distances go to the lower id.

    Args:
        vectors: (V, d) float32 inside the ball, V >= 1.
    """

    def __init__(self, vectors: Floats) -> None:
        size, dimension = vectors.shape
        gaps = boundary_gaps(vectors)
        self._radius, self._direction = polar(log_coordinates(vectors))
        time = 2 / gaps - 1
        # A product of length d + 1 errs by (d + 1)·u of the sum of its absolute terms, which is below 2·y₀ (Higham
        # 2002, section 3.1); rounded coordinates, tanh and this subtraction by a few u more.
        slack = 4 * (dimension + 16) * _UNIT * time
        self._doubt = 2 * slack
        self._lowest = np.empty((dimension + 1, size))
        self._lowest[0] = time - slack
        self._lowest[1:] = (-2 * vectors.astype(np.float64) / gaps[:, None]).T
        self._rows = max(16, min(2048, _BLOCK_CELLS // size))

    def nearest(self, queries: Points) -> WordIds:
        """The ids (n,) int32 of the words nearest to ``queries`` (n, d) in log coordinates; an id even for NaN."""
        ids = np.empty(len(queries), dtype=np.int32)
        for block, radius, direction, lowest in self._scored(queries):
            best = lowest.argmin(axis=1)
            limit = lowest[np.arange(len(best)), best] + self._doubt[best]
            row, column = np.divmod(np.flatnonzero(lowest <= limit[:, None]), lowest.shape[1])
            several = np.flatnonzero(np.bincount(row, minlength=len(best)) > 1)
            if len(several):
                doubtful = np.isin(row, several)
                row, column = row[doubtful], column[doubtful]
                chosen = _best(row, column, self._separations(radius, direction, row, column), 1)
                best[several] = column[chosen[:, 0]]
            ids[block] = best
        return ids

    def nearest_two(self, queries: Points) -> tuple[WordIds, Doubles]:
        """The two words nearest to ``queries`` (n, d) in log coordinates, the nearest first: (n, 2) each.

        Returns:
            ids int32, two different ones if V >= 2; distances float64.
        """
        ids = np.empty((len(queries), 2), dtype=np.int32)
        distances = np.empty((len(queries), 2))
        for block, radius, direction, lowest in self._scored(queries):
            rows = np.arange(len(lowest))
            first = lowest.argmin(axis=1)
            limit = lowest[rows, first]
            lowest[rows, first] = np.inf
            second = lowest.argmin(axis=1)
            limit = np.maximum(limit + self._doubt[first], lowest[rows, second] + self._doubt[second])
            # These two are candidates even where a query of NaN makes everything NaN.
            limit[np.isnan(limit)] = -np.inf
            lowest[rows, first] = lowest[rows, second] = -np.inf
            row, column = np.divmod(np.flatnonzero(lowest <= limit[:, None]), lowest.shape[1])
            separations = self._separations(radius, direction, row, column)
            chosen = _best(row, column, separations, 2)
            ids[block] = column[chosen]
            distances[block] = separated(radius[:, None], separations[chosen])
        return ids, distances

    def _scored(self, queries: Points) -> Iterator[tuple[slice, Doubles, Doubles, Doubles]]:
        """Blocks of queries: which, their distance from the origin and direction, and the least scores of all words."""
        # Reused: a new array of this size would be new pages each time, which cost more than the product.
        scratch = np.empty((min(self._rows, len(queries)), self._lowest.shape[1]))
        for start in range(0, len(queries), self._rows):
            block = slice(start, start + self._rows)
            radius, direction = polar(np.asarray(queries[block], dtype=np.float64))
            scores = np.empty((len(radius), len(self._lowest)))
            scores[:, 0] = 1
            np.multiply(direction, np.tanh(radius)[:, None], out=scores[:, 1:])
            yield block, radius, direction, np.dot(scores, self._lowest, out=scratch[: len(scores)])

    def _separations(
        self, radius: Doubles, direction: Doubles, row: npt.NDArray[np.intp], word: npt.NDArray[np.intp]
    ) -> Doubles:
        chord = direction[row] - self._direction[word]
        return separation(radius[row], self._radius[word], np.einsum("ij,ij->i", chord, chord))


def _distance(squares: Doubles) -> Doubles:
    """2·arsinh of the root of ``squares``, in place."""
    np.sqrt(squares, out=squares)
    np.arcsinh(squares, out=squares)
    squares *= 2
    return squares


def _blocks(size: int) -> list[npt.NDArray[np.intp]]:
    """All ids, so many at a time that a block of them against all words has about `_BLOCK_CELLS` cells."""
    step = max(16, _BLOCK_CELLS // size)
    return [np.arange(start, min(start + step, size)) for start in range(0, size, step)]


def _best(row: npt.NDArray[np.intp], column: npt.NDArray[np.intp], ranks: Doubles, k: int) -> npt.NDArray[np.intp]:
    """Where the k lowest ``ranks`` of each row are, equal ones by lower column: (rows, k), rows sorted, k of each."""
    order = np.lexsort((column, ranks, row))
    first = np.flatnonzero(np.diff(row, prepend=-1))
    return order[first[:, None] + np.arange(k)]
