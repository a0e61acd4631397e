"""Laplace noise of the hyperbolic distance on a word's point of the Poincaré ball, projected back to the vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from beam_dp.errors import ArgumentError, describe_kind, require_positive
from beam_dp.guarantees import MetricGuarantee
from beam_dp.mechanisms.base import Arrays, Doubles, WordIds, WordSpace
from beam_dp.mechanisms.poincare_ball import log_coordinates, moved, polar

# Rows of noise at a time: what belongs to them stays in a cache.
_BLOCK_ROWS = 2048

# Part of the name of what is kept: to be raised whenever the same vectors give something else.
_TABLE_VERSION = 1

# Beyond, the shortest noise would be lost when it is added to a word.
_LARGEST_EPSILON = 1e12

# How many times farther from the noisy point than the nearest word a more general word may be.
_NEAR = 2.0


@dataclass(frozen=True)
class HyperbolicLaplace:
    """M(w) = the vocabulary word nearest to Z, with Z of density proportional to exp(-ε·d_H(w, z)).

    d_H is the distance of the Poincaré ball of curvature -1 in n dimensions, the density is with respect to its volume.
    Z is drawn in polar coordinates around w. A sphere of radius r has the area c·sinh(r)^(n-1), so that the distance of
    Z has a density proportional to exp(-ε·r)·sinh(r)^(n-1). With u = exp(-2r), dr = -du/(2u) and
    sinh(r) = (1 - u)/(2·sqrt(u)) that is ``u^((ε-n+1)/2 - 1)·(1 - u)^(n-1)`` du: u ~ Beta((ε-n+1)/2, n), and
    r = -½·ln(u). The direction is uniform and independent. An isometry takes (r, direction) from the origin to w.

    Claim: for all words w, w' and every set S of words, ``P[M(w) in S] <= exp(ε·d_H(w, w')) * P[M(w') in S]``; δ = 0.

    Proof sketch: some isometry takes any point to any other, and isometries keep the volume. So the integral of
    exp(-ε·d_H(w, z)) is the same C for every w, and the density of Z at z is exp(-ε·d_H(w, z))/C. By the triangle
    inequality those of w and w' differ by a factor of at most exp(ε·d_H(w, w')) at each z. What follows sees z alone,
    never w, `prefer_general` included: post-processing. No factor one half, since nothing is normalised per word.

    For ε <= n-1 there is no such density: space grows like exp((n-1)·r), so that the integral is infinite. The
    mechanism refuses, and points to `exponential`, which serves every ε.

    The proof is in real numbers. The noisy point is kept in log coordinates (`beam_dp.mechanisms.poincare_ball`), in
    float64, and never leaves the worker. There is no boundary that it could be cut off at; rounding shifts it, as seen
    from the words, by no more than about 1e-15/(1 - |w|²): by 1e-9 for a word of norm 0.999999.

    Source: noise on a point of the Poincaré ball is an idea of Feyisetan, Diethe, Drake, "Leveraging Hierarchical
    Representations for Preserving Privacy and Utility in Text", ICDM 2019 (arXiv 1910.08917), who draw it by
    Metropolis-Hastings. The density with respect to volume, its exact radial law and the stable isometry are ours.

    Attributes:
        epsilon: ε, in units of 1/distance of the Poincaré ball, above n-1 for an index of n dimensions, at most 1e12.
        prefer_general: of the two words nearest to z, take the one of the smaller norm, i.e. the more general one in an
            embedding of a hierarchy, provided that it is at most twice as far from z as the other one. So words become
            more general where the noise leaves a doubt, and stay as they are where there is hardly any noise.
    """

    epsilon: float
    prefer_general: bool = False
    name: ClassVar[str] = "hyperbolic_laplace"

    def __post_init__(self) -> None:
        epsilon = require_positive("epsilon", self.epsilon)
        if epsilon > _LARGEST_EPSILON:
            raise ArgumentError(f"epsilon must be at most {_LARGEST_EPSILON:g}, not {epsilon:g}")
        object.__setattr__(self, "epsilon", epsilon)
        if not isinstance(self.prefer_general, bool):
            raise ArgumentError(f"prefer_general must be True or False, not {describe_kind(self.prefer_general)}")

    def guarantee(self, space: WordSpace) -> MetricGuarantee:
        """(ε, 0) in the metric of ``space``, which must be that of the Poincaré ball, by the proof above.

        Raises:
            ArgumentError: another metric, or ε <= n-1.
        """
        self._check(space)
        return MetricGuarantee(epsilon=self.epsilon, basis="proved", metric=space.metric, index_digest=space.digest)

    def bind(self, space: WordSpace) -> BoundHyperbolicLaplace:
        """The mechanism on ``space``.

        Raises:
            ArgumentError: as `guarantee`.
        """
        self._check(space)
        return BoundHyperbolicLaplace(self, space)

    def _check(self, space: WordSpace) -> None:
        if space.metric != "poincare":
            raise ArgumentError(
                f"index: hyperbolic_laplace is proved for the poincare metric, not for {space.metric}; "
                "build the index of Poincaré vectors with that metric"
            )
        least = space.dimension - 1
        if self.epsilon <= least:
            raise ArgumentError(
                f"epsilon must be above n-1 = {least} for this index of n = {space.dimension} dimensions, not "
                f"{self.epsilon:g}: hyperbolic noise of a smaller one does not exist; the mechanism exponential serves "
                "every epsilon under this metric"
            )


class BoundHyperbolicLaplace:
    """`HyperbolicLaplace` on one space."""

    def __init__(self, mechanism: HyperbolicLaplace, space: WordSpace) -> None:
        self._epsilon = mechanism.epsilon
        self._prefer_general = mechanism.prefer_general
        self._space = space

        def compute() -> Arrays:
            radius, direction = polar(log_coordinates(space.vectors))
            return {"radius": radius, "direction": direction}

        tables = space.derived(f"polar-v{_TABLE_VERSION}", compute)
        self._radius, self._direction = tables["radius"], tables["direction"]

    def law_digest(self) -> None:
        """None: parameters and index say it all."""

    def sample(self, ids: WordIds, rng: np.random.Generator) -> WordIds:
        """See `beam_dp.mechanisms.base.BoundMechanism.sample`."""
        out = np.empty(len(ids), dtype=np.int32)
        for start in range(0, len(ids), _BLOCK_ROWS):
            block = slice(start, start + _BLOCK_ROWS)
            radius, direction = hyperbolic_noise(len(ids[block]), self._space.dimension, self._epsilon, rng)
            noisy = moved(radius, direction, self._radius[ids[block]], self._direction[ids[block]])
            out[block] = self._general(noisy) if self._prefer_general else self._space.nearest(noisy)
        return out

    def _general(self, noisy: Doubles) -> WordIds:
        """The word for each noisy point (n, d), a more general one where it is near enough."""
        ids, distances = self._space.nearest_two(noisy)
        first, second = ids.T
        takes = self._radius[second] < self._radius[first]
        takes &= distances[:, 1] <= _NEAR * distances[:, 0]
        return np.where(takes, second, first)


def hyperbolic_noise(n: int, dimension: int, epsilon: float, rng: np.random.Generator) -> tuple[Doubles, Doubles]:
    """n points of density proportional to exp(-epsilon·r) around the origin: radii r (n,) and unit directions (n, d).

    A Beta(a, b) variable is G(a) / (G(a) + G(b)) with independent Gamma variables, so that
    ``r = -½·ln(u) = ½·ln(1 + G(b) / G(a))``; and G(a) = G(a + 1)·exp(-E/a) with an exponential E (Stuart's theorem).
    In logarithms neither a short radius is lost next to 1, nor a long one to u = 0, which has no logarithm.

    Args:
        epsilon: above dimension - 1.
    """
    shape = (epsilon - (dimension - 1)) / 2
    with np.errstate(divide="ignore"):
        ratio = np.log(rng.standard_gamma(dimension, n)) - np.log(rng.standard_gamma(shape + 1, n))
    ratio += rng.standard_exponential(n) / shape
    direction = rng.standard_normal((n, dimension))
    length = np.sqrt(np.einsum("ij,ij->i", direction, direction))
    # Once in 2^52 at most: some direction must do.
    direction[length == 0, 0] = length[length == 0] = 1
    direction /= length[:, None]
    return np.logaddexp(0.0, ratio) / 2, direction
