"""Laws that treat all words alike: the worst pair of words is any pair."""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import numpy as np

from beam_dp.audit.pairs import Method, Worst
from beam_dp.errors import ArgumentError
from beam_dp.mechanisms.base import Doubles, FiniteLaw, WordIds, WordSpace

_UNIT = 2.0**-53
# What logarithms of up to 700 leave of the 16 digits of a probability; and what of it has none left.
_CLOSE, _NOTHING = 1e-12, 1e-300


@runtime_checkable
class SymmetricLaw(FiniteLaw, Protocol):
    """A bound mechanism that keeps any word with one probability, and makes it each other word with another."""

    @property
    def log_probabilities(self) -> tuple[float, float]:
        """ln P[M(w) = w] and ln P[M(w) = y] for y other than w, both finite: the same for all w and y."""


class SymmetricPairs:
    """P[M(w) = w] = p and P[M(w) = y] = q for each other word y, whatever w is: a `beam_dp.audit.pairs.PairLaw`.

    For any two words w, w' the log ratio is ±(ln p - ln q) at the outputs w and w', and 0 at all others. So the largest
    is |ln p - ln q| for every pair, in which no distance is: any two words are at distance 1. That takes O(1).

    It is computed from the logarithms, since q itself may be too small for float64. (Where they differ by less than
    1e-5 or so, their rounding counts.) What `law_rows` says, by which statistical tests judge the draws, is held
    against them, for one word: O(V).

    Args:
        space: the vocabulary.
        law: on it.

    Raises:
        ArgumentError: p + (V - 1)·q is not 1, or a row of the law has other probabilities.
    """

    method: Method = "closed form"
    has_normalisers = False

    def __init__(self, space: WordSpace, law: SymmetricLaw) -> None:
        self._others = space.size - 1
        keep, change = law.log_probabilities
        # 1 - p from ln p has all its digits also where p is nearly 1.
        others = self._others * math.exp(change)
        if not math.isclose(-math.expm1(keep), others, rel_tol=_CLOSE, abs_tol=_NOTHING) or math.isinf(change):
            raise ArgumentError("mechanism: its log_probabilities are of no law: all words together must have 1")
        row = np.full(space.size, math.exp(change))
        row[0] = math.exp(keep)
        if not np.allclose(law.law_rows(np.zeros(1, np.int32))[0], row, rtol=_CLOSE, atol=_NOTHING):
            raise ArgumentError("mechanism: its law_rows are not what its log_probabilities say")
        self._gain = abs(keep - change)
        # Two logarithms, each with a rounding of its argument, and their difference.
        self._slack = 4 * _UNIT * (2 + abs(keep) + abs(change))

    def log_normalisers(self, _ids: WordIds) -> None:
        """None: the law is normalised."""

    def worst(self, ids: WordIds, _log_normalisers: Doubles | None) -> Worst:
        """See `beam_dp.audit.pairs.PairLaw`."""
        return Worst(
            pairs=len(ids) * self._others,
            epsilon=self._gain + self._slack,
            epsilon_at_least=max(self._gain - self._slack, 0.0),
        )
