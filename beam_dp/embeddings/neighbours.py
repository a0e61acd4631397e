"""Exact distances between the vectors of a vocabulary: k nearest neighbours, and the figures of the manifest.

A float32 matrix product does the work and float64 has the last word: whatever the float32 error could have
changed, bounded below, is computed again as ``|x - y|`` in float64. All figures are Euclidean.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist

from beam_dp.embeddings.manifest import Distances
from beam_dp.embeddings.search import Floats, WordIds, half_squared_norms

Doubles = npt.NDArray[np.float64]

_UNIT = 2.0**-24  # half a unit in the last place of float32
_UNDERFLOW = 2.0**-120  # more than is lost where products of a pair of numbers are too small for float32
_ROW_BLOCK = 512
_COLUMN_BLOCK = 1024
_SCORE_CELLS = 1 << 25  # of one block of rows against all words: 128 MB
_PAIR_CELLS = 1 << 21  # of one block of float64 differences: 16 MB
_CACHED_CELLS = 1 << 18  # of float32 numbers that several passes go over: 1 MB stays in a cache
_GROUP = 32  # the k-th largest of the maxima of groups this long is a lower bound of the k-th largest of all


def norms(vectors: Floats) -> Doubles:
    """|v| of each row, (V,) float64."""
    return np.sqrt(2.0 * half_squared_norms(vectors).astype(np.float64)) * (1 + 2 * _UNIT)


def score_error(dimension: int, norm: Doubles | float, largest: float) -> Doubles:
    """A bound of |computed - true| of the float32 score ``x·y - |y|²/2`` for |x| = ``norm``, |y| <= ``largest``.

    A product of length d summed in any order errs by at most d·u/(1 - d·u)·|x||y| (Higham 2002, section 3.1); rounding
    |y|²/2 and the subtraction add u(|x||y| + |y|²). The factor covers second-order terms and underflow.
    """
    gamma = dimension * _UNIT / (1 - dimension * _UNIT)
    return 1.1 * ((gamma + 2 * _UNIT) * np.asarray(norm) * largest + 2 * _UNIT * largest**2)


def pair_distances(vectors: Floats, left: npt.NDArray[np.integer], right: npt.NDArray[np.integer]) -> Doubles:
    """|v(left) - v(right)| of each pair of ids, (n,) float64, from the differences."""
    distances = np.empty(len(left))
    step = max(1, _PAIR_CELLS // vectors.shape[1])
    for start in range(0, len(left), step):
        block = slice(start, start + step)
        difference = vectors[left[block]].astype(np.float64)
        difference -= vectors[right[block]]
        distances[block] = np.sqrt(np.einsum("ij,ij->i", difference, difference))
    return distances


class EuclideanDistances:
    """The distances between the words by their Euclidean metric.

    Args:
        vectors: (V, d) float32, not copied.
    """

    def __init__(self, vectors: Floats) -> None:
        self._vectors = vectors
        self._bounds: DistanceBounds | None = None

    def pairs(self, left: npt.NDArray[np.integer], right: npt.NDArray[np.integer]) -> Doubles:
        """`pair_distances` of these vectors."""
        return pair_distances(self._vectors, left, right)

    def to_all(self, words: npt.NDArray[np.integer]) -> Doubles:
        """The distances of ``words`` (n,) to all, (n, V) float64, from the differences in float64."""
        return cdist(self._vectors[words].astype(np.float64), self._vectors.astype(np.float64))

    def bounds(self, words: npt.NDArray[np.integer]) -> tuple[Floats, Floats]:
        """See `DistanceBounds.of`."""
        if self._bounds is None:
            self._bounds = DistanceBounds(self._vectors)
        return self._bounds.of(words)

    def neighbours(self, k: int) -> tuple[WordIds, Floats]:
        """`neighbours` of these vectors."""
        return neighbours(self._vectors, k)


class DistanceBounds:
    """Bounds of the distances of some words to all, by one float32 matrix product.

    Args:
        vectors: (V, d) float32, not copied.
    """

    def __init__(self, vectors: Floats) -> None:
        self._vectors = vectors
        self._halves = half_squared_norms(vectors)
        lengths = norms(vectors)
        largest = float(lengths.max())
        # Of half a squared distance: the error of a score, and three roundings of numbers up to 2|y|².
        self._error = score_error(vectors.shape[1], lengths, largest) + 11 * _UNIT * largest**2
        self._error += vectors.shape[1] * _UNDERFLOW

    def of(self, words: npt.NDArray[np.integer]) -> tuple[Floats, Floats]:
        """low, high (n, V) float32 with low <= |v(w) - v(y)| <= high for ``words`` (n,); 0 from a word to itself."""
        high = self._vectors[words] @ self._vectors.T
        low = np.empty_like(high)
        own, error = self._halves[words].astype(np.float64), self._error[words]
        least, most = ((own + sign * error).astype(np.float32)[:, None] for sign in (-1, 1))
        step = max(1, _CACHED_CELLS // high.shape[1])
        for start in range(0, len(words), step):
            rows = slice(start, start + step)
            scores = high[rows]
            scores -= self._halves
            np.subtract(least[rows], scores, out=low[rows])
            np.subtract(most[rows], scores, out=scores)
            for bound, rounding in ((low[rows], 1 - 4 * _UNIT), (scores, 1 + 4 * _UNIT)):
                np.maximum(bound, 0, out=bound)
                np.sqrt(bound, out=bound)
                np.multiply(bound, np.float32(math.sqrt(2) * rounding), out=bound)
        every = np.arange(len(words))
        low[every, words] = high[every, words] = 0
        return low, high


def neighbours(vectors: Floats, k: int) -> tuple[WordIds, Floats]:
    """The exact k nearest words of every word, by Euclidean distance.

    Args:
        vectors: (V, d) float32.
        k: how many, the word itself included; cut to V.

    Returns:
        ids (V, k) int32 and distances (V, k) float32, rounded from float64. A word's own id comes first, then by
        distance, equal distances by lower id.
    """
    return neighbours_of(vectors, np.arange(len(vectors)), k)


def neighbours_of(vectors: Floats, words: npt.NDArray[np.integer], k: int) -> tuple[WordIds, Floats]:
    """`neighbours` of some ``words`` (n,) only: (n, k) each."""
    size = len(vectors)
    k = min(k, size)
    ids = np.empty((len(words), k), dtype=np.int32)
    distances = np.empty((len(words), k), dtype=np.float32)
    halves, lengths = half_squared_norms(vectors), norms(vectors)
    error = score_error(vectors.shape[1], lengths, float(lengths.max()))
    step = max(64, min(_ROW_BLOCK, _SCORE_CELLS // size))
    scratch = np.empty(min(step, len(words)) * size, dtype=np.float32)
    for start in range(0, len(words), step):
        own = words[start : start + step]
        scores = scratch[: len(own) * size].reshape(-1, size)
        np.dot(vectors[own], vectors.T, out=scores)
        scores -= halves
        # At least k words score `floor` or more, so the true k-th best is no worse than floor - error, and every
        # word of the true k nearest scores at least floor - 2 error.
        floor = _kth_largest_at_least(scores, k) - 2 * error[own]
        row, column = np.nonzero(scores >= np.nextafter(floor.astype(np.float32), np.float32(-np.inf))[:, None])
        exact = pair_distances(vectors, own[row], column)
        rank = np.lexsort((column, np.where(column == own[row], -1.0, exact), row))
        first = np.searchsorted(row, np.arange(len(own)))
        chosen = rank[first[:, None] + np.arange(k)]
        ids[start : start + step] = column[chosen]
        distances[start : start + step] = exact[chosen]
    return ids, distances


def _kth_largest_at_least(scores: Floats, k: int) -> Floats:
    """A lower bound of the k-th largest score of each row (n,), itself reached by at least k scores."""
    size = scores.shape[1]
    groups = size // _GROUP
    if groups < 2 * k:
        return np.partition(scores, size - k, axis=1)[:, size - k]
    maxima = scores[:, : groups * _GROUP].reshape(len(scores), _GROUP, groups).max(axis=1)
    return np.partition(maxima, groups - k, axis=1)[:, groups - k]


def measure_distances(vectors: Floats, progress: Callable[[int], object]) -> Distances:
    """The distances of the manifest, in one pass over all pairs that keeps no more than a tile of them.

    The pass gives an interval for every word's nearest-neighbour distance. Only the words whose interval reaches the
    smallest or the middle one are then compared with all others in float64; so both figures are exact at any V.

    Args:
        vectors: (V, d) float32, V >= 2.
        progress: called with the number of words done since the last call.
    """
    best, largest = _nearest_by_tiles(vectors, progress)
    lengths = norms(vectors)
    # Of a squared distance, which is twice a score less |x|²/2: rounding that and the second subtraction adds 5u|y|².
    error = 2 * score_error(vectors.shape[1], lengths, float(lengths.max())) + 6 * _UNIT * float(lengths.max()) ** 2
    low = np.sqrt(np.maximum(best - error, 0.0))
    high = np.sqrt(np.maximum(best + error, 0.0))
    smallest = _exact_order_statistics(vectors, low, high, [0])
    middle = _exact_order_statistics(vectors, low, high, sorted({(len(vectors) - 1) // 2, len(vectors) // 2}))
    return Distances(
        diameter=round_up(math.sqrt(largest + float(error.max()))),
        min_neighbour=smallest[0],
        median_neighbour=sum(middle) / len(middle),
        duplicate_vectors=count_duplicates(vectors),
    )


def _nearest_by_tiles(vectors: Floats, progress: Callable[[int], object]) -> tuple[Doubles, float]:
    """Each word's approximate squared distance to its nearest other word (V,), and the largest of all pairs."""
    size = len(vectors)
    halves = half_squared_norms(vectors)
    nearest = np.full(size, -np.inf, dtype=np.float32)  # of -|x - y|²/2, the larger the nearer
    farthest = np.float32(0)
    scratch = np.empty(_ROW_BLOCK * _COLUMN_BLOCK, dtype=np.float32)
    for top in range(0, size, _ROW_BLOCK):
        rows = slice(top, min(top + _ROW_BLOCK, size))
        count = rows.stop - top
        for left in range(top, size, _COLUMN_BLOCK):
            columns = slice(left, min(left + _COLUMN_BLOCK, size))
            tile = scratch[: count * (columns.stop - left)].reshape(count, -1)
            np.dot(vectors[rows], vectors[columns].T, out=tile)
            tile -= halves[rows, None]
            tile -= halves[columns]
            farthest = min(farthest, tile.min())
            if left == top:
                np.fill_diagonal(tile, -np.inf)
            np.maximum(nearest[rows], tile.max(axis=1), out=nearest[rows])
            np.maximum(nearest[columns], tile.max(axis=0), out=nearest[columns])
        progress(count)
    return -2.0 * nearest.astype(np.float64), -2.0 * float(farthest)


