"""Truncated Gumbel noise on the distances to a random number of nearest words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from scipy import special

from beam_dp.errors import ArgumentError, require_positive
from beam_dp.guarantees import MetricGuarantee
from beam_dp.mechanisms.alias import AliasTables
from beam_dp.mechanisms.base import WordSpace, require_euclidean
from beam_dp.mechanisms.candidates import BoundCandidates, candidate_guarantee, no_guarantee, require_neighbours

# Words whose laws are integrated together: the arrays (words, nodes, K) of a chunk stay near 1 MB, the size of a cache.
_CHUNK_WORDS = 8
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(7)
# Below -6.5 b the untruncated Gumbel law has a mass of exp(-665); beyond 40 b of exp(-40).
_LEFT, _RIGHT = 6.5, 40.0
_LAW_TOLERANCE = 1e-8

# Part of the name of kept tables: to be raised whenever the same parameters give another law.
_TABLE_VERSION = 1


@dataclass(frozen=True)
class TruncatedGumbel:
    """M(w) = argmin over the k words nearest to w of distance + Gumbel noise, for a random k.

    With V = |W|, k ~ Poisson(ln V) truncated to [1, V] and independent noise Gumbel(0, b) truncated to [-Dmax, Dmax]
    on each of the distances to the k nearest words (w itself among them, at distance 0). Published scale:
    ``a = (epsilon - 2 (1 + ln V) / Dmin) / 3``, ``b = 2 Dmax / min(W0(2 a Dmax), ln(a Dmin))``, W0 the Lambert
    function, Dmin and Dmax the smallest and largest distance of two words (for Dmax, the index's upper bound). Where
    a Dmin <= 1 that is undefined, and epsilon is refused.

    The table of candidates is cut at K = ``neighbours``: k is drawn conditional on k <= K, which moves the law by
    P[k > K] (K = 40: 1.3e-13 at V = 20,000, 6.6e-13 at V = 33,860) in total variation.

    Claim: only what is *computed* from the law that is drawn, and that is seldom finite. Candidates depend on the
    word, so two words whose K nearest have nothing in common have delta = 1 at every epsilon; the published theorem
    bounds the law over all of W, where such a pair still differs by a Poisson tail of the rank. With
    ``epsilon`` and a vocabulary of at most 2,000 words delta is the largest hockey-stick sum over all ordered pairs,
    and the claim is (epsilon, delta) if delta is at most 0.01, which takes a vocabulary that the K
    candidates cover. Otherwise, and with an explicit ``scale``, none is made.

    Source: Xu, Aggarwal, Feyisetan, Teissier, "Density-Aware Differentially Private Textual Perturbations Using
    Truncated Gumbel Noise", FLAIRS 2021.

    Attributes:
        epsilon: in units of 1/distance; the scale then follows. Exactly one of ``epsilon`` and ``scale`` is given.
        scale: b, in units of distance, finite and above 0.
        neighbours: K, 2 to 256.
    """

    epsilon: float | None = None
    scale: float | None = None
    neighbours: int = 40
    name: ClassVar[str] = "truncated_gumbel"

    def __post_init__(self) -> None:
        if (self.epsilon is None) == (self.scale is None):
            raise ArgumentError("epsilon or scale must be given, and not both")
        for name in ("epsilon", "scale"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, require_positive(name, getattr(self, name)))
        object.__setattr__(self, "neighbours", require_neighbours(self.neighbours))

    def guarantee(self, space: WordSpace) -> MetricGuarantee:
        """(epsilon, delta) computed from the law that is drawn, or no finite claim and why."""
        require_euclidean(space)
        bound = self.bind(space)
        if self.epsilon is None:
            return no_guarantee(space, "the scale was given, and no theorem gives an epsilon for it")
        return candidate_guarantee(bound.law(), space, self.epsilon)

    def bind(self, space: WordSpace) -> BoundCandidates:
        """The mechanism on ``space``; its law is computed at the first time on a machine and kept.

        Raises:
            ArgumentError: epsilon is too small for the published scale; the message names the smallest valid one.
        """
        scale = self.scale if self.epsilon is None else published_scale(self.epsilon, space)
        assert scale is not None
        ids, distances = space.neighbours(self.neighbours)

        def tables() -> dict[str, npt.NDArray]:
            counts = candidate_count_law(space.size, distances.shape[1])
            law = truncated_gumbel_law(distances.astype(np.float64), counts, scale, space.diameter)
            return AliasTables.from_laws(law).to_arrays()

        name = f"{self.name}-v{_TABLE_VERSION}-{scale.hex().replace('+', '')}-{self.neighbours}"
        return BoundCandidates(ids, AliasTables.from_arrays(space.derived(name, tables)))


def published_scale(epsilon: float, space: WordSpace) -> float:
    """The noise scale b of the paper for ``epsilon`` on ``space`` (Dmax: the diameter bound).

    Raises:
        ArgumentError: a Dmin <= 1, where b is undefined; always so with duplicate vectors (Dmin = 0).
    """
    smallest, largest = space.min_distance, space.diameter
    if smallest == 0:
        raise ArgumentError(
            "epsilon: this index holds words with equal vectors, so the scale of truncated_gumbel is undefined at any "
            "epsilon; give scale instead"
        )
    log_words = 1 + math.log(space.size)
    a = (epsilon - 2 * log_words / smallest) / 3
    if a * smallest <= 1:
        least = (3 + 2 * log_words) / smallest
        raise ArgumentError(
            f"epsilon must be above {math.ceil(least * 100) / 100:.2f} for truncated_gumbel on this index "
            f"(its closest words are {smallest:.3g} apart), not {epsilon:g}; or give scale"
        )
    return 2 * largest / min(float(special.lambertw(2 * a * largest).real), math.log(a * smallest))


def candidate_count_law(size: int, k_max: int) -> npt.NDArray[np.float64]:
    """P[k = 1], ..., P[k = k_max] of Poisson(ln size) truncated to [1, k_max]: (k_max,) float64."""
    k = np.arange(1, k_max + 1)
    log_mass = special.xlogy(k, math.log(size)) - special.gammaln(k + 1)
    mass = np.exp(log_mass - log_mass.max())
    return mass / mass.sum()


def truncated_gumbel_law(
    distances: npt.NDArray[np.float64], counts: npt.NDArray[np.float64], scale: float, bound: float
) -> npt.NDArray[np.float64]:
    """The exact law over the K candidates of each word: (V, K) float64, rows sum to 1.

    With S_j(t) = P[d_j + G_j > t] and f_j its density, candidate i wins at t with density
    ``f_i(t) / S_i(t) * sum over k > i of P[k] * S_0(t) ... S_{k-1}(t)``. That is integrated by Gauss-Legendre rules
    between the points where some candidate starts to have mass, in panels of at most 3/4 of the scale: measured
    against rules of four times the order, the error of a probability is below 1e-9. (Guarantees are computed from the
    tables that are drawn from, not from this function, so they do not depend on it.)

    Args:
        distances: (V, K), each row ascending from 0.
        counts: (K,), P[k = 1], ..., P[k = K].
        scale: b.
        bound: Dmax, at least the largest distance; the noise is truncated to [-bound, bound].
    """
    left = -min(bound, _LEFT * scale)
    right = min(bound, _RIGHT * scale)
    panels = max(24, math.ceil((right - left) / (0.75 * scale)))
    grid = np.linspace(left, right, panels + 1)
    law = np.empty_like(distances)
    for start in range(0, len(distances), _CHUNK_WORDS):
        part = distances[start : start + _CHUNK_WORDS]
        starts = np.minimum(part - min(bound, _LEFT * scale), right)
        edges = np.sort(np.concatenate([np.broadcast_to(grid, (len(part), panels + 1)), starts], axis=1), axis=1)
        half = np.diff(edges, axis=1) / 2
        nodes = (edges[:, :-1] + half)[:, :, None] + half[:, :, None] * _NODES
        weights = half[:, :, None] * _WEIGHTS
        density = _winning_density(nodes.reshape(len(part), -1), part, counts, scale, bound)
        law[start : start + len(part)] = np.einsum("wt,wtk->wk", weights.reshape(len(part), -1), density)
    totals = law.sum(axis=1, keepdims=True)
    if not np.all(np.abs(totals - 1) < _LAW_TOLERANCE):
        raise ArgumentError(
            f"scale {scale:g} is too small for the distances of this index, up to {distances.max():.3g}: the law of "
            "truncated_gumbel cannot be integrated"
        )
    return law / totals


def _winning_density(
    t: npt.NDArray[np.float64],
    distances: npt.NDArray[np.float64],
    counts: npt.NDArray[np.float64],
    scale: float,
    bound: float,
) -> npt.NDArray[np.float64]:
    """The density at t (n, T) that candidate i has the least noisy distance, t: (n, T, K).

    Written with expm1, so that it holds for a scale far above the bound (nearly uniform noise) as well as far below.
    """
    noise = t[:, :, None] - distances[:, None, :]
    active = noise >= -bound
    # exp(-x/b); the cap keeps the product with exp(-exp(-x/b)) at zero instead of NaN.
    tail = np.exp(np.minimum(-noise / scale, 690.0))
    gap = tail * -np.expm1(-np.maximum(bound - noise, 0.0) / scale)
    total = -math.expm1(-math.exp(min(bound / scale, 690.0)) * -math.expm1(-2 * bound / scale))
    survival = np.where(active, np.minimum(-np.expm1(-gap) / total, 1.0), 1.0)
    density = np.where(active, tail * np.exp(-gap) / (scale * total), 0.0)
    wins = np.multiply(np.cumprod(survival, axis=2), counts)
    later = np.cumsum(wins[:, :, ::-1], axis=2)[:, :, ::-1]
    return density * np.divide(later, survival, out=np.zeros_like(later), where=survival > 0)
