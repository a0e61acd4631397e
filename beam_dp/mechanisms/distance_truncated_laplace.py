"""Multivariate Laplace noise that is never longer than a bound, projected back to the vocabulary."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import ClassVar

import numpy as np
from scipy import special

from beam_dp.errors import ArgumentError, require_positive
from beam_dp.guarantees import MetricGuarantee
from beam_dp.mechanisms.base import Doubles, Floats, WordIds, WordSpace, require_euclidean
from beam_dp.mechanisms.candidates import no_guarantee
from beam_dp.mechanisms.multivariate_laplace import (
    noisy_blocks,
    normal_vectors,
    require_noise_epsilon,
    with_lengths,
)

# Above, float32 scores of the noisy vectors could overflow.
_LARGEST_NOISE = 1e15
_LARGEST_EPSILON = 1e12
# A larger delta promises nothing that a reader of an (epsilon, delta) would expect.
_LARGEST_DELTA = 0.01
_DEFAULT_DELTA = 1e-6

# How far delta may lie above the exact integral: a share of it, and what float64 adds to the special functions.
_GAP = 1e-3
_ROUNDING = (1e-9, 1e-12)
_FIRST_CELLS, _MOST_CELLS = 64, 1 << 17


@dataclass(frozen=True)
class DistanceTruncatedLaplace:
    """M(w) = the vocabulary word nearest to v(w) + Z, with Z of density proportional to exp(-ε |z|) on |z| <= R.

    Claim, with Δ the diameter of the index: for all words w, w' and every set S of words,
    ``P[M(w) in S] <= exp(ε |v(w) - v(w')|) * P[M(w') in S] + δ``, |.| Euclidean, with δ = P[|Z + Δe| > R] for any
    unit vector e: the mass of one ball of noise outside the other. It is *computed* by `mass_outside`, and claimed
    where it is at most 0.01; below the R that this takes no finite claim is made.

    Proof sketch: let t = |v(w) - v(w')|, and f(z) = c·exp(-ε |z|) on |z| <= R, 0 beyond, with c the same for every
    word. At a point y with |y - v(w')| <= R, f(y - v(w)) <= exp(ε t)·f(y - v(w')) by the triangle inequality.
    Elsewhere f(y - v(w')) = 0. So for every set S of points, P[v(w) + Z in S] - exp(ε t)·P[v(w') + Z in S] is at most
    P[|v(w) + Z - v(w')| > R], with equality for the set of all points beyond R from v(w'): this δ(t) is the smallest
    before the projection, and the projection, which sees v(w) + Z alone, can only lower it. f is symmetric with convex
    level sets, so that P[|Z + te| <= R] never rises with t (Anderson 1955, theorem 1): δ(t) <= δ(Δ).

    The law is the continuous one, in real numbers: noise and sum are rounded to float32, by 1e-7 of their length. The
    noisy vector itself never leaves the worker, only the nearest word does.

    Default bound: the least R, to three digits upwards, for which δ is at most 1e-6 on the index.

    Source: truncation by distance is a proposal of Feyisetan, Aggarwal, Xu, Teissier, "Research Challenges in Designing
    Differentially Private Text Generation Mechanisms", FLAIRS 2021 (arXiv 2012.05403), on Feyisetan, Balle, Drake,
    Diethe, WSDM 2020, algorithm 1; the δ is ours.

    Attributes:
        epsilon: ε, in units of 1/distance, 1e-12 to 1e12.
        max_noise: R, a distance, above 0 and at most 1e15; None for the default bound.
    """

    epsilon: float
    max_noise: float | None = None
    name: ClassVar[str] = "distance_truncated_laplace"

    def __post_init__(self) -> None:
        object.__setattr__(self, "epsilon", require_noise_epsilon(self.epsilon))
        if self.epsilon > _LARGEST_EPSILON:
            raise ArgumentError(f"epsilon must be at most {_LARGEST_EPSILON:g}, not {self.epsilon:g}")
        if self.max_noise is not None:
            bound = require_positive("max_noise", self.max_noise)
            if bound > _LARGEST_NOISE:
                raise ArgumentError(f"max_noise must be at most {_LARGEST_NOISE:g}, not {bound:g}")
            object.__setattr__(self, "max_noise", bound)

    def bound(self, space: WordSpace) -> float:
        """R on ``space``, whose metric must be Euclidean."""
        require_euclidean(space)
        if self.max_noise is not None:
            return self.max_noise
        return least_bound(_DEFAULT_DELTA, float(space.diameter), space.dimension, self.epsilon)

    def guarantee(self, space: WordSpace) -> MetricGuarantee:
        """(ε, δ) computed from the law of the noise, or no finite claim and why; the metric must be Euclidean."""
        bound, diameter = self.bound(space), float(space.diameter)
        delta = mass_outside(diameter, bound, space.dimension, self.epsilon)
        if delta > _LARGEST_DELTA:
            least = least_bound(_LARGEST_DELTA, diameter, space.dimension, self.epsilon)
            return no_guarantee(
                space,
                f"delta, computed from the law of the noise, is {delta:.3g}, above {_LARGEST_DELTA}: max_noise must be "
                f"at least {least:g} for this epsilon and index, not {bound:g}",
            )
        return MetricGuarantee(
            epsilon=self.epsilon, delta=delta, basis="computed", metric=space.metric, index_digest=space.digest
        )

    def bind(self, space: WordSpace) -> BoundDistanceTruncatedLaplace:
        """The mechanism on the vectors of ``space``, whose metric must be Euclidean."""
        return BoundDistanceTruncatedLaplace(self.epsilon, self.bound(space), space)


class BoundDistanceTruncatedLaplace:
    """`DistanceTruncatedLaplace` on one space.

    Args:
        epsilon: ε.
        bound: R.
        space: whose vectors get the noise.
    """

    def __init__(self, epsilon: float, bound: float, space: WordSpace) -> None:
        self._epsilon = epsilon
        self._bound = bound
        self._space = space

    def law_digest(self) -> str:
        """sha256 of ε, R and the dimension: R may follow from the index, and δ was computed for this one."""
        law = f"{DistanceTruncatedLaplace.name} {self._epsilon.hex()} {self._bound.hex()} {self._space.dimension}"
        return hashlib.sha256(law.encode()).hexdigest()

    def sample(self, ids: WordIds, rng: np.random.Generator) -> WordIds:
        """See `beam_dp.mechanisms.base.BoundMechanism.sample`."""
        space = self._space
        out = np.empty(len(ids), dtype=np.int32)
        noise = partial(
            truncated_laplace_noise, dimension=space.dimension, epsilon=self._epsilon, bound=self._bound, rng=rng
        )
        for block, noisy in noisy_blocks(ids, space.vectors, noise):
            out[block] = space.nearest(noisy)
        return out


def truncated_laplace_noise(n: int, dimension: int, epsilon: float, bound: float, rng: np.random.Generator) -> Floats:
    """n noise vectors of density proportional to ``exp(-epsilon * |z|)`` on |z| <= bound: (n, dimension) float32.

    A uniform direction times an independent radius: Gamma(dimension, 1/epsilon) conditional on being at most ``bound``.
    """
    radius = truncated_gamma(n, dimension, epsilon * bound, rng) / epsilon
    return with_lengths(normal_vectors(n, dimension, rng), np.minimum(radius, bound))


def truncated_gamma(n: int, shape: int, bound: float, rng: np.random.Generator) -> Doubles:
    """n draws of density proportional to ``x^(shape - 1) * exp(-x)`` on [0, bound]: (n,) float64.

    By the inverse of the distribution function, unless the bound lies so far below the bulk of the Gamma law that its
    mass there could underflow (300 dimensions: 1e-614 below 1). Then, with y = -ln(x / bound), the density
    exp(-shape*y - bound*exp(-y)) is at most a constant times that of an exponential of rate shape - bound, since
    exp(-y) >= 1 - y: such draws are kept with probability exp(-bound*(exp(-y) - 1 + y)), at least 0.6 on average.
    """
    if not _is_far_below(shape, bound):
        # From (0, 1]: a radius of 0, no noise at all, would give the word away.
        uniform = 1 - rng.random(n)
        return special.gammaincinv(shape, uniform * special.gammainc(shape, bound))
    log_ratio = np.empty(n)
    waiting = np.arange(n)
    while len(waiting):
        drawn = rng.standard_exponential(len(waiting)) / (shape - bound)
        kept = rng.random(len(waiting)) < np.exp(-bound * (np.expm1(-drawn) + drawn))
        log_ratio[waiting[kept]] = drawn[kept]
        waiting = waiting[~kept]
    return bound * np.exp(-log_ratio)


def mass_outside(distance: float, bound: float, dimension: int, epsilon: float) -> float:
    """P[|Z + distance * e| > bound], Z of density proportional to ``exp(-epsilon * |z|)`` on |z| <= bound.

    With r = |Z| and θ the angle between Z and e, |Z + Δe|² = r² + Δ² + 2rΔ·cos θ. For d >= 2 (1 - cos θ)/2 is
    Beta((d-1)/2, (d-1)/2), so that given r the probability is the regularised incomplete beta function at
    ``x(r) = ((r + Δ)² - R²) / (4rΔ)``; for d = 1 θ is 0 or π, each with probability one half. That is integrated over
    the law of r in cells: each counts with its mass, an exact difference of distribution functions, times the larger of
    the two values at its ends. Since x has at most one turning point, a minimum, no value between them is larger, and
    the sum is an upper bound. Cells are halved until it is at most 0.1% (and 1e-13) above the like sum of smaller
    values. It is then rounded up by 1e-9 of itself and by 1e-12, more than float64 errs in the special functions.

    Args:
        distance: Δ, at least 0.
        bound: R.
        dimension: d.
        epsilon: ε.

    Returns:
        an upper bound, 0 to 1; 0 at distance 0.
    """
    if distance <= 0:
        return 0.0
    if distance >= 2 * bound:
        return 1.0
    cumulative = _cumulative_radius(bound, dimension, epsilon)
    # Cells of bound - r: from there to the sphere all is computed without cancellation.
    edges = np.linspace(0.0, min(distance, bound), _FIRST_CELLS + 1)
    while True:
        mass = -np.diff(cumulative(bound - edges))
        outside = _outside_given_radius(edges, distance, bound, dimension)
        ends = np.stack([outside[:-1], outside[1:]])
        upper, gaps = float(mass @ ends.max(axis=0)), mass * np.ptp(ends, axis=0)
        allowed = _GAP * upper + _ROUNDING[1] / 10
        if gaps.sum() <= allowed or len(mass) >= _MOST_CELLS:
            return min(upper * (1 + _ROUNDING[0]) + _ROUNDING[1], 1.0)
        wide = np.flatnonzero(gaps > allowed / (2 * len(gaps)))
        edges = np.sort(np.concatenate([edges, (edges[wide] + edges[wide + 1]) / 2]))


@lru_cache(maxsize=64)
def least_bound(delta: float, distance: float, dimension: int, epsilon: float) -> float:
    """The least R, to three digits upwards, that bisection finds to have ``mass_outside(distance, R) <= delta``.

    Rounded, so that it does not hang on the last digits of a special function, which may differ between machines.
    """

    def is_enough(bound: float) -> bool:
        return mass_outside(distance, bound, dimension, epsilon) <= delta

    low, high = distance / 2, max(distance, dimension / epsilon)
    while not is_enough(high):
        low, high = high, 2 * high
    while high > low * 1.0005 and high > low + 1e-4 / epsilon:
        middle = (low + high) / 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    bound = _three_digits_up(high)
    while not is_enough(bound):
        bound = _three_digits_up(bound * 1.001)
    return bound


def _three_digits_up(number: float) -> float:
    unit = 10.0 ** (math.floor(math.log10(number)) - 2)
    return float(f"{math.ceil(number / unit) * unit:.3g}")


def _is_far_below(shape: int, bound: float) -> bool:
    """Whether ``bound`` is two standard deviations of Gamma(shape) below its mean, or below half of it."""
    return bound < max(shape / 2, shape - 2 * math.sqrt(shape))


def _cumulative_radius(bound: float, dimension: int, epsilon: float) -> Callable[[Doubles], Doubles]:
    """P[|Z| <= r] up to a constant, precise where the differences that matter are: (n,) float64 to (n,) float64."""
    scaled = epsilon * bound
    if not _is_far_below(dimension, scaled):
        # Mass near the bound may be tiny beside the rest, so differences are taken in the upper tail.
        total = special.gammainc(dimension, scaled)
        return lambda radius: -special.gammaincc(dimension, epsilon * radius) / total

    # The lower incomplete gamma function is x^d exp(-x) M(1, d+1, x) / d, M being Kummer's function: nothing
    # underflows in the ratio of two of them.
    def cumulative(radius: Doubles) -> Doubles:
        ratio = radius / bound
        kummer = special.hyp1f1(1, dimension + 1, scaled * ratio) / special.hyp1f1(1, dimension + 1, scaled)
        return np.exp(special.xlogy(dimension, ratio) + scaled * (1 - ratio)) * kummer

    return cumulative


def _outside_given_radius(gap: Doubles, distance: float, bound: float, dimension: int) -> Doubles:
    """P[|Z + Δe| > R given |Z| = R - gap] for n gaps from 0 to R: (n,) float64, where it jumps the larger value."""
    # At radius 0 the quotient has a limit, 0, 1/2 or 1 after clipping, which so small a radius stands for.
    radius = np.maximum(bound - gap, 1e-100 * bound)
    x = (distance - gap) / (2 * radius) * ((2 * bound - gap + distance) / (2 * distance))
    if dimension == 1:
        return ((x >= 0).astype(np.float64) + (x >= 1)) / 2
    half = (dimension - 1) / 2
    return special.betainc(half, half, np.clip(x, 0.0, 1.0))
