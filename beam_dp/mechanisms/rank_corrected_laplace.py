"""Multivariate Laplace, then a neighbour of the projected word, the closer the more often."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from beam_dp.errors import ArgumentError, require_count, require_positive
from beam_dp.guarantees import MetricGuarantee
from beam_dp.mechanisms.base import Doubles, WordIds, WordSpace, require_euclidean
from beam_dp.mechanisms.multivariate_laplace import multivariate_laplace_noise, noisy_blocks, require_noise_epsilon


@dataclass(frozen=True)
class RankCorrectedLaplace:
    """M(w) = a neighbour of the word x* nearest to v(w) + Z, Z of density proportional to exp(-ε |z|).

    In many dimensions multivariate Laplace gives either the word itself or one that has nothing to do with it: the
    nearest neighbour is nearly as far away as the hundredth. This draws again among the neighbours: with NN(x*, x) the
    rank of x by its distance from x* (x* itself has rank 0), x is given with probability proportional to
    ``exp(-c ε NN(x*, x))``.

    Claim: for all words w, w' and every set S of words, ``P[M(w) in S] <= exp(ε |v(w) - v(w')|) * P[M(w') in S]``,
    |.| Euclidean; δ = 0; at every c.

    Proof sketch: x* satisfies the claim, as the output of `MultivariateLaplace`. The second draw sees x*, the public
    vocabulary and fresh randomness, never w: post-processing, which needs no factor of its own, although ε is in its
    weights. The ranks are those around x*; ranks around w would look at w again, without any noise.

    Ours: the ranks stop at K = ``neighbours``, in the paper at V. That too depends on x* alone, so it leaves the claim
    as it is; it moves the second draw by about exp(-c ε K) (c ε = 0.1, K = 100: 5e-5) in total variation.

    Source: Asghar, Carpentier, Zhao, Kaafar, "d_X-Privacy for Text and the Curse of Dimensionality" (arXiv 2411.13784),
    the post-processing that it proposes, as its authors' notebooks write it.

    Attributes:
        epsilon: ε, in units of 1/distance, finite and at least 1e-12.
        rank_decay: c, finite and above 0; the authors' notebook on GloVe has 0.04.
        neighbours: K, 2 to 1,000; cut to V.
    """

    epsilon: float
    rank_decay: float = 0.04
    neighbours: int = 100
    name: ClassVar[str] = "rank_corrected_laplace"

    def __post_init__(self) -> None:
        object.__setattr__(self, "epsilon", require_noise_epsilon(self.epsilon))
        object.__setattr__(self, "rank_decay", require_positive("rank_decay", self.rank_decay))
        if require_count("neighbours", self.neighbours, minimum=2) > 1000:
            raise ArgumentError(f"neighbours must be at most 1000, not {self.neighbours}")

    def guarantee(self, space: WordSpace) -> MetricGuarantee:
        """(ε, 0) in the metric of ``space``, which must be Euclidean, by the proof above."""
        require_euclidean(space)
        return MetricGuarantee(epsilon=self.epsilon, basis="proved", metric=space.metric, index_digest=space.digest)

    def bind(self, space: WordSpace) -> BoundRankCorrectedLaplace:
        """The mechanism on ``space``, whose metric must be Euclidean; its neighbours are found once a machine."""
        require_euclidean(space)
        ranked, _ = space.neighbours(self.neighbours)
        law = rank_law(ranked.shape[1], self.rank_decay * self.epsilon)
        return BoundRankCorrectedLaplace(self.epsilon, law, ranked, space)


class BoundRankCorrectedLaplace:
    """`RankCorrectedLaplace` on one space.

    Args:
        epsilon: ε.
        law: the probability of each rank, (K,).
        ranked: the words by rank around each word, (V, K) int32.
        space: whose vectors get the noise.
    """

    def __init__(self, epsilon: float, law: Doubles, ranked: WordIds, space: WordSpace) -> None:
        self._epsilon = epsilon
        # The last rank takes what rounding left over.
        self._thresholds = np.cumsum(law)[:-1]
        self._ranked = ranked
        self._space = space

    def law_digest(self) -> None:
        """None: parameters and index say it all."""

    def sample(self, ids: WordIds, rng: np.random.Generator) -> WordIds:
        """See `beam_dp.mechanisms.base.BoundMechanism.sample`."""
        space = self._space
        out = np.empty(len(ids), dtype=np.int32)
        noise = partial(multivariate_laplace_noise, dimension=space.dimension, epsilon=self._epsilon, rng=rng)
        for block, noisy in noisy_blocks(ids, space.vectors, noise):
            projected = space.nearest(noisy)
            rank = np.searchsorted(self._thresholds, rng.random(len(projected)), side="right")
            out[block] = self._ranked[projected, rank]
        return out


def rank_law(ranks: int, decay: float) -> Doubles:
    """The probabilities of the ranks 0 to ``ranks`` - 1, proportional to ``exp(-decay * rank)``: (ranks,) float64."""
    # At 1,000 already all but the first are 0, and a product that overflowed would be NaN at rank 0.
    weights = np.exp(-min(decay, 1e3) * np.arange(ranks))
    return weights / weights.sum()