def _exact_order_statistics(vectors: Floats, low: Doubles, high: Doubles, ranks: list[int]) -> list[float]:
    """The values at ``ranks`` (from 0) of the sorted nearest-neighbour distances, given an interval for each word."""
    values = []
    for rank in ranks:
        floor, ceiling = np.partition(low, rank)[rank], np.partition(high, rank)[rank]
        # The value lies in [floor, ceiling]; a word whose interval lies outside is below or above it for certain.
        unsure = np.flatnonzero((high >= floor) & (low <= ceiling))
        below = int(np.count_nonzero(high < floor))
        nearest = neighbours_of(vectors, unsure, 2)[0][:, 1]
        at = np.argsort(pair_distances(vectors, unsure, nearest), kind="stable")[rank - below]
        values.append(_distance(vectors[unsure[at]], vectors[nearest[at]]))
    return values


def _distance(left: Floats, right: Floats) -> float:
    """|left - right|, the same on every machine: the sum of squares is rounded once."""
    difference = left.astype(np.float64) - right
    return math.sqrt(math.fsum(difference * difference))


def round_up(value: float, digits: int = 6) -> float:
    """``value`` rounded up to ``digits`` significant digits."""
    unit = 10.0 ** (math.floor(math.log10(value)) + 1 - digits) if value > 0 else 1.0
    rounded = float(f"{math.ceil(value / unit) * unit:.{digits}g}")
    return rounded if rounded >= value else math.nextafter(value, math.inf)


def count_duplicates(vectors: Floats) -> int:
    """How many rows equal an earlier row (0 and -0 are equal)."""
    multipliers = np.random.Generator(np.random.Philox(key=0)).integers(0, 1 << 63, vectors.shape[1], dtype=np.uint64)
    hashes = np.empty(len(vectors), dtype=np.uint64)
    for start in range(0, len(vectors), _COLUMN_BLOCK):
        bits = (vectors[start : start + _COLUMN_BLOCK] + np.float32(0)).view(np.uint32).astype(np.uint64)
        hashes[start : start + len(bits)] = bits @ (2 * multipliers + 1)
    order = np.argsort(hashes, kind="stable")
    same = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
    left, right = order[same], order[same + 1]
    step = max(1, _PAIR_CELLS // vectors.shape[1])
    return sum(
        int(np.all(vectors[left[s : s + step]] == vectors[right[s : s + step]], axis=1).sum())
        for s in range(0, len(left), step)
    )
