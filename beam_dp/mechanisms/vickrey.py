"""Multivariate Laplace noise on a word's vector; then the nearest word to it, or the second nearest."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from beam_dp.errors import ArgumentError
from beam_dp.guarantees import MetricGuarantee
from beam_dp.mechanisms.base import Doubles, WordIds, WordSpace, require_euclidean, require_fraction
from beam_dp.mechanisms.multivariate_laplace import multivariate_laplace_noise, noisy_blocks, require_noise_epsilon


@dataclass(frozen=True)
class Vickrey:
    """M(w) = the first or the second of the words nearest to v(w) + Z, Z of density proportional to exp(-ε |z|).

    With u1 and u2 the first and second nearest word to z = v(w) + Z and r1 <= r2 their distances from z, u1 is
    given with probability ``(1 - t) r2 / (t r1 + (1 - t) r2)`` and u2 otherwise. At t = 0 that is multivariate Laplace,
    at t = 1 always the second. Under little noise the word itself is the first, so a larger t replaces it more often.

    Claim: for all words w, w' and every set S of words, ``P[M(w) in S] <= exp(ε |v(w) - v(w')|) * P[M(w') in S]``,
    |.| Euclidean; δ = 0; at every t.

    Proof sketch: the densities of z given w and w' differ by a factor of at most exp(ε |v(w) - v(w')|), as for
    `MultivariateLaplace`. u1, u2, r1, r2 and the choice depend on z, the public vocabulary and fresh randomness, never
    on w: post-processing, for any search. To leave w out of the candidates, so that a word is never replaced by
    itself, would look at w after the noise: P[M(w) = w] would be 0 where P[M(w') = w] is not, and no ε holds.

    Source: Xu, Aggarwal, Feyisetan, Teissier, "On a Utilitarian Approach to Privacy Preserving Text Generation",
    PrivateNLP 2021 (arXiv 2104.11838), with multivariate Laplace noise.

    Attributes:
        epsilon: ε, in units of 1/distance, finite and at least 1e-12.
        second_weight: t, 0 to 1.
    """

    epsilon: float
    second_weight: float = 0.5
    name: ClassVar[str] = "vickrey"

    def __post_init__(self) -> None:
        object.__setattr__(self, "epsilon", require_noise_epsilon(self.epsilon))
        object.__setattr__(self, "second_weight", require_fraction("second_weight", self.second_weight))

    def guarantee(self, space: WordSpace) -> MetricGuarantee:
        """(ε, 0) in the metric of ``space``, which must be Euclidean and have two words, by the proof above."""
        _require_two_words(space)
        return MetricGuarantee(epsilon=self.epsilon, basis="proved", metric=space.metric, index_digest=space.digest)

    def bind(self, space: WordSpace) -> BoundVickrey:
        """The mechanism on the vectors of ``space``, whose metric must be Euclidean and which must have two words."""
        _require_two_words(space)
        return BoundVickrey(self.epsilon, self.second_weight, space)


class BoundVickrey:
    """`Vickrey` on one space."""

    def __init__(self, epsilon: float, second_weight: float, space: WordSpace) -> None:
        self._epsilon = epsilon
        self._second_weight = second_weight
        self._space = space

    def law_digest(self) -> None:
        """None: no tables."""

    def sample(self, ids: WordIds, rng: np.random.Generator) -> WordIds:
        """See `beam_dp.mechanisms.base.BoundMechanism.sample`."""
        space = self._space
        out = np.empty(len(ids), dtype=np.int32)
        noise = partial(multivariate_laplace_noise, dimension=space.dimension, epsilon=self._epsilon, rng=rng)
        for block, noisy in noisy_blocks(ids, space.vectors, noise):
            nearest, distances = space.nearest_two(noisy)
            second = takes_second(distances, self._second_weight, rng)
            out[block] = np.where(second, nearest[:, 1], nearest[:, 0])
        return out


def takes_second(distances: Doubles, second_weight: float, rng: np.random.Generator) -> np.ndarray:
    """Whether each of n choices falls on the second word, (n,) bool.

    Args:
        distances: (n, 2), of the noisy vector from its nearest word and from the second.
        second_weight: t.
    """
    first = (1 - second_weight) * distances[:, 1]
    total = first + second_weight * distances[:, 0]
    # Not divided: both may be 0, at t = 1 or where two equal vectors were met.
    return rng.random(len(distances)) * total >= first


def _require_two_words(space: WordSpace) -> None:
    require_euclidean(space)
    if space.size < 2:
        raise ArgumentError("index: vickrey needs at least two words")
