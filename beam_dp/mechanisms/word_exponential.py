"""The exponential mechanism over the whole vocabulary, and its truncated form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from beam_dp.errors import ArgumentError, require_positive
from beam_dp.guarantees import MetricGuarantee
from beam_dp.mechanisms.base import WordSpace
from beam_dp.mechanisms.row_laws import BoundRows, Weights, bind_rows

_EPSILONS = (1e-12, 1e12)
# How likely a word beyond the default threshold may be.
_BETA = 1e-3


def require_epsilon(value: object) -> float:
    """``value`` as a float if it is a number that costs in float32 can hold, else ArgumentError."""
    epsilon = require_positive("epsilon", value)
    if not _EPSILONS[0] <= epsilon <= _EPSILONS[1]:
        raise ArgumentError(f"epsilon must be from {_EPSILONS[0]:g} to {_EPSILONS[1]:g}, not {epsilon:g}")
    return epsilon


def proved(epsilon: float, space: WordSpace) -> MetricGuarantee:
    """(epsilon, 0) in the metric of ``space``."""
    return MetricGuarantee(epsilon=epsilon, basis="proved", metric=space.metric, index_digest=space.digest)


@dataclass(frozen=True)
class Exponential:
    """M(w) = y with probability exp(-ε·d(w, y)/2) / Z(w), over all words y of the vocabulary.

    Claim: for all words w, w' and every set S of words, ``P[M(w) in S] <= exp(ε·d(w, w')) * P[M(w') in S]``; δ = 0.

    Proof sketch: by the triangle inequality d(w', y) <= d(w, y) + d(w, w'), so
    exp(-ε·d(w, y)/2) <= exp(ε·d(w, w')/2)·exp(-ε·d(w', y)/2) for every y: one half of ε·d(w, w'). Summed over y with w
    and w' exchanged, Z(w') <= exp(ε·d(w, w')/2)·Z(w): the other half. So P[M(w) = y] / P[M(w') = y] is at most
    exp(ε·d(w, w')), for any metric d. Without the half in the exponent the mechanism would spend 2ε.

    The draw is exact, see `beam_dp.mechanisms.row_laws`, which also says what float64 rounding adds.

    Source: Yue, Du, Wang, Li, Sun, Chow, "Differential Privacy for Text Analytics via Natural Text Sanitization",
    Findings of ACL 2021 (SanText, equation 2, without its shortcut for rare words); McSherry, Talwar, FOCS 2007.

    Attributes:
        epsilon: ε, in units of 1/distance, 1e-12 to 1e12.
    """

    epsilon: float
    name: ClassVar[str] = "exponential"

    def __post_init__(self) -> None:
        object.__setattr__(self, "epsilon", require_epsilon(self.epsilon))

    def guarantee(self, space: WordSpace) -> MetricGuarantee:
        """(ε, 0) in the metric of ``space``, whatever that is, by the proof above."""
        return proved(self.epsilon, space)

    def bind(self, space: WordSpace) -> BoundRows:
        """The mechanism on ``space``; a row is made when its word is drawn for the first time in a process."""
        return bind_rows(space, Weights(self.epsilon / 2))


@dataclass(frozen=True)
class TruncatedExponential:
    """The exponential mechanism (TEM) with all words beyond a distance γ as one bucket.

    A word y with d(w, y) < γ has the weight exp(-ε·d(w, y)/2); the n words with d >= γ share a bucket of the weight
    n·exp(-ε·γ/2), in which one is drawn uniformly, never w itself. So every word has a weight of its own,
    exp(-ε·min(d(w, y), γ)/2), and the bucket is nothing but the sum of those beyond γ.

    Claim: for all words w, w' and every set S of words, ``P[M(w) in S] <= exp(ε·min(d(w, w'), γ)) * P[M(w') in S]``,
    hence exp(ε·d(w, w')) as well, which is what the ledger says; δ = 0.

    Proof sketch: min(d, γ) is a metric too (min(a + b, γ) <= min(a, γ) + min(b, γ)), so that the proof of `Exponential`
    holds with it in place of d: one half of ε·min(d, γ) for the weight of y, one half for the normaliser.

    Default threshold: γ = (2/ε)·ln((1 - β)·(|W| - 1)/β) with β = 0.001. The bucket's weight is then at most
    (|W| - 1)·exp(-ε·γ/2) = β/(1 - β) against the weight 1 of w, so that M(w) lies beyond γ with probability at most β.

    The draw is exact, see `beam_dp.mechanisms.row_laws`, which also says what float64 rounding adds.

    Source: Carvalho, Vasiloudis, Feyisetan, Wang, "TEM: High Utility Metric Differential Privacy on Text", SDM 2023
    (arXiv 2107.07928). There Gumbel noise on scores and an argmax draw from the same law.

    Attributes:
        epsilon: ε, in units of 1/distance, 1e-12 to 1e12.
        gamma: γ, a distance, finite and above 0; None for the default threshold.
    """

    epsilon: float
    gamma: float | None = None
    name: ClassVar[str] = "truncated_exponential"

    def __post_init__(self) -> None:
        object.__setattr__(self, "epsilon", require_epsilon(self.epsilon))
        if self.gamma is not None:
            object.__setattr__(self, "gamma", require_positive("gamma", self.gamma))

    def threshold(self, size: int) -> float:
        """γ for a vocabulary of ``size`` words."""
        if self.gamma is not None:
            return self.gamma
        return 2 / self.epsilon * math.log((1 - _BETA) * max(size - 1, 1) / _BETA)

    def guarantee(self, space: WordSpace) -> MetricGuarantee:
        """(ε, 0) in the metric of ``space``, whatever that is, by the proof above."""
        return proved(self.epsilon, space)

    def bind(self, space: WordSpace) -> BoundRows:
        """The mechanism on ``space``; a row is made when its word is drawn for the first time in a process."""
        return bind_rows(space, Weights(self.epsilon / 2, self.threshold(space.size)))
