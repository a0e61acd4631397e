"""Multivariate Laplace noise on a word's vector, projected back to the vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from beam_dp.errors import ArgumentError, require_positive
from beam_dp.guarantees import MetricGuarantee
from beam_dp.mechanisms.base import Doubles, Floats, Points, WordIds, WordSpace, require_euclidean

# Rows of noise at a time, and of one matrix product: 512 reach nine tenths of the speed of 2048.
BLOCK_ROWS = 2048

# A float32 normal is exactly zero once in 2^23: in few dimensions a vector of them would have no direction too often.
_FEW_DIMENSIONS = 16

# Below, the noise would be so long that float32 scores overflow.
_LEAST_EPSILON = 1e-12


def multivariate_laplace_noise(n: int, dimension: int, epsilon: float, rng: np.random.Generator) -> Floats:
    """n noise vectors of density proportional to ``exp(-epsilon * |z|)`` on R^dimension: (n, dimension) float32.

    In polar coordinates that density is a uniform direction (a normalised Gaussian vector) times an
    independent radius of law Gamma(shape=dimension, scale=1/epsilon) (Feyisetan et al. 2020, section 3.4;
    Wu et al. 2017, appendix E).
    """
    normals = normal_vectors(n, dimension, rng)
    return with_lengths(normals, rng.standard_gamma(dimension, n) / epsilon)


def normal_vectors(n: int, dimension: int, rng: np.random.Generator) -> Points:
    """n vectors of independent standard normals: (n, dimension), float64 in few dimensions, else float32."""
    return rng.standard_normal((n, dimension), dtype=np.float64 if dimension < _FEW_DIMENSIONS else np.float32)


def with_lengths(normals: Points, lengths: Doubles) -> Floats:
    """Vectors of the directions of ``normals`` (n, d), which are uniform, and these lengths (n,): (n, d) float32.

    ``normals`` is overwritten.
    """
    norm = np.sqrt(np.einsum("ij,ij->i", normals, normals, dtype=np.float64))
    # Once in 2^52 at most: some direction must do, since no noise at all would give the word away.
    normals[norm == 0, 0] = norm[norm == 0] = 1
    normals *= (lengths / norm).astype(normals.dtype)[:, None]
    return normals.astype(np.float32, copy=False)


def noisy_blocks(ids: WordIds, vectors: Floats, noise: Callable[[int], Floats]) -> Iterator[tuple[slice, Floats]]:
    """The vectors of ``ids`` (n,) plus fresh noise, `BLOCK_ROWS` words at a time.

    Args:
        vectors: (V, d) float32.
        noise: gives n independent noise vectors, (n, d) float32.

    Yields:
        which of the ids a block holds, and its noisy vectors, (rows, d) float32.
    """
    for start in range(0, len(ids), BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        noisy = vectors[ids[block]]
        noisy += noise(len(noisy))
        yield block, noisy


def require_noise_epsilon(value: object) -> float:
    """``value`` as a float if noise of that epsilon fits into float32 vectors, else ArgumentError."""
    epsilon = require_positive("epsilon", value)
    if epsilon < _LEAST_EPSILON:
        raise ArgumentError(f"epsilon must be at least {_LEAST_EPSILON:g}, not {epsilon:g}")
    return epsilon


@dataclass(frozen=True)
class MultivariateLaplace:
    """M(w) = the vocabulary word nearest to v(w) + Z, with Z of density proportional to exp(-epsilon * |z|).

    Claim: for all words w, w' and every set S of words,
    ``P[M(w) in S] <= exp(epsilon * |v(w) - v(w')|) * P[M(w') in S]``, |.| Euclidean; delta = 0.

    Proof sketch: the density of v(w) + Z at z is c * exp(-epsilon * |z - v(w)|), with c the same for every w. By
    the triangle inequality the densities of w and w' at one z differ by a factor of at most
    exp(epsilon * |v(w) - v(w')|), and so do the probabilities of any set of z. The projection sees z alone, never w:
    post-processing. So the claim holds for *any* projection, approximate search included (which costs utility
    only), and needs no factor one half, since nothing is normalised per word.

    The proof is in real numbers. The sum is rounded to float32, which costs a δ of about 1e-8 where words lie closer
    together than float32 can tell at the length of a noisy vector (a ten-millionth of it). The noisy vector itself
    never leaves the worker, only the nearest word does.

    Source: Feyisetan, Balle, Drake, Diethe, "Privacy- and Utility-Preserving Textual Analysis via Calibrated
    Multivariate Perturbations", WSDM 2020, algorithm 1.

    Attributes:
        epsilon: in units of 1/distance, finite and at least 1e-12 (float32 vectors hold no longer noise).
    """

    epsilon: float
    name: ClassVar[str] = "multivariate_laplace"

    def __post_init__(self) -> None:
        object.__setattr__(self, "epsilon", require_noise_epsilon(self.epsilon))

    def guarantee(self, space: WordSpace) -> MetricGuarantee:
        """(epsilon, 0) in the metric of ``space``, which must be Euclidean, by the proof above."""
        require_euclidean(space)
        return MetricGuarantee(epsilon=self.epsilon, basis="proved", metric=space.metric, index_digest=space.digest)

    def bind(self, space: WordSpace) -> BoundMultivariateLaplace:
        """The mechanism on the vectors of ``space``, whose metric must be Euclidean."""
        require_euclidean(space)
        return BoundMultivariateLaplace(self.epsilon, space)


class BoundMultivariateLaplace:
    """`MultivariateLaplace` on one space."""

    def __init__(self, epsilon: float, space: WordSpace) -> None:
        self._epsilon = epsilon
        self._space = space

    def law_digest(self) -> None:
        """None: no tables."""

    def sample(self, ids: WordIds, rng: np.random.Generator) -> WordIds:
        """See `beam_dp.mechanisms.base.BoundMechanism.sample`."""
        space = self._space
        out = np.empty(len(ids), dtype=np.int32)
        noise = partial(multivariate_laplace_noise, dimension=space.dimension, epsilon=self._epsilon, rng=rng)
        for block, noisy in noisy_blocks(ids, space.vectors, noise):
            out[block] = space.nearest(noisy)
        return out
