"""Laws of mechanisms that add noise and project, by ways of their own; a space that records what is searched for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats


class Recorder:
    """A word space that keeps the queries; word 0 is nearest to everything and word 1 comes next."""

    metric = "euclidean"
    digest = "0" * 64

    def __init__(self, vectors: np.ndarray) -> None:
        self.vectors = np.asarray(vectors, dtype=np.float32)
        self.size, self.dimension = self.vectors.shape
        self._queries: list[np.ndarray] = []

    def nearest(self, queries: np.ndarray) -> np.ndarray:
        self._queries.append(queries.copy())
        return np.zeros(len(queries), np.int32)

    def nearest_two(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self._queries.append(queries.copy())
        return np.tile(np.array([0, 1], np.int32), (len(queries), 1)), np.ones((len(queries), 2))

    def neighbours(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        ids = np.tile(np.arange(min(k, self.size), dtype=np.int32), (self.size, 1))
        return ids, np.zeros(ids.shape, np.float32)

    def derived(self, _name: str, compute: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        return compute()

    def noise_of(self, mechanism, ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The noise that ``mechanism`` adds to the vectors of ``ids``: (n, d) float64."""
        self._queries.clear()
        mechanism.bind(self).sample(ids, rng)
        return np.concatenate(self._queries).astype(np.float64) - self.vectors[ids]


def line_law(points: np.ndarray, epsilon: float) -> np.ndarray:
    """P[w, y] of multivariate Laplace in one dimension: each word owns the interval between two midpoints."""
    order = np.argsort(points)
    sorted_points = points[order]
    edges = np.concatenate([[-np.inf], (sorted_points[1:] + sorted_points[:-1]) / 2, [np.inf]])
    law = np.empty((len(points), len(points)))
    law[:, order] = np.diff(stats.laplace(loc=points[:, None], scale=1 / epsilon).cdf(edges), axis=1)
    return law


def noise_grid(dimension: int, epsilon: float, steps: int) -> np.ndarray:
    """Equally likely points of multivariate Laplace noise on the line or in the plane: quantiles times directions."""
    quantiles = stats.gamma(dimension, scale=1 / epsilon).ppf((np.arange(steps) + 0.5) / steps)
    if dimension == 1:
        return np.concatenate([-quantiles, quantiles])[:, None]
    angles = (np.arange(steps) + 0.5) * 2 * np.pi / steps
    return (quantiles[:, None, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)).reshape(-1, 2)


def distances_from(vectors: np.ndarray, points: np.ndarray) -> np.ndarray:
    return np.sqrt(((points[:, None] - vectors.astype(np.float64)[None]) ** 2).sum(axis=2))


def fit_pvalue(counts: np.ndarray, law: np.ndarray) -> float:
    """Chi-square of counts (V,) against probabilities (V,); outputs that are expected fewer than 8 times are pooled."""
    expected = law / law.sum() * counts.sum()
    rare = expected < 8
    if rare.any():
        rare[np.argmin(np.where(rare, np.inf, expected))] = True
        counts = np.append(counts[~rare], counts[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
    return float(stats.chisquare(counts, expected).pvalue)


def matrix_pvalue(bound, law: np.ndarray, words: Sequence[int], n: int, rng: np.random.Generator) -> float:
    """The worst fit of the rows ``words`` of a transition matrix, corrected for their number."""
    pvalues = []
    for word in words:
        drawn = bound.sample(np.full(n, word, np.int32), rng)
        pvalues.append(fit_pvalue(np.bincount(drawn, minlength=len(law)), law[word]))
    return min(1.0, len(pvalues) * min(pvalues))


def independence_pvalue(bound, word: int, n: int, rng: np.random.Generator) -> float:
    """Chi-square of the outputs of two neighbours in one batch, all of the same word: the commonest or another one."""
    drawn = bound.sample(np.full(2 * n, word, np.int32), rng)
    first, second = (drawn == np.bincount(drawn).argmax()).reshape(-1, 2).T
    table = [[np.sum(first & second), np.sum(first & ~second)], [np.sum(~first & second), np.sum(~first & ~second)]]
    return float(stats.chi2_contingency(table).pvalue)
