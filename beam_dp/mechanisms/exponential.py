"""The exponential mechanism: one of a public set of candidates, a better one with more probability, drawn exactly.

With rate r = ε/(2Δ) candidate i of score u_i is chosen with probability exp(r·u_i)/Z, Z = Σ_j exp(r·u_j), where Δ
bounds how much one privacy unit, added or removed, changes any score.

Privacy (McSherry, Talwar 2007, Theorem 6): with the scores u' of a neighbour, exp(r·u_i) <= e^(ε/2)·exp(r·u'_i), and
Z' <= e^(ε/2)·Z; so P[i] <= e^ε·P'[i]. Where an added unit never lowers a score, r = ε/Δ is enough: say u' has the unit
more, u_i <= u'_i <= u_i + Δ. Then exp(r·u_i) <= exp(r·u'_i) <= e^ε·exp(r·u_i) and Z <= Z' <= e^ε·Z, hence
P'[i]/P[i] = (exp(r·u'_i)/exp(r·u_i))·(Z/Z') is at most e^ε·1 and at least 1·e^-ε. Likewise where it never raises one.

The draw is exact, by rejection. With the largest score u_max, let γ_i = r·(u_max - u_i), and let m_i be a whole number
with m_i·ln 2 <= γ_i; candidates of equal m form a level. A level is chosen with probability proportional to its size
times 2^-m, by integers; then a candidate of it, uniformly; and it is accepted with probability 2^m_i·exp(-γ_i) <= 1, by
an exact coin, else all starts anew. So candidate i is accepted in proportion to exp(-γ_i). As m_i is γ_i/ln 2 rounded
down, up to 64, about half of the proposals or more are accepted, however the scores lie.

The scores are taken as the exact numbers that they hold. That one unit changes them by at most Δ *as computed* is the
caller's to see to; scores that are integers leave no doubt.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from beam_dp.errors import ArgumentError, require_count, require_positive
from beam_dp.mechanisms.coins import Enclosure, enclose_exp, flip_exp, random_below

Scores: TypeAlias = npt.NDArray[np.int64 | np.float64]

_TAIL_LEVEL = 64
# Takes more off than float64 rounding can have added, so that m·ln 2 <= γ holds for sure.
_LEVELS_PER_GAMMA = (1 - 1e-12) / math.log(2)
_PATIENCE = 32
_LARGEST_RATE = 1e300


@dataclass(frozen=True)
class ExponentialMechanism:
    """Chooses a candidate by its score; the module says how, and proves it ε-differentially private.

    The number of candidates is public: they must be the same whatever the data are.

    Attributes:
        epsilon: ε of one choice, finite, above 0.
        sensitivity: Δ, how much one privacy unit changes any score at most; finite, above 0.
        monotone: whether adding a unit never lowers a score of any candidate (or never raises one), as for counts.
    """

    epsilon: float
    sensitivity: float
    monotone: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "epsilon", require_positive("epsilon", self.epsilon))
        object.__setattr__(self, "sensitivity", require_positive("sensitivity", self.sensitivity))
        if not isinstance(self.monotone, bool):
            raise ArgumentError("monotone must be True or False")
        if not 1 / Fraction(_LARGEST_RATE) <= self.rate <= Fraction(_LARGEST_RATE):
            raise ArgumentError(f"epsilon / sensitivity must be from {1 / _LARGEST_RATE:g} to {_LARGEST_RATE:g}")

    @property
    def rate(self) -> Fraction:
        """r, exactly: ε/(2Δ), or ε/Δ where monotone."""
        rate = Fraction(self.epsilon) / Fraction(self.sensitivity)
        return rate if self.monotone else rate / 2

    def choose(self, scores: npt.ArrayLike, rng: np.random.Generator) -> int:
        """The index of one candidate; ε-differentially private. V candidates are sorted, 0.05 s for a million.

        Args:
            scores: (V,) int64 or float64, V at least 1.
            rng: the current generator of a `SecureSource`.

        Raises:
            ArgumentError: no scores, of another type or shape, or not all finite.
        """
        return int(self.top_k(scores, 1, rng)[0])

    def top_k(self, scores: npt.ArrayLike, k: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """k different candidates: the first by `choose`, the next by `choose` among the others, and so on.

        That is k·ε-differentially private by basic composition: each choice is ε for the public set of candidates less
        those that were released before.

        Levels are not made anew after each choice: a proposal that is taken already is rejected, which leaves the law
        of the next choice as it is. Only when 32 proposals were lost so do the others get levels of their own; that
        costs a copy of V numbers and O(those within a factor 2^64 of the best), and happens at most k times.

        Returns:
            (k,) int64, in the order in which they were chosen.

        Raises:
            ArgumentError: as `choose`, or fewer than k candidates.
        """
        values = _require_scores(scores)
        if require_count("k", k) > len(values):
            raise ArgumentError(f"k must be at most the number of candidates, {len(values)}, not {k}")
        rest = np.argsort(values)[::-1]
        values = values[rest]
        chosen: list[int] = []
        while True:
            sampler = _Sampler(values, self.rate)
            taken: dict[int, None] = {}
            lost = 0
            while len(chosen) + len(taken) < k and lost < _PATIENCE:
                place = sampler.draw(rng)
                lost += place in taken
                taken[place] = None
            places = list(taken)
            chosen += rest[places].tolist()
            if len(chosen) == k:
                return np.array(chosen, np.int64)
            rest, values = np.delete(rest, places), np.delete(values, places)

    def probabilities(self, scores: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """What `choose` draws with, rounded: (V,) float64, computed in log space.

        Raises:
            ArgumentError: as `choose`.
        """
        values = _require_scores(scores)
        weights = np.exp(-_gammas(values, values.max(), float(self.rate)))
        return weights / weights.sum()


class _Sampler:
    """Draws from scores in descending order; see the module. Levels are runs of them, and the last one is the rest."""

    def __init__(self, scores: Scores, rate: Fraction) -> None:
        self._scores, self._rate, self._float_rate = scores, rate, float(rate)
        places = range(len(scores))
        tail = bisect.bisect_left(places, _TAIL_LEVEL, key=lambda i: self._run(i, i + 1)[0] * _LEVELS_PER_GAMMA)
        levels = (self._run(0, tail) * _LEVELS_PER_GAMMA).astype(np.int64)
        self._sizes = [*np.bincount(levels, minlength=_TAIL_LEVEL).tolist(), len(scores) - tail]
        self._starts = [0, *itertools.accumulate(self._sizes)]
        weights = (size << (_TAIL_LEVEL - level) for level, size in enumerate(self._sizes))
        self._weights = list(itertools.accumulate(weights))

    def draw(self, rng: np.random.Generator) -> int:
        """The place of one candidate."""
        while True:
            level = bisect.bisect_right(self._weights, random_below(self._weights[-1], rng))
            place = self._starts[level] + random_below(self._sizes[level], rng)
            excess = self._run(place, place + 1) - level * math.log(2)
            if flip_exp(excess, self._acceptance(place, level), rng)[0]:
                return place

    def _run(self, start: int, stop: int) -> npt.NDArray[np.float64]:
        """γ of a run of candidates."""
        return _gammas(self._scores[start:stop], self._scores[0], self._float_rate)

    def _acceptance(self, place: int, level: int) -> Callable[[int], Enclosure]:
        """Of 2^level·exp(-γ)."""

        def enclose(bits: int) -> tuple[Fraction, Fraction]:
            exponent = self._rate * (Fraction(self._scores[place].item()) - Fraction(self._scores[0].item()))
            low, high = enclose_exp(exponent, bits + level)
            return low * (1 << level), high * (1 << level)

        return lambda _: enclose


def _gammas(scores: Scores, top: np.int64 | np.float64, rate: float) -> npt.NDArray[np.float64]:
    """γ = rate·(top - u) for scores up to ``top``: a relative error below 1e-15, infinite beyond float64."""
    with np.errstate(over="ignore"):
        if scores.dtype == np.int64:
            # Modulo 2^64 the differences are exact, whatever overflows in int64.
            gaps = (top.astype(np.uint64) - scores.astype(np.uint64)).astype(np.float64)
        else:
            gaps = np.asarray(top - scores, np.float64)
        return gaps * rate


def _require_scores(scores: npt.ArrayLike) -> Scores:
    """``scores`` as an array of int64 or float64."""
    values = np.asarray(scores)
    if values.ndim != 1 or not len(values):
        raise ArgumentError(f"scores must be one array of at least one number, not of shape {values.shape}")
    if values.dtype.kind in "iu" and np.can_cast(values.dtype, np.int64):
        return values.astype(np.int64, copy=False)
    if values.dtype.kind != "f" or not np.can_cast(values.dtype, np.float64):
        raise ArgumentError(f"scores must be int64 or float64, not {values.dtype}")
    if not np.isfinite(values).all():
        raise ArgumentError("scores must be finite")
    return values.astype(np.float64, copy=False)
