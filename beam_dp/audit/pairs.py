"""The worst pair of words of a finite law: how much more likely an output of w is than it would be from w'.

By what is known of the law there are three ways, and `beam_dp.audit.symmetric_pairs` for laws that know no distance.
Each goes over a block of first words w against all second words w', so that blocks may be spread over workers and what
they find merged:

* `ClosedForm`: P[M(w) = y] proportional to exp(-c(w, y)). O(V) a word behind one pass for the normalisers.
* `SparsePairs`: tables of K outputs a word. Only words with a common output are compared; for the rest delta is 1.
* `DensePairs`: any law that gives its rows. O(V²) a word, or O(V) for each word within a radius.

Results are bounds above and below. Above, distances are rounded down by a relative `rounding` where a smaller one makes
the result larger, and the logarithm of a ratio is raised by what float64 may have moved it; below, the other way round.
The pair with the largest bound above need not be the one with the largest bound below.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from beam_dp.mechanisms.base import Doubles, WordIds, WordSpace
from beam_dp.mechanisms.laws import SparseLaw, factor_below
from beam_dp.mechanisms.row_laws import Weights

Method = Literal["closed form", "sparse tables", "dense rows"]
Pair = tuple[int, int]

_UNIT = 2.0**-53
# Sums of positive parts of at most 1e5 terms, added pairwise, are exact to less than this.
_SUM_ROUNDING = 1e-12
# What float64 holds with all its digits is not below this: of a smaller probability a row says no more than that.
_SMALLEST = float(np.finfo(np.float64).tiny)
# exp of it times _SMALLEST is above 1, and neither overflows.
_LARGEST_EXPONENT = 709.0
# Beyond it `factor_below` stays as it is.
_LARGEST_FACTOR = 700.0
_BLOCK_CELLS = 1 << 21
_DENSE_FIRST = 32
_DENSE_CELLS = 1 << 18
_SPARSE_CELLS = 1 << 21


@dataclass(frozen=True)
class Worst:
    """The worst of some ordered pairs (w, w') of different words.

    Attributes:
        pairs: how many were looked at.
        disjoint: how many of them have no output in common.
        epsilon: the largest ``ln(P[M(w) = y] / P[M(w') = y]) / d(w, w')`` over pairs and y; infinite where an output of
            w is impossible for w', or where two equal vectors have different laws.
        delta: the largest hockey-stick sum at the epsilon that was asked for; 0 where none was.
        overlap_delta: the same over pairs that are not disjoint.
        epsilon_pair, delta_pair: where; None where nothing above 0 was found, or all pairs are alike.
        epsilon_at_least, delta_at_least: some pair has that much, maybe another one; the three above are bounds from
            above.
    """

    pairs: int = 0
    disjoint: int = 0
    epsilon: float = 0.0
    delta: float = 0.0
    overlap_delta: float = 0.0
    epsilon_pair: Pair | None = None
    delta_pair: Pair | None = None
    epsilon_at_least: float = 0.0
    delta_at_least: float = 0.0

    def merged(self, other: Worst) -> Worst:
        """The worst of both, the same in whichever order they come."""
        epsilon, epsilon_pair = _larger((self.epsilon, self.epsilon_pair), (other.epsilon, other.epsilon_pair))
        delta, delta_pair = _larger((self.delta, self.delta_pair), (other.delta, other.delta_pair))
        return Worst(
            pairs=self.pairs + other.pairs,
            disjoint=self.disjoint + other.disjoint,
            epsilon=epsilon,
            delta=delta,
            overlap_delta=max(self.overlap_delta, other.overlap_delta),
            epsilon_pair=epsilon_pair,
            delta_pair=delta_pair,
            epsilon_at_least=max(self.epsilon_at_least, other.epsilon_at_least),
            delta_at_least=max(self.delta_at_least, other.delta_at_least),
        )


def _larger(one: tuple[float, Pair | None], other: tuple[float, Pair | None]) -> tuple[float, Pair | None]:
    if one[0] != other[0]:
        return max(one, other, key=lambda found: found[0])
    return min((found for found in (one, other) if found[1] is not None), key=lambda found: found[1] or (), default=one)


class PairLaw(Protocol):
    """One of the ways."""

    method: Method
    has_normalisers: bool

    def log_normalisers(self, ids: WordIds) -> Doubles | None:
        """ln Z(w) of ``ids`` (n,), which `worst` needs of all words: (n,) float64; None unless `has_normalisers`."""

    def worst(self, ids: WordIds, log_normalisers: Doubles | None) -> Worst:
        """The worst of the pairs of ``ids`` (n,) with all words.

        Args:
            log_normalisers: of all words, (V,); None unless `has_normalisers`.
        """


def rounding(dimension: int) -> float:
    """What a Euclidean or hyperbolic distance in float64 may be off by, relatively: a sum of squares and some steps."""
    return (dimension + 64) * _UNIT


class ClosedForm:
    """P[M(w) = y] = exp(-c(w, y)) / Z(w) with c(w, y) = rate · m(w, y) - ln μ(y), m = min(d, cap).

    For any two words, ``ln P[M(w) = y] - ln P[M(w') = y] = rate · (m(w', y) - m(w, y)) + ln Z(w') - ln Z(w)``: μ(y)
    cancels. Capped at cap, d is still a metric, so the difference of the two distances is at most m(w, w'), and at
    y = w, which every word may become, it is m(w, w'). So the largest log ratio of the pair is, exactly,
    ``rate · m(w, w') + ln Z(w') - ln Z(w)``, for single words y and so for sets of them. (With rate = ε/2 it is at most
    ε · m, since Z(w') <= exp(rate · m(w, w')) · Z(w) by the triangle inequality: that is the half in the exponent.)

    Rounding: with C the largest cost, a float64 cost is off by at most (dimension + 64)·u·C and ln Z by that and a
    little for the sum. That of m and of both ln Z is added to the log ratio of the pair, or subtracted for the bound
    below, before it is divided by d(w, w').

    Args:
        space: gives the distances.
        weights: of the law.
        radius: of the pairs; infinite for all.
    """

    method: Method = "closed form"
    has_normalisers = True

    def __init__(self, space: WordSpace, weights: Weights, radius: float = math.inf) -> None:
        self._space = space
        self._weights = weights
        self._radius = radius
        largest = weights.rate * min(space.diameter, weights.cap)
        if weights.log_base is not None:
            largest += float(np.abs(weights.log_base).max())
        self._slack = 3 * rounding(space.dimension) * (largest + 2) + 2 * (math.log2(space.size) + 20) * _UNIT

    def log_normalisers(self, ids: WordIds) -> Doubles:
        """See `PairLaw`."""
        out = np.empty(len(ids))
        for block in _blocks(len(ids), self._space.size):
            costs = self._weights.costs(self._space.exact_distances(ids[block]))
            least = costs.min(axis=1)
            np.subtract(least[:, None], costs, out=costs)
            np.exp(costs, out=costs)
            out[block] = np.log(costs.sum(axis=1)) - least
        return out

    def worst(self, ids: WordIds, log_normalisers: Doubles | None) -> Worst:
        """See `PairLaw`."""
        assert log_normalisers is not None
        weights, down = self._weights, 1 - rounding(self._space.dimension)
        found = Worst()
        for block in _blocks(len(ids), self._space.size):
            words = ids[block]
            distances = self._space.exact_distances(words)
            gain = np.minimum(distances, weights.cap)
            gain *= weights.rate
            gain += log_normalisers
            gain -= log_normalisers[words][:, None]
            differ = gain > self._slack
            above = _per_distance(gain + self._slack, distances * down, differ)
            below = _per_distance(gain - self._slack, distances / down, differ)
            found = found.merged(_worst_epsilon(words, above, below, _inside(words, distances, self._radius)))
        return found


class DensePairs:
    """Any law that gives its rows: every output of every pair is looked at.

    Rows are taken as exact to what float64 does to costs as large as their largest -ln P. For the bounds above, what
    underflows counts as impossible, which makes epsilon infinite, and leaves delta right; for those below, a row that
    says 0 says no more than that P is below the smallest number of float64.

    Args:
        space: gives the distances.
        rows: P[M(w) = y] of ids (n,): (n, V) float64.
        epsilon: at which delta is computed; None where only the smallest epsilon at delta 0 is wanted.
        radius: of the pairs; infinite for all.
    """

    method: Method = "dense rows"
    has_normalisers = False

    def __init__(
        self, space: WordSpace, rows: Callable[[WordIds], Doubles], epsilon: float | None, radius: float = math.inf
    ) -> None:
        self._space = space
        self._rows = rows
        self._epsilon = epsilon
        self._radius = radius

    def log_normalisers(self, _ids: WordIds) -> None:
        """None: rows are normalised."""

    def worst(self, ids: WordIds, _log_normalisers: Doubles | None) -> Worst:
        """See `PairLaw`."""
        found = Worst()
        for start in range(0, len(ids), _DENSE_FIRST):
            found = found.merged(self._worst_of_block(ids[start : start + _DENSE_FIRST]))
        return found

    def _worst_of_block(self, words: WordIds) -> Worst:
        laws = self._rows(words)
        distances = self._space.exact_distances(words)
        inside = _inside(words, distances, self._radius)
        partners = np.flatnonzero(inside.any(axis=0)).astype(np.int32)
        found = Worst()
        step = max(1, _DENSE_CELLS // self._space.size)
        for start in range(0, len(partners), step):
            chunk = partners[start : start + step]
            others = self._rows(chunk)
            with np.errstate(divide="ignore"):
                logs = np.log(others)
            lowest = np.where(others > 0, logs, 0.0).min(axis=1)
            for row, word in enumerate(words):
                chosen = np.flatnonzero(inside[row, chunk])
                if len(chosen):
                    apart = distances[row, chunk[chosen]]
                    # Nearly always all of them, which need not be copied.
                    every = slice(None) if len(chosen) == len(chunk) else chosen
                    with_these = self._worst_of_word(
                        int(word), laws[row], chunk[chosen], others[every], logs[every], lowest[every], apart
                    )
                    found = found.merged(with_these)
        return found

    def _worst_of_word(
        self,
        word: int,
        law: Doubles,
        partners: WordIds,
        others: Doubles,
        logs: Doubles,
        lowest: Doubles,
        distances: Doubles,
    ) -> Worst:
        """One word against ``partners`` (m,) with laws ``others`` (m, V), which are exp(lowest) or more or 0."""
        possible = law > 0
        if not possible.all():
            law, others, logs = law[possible], others[:, possible], logs[:, possible]
        log_law = np.log(law)
        gain = (log_law - logs).max(axis=1)
        off = rounding(self._space.dimension)
        slack, down = 4 * off * (2 - np.minimum(log_law.min(), lowest)), 1 - off
        above = _per_distance(gain + slack, distances * down, gain > slack)
        sure = _without_underflow(gain, log_law, logs, lowest)
        below = _per_distance(sure - slack, distances / down, sure > slack)
        first = int(np.argmax(above))
        deltas, least = np.zeros(len(partners)), 0.0
        if self._epsilon is not None:
            # Elsewhere no output exceeds its bound, and the sum is 0.
            over = np.flatnonzero(above > self._epsilon)
            exponents = self._epsilon * distances[over]
            sums = _hockey_sticks(law, factor_below(exponents * down), others[over])
            deltas[over] = np.minimum(sums * (1 + _SUM_ROUNDING), 1.0)
            factors = np.exp(np.minimum(exponents / down + slack[over], _LARGEST_EXPONENT))
            sums = _hockey_sticks(law, factors, np.maximum(others[over], _SMALLEST))
            least = float((sums * np.exp(-slack[over])).max(initial=0.0)) * (1 - _SUM_ROUNDING)
        most = int(np.argmax(deltas))
        disjoint = np.isinf(gain)
        disjoint[disjoint] = (others[disjoint] == 0).all(axis=1)
        return Worst(
            pairs=len(partners),
            disjoint=int(disjoint.sum()),
            epsilon=float(above[first]),
            delta=float(deltas[most]),
            overlap_delta=float(deltas[~disjoint].max(initial=0.0)),
            epsilon_pair=_pair(word, partners[first], above[first]),
            delta_pair=_pair(word, partners[most], deltas[most]),
            epsilon_at_least=max(float(below.max()), 0.0),
            delta_at_least=least,
        )


class SparsePairs:
    """Tables of K outputs a word: only words that share an output are compared, for all others delta is 1.

    The hockey-stick sum of a pair is that over the shared outputs plus the probability of those that w alone has. That
    is V lists joined on the outputs, and no V x V array.

    Args:
        space: gives the distances.
        law: of all words, whose possible outputs are not the same for all: so epsilon at delta 0 is infinite.
        epsilon: at which delta is computed.
        radius: of the pairs; infinite for all.
    """

    method: Method = "sparse tables"
    has_normalisers = False

    def __init__(self, space: WordSpace, law: SparseLaw, epsilon: float, radius: float = math.inf) -> None:
        self._space = space
        self._epsilon = epsilon
        self._radius = radius
        self._law = law
        words, columns = np.nonzero(law.probabilities > 0)
        outputs = law.ids[words, columns]
        # All words that may become an output, together.
        order = np.argsort(outputs, kind="stable")
        self._sources = words[order].astype(np.int32)
        self._source_mass = law.probabilities[words, columns][order]
        self._counts = np.bincount(outputs, minlength=space.size)
        self._starts = np.cumsum(self._counts) - self._counts

    def log_normalisers(self, _ids: WordIds) -> None:
        """None: tables are normalised."""

    def worst(self, ids: WordIds, _log_normalisers: Doubles | None) -> Worst:
        """See `PairLaw`."""
        possible = self._law.probabilities[ids] > 0
        joined = np.where(possible, self._counts[self._law.ids[ids]], 0).sum(axis=1) + self._space.size
        groups = np.cumsum(joined) // _SPARSE_CELLS
        edges = np.flatnonzero(np.diff(groups, prepend=-1, append=groups[-1:] + 1))
        found = Worst()
        for start, stop in itertools.pairwise(edges):
            found = found.merged(self._worst_of_block(ids[start:stop]))
        return found

    def _worst_of_block(self, words: WordIds) -> Worst:
        size, cells = self._space.size, len(words) * self._space.size
        distances = self._space.exact_distances(words)
        inside = _inside(words, distances, self._radius)
        exponents = self._epsilon * (1 - rounding(self._space.dimension)) * distances.ravel()
        rows, columns = np.nonzero(self._law.probabilities[words] > 0)
        outputs, mass = self._law.ids[words[rows], columns], self._law.probabilities[words[rows], columns]
        counts = self._counts[outputs]
        entry = np.repeat(np.arange(len(outputs)), counts)
        place = np.arange(len(entry)) - np.repeat(np.cumsum(counts) - counts, counts)
        place += self._starts[outputs][entry]
        pair = rows[entry] * size + self._sources[place]
        mine = mass[entry]
        bound = factor_below(exponents)[pair] * self._source_mass[place]
        gain = np.bincount(pair, np.maximum(mine - bound, 0.0), cells).reshape(-1, size)
        shared = np.bincount(pair, mine, cells).reshape(-1, size)
        common = np.bincount(pair, minlength=cells).reshape(-1, size)
        # Exactly 0 where all outputs are shared; elsewhere the difference is off by less than K roundings of 1.
        own = np.bincount(rows, mass, len(words))[:, None] - shared
        off = 2 * self._law.ids.shape[1] * _UNIT
        own += off
        alone = common < np.bincount(rows, minlength=len(words))[:, None]
        own[~alone] = 0.0
        delta = np.where(common == 0, 1.0, np.minimum((gain + own) * (1 + _SUM_ROUNDING), 1.0))
        delta[~inside] = 0.0
        sure = np.maximum(gain - self._gain_rounding(exponents).reshape(-1, size), 0.0) + np.maximum(own - 2 * off, 0.0)
        least = np.where(common == 0, 1.0, np.minimum(sure * (1 - _SUM_ROUNDING), 1.0))
        least[~inside] = 0.0
        row, partner = np.unravel_index(int(np.argmax(delta)), delta.shape)
        disjoint = inside & (common == 0)
        pairs = int(inside.sum())
        return Worst(
            pairs=pairs,
            disjoint=int(disjoint.sum()),
            epsilon=math.inf if pairs else 0.0,
            delta=float(delta[row, partner]),
            overlap_delta=float(delta[~disjoint].max(initial=0.0)),
            delta_pair=_pair(int(words[row]), partner, delta[row, partner]),
            # An output that is not in a table is impossible, and no rounding made it so.
            epsilon_at_least=math.inf if (inside & alone).any() else 0.0,
            delta_at_least=float(least.max()),
        )

    def _gain_rounding(self, exponents: Doubles) -> Doubles:
        """By how much at most shared outputs add less to delta, if distances are longer than ``exponents`` take them.

        Where a sum of p - f·q over outputs with p > f·q has a factor f that is r times as large, it is smaller by at
        most (r - 1) times the sum of f·q, which is below that of p.
        """
        longer = 3 * rounding(self._space.dimension) * np.minimum(exponents, _LARGEST_FACTOR)
        return np.where(exponents < _LARGEST_FACTOR, np.expm1(longer) + 1e-14, math.inf)


def have_same_outputs(law: SparseLaw) -> bool:
    """Whether every word may become the same words."""
    possible = law.probabilities > 0
    # Impossible ones become copies of a possible one, so that equal sets are equal rows once sorted and thinned out.
    first = np.take_along_axis(law.ids, possible.argmax(axis=1)[:, None], axis=1)
    if not (possible.sum(axis=1) == possible[0].sum()).all():
        return False
    ids = np.sort(np.where(possible, law.ids, first), axis=1)
    return all(np.array_equal(np.unique(row), np.unique(ids[0])) for row in ids)


def scattered(law: SparseLaw, size: int) -> Callable[[WordIds], Doubles]:
    """The rows of ``law`` over all ``size`` words, as `DensePairs` takes them."""

    def rows(ids: WordIds) -> Doubles:
        out = np.zeros((len(ids), size))
        np.put_along_axis(out, law.ids[ids].astype(np.intp), law.probabilities[ids], axis=1)
        return out

    return rows


def _blocks(count: int, size: int) -> Iterator[slice]:
    step = max(1, _BLOCK_CELLS // size)
    for start in range(0, count, step):
        yield slice(start, start + step)


def _inside(words: WordIds, distances: Doubles, radius: float) -> npt.NDArray[np.bool_]:
    """Which pairs count: (n, V)."""
    inside = distances <= radius
    inside[np.arange(len(words)), words] = False
    return inside


def _per_distance(log_ratios: Doubles, distances: Doubles, differ: npt.NDArray[np.bool_]) -> Doubles:
    """``log_ratios`` per distance; of equal vectors infinite where their laws ``differ``, else 0."""
    equal = distances == 0
    per_distance = np.divide(log_ratios, distances, out=np.zeros_like(log_ratios), where=~equal)
    per_distance[equal & differ] = math.inf
    return per_distance


def _without_underflow(gain: Doubles, log_law: Doubles, logs: Doubles, lowest: Doubles) -> Doubles:
    """``gain``, the largest of ``log_law - logs`` (m, V), with what float64 cannot hold as large as it may be."""
    smallest = math.log(_SMALLEST)
    vague = np.flatnonzero(np.isinf(gain) | (lowest < smallest))
    sure = gain.copy()
    sure[vague] = (log_law - np.maximum(logs[vague], smallest)).max(axis=1)
    return sure


def _hockey_sticks(law: Doubles, factors: Doubles, others: Doubles) -> Doubles:
    """The sums of the positive parts of ``law`` (V,) less ``factors`` (m,) times ``others`` (m, V): (m,)."""
    return np.maximum(law - factors[:, None] * others, 0.0).sum(axis=1)


def _worst_epsilon(words: WordIds, above: Doubles, below: Doubles, inside: npt.NDArray[np.bool_]) -> Worst:
    """The worst of the pairs ``inside`` by bounds of their epsilon, (n, V) each."""
    above[~inside] = 0.0
    below[~inside] = 0.0
    row, partner = np.unravel_index(int(np.argmax(above)), above.shape)
    return Worst(
        pairs=int(inside.sum()),
        epsilon=float(above[row, partner]),
        epsilon_pair=_pair(int(words[row]), partner, above[row, partner]),
        epsilon_at_least=max(float(below.max()), 0.0),
    )


def _pair(word: int, partner: np.integer, value: float) -> Pair | None:
    return (word, int(partner)) if value > 0 else None
