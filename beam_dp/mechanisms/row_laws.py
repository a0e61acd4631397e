"""Exact draws from P[M(w) = y] = exp(-c(w, y)) / Z(w) over a whole vocabulary, by a cached row for each distinct w.

The cost is c(w, y) = rate · min(g(d(w, y)), cap) - ln μ(y): see `Weights`, and the mechanisms for what is
proved of it.

**A row.** Let b be at most the least cost of w's row and β a fixed step. Candidate y lies in a level m <= 254 with
m·β <= c(w, y) - b: that difference over β, rounded down, or less where float32 distances leave a doubt. A row owns 2^64
units. Every candidate of level m owns w_m whole units, w_m >= f·exp(-m·β), with f as large as fits; the few units left
over are nobody's. The row keeps its candidates in the order of their levels, and where the units of each level end.

**A draw.** One uniform 64-bit number is a unit; a binary search finds the level that owns it, a division the candidate;
the remainder t is uniform on 0, ..., w_m - 1. The candidate is accepted where t is one of its first
a(y) = f·exp(-(c(w, y) - b)) <= w_m units, a broken last one by a coin. Otherwise, or if the unit is nobody's, all
starts anew. So each round accepts y with probability a(y)/2^64, and y comes out with probability
a(y) / Σ a = exp(-c(w, y)) / Z(w): no candidate is missed, and none has an approximate weight.

Nearly always t lies so low that any candidate of the level is accepted; for the rest c(w, y) is computed in float64
from the differences of the vectors. Levels are so fine that 9 of 10 candidates need no such distance, and they reach so
deep that what lies below (all in the last level, which is always examined) is hardly ever proposed. Float32 distances
serve for the levels alone, with their proved bounds (`WordSpace.distance_bounds`); a candidate whose bounds are too far
apart for the step gets its level by float64.

**Exactness.** Units are integers, and the coin compares random bits with a float64 number to its last bit: a
probability of 1e-100 is as exact as one of 0.1. What is left is the rounding of c and exp in float64: with u = 2^-53,
the cost drawn with differs from c by at most η = (d/2 + 8)·u·(c + 2) in d dimensions. Through numerator and normaliser
of both words that moves the log ratio of two probabilities by at most 4η: by 4e-12 for costs up to 50 at d = 300, by
5e-11 up to 700. This is added to ε·d(w, w'), not a factor of it, and no claim is widened for it.

Source of the idea: rejection from dyadic levels as in `beam_dp.mechanisms.exponential`; the shape of the rows is ours.
"""

from __future__ import annotations

import math
import threading
import weakref
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from beam_dp.mechanisms.base import Doubles, Floats, WordIds, WordSpace

CACHE_BYTES = 512 << 20
"""How much memory the rows of one mechanism on one index may take in a process; the least recently drawn ones go."""

_LEVELS = 256
_NOTHING = _LEVELS - 1  # the units that are left over
_TAIL = _NOTHING - 1
# The last level lies this many bits below V: the chance that one of its candidates is proposed is about 2^-10.
_BITS_BELOW = 10
# Bounds of a cost that lie farther apart than this part of a step are replaced by the cost.
_DOUBT = 1 / 8
_BLOCK_WORDS = 256
_BLOCK_CELLS = 1 << 22
_CACHED_CELLS = 1 << 18
_BLOCK_DRAWS = 1 << 14
# exp(-700) is still a normal float64 number.
_LARGEST_EXPONENT = 700.0
_WORD_BITS = 64
_LARGEST_CAP = 3e38  # no distance of float32 vectors is larger

