"""Quantiles from a tree of noisy counts.

The range [low, high] is cut into 16 parts, each of them into 16 again, four levels deep; a value counts in one node of
each level, so a row changes four counts by one and every count gets noise for a fourth of epsilon (Qardaji, Yang, Li
2013; the shape is that of Google's quantile tree). Noise is drawn for the nodes that a search visits, once a node,
whichever searches come by, which has the same law as noise on all of them.
"""

from __future__ import annotations

import functools
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from beam_dp.aggregate.bounds import Codes
from beam_dp.aggregate.partials import Sparse
from beam_dp.aggregate.statistics import TREE_BRANCHING, TREE_HEIGHT, TREE_LEAVES
from beam_dp.mechanisms.discrete_noise import IntegerNoise

Floats = npt.NDArray[np.float64]
Draw = Callable[[int], Codes]

# Children with less than this share of their parent's rows are noise to a search, not data.
_LEAST_SHARE = 0.005
_EXPONENTS = 100


@dataclass(frozen=True, eq=False)
class QuantileEstimates:
    """Quantiles of P partitions, as shares of the range from 0 (low) to 1 (high).

    Attributes:
        estimate: (P, number of quantiles).
        low: the same: lower ends of confidence intervals.
        high: upper ends.
    """

    estimate: Floats
    low: Floats
    high: Floats


def tree_quantiles(
    tree: Sparse, size: int, quantiles: Sequence[float], draw: Draw, rank_errors: Sequence[Sequence[float]]
) -> QuantileEstimates:
    """Searches P = ``size`` trees for the quantiles.

    Args:
        tree: the leaves of all trees.
        size: P.
        quantiles: in [0, 1].
        draw: n draws of the noise of a node.
        rank_errors: for each quantile, how far the rank of an edge that a search finds may be off, for searches of one,
            two, three and four levels; see `rank_error_bounds`.
    """
    searches = [_Estimate(size, q) for q in quantiles]
    pairs = list(zip(quantiles, rank_errors, strict=True))
    lower = [[_Bound(size, q, depth, -error) for depth, error in enumerate(errors, 1)] for q, errors in pairs]
    upper = [[_UpperBound(size, q, depth, error) for depth, error in enumerate(errors, 1)] for q, errors in pairs]
    everyone: list[_Search] = [*searches, *itertools.chain(*lower), *itertools.chain(*upper)]
    for level in range(1, TREE_HEIGHT + 1):
        going = [search for search in everyone if search.depth >= level]
        nodes = _Level(tree, level, np.concatenate([search.nodes for search in going]), draw)
        for search in going:
            search.descend(nodes)
    return QuantileEstimates(
        np.stack([search.result() for search in searches], axis=1),
        np.stack([np.max([search.result() for search in group], axis=0) for group in lower], axis=1),
        np.stack([np.min([search.result() for search in group], axis=0) for group in upper], axis=1),
    )


class _Level:
    """The noisy counts of the children, at one level, of all parents that a search visits.

    A parent has the code ``partition * 16^(level-1) + node``.
    """

    def __init__(self, tree: Sparse, level: int, parents: Codes, draw: Draw) -> None:
        self._parents = np.unique(parents)
        children = (self._parents[:, None] * TREE_BRANCHING + np.arange(TREE_BRANCHING)).reshape(-1)
        below = TREE_LEAVES // TREE_BRANCHING**level
        before = np.concatenate([[0], np.cumsum(tree.counts)])
        begin, end = (np.searchsorted(tree.codes, codes * below) for codes in (children, children + 1))
        noisy = before[end] - before[begin] + draw(len(children))
        self._counts = noisy.reshape(-1, TREE_BRANCHING).astype(np.float64)

    def of(self, parents: Codes) -> Floats:
        """(P, 16) the noisy counts of the children of each parent."""
        return self._counts[np.searchsorted(self._parents, parents)]


class _Search(ABC):
    """Where a search is in P trees.

    Attributes:
        nodes: (P,) codes of the nodes it is at.
        depth: how many levels it goes down.
    """

    def __init__(self, size: int, quantile: float, depth: int = TREE_HEIGHT) -> None:
        self.nodes = np.arange(size)
        self.depth = depth
        self._size = size
        self._quantile = quantile
        self._level = 0

    def _enter(self, child: Codes) -> None:
        self.nodes = self.nodes * TREE_BRANCHING + child
        self._level += 1

    def _left_edge(self, nodes: Codes) -> Floats:
        """The left edges of nodes of the current level, as shares of the range."""
        count = TREE_BRANCHING**self._level
        return (nodes - np.arange(self._size) * count) / count

    @abstractmethod
    def descend(self, level: _Level) -> None:
        """Goes down one level."""

    @abstractmethod
    def result(self) -> Floats:
        """What was found, as shares of the range: (P,)."""


