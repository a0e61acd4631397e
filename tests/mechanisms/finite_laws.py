"""What the tests of finite laws share: small vocabularies of every kind, slow formulas, goodness of fit."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
from scipy import stats

from beam_dp.embeddings.neighbours import DistanceBounds, pair_distances

SIGNIFICANCE = 1e-4
REJECTION = 1e-6


def with_index_distances(space):
    """``space`` with distances from the functions of a real index: float32 products with their bounds."""
    space.distance_bounds = DistanceBounds(space.vectors).of
    space.pair_distances = partial(pair_distances, space.vectors)
    return space


def _points(size, dimension, seed):
    return np.random.default_rng(seed).normal(size=(size, dimension))


def vocabularies():
    """Vectors by name: 3 to 300 words, 1, 2 and 10 dimensions, stretched, with equal vectors, and far from 0."""
    twins = _points(12, 3, 5)
    return {
        "3 words, d=1": [[0.0], [1.0], [3.5]],
        "17 words, d=2": _points(17, 2, 1),
        "40 words, d=10, stretched": _points(40, 10, 2) * np.geomspace(0.05, 3, 10),
        "300 words, d=2": _points(300, 2, 3) * 2,
        "equal vectors": np.concatenate([twins, twins[:5], twins[:2]]),
        "far from 0": 1000 + _points(20, 2, 4),
    }


VOCABULARIES = vocabularies()


def slow_distance(space, left, right):
    """|x - y| of two words, summed without rounding."""
    pairs = zip(space.vectors[left].tolist(), space.vectors[right].tolist(), strict=True)
    return math.sqrt(math.fsum((a - b) ** 2 for a, b in pairs))


def slow_law(space, word, weight):
    """P[M(word) = y] for all y as a list, where y has the weight ``weight(distance, y)``."""
    weights = [weight(slow_distance(space, word, y), y) for y in range(space.size)]
    total = math.fsum(weights)
    return np.array([value / total for value in weights])


def fit(drawn, law):
    """The p-value of drawn words for a law (V,): rare words count as one, and impossible ones fit nothing."""
    counts, n = np.bincount(drawn, minlength=len(law)), len(drawn)
    if counts[law == 0].any():
        return 0.0
    common = law * n >= 8
    observed, expected = counts[common], law[common] * n
    rest = law[~common].sum()
    if rest * n >= 8:
        observed, expected = np.append(observed, counts[~common].sum()), np.append(expected, rest * n)
    elif counts[~common].sum() > 40:
        return 0.0
    if len(observed) == 1:
        return 1.0
    return stats.chisquare(observed, expected / expected.sum() * observed.sum()).pvalue


def worst_fit(bound, law, words, n, rng):
    """The least p-value of n draws for each of ``words``, times their number; they are drawn in one mixed batch."""
    ids = rng.permutation(np.repeat(np.array(words, np.int32), n))
    drawn = bound.sample(ids, rng)
    assert drawn.dtype == np.int32 and drawn.shape == ids.shape
    return min(fit(drawn[ids == word], law[word]) for word in words) * len(words)


def largest_excess(law, distances, epsilon):
    """The most by which a log ratio of two rows of ``law`` exceeds epsilon * distance."""
    logs = np.log(law)
    ratios = (logs[:, None] - logs[None]).max(axis=2)
    return float((ratios - epsilon * distances).max())