Units = npt.NDArray[np.uint64]
Slots = npt.NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Weights:
    """Costs c(w, y) = rate · min(g(d(w, y)), cap) - log_base[y], which P[M(w) = y] falls with: exp(-c).

    Attributes:
        rate: in units of 1/distance, above 0.
        cap: a distance, or infinite.
        log_base: ln μ (V,) float64, finite and at most 0: a public base measure; None for a constant one.
        knots: of g, which is linear between them: distances from 0 to the diameter or more, and g there, from 0 up and
            with slopes of at most 1; None where g(d) = d.
    """

    rate: float
    cap: float = math.inf
    log_base: Doubles | None = None
    knots: tuple[Doubles, Doubles] | None = None

    def bent(self, distances: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        """g of ``distances``, of any shape; float64 where there are knots."""
        return distances if self.knots is None else np.interp(distances, *self.knots)

    def costs(self, distances: Doubles, words: npt.NDArray[np.integer] | slice = slice(None)) -> Doubles:
        """The costs of candidates ``words`` at ``distances``, which ends in the same axis; float64."""
        costs = self.rate * np.minimum(self.bent(distances), self.cap)
        return costs if self.log_base is None else costs - self.log_base[words]


class BoundRows:
    """A bound mechanism that draws from `Weights`; see the module. All threads of a process may use one.

    Args:
        space: gives the distances.
        weights: of the law.
        cache_bytes: bound on the memory of the rows; one row always fits.

    Attributes:
        weights: as given.
    """

    def __init__(self, space: WordSpace, weights: Weights, cache_bytes: int = CACHE_BYTES) -> None:
        self._space = space
        self.weights = weights
        size = space.size
        bits = (size.bit_length() + _BITS_BELOW) / _TAIL
        self._step = bits * math.log(2)
        self._heights = np.append(np.exp2(-bits * np.arange(_NOTHING)), 0.0)
        # What all candidates of a level but the last accept for sure: a whole step and the doubt lower than its top.
        self._sure = np.full(_LEVELS, math.exp(-(1 + _DOUBT) * self._step) * (1 - 1e-6))
        self._sure[_TAIL:] = 0
        self._id_type = np.uint16 if size <= 1 << 16 else np.uint32
        row_bytes = size * np.dtype(self._id_type).itemsize + _LEVELS * 20 + 16
        rows = max(1, min(size, cache_bytes // row_bytes))
        # Untouched pages cost nothing: memory grows with the rows that are made.
        self._order = np.empty((rows, size), self._id_type)
        self._ends = np.empty((rows, _LEVELS), np.uint64)
        self._widths = np.empty((rows, _LEVELS), np.uint64)
        self._starts = np.empty((rows, _LEVELS), np.uint32)
        self._scales = np.empty(rows)
        self._least = np.empty(rows)
        self._words = np.full(rows, -1, np.int32)
        self._slots = np.full(size, -1, np.int32)
        self._used = np.zeros(rows, np.int64)
        self._clock = 0
        self._lock = threading.Lock()

    def law_digest(self) -> None:
        """None: parameters and index say it all."""

    def law_rows(self, ids: WordIds) -> Doubles:
        """See `beam_dp.mechanisms.base.FiniteLaw`; in float64 from exact distances, in log space."""
        law = -self.weights.costs(self._space.exact_distances(ids))
        law -= law.max(axis=1, keepdims=True)
        np.exp(law, out=law)
        law /= law.sum(axis=1, keepdims=True)
        return law

    def sample(self, ids: WordIds, rng: np.random.Generator) -> WordIds:
        """See `beam_dp.mechanisms.base.BoundMechanism.sample`."""
        out = np.empty(len(ids), np.int32)
        for start in range(0, len(ids), _BLOCK_DRAWS):
            block = slice(start, start + _BLOCK_DRAWS)
            with self._lock:
                self._sample_block(ids[block], out[block], rng)
        return out

    def _sample_block(self, ids: WordIds, out: WordIds, rng: np.random.Generator) -> None:
        self._clock += 1
        slots = self._slots[ids].astype(np.intp)
        known = slots >= 0
        if known.all():
            self._draw(slots, ids, out, rng)
            return
        if known.any():
            part = np.empty(int(known.sum()), np.int32)
            self._draw(slots[known], ids[known], part, rng)
            out[known] = part
        places = np.flatnonzero(~known)
        places = places[np.argsort(ids[places], kind="stable")]
        words, first = np.unique(ids[places], return_index=True)
        step = min(len(self._words), max(1, min(_BLOCK_WORDS, _BLOCK_CELLS // self._space.size)))
        for start in range(0, len(words), step):
            self._insert(words[start : start + step])
            end = first[start + step] if start + step < len(words) else len(places)
            mine = places[first[start] : end]
            part = np.empty(len(mine), np.int32)
            self._draw(self._slots[ids[mine]].astype(np.intp), ids[mine], part, rng)
            out[mine] = part

    def _draw(self, slots: Slots, words: WordIds, out: WordIds, rng: np.random.Generator) -> None:
        """One draw for each of ``words``, whose rows are in ``slots``: round by round, until all are accepted."""
        self._used[slots] = self._clock
        waiting: Slots | None = None
        while len(slots):
            candidates, accepted = self._propose(slots, words, rng)
            if waiting is None:
                out[:] = candidates
                waiting = np.arange(len(slots))
            else:
                out[waiting] = candidates
            left = np.flatnonzero(~accepted)
            slots, words, waiting = slots[left], words[left], waiting[left]

    def _propose(self, slots: Slots, words: WordIds, rng: np.random.Generator) -> tuple[WordIds, npt.NDArray[np.bool_]]:
        """One round: a candidate for each, and whether it is accepted."""
        units = rng.integers(0, 1 << _WORD_BITS, size=len(slots), dtype=np.uint64)
        rows = slots * _LEVELS
        cells = rows + _levels_of(self._ends.ravel(), rows, units)
        levels = cells - rows
        widths = self._widths.ravel()[cells]
        units -= np.where(levels > 0, self._ends.ravel()[np.maximum(cells, 1) - 1], np.uint64(0))
        place = units // widths
        units -= place * widths
        position = self._starts.ravel()[cells].astype(np.intp)
        position += place.astype(np.intp)
        position += slots * self._space.size
        candidates = self._order.ravel()[position].astype(np.int32)
        # A width has been rounded up by up to two units.
        accepted = units < self._sure[levels] * (widths - np.uint64(2))
        doubt = np.flatnonzero(~accepted)
        doubt = doubt[levels[doubt] != _NOTHING]
        accepted[doubt] = self._examine(slots[doubt], words[doubt], candidates[doubt], units[doubt], rng)
        return candidates, accepted

    def _examine(
        self, slots: Slots, words: WordIds, candidates: WordIds, units: Units, rng: np.random.Generator
    ) -> npt.NDArray[np.bool_]:
        """Whether unit ``units`` of a candidate is one of those that its cost gives it."""
        distances = np.zeros(len(words))
        other = np.flatnonzero(words != candidates)
        distances[other] = self._space.pair_distances(words[other], candidates[other])
        excess = self.weights.costs(distances, candidates) - self._least[slots]
        owned = self._scales[slots] * np.exp(-np.minimum(excess, _LARGEST_EXPONENT))
        whole = np.floor(owned)
        accepted = units < whole.astype(np.uint64)
        broken = np.flatnonzero(units == whole.astype(np.uint64))
        accepted[broken] = flip(owned[broken] - whole[broken], rng)
        # A product of coins for what exp cannot hold.
        more = np.flatnonzero(accepted & (excess > _LARGEST_EXPONENT))
        while len(more):
            excess[more] -= _LARGEST_EXPONENT
            accepted[more] = flip(np.exp(-np.minimum(excess[more], _LARGEST_EXPONENT)), rng)
            more = more[accepted[more] & (excess[more] > _LARGEST_EXPONENT)]
        return accepted

    def _insert(self, words: WordIds) -> None:
        """Makes the rows of distinct ``words``, in place of the rows that were drawn from longest ago."""
        if len(words) < len(self._words):
            slots = np.argpartition(self._used, len(words) - 1)[: len(words)]
        else:
            slots = np.arange(len(words))
        gone = self._words[slots]
        self._slots[gone[gone >= 0]] = -1
        self._words[slots] = -1
        self._used[slots] = self._clock
        low, high = self._space.distance_bounds(words)
        step = max(1, _CACHED_CELLS // self._space.size)
        for start in range(0, len(words), step):
            rows = slice(start, start + step)
            self._make_rows(slots[rows], words[rows], low[rows], high[rows])
        self._words[slots] = words
        self._slots[words] = slots

    def _make_rows(self, slots: Slots, words: WordIds, low: Floats, high: Floats) -> None:
        levels = self._levels(slots, words, low, high)
        order, sizes = _sorted_by_level(levels)
        self._order[slots] = order
        # Less 2^-30, so that rounding up, and one more unit for each candidate, do not exceed 2^64.
        scales = 2.0**_WORD_BITS * (1 - 2.0**-30) / (sizes @ self._heights)
        widths = np.ceil(scales[:, None] * self._heights * (1 + 2.0**-32)) + 1
        # Only a level without candidates can ask for more units than there are.
        widths = np.minimum(widths, 2.0**_WORD_BITS - 2.0**12).astype(np.uint64)
        self._ends[slots] = np.cumsum(sizes.astype(np.uint64) * widths, axis=1)
        widths[:, _NOTHING] = np.iinfo(np.uint64).max
        self._widths[slots] = widths
        starts = np.cumsum(sizes, axis=1) - sizes
        starts[:, _NOTHING] = 0
        self._starts[slots] = starts
        self._scales[slots] = scales

    def _levels(self, slots: Slots, words: WordIds, low: Floats, high: Floats) -> npt.NDArray[np.uint8]:
        """The level of every candidate, (n, V). Keeps b of each row in its slot, and overwrites the bounds."""
        weights, step = self.weights, self._step
        unbent = low
        low = weights.bent(low).astype(np.float32, copy=False)
        # Slopes of g are at most 1.
        apart = np.subtract(high, unbent, out=high if weights.knots is None else None)
        if weights.cap < math.inf:
            np.minimum(low, np.float32(min(weights.cap, _LARGEST_CAP)), out=low)
        low *= np.float32(weights.rate)
        if weights.log_base is not None:
            low -= weights.log_base.astype(np.float32)
        # More than all float32 roundings here together, for costs up to the last level; beyond it they do not matter.
        least = low.min(axis=1, keepdims=True).astype(np.float64)
        margin = (least + (_TAIL + 1) * step) * 2.0**-19
        least = np.maximum(least - margin, 0.0)
        self._least[slots] = least[:, 0]
        low -= (least + margin).astype(np.float32)
        low *= np.float32(1 / step)
        np.maximum(low, 0, out=low)
        np.minimum(low, _TAIL, out=low)
        levels = low.astype(np.uint8)
        doubt = ((_DOUBT * step - 2 * margin) / weights.rate).astype(np.float32)
        wide = apart > doubt
        wide &= levels < _TAIL
        row, candidate = np.nonzero(wide)
        if weights.knots is not None:
            # Where g is flat, bounds that are far apart may say enough.
            bent = weights.bent(high[row, candidate]) - weights.bent(unbent[row, candidate])
            left = bent > doubt[row, 0]
            row, candidate = row[left], candidate[left]
        exact = weights.costs(self._space.pair_distances(words[row], candidate), candidate) - least[row, 0]
        levels[row, candidate] = np.clip(exact * ((1 - 1e-9) / step) - 1e-9, 0, _TAIL).astype(np.uint8)
        return levels


def _sorted_by_level(levels: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """The candidates of each row in the order of their ``levels`` (n, V), and how many each level has: (n, 256).

    To transpose a sparse matrix with one entry a row is to sort by counting: in C, and three times as fast as argsort.
    """
    rows, size = levels.shape
    columns = levels.astype(np.int32)
    columns += np.arange(0, rows * _LEVELS, _LEVELS, dtype=np.int32)[:, None]
    entries = (np.zeros(rows * size, np.int8), columns.ravel(), np.arange(rows * size + 1, dtype=np.int32))
    transposed = sparse.csr_array(entries, shape=(rows * size, rows * _LEVELS)).tocsc()
    order = transposed.indices.reshape(rows, size)
    order -= np.arange(0, rows * size, size, dtype=np.int32)[:, None]
    return order, np.diff(transposed.indptr).reshape(rows, _LEVELS).astype(np.int64)


def _levels_of(ends: Units, rows: Slots, units: Units) -> Slots:
    """How many of the first 255 ``ends`` of each row, which starts at ``rows``, are at most ``units``."""
    level = np.zeros(len(rows), np.intp)
    step = _LEVELS // 2
    while step:
        level += step * (ends[rows + level + (step - 1)] <= units)
        step //= 2
    return level


def flip(probabilities: Doubles, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """One coin for each of ``probabilities`` (n,), in [0, 1]: True with exactly that float64 number's probability.

    Random bits are compared with those of the number, 32 at a time, until they differ.
    """
    heads = np.zeros(len(probabilities), bool)
    at = np.arange(len(probabilities))
    rest = probabilities
    while len(at):
        scaled = rest * 2.0**32
        whole = np.floor(scaled)
        bits = rng.integers(0, 1 << 32, size=len(at), dtype=np.uint64)
        heads[at] = bits < whole
        same = np.flatnonzero((bits == whole) & (scaled > whole))
        at, rest = at[same], scaled[same] - whole[same]
    return heads


_bound: weakref.WeakValueDictionary[tuple[object, ...], BoundRows] = weakref.WeakValueDictionary()
_binding = threading.Lock()


def bind_rows(space: WordSpace, weights: Weights) -> BoundRows:
    """The rows of ``weights`` on ``space``: one cache for all that ask, as long as anybody holds it."""
    # The rows hold their space and their base measure, so that no other object can have the same id meanwhile.
    knots = None if weights.knots is None else tuple(part.tobytes() for part in weights.knots)
    key = (id(space), weights.rate, weights.cap, id(weights.log_base), knots)
    with _binding:
        rows = _bound.get(key)
        if rows is None:
            rows = _bound[key] = BoundRows(space, weights)
        return rows
