"""How often Annoy finds the exactly nearest word of a noisy query, measured when an index is built."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from beam_dp.embeddings.manifest import Distances, ForestRecord, RecallPoint
from beam_dp.embeddings.search import AnnoySearch, ExactSearch, Floats, WordIds
from beam_dp.mechanisms.multivariate_laplace import multivariate_laplace_noise

QUERIES = 1000
TARGET_RECALL = 0.9

# The noise of multivariate Laplace has the standard deviation sqrt(d)/epsilon (nearly) along any line. A word is left
# for a neighbour when that is comparable to half the distance between them: at a quarter of the median neighbour
# distance most words stay, at the whole of it few do.
NOISE_RATIOS = (0.25, 0.5, 1.0)
_MIDDLE = 1

_SEARCH_K = (500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000)


def noise_levels(dimension: int, distances: Distances) -> tuple[float, ...]:
    """The epsilons (1/distance, three digits) at which noise is `NOISE_RATIOS` of the median neighbour distance."""
    scale = distances.median_neighbour or distances.diameter or 1.0
    return tuple(float(f"{math.sqrt(dimension) / (ratio * scale):.3g}") for ratio in NOISE_RATIOS)


def noisy_queries(vectors: Floats, epsilon: float, count: int) -> Floats:
    """``count`` words' vectors with multivariate Laplace noise: (count, d) float32, the same at every call.

    The generator is not secure and its key is public: these queries measure a public artifact and protect nobody.
    """
    rng = np.random.Generator(np.random.Philox(key=0))
    chosen = rng.integers(0, len(vectors), count)
    return vectors[chosen] + multivariate_laplace_noise(count, vectors.shape[1], epsilon, rng)


def recall_at_1(vectors: Floats, found: WordIds, nearest: WordIds) -> float:
    """The share of ``found`` (n,) that are the ``nearest`` (n,), or have the same vector."""
    same = (found == nearest) | np.all(vectors[found] == vectors[nearest], axis=1)
    return float(same.mean())


def measure_recall(
    vectors: Floats, forest: Path, trees: int, distances: Distances, progress: Callable[[int], object]
) -> ForestRecord:
    """Chooses ``search_k`` and records the recall of the forest at several epsilons.

    Chosen is the smallest candidate that reaches `TARGET_RECALL` at the middle epsilon; where none up to V does, the
    best.

    Args:
        vectors: (V, d) float32.
        forest: the Annoy file of these vectors, of ``trees`` trees.
        distances: of these vectors.
        progress: called with the number of queries searched since the last call.
    """
    size, dimension = vectors.shape
    epsilons = noise_levels(dimension, distances)
    queries = [noisy_queries(vectors, epsilon, QUERIES) for epsilon in epsilons]
    exact = ExactSearch(vectors)
    nearest = [exact.nearest(block) for block in queries]
    search = AnnoySearch(forest, size, dimension, search_k=1)

    def recall(level: int, search_k: int) -> RecallPoint:
        search.search_k = search_k
        found = search.nearest(queries[level])
        progress(QUERIES)
        return RecallPoint(epsilons[level], search_k, round(recall_at_1(vectors, found, nearest[level]), 4))

    tried: list[RecallPoint] = []
    for search_k in [k for k in _SEARCH_K if k <= size] or [_SEARCH_K[0]]:
        tried.append(recall(_MIDDLE, search_k))
        if tried[-1].recall >= TARGET_RECALL:
            break
    chosen = max(tried, key=lambda point: (point.recall, -point.search_k))
    others = [recall(level, chosen.search_k) for level in range(len(epsilons)) if level != _MIDDLE]
    return ForestRecord(
        trees=trees,
        search_k=chosen.search_k,
        queries=QUERIES,
        recall_at_1=tuple(sorted(tried + others, key=lambda point: (-point.epsilon, point.search_k))),
    )
