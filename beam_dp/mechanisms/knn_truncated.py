"""The exponential mechanism over the K nearest words of a word."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from beam_dp.guarantees import MetricGuarantee
from beam_dp.mechanisms.alias import AliasTables
from beam_dp.mechanisms.base import Arrays, Doubles, WordSpace, require_euclidean
from beam_dp.mechanisms.candidates import BoundCandidates, candidate_guarantee, require_neighbours
from beam_dp.mechanisms.word_exponential import require_epsilon

# Part of the name of kept tables: to be raised whenever the same parameters give another law.
_TABLE_VERSION = 1


@dataclass(frozen=True)
class KnnTruncated:
    """M(w) = y with probability proportional to exp(-ε·d(w, y)/2) among the K words nearest to w, itself one of them.

    Claim: only what is *computed* from the law that is drawn, and that is seldom finite. Who is among the K nearest
    depends on w, so what w can become, another word may not: two words whose K nearest have nothing in common have
    δ = 1 at every ε. On a vocabulary of at most 2,000 words δ is the largest hockey-stick sum over all ordered pairs,
    and the claim is (ε, δ) if δ is at most 0.01, which takes a vocabulary that the K nearest nearly cover. Otherwise
    none is made. `beam_dp.mechanisms.TruncatedExponential` caps by distance instead, and is proved.

    Source: truncation by neighbour rank is a proposal of Feyisetan, Aggarwal, Xu, Teissier, "Research Challenges in
    Designing Differentially Private Text Generation Mechanisms", FLAIRS 2021 (arXiv 2012.05403); the weights are those
    of `beam_dp.mechanisms.Exponential`, the finite law and its δ are ours.

    Attributes:
        epsilon: ε, in units of 1/distance, 1e-12 to 1e12.
        neighbours: K, 2 to 256.
    """

    epsilon: float
    neighbours: int = 40
    name: ClassVar[str] = "knn_truncated"

    def __post_init__(self) -> None:
        object.__setattr__(self, "epsilon", require_epsilon(self.epsilon))
        object.__setattr__(self, "neighbours", require_neighbours(self.neighbours))

    def guarantee(self, space: WordSpace) -> MetricGuarantee:
        """(ε, δ) computed from the law that is drawn, or no finite claim and why."""
        return candidate_guarantee(self.bind(space).law(), space, self.epsilon)

    def bind(self, space: WordSpace) -> BoundCandidates:
        """The mechanism on ``space``; its tables are computed at the first time on a machine and kept."""
        require_euclidean(space)
        ids, distances = space.neighbours(self.neighbours)

        def tables() -> Arrays:
            return AliasTables.from_laws(knn_law(distances.astype(np.float64), self.epsilon)).to_arrays()

        name = f"{self.name}-v{_TABLE_VERSION}-{self.epsilon.hex().replace('+', '')}-{self.neighbours}"
        return BoundCandidates(ids, AliasTables.from_arrays(space.derived(name, tables)))


def knn_law(distances: Doubles, epsilon: float) -> Doubles:
    """The law over the K candidates of each word: (V, K) float64, rows sum to 1.

    Args:
        distances: (V, K), the first of each row the least.
        epsilon: ε.
    """
    weights = np.exp(-epsilon / 2 * (distances - distances[:, :1]))
    return weights / weights.sum(axis=1, keepdims=True)
