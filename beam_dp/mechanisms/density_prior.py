"""The exponential mechanism over the whole vocabulary with a density of the vocabulary as its base measure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from beam_dp.errors import ArgumentError, require_positive
from beam_dp.guarantees import MetricGuarantee
from beam_dp.mechanisms.base import Arrays, Doubles, WordSpace
from beam_dp.mechanisms.row_laws import BoundRows, Weights, bind_rows
from beam_dp.mechanisms.word_exponential import proved, require_epsilon

# Part of the name of kept densities: to be raised whenever the same vectors give others.
_TABLE_VERSION = 1
_BLOCK_CELLS = 1 << 22


@dataclass(frozen=True)
class DensityPrior:
    """M(w) = y with probability μ(y)·exp(-ε·d(w, y)/2) / Z(w): words of dense regions come more often.

    μ is a kernel density of the public vocabulary with a Gaussian kernel on its own metric,
    ``μ(y) = 1/|W| · sum over words v of exp(-(d(y, v)/h)²/2)``. The term v = y keeps it from 0: no two words differ in
    μ by more than a factor of |W|.

    Claim: for all words w, w' and every set S of words, ``P[M(w) in S] <= exp(ε·d(w, w')) * P[M(w') in S]``; δ = 0.

    Proof sketch: μ depends on the public vocabulary alone, not on w, so that it cancels in the ratio of the weights of
    y for w and w', which by the triangle inequality is at most exp(ε·d(w, w')/2); and each term of Z(w') is at most
    exp(ε·d(w, w')/2) times the same term of Z(w). Together exp(ε·d(w, w')), for any metric d and any positive μ. So it
    does not matter for the claim that μ is rounded, or differs in its last digits between two machines.

    The draw is exact, see `beam_dp.mechanisms.row_laws`, which also says what float64 rounding adds.

    Source: that noise may follow a prior density of the embedding is a proposal of Feyisetan, Aggarwal, Xu, Teissier,
    "Research Challenges in Designing Differentially Private Text Generation Mechanisms", FLAIRS 2021 (arXiv
    2012.05403). The law on the finite vocabulary, its proof, the kernel and the bandwidth are ours.

    Attributes:
        epsilon: ε, in units of 1/distance, 1e-12 to 1e12.
        bandwidth: h, a distance, finite and above 0; None for the median distance of a word to its nearest other word.
    """

    epsilon: float
    bandwidth: float | None = None
    name: ClassVar[str] = "density_prior"

    def __post_init__(self) -> None:
        object.__setattr__(self, "epsilon", require_epsilon(self.epsilon))
        if self.bandwidth is not None:
            object.__setattr__(self, "bandwidth", require_positive("bandwidth", self.bandwidth))

    def guarantee(self, space: WordSpace) -> MetricGuarantee:
        """(ε, 0) in the metric of ``space``, whatever that is, by the proof above.

        Raises:
            ArgumentError: as `bind`.
        """
        # Without equal vectors there is a median above 0, and no need to look for it where a pipeline is made.
        if self.bandwidth is None and space.min_distance == 0:
            self._bandwidth(space)
        return proved(self.epsilon, space)

    def bind(self, space: WordSpace) -> BoundRows:
        """The mechanism on ``space``; the density is computed at the first time on a machine and kept.

        Raises:
            ArgumentError: no bandwidth was given, and most words have the same vector as another.
        """
        bandwidth = self._bandwidth(space)

        def compute() -> Arrays:
            return {"log_density": log_density(space, bandwidth)}

        name = f"{self.name}-v{_TABLE_VERSION}-{bandwidth.hex().replace('+', '')}"
        return bind_rows(space, Weights(self.epsilon / 2, log_base=space.derived(name, compute)["log_density"]))

    def _bandwidth(self, space: WordSpace) -> float:
        if self.bandwidth is not None:
            return self.bandwidth
        return median_neighbour_distance(space)


def median_neighbour_distance(space: WordSpace) -> float:
    """The median distance of a word to its nearest other word.

    Raises:
        ArgumentError: naming a bandwidth, which this is the default for: it is 0.
    """
    distance = float(np.median(space.neighbours(2)[1][:, -1]))
    if distance == 0:
        raise ArgumentError("bandwidth must be given: most words of this index share their vector with another")
    return distance


def log_density(space: WordSpace, bandwidth: float) -> Doubles:
    """ln μ(y) of every word less the largest one, (V,) float64, from -ln V to 0: 1 ms a word at 33,860 x 300."""
    density = np.empty(space.size)
    step = max(1, _BLOCK_CELLS // space.size)
    for start in range(0, space.size, step):
        words = np.arange(start, min(start + step, space.size), dtype=np.int32)
        low, high = space.distance_bounds(words)
        # Scaled before they are squared, which keeps float32 from overflow; beyond 40 bandwidths exp is 0.
        low += high
        low *= np.float32(min(0.5 / bandwidth, 1e30))
        np.minimum(low, 40, out=low)
        np.square(low, out=low)
        low *= np.float32(-0.5)
        density[words] = np.exp(low, out=low).sum(axis=1, dtype=np.float64)
    return np.log(density / density.max())