class _Estimate(_Search):
    """Descends to the child in which the quantile's share of its parent's rows is reached; interpolates at the end."""

    def __init__(self, size: int, quantile: float) -> None:
        super().__init__(size, quantile)
        self._share = np.full(size, quantile)
        self._going = np.ones(size, bool)
        self._low, self._width = np.zeros(size), np.ones(size)

    def descend(self, level: _Level) -> None:
        counts = np.maximum(level.of(self.nodes), 0)
        counts[counts < _LEAST_SHARE * counts.sum(axis=1, keepdims=True)] = 0
        total = counts.sum(axis=1)
        # Without rows to go by, the rest of the way is interpolated.
        self._going &= total > 0
        reached = np.cumsum(counts, axis=1)
        wanted = self._share * total
        child = np.argmax(reached >= wanted[:, None] * (1 - 1e-9), axis=1)
        # A share of 0 would stop at a first child without rows.
        child = np.maximum(child, np.argmax(counts > 0, axis=1))
        row = np.arange(self._size)
        inside = counts[row, child]
        share = (wanted - (reached[row, child] - inside)) / np.where(inside > 0, inside, 1)
        self._share = np.where(self._going, np.clip(share, 0, 1), self._share)
        self._enter(child)
        self._low = np.where(self._going, self._left_edge(self.nodes), self._low)
        self._width = np.where(self._going, 1 / TREE_BRANCHING**self._level, self._width)

    def result(self) -> Floats:
        return self._low + self._share * self._width


class _Bound(_Search):
    """The largest edge that it finds whose noisy rank is at most quantile * rows + slack (slack below 0).

    The left edge of the node it is at always has such a rank, or is the end of the range.
    """

    def __init__(self, size: int, quantile: float, depth: int, slack: float) -> None:
        super().__init__(size, quantile, depth)
        self._slack = slack
        self._rank = np.zeros(size)
        self._wanted = np.zeros(size)
        self._edge = np.zeros(size)

    def _ranks(self, level: _Level) -> Floats:
        """(P, 17) the noisy ranks of the edges of the children; the first one is that of the parent's left edge."""
        sums = np.cumsum(level.of(self.nodes), axis=1)
        if self._level == 0:
            self._wanted = self._quantile * sums[:, -1] + self._slack
        return self._rank[:, None] + np.concatenate([np.zeros((self._size, 1)), sums], axis=1)

    def descend(self, level: _Level) -> None:
        ranks = self._ranks(level)[:, :TREE_BRANCHING]
        fits = ranks <= self._wanted[:, None]
        child = np.where(fits.any(axis=1), TREE_BRANCHING - 1 - np.argmax(fits[:, ::-1], axis=1), 0)
        found = fits[np.arange(self._size), child]
        self._rank = ranks[np.arange(self._size), child]
        self._enter(child)
        self._edge = np.where(found, np.maximum(self._edge, self._left_edge(self.nodes)), self._edge)

    def result(self) -> Floats:
        return self._edge


class _UpperBound(_Bound):
    """The least edge that it finds whose noisy rank is at least quantile * rows + slack (slack above 0)."""

    def __init__(self, size: int, quantile: float, depth: int, slack: float) -> None:
        super().__init__(size, quantile, depth, slack)
        self._edge = np.ones(size)

    def descend(self, level: _Level) -> None:
        ranks = self._ranks(level)
        fits = ranks[:, 1:] >= self._wanted[:, None]
        found = fits.any(axis=1)
        child = np.where(found, np.argmax(fits, axis=1), TREE_BRANCHING - 1)
        self._rank = ranks[np.arange(self._size), child]
        self._enter(child)
        self._edge = np.where(found, np.minimum(self._edge, self._left_edge(self.nodes + 1)), self._edge)


@functools.lru_cache(maxsize=256)
def rank_error_bounds(noise: IntegerNoise, quantile: float, confidence: float) -> list[float]:
    """How far ranks may be off in searches for bounds of one to four levels, all of them together with ``confidence``.

    Fewer levels have less noise and coarser edges; which of them bounds best depends on the number of rows.
    """
    depths = range(1, TREE_HEIGHT + 1)
    return [_rank_error_bound(noise, quantile, 1 - (1 - confidence) / TREE_HEIGHT, depth) for depth in depths]


def _rank_error_bound(noise: IntegerNoise, quantile: float, confidence: float, depth: int) -> float:
    """T such that, for the edge v that a search for bounds ends at, P[Z(v) > T] <= 1 - confidence, and the same for -Z.

    Z(v) = (noisy rank of v - quantile·noisy rows) - (rank of v - quantile·rows). A search chooses each child by the
    noise of its level, which is independent of the levels above. Let M(t) = E[exp(t·X)] for the noise X of one node. At
    the first level, where the rows are counted too, Z is (1-q)·S_j - q·(S_16 - S_j) with S_j a sum of j draws,
    whatever j is chosen: E[exp(t·max_j)] <= Σ_j M(t(1-q))^j·M(tq)^(16-j). At each further level it is S_j,
    and by Lévy's inequality for sums of symmetric draws P[max_j S_j > s] <= 2·P[S_16 > s], hence
    E[exp(t·max(0, max_j S_j))] <= 1 + 2·M(t)^16. Conditioning level by level multiplies these, and Markov's inequality
    gives T = min over t of (ln of the product - ln(1 - confidence)) / t. One more rank covers interpolated quantiles.
    """

    def bound(share: float) -> float:
        t = share * noise.largest_exponent
        terms = [
            j * noise.log_mgf(t * (1 - quantile)) + (TREE_BRANCHING - j) * noise.log_mgf(t * quantile)
            for j in range(TREE_BRANCHING + 1)
        ]
        rest = (depth - 1) * np.logaddexp(0.0, math.log(2) + TREE_BRANCHING * noise.log_mgf(t))
        return float((np.logaddexp.reduce(terms) + rest - math.log(1 - confidence)) / t)

    # Markov's inequality holds for every t: the search for the best one need not be exact.
    return min(map(bound, np.geomspace(1e-3, 0.999, _EXPONENTS))) + 1
