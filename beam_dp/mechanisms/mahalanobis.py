"""Laplace noise of the regularised Mahalanobis norm on a word's vector, projected back to the vocabulary."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from beam_dp.errors import ArgumentError
from beam_dp.guarantees import MetricGuarantee
from beam_dp.mechanisms.base import Arrays, Doubles, Floats, WordIds, WordSpace, require_euclidean, require_fraction
from beam_dp.mechanisms.multivariate_laplace import multivariate_laplace_noise, noisy_blocks, require_noise_epsilon

# Nearer to 1 the matrix may be all but singular: float32 vectors would hold no noise in some directions.
_LARGEST_WEIGHT = 0.99

# Part of the names of what is kept: to be raised whenever the same vectors and weight give something else.
_TABLE_VERSION = 1
_BLOCK_ROWS = 4096

# Takes more off an eigenvalue, as a share of the largest one and of the dimension, than float64 can have added.
_EIGENVALUE_ERROR = 1e-14


@dataclass(frozen=True)
class Mahalanobis:
    """M(w) = the vocabulary word nearest to v(w) + Z, with Z longer where the vocabulary is wider.

    With Σ the covariance of the vectors of the public vocabulary, scaled so that its trace is d, and
    ``A = λΣ + (1 - λ)I``, the regularised Mahalanobis norm is ``|x|_RM = sqrt(x' A^-1 x)``, and Z has a density
    proportional to ``exp(-ε |z|_RM)``. It is drawn as ``Z = Y A^½ X``, with X uniform on the unit sphere and
    Y ~ Gamma(d, 1/ε). A^½ X is *not* brought back to length 1: that would undo the norm, and the noise would be too
    short in the directions of the small eigenvalues. The word is the nearest one in the Euclidean metric.

    Claim: for all words w, w' and every set S of words,
    ``P[M(w) in S] <= exp(ε |v(w) - v(w')|_RM) * P[M(w') in S]``; δ = 0. Not a claim about the Euclidean distance:
    |x|_RM <= |x| / sqrt(least eigenvalue of A), with equality in one direction.

    Proof sketch: A^-½ maps |.|_RM to the Euclidean norm and Z to Y X, whose density is c * exp(-ε |y|) (the polar form
    of multivariate Laplace). So the density of v(w) + Z at z is c' * exp(-ε |z - v(w)|_RM), with c' = c / det(A^½) the
    same for every w. By the triangle inequality those of w and w' differ by a factor of at most
    exp(ε |v(w) - v(w')|_RM) at each z. The projection sees z alone: post-processing. Σ depends on the public
    vocabulary only.

    The proof is in real numbers. A^½ is rounded to float32, and what that can add to a norm is taken off ε.

    Source: Xu, Aggarwal, Feyisetan, Teissier, "A Differentially Private Text Perturbation Method Using Regularized
    Mahalanobis Metric", PrivateNLP 2020 (arXiv 2010.11947).

    Attributes:
        epsilon: ε, in units of 1/distance of the regularised Mahalanobis metric, finite and at least 1e-12.
        covariance_weight: λ, 0 (the Euclidean norm) to 0.99.
    """

    epsilon: float
    covariance_weight: float = 0.2
    name: ClassVar[str] = "mahalanobis"

    def __post_init__(self) -> None:
        object.__setattr__(self, "epsilon", require_noise_epsilon(self.epsilon))
        weight = require_fraction("covariance_weight", self.covariance_weight, most=_LARGEST_WEIGHT)
        object.__setattr__(self, "covariance_weight", weight + 0.0)  # -0.0 is 0

    def guarantee(self, space: WordSpace) -> MetricGuarantee:
        """(ε, 0) in the metric ``mahalanobis(lambda=λ)`` of ``space``, whose own must be Euclidean, by the proof above.

        At λ = 0 the metric is the Euclidean one, and named so: limits of a budget on it bind this mechanism, too.

        Raises:
            ArgumentError: another metric, or all vectors are equal.
        """
        regularised_matrix(space, self.covariance_weight)
        weight = self.covariance_weight
        metric = f"mahalanobis(lambda={weight!r})" if weight else space.metric
        return MetricGuarantee(epsilon=self.epsilon, basis="proved", metric=metric, index_digest=space.digest)

    def diameter(self, space: WordSpace) -> float:
        """An upper bound of |v(w) - v(w')|_RM over all pairs of words.

        The smaller of the Euclidean diameter divided by the root of A's least eigenvalue, and of twice the radius of a
        ball about the mean vector.

        Raises:
            ArgumentError: as `guarantee`.
        """
        matrix = regularised_matrix(space, self.covariance_weight)
        values, directions = np.linalg.eigh(matrix)
        # Σ has no negative eigenvalue, so A has none below 1 - λ, whatever rounding did.
        values = np.maximum(values - _EIGENVALUE_ERROR * len(values) * values[-1], 1 - self.covariance_weight)
        whitening = directions / np.sqrt(values)
        name = f"mahalanobis-radius-v{_TABLE_VERSION}-{self.covariance_weight.hex().replace('+', '')}"
        radius = float(space.derived(name, lambda: {"radius": _radius(space.vectors, whitening)})["radius"][0])
        return min(space.diameter / math.sqrt(values[0]), 2 * radius) * (1 + 1e-9)

    def bind(self, space: WordSpace) -> BoundMahalanobis:
        """The mechanism on the vectors of ``space``, whose metric must be Euclidean.

        Raises:
            ArgumentError: as `guarantee`.
        """
        return BoundMahalanobis(self.epsilon, square_root(regularised_matrix(space, self.covariance_weight)), space)


class BoundMahalanobis:
    """`Mahalanobis` on one space.

    Args:
        epsilon: ε.
        root: A^½, (d, d) float64, symmetric.
        space: whose vectors get the noise.
    """

    def __init__(self, epsilon: float, root: Doubles, space: WordSpace) -> None:
        self._space = space
        self._root = root.astype(np.float32)
        # |R^-1 x| of the rounded root R is at most `stretch` times |A^-½ x|, so this epsilon keeps the claim.
        stretch = float(np.linalg.norm(np.linalg.solve(self._root.astype(np.float64), root), 2))
        self._epsilon = epsilon / max(1.0, stretch * (1 + 1e-9))

    def law_digest(self) -> None:
        """None: parameters and index say it all."""

    def sample(self, ids: WordIds, rng: np.random.Generator) -> WordIds:
        """See `beam_dp.mechanisms.base.BoundMechanism.sample`."""
        space = self._space
        out = np.empty(len(ids), dtype=np.int32)
        noise = partial(mahalanobis_noise, root=self._root, epsilon=self._epsilon, rng=rng)
        for block, noisy in noisy_blocks(ids, space.vectors, noise):
            out[block] = space.nearest(noisy)
        return out


def mahalanobis_noise(n: int, root: Floats, epsilon: float, rng: np.random.Generator) -> Floats:
    """n noise vectors of density proportional to ``exp(-epsilon * |root^-1 z|)``: (n, d) float32.

    Args:
        root: (d, d) float32, symmetric, positive definite.
    """
    return multivariate_laplace_noise(n, len(root), epsilon, rng) @ root


def regularised_matrix(space: WordSpace, weight: float) -> Doubles:
    """A = λΣ + (1 - λ)I for λ = ``weight``, Σ the covariance of the vocabulary with trace d: (d, d) float64.

    Raises:
        ArgumentError: the metric of ``space`` is not Euclidean, or all its vectors are equal.
    """
    require_euclidean(space)

    def compute() -> Arrays:
        return {"covariance": _covariance(space.vectors)}

    covariance = space.derived(f"covariance-v{_TABLE_VERSION}", compute)["covariance"]
    trace = float(np.trace(covariance))
    if trace <= 0:
        raise ArgumentError("index: all its vectors are equal, so mahalanobis has no covariance to scale")
    return weight * covariance * (space.dimension / trace) + (1 - weight) * np.eye(space.dimension)


def square_root(matrix: Doubles) -> Doubles:
    """The symmetric square root of a positive definite ``matrix`` (d, d)."""
    values, directions = np.linalg.eigh(matrix)
    return (directions * np.sqrt(values)) @ directions.T


def _covariance(vectors: Floats) -> Doubles:
    """The covariance of the rows of ``vectors`` (V, d), divided by V: (d, d) float64."""
    size, dimension = vectors.shape
    mean = vectors.mean(axis=0, dtype=np.float64)
    total = np.zeros((dimension, dimension))
    for start in range(0, size, _BLOCK_ROWS):
        centred = vectors[start : start + _BLOCK_ROWS] - mean
        total += centred.T @ centred
    return total / size


def _radius(vectors: Floats, whitening: Doubles) -> Doubles:
    """The largest length of a row of ``vectors`` (V, d) less their mean, times ``whitening`` (d, d): (1,) float64."""
    mean = vectors.mean(axis=0, dtype=np.float64)
    largest = 0.0
    for start in range(0, len(vectors), _BLOCK_ROWS):
        white = (vectors[start : start + _BLOCK_ROWS] - mean) @ whitening
        largest = max(largest, float(np.einsum("ij,ij->i", white, white).max()))
    return np.array([math.sqrt(largest)])
