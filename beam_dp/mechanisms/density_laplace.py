"""Noise on a word's vector that prefers dense regions of the embedding, projected back to the vocabulary."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from beam_dp.errors import ArgumentError, require_positive
from beam_dp.guarantees import MetricGuarantee
from beam_dp.mechanisms.base import Doubles, Floats, WordIds, WordSpace, require_euclidean
from beam_dp.mechanisms.density_prior import median_neighbour_distance
from beam_dp.mechanisms.multivariate_laplace import BLOCK_ROWS, normal_vectors, with_lengths
from beam_dp.mechanisms.row_laws import BoundRows, Weights, bind_rows
from beam_dp.mechanisms.word_exponential import proved, require_epsilon

# Of an envelope, and two more for each unit of κh, the sharpness: nearly all is accepted that infinitely many would be.
_LINES = 32
# About one of 1 + κh/√d proposals is accepted.
_LARGEST_SHARPNESS = 300.0
_LEAST_BANDWIDTH = 1e-12


@dataclass(frozen=True)
class DensityLaplace:
    """M(w) = the vocabulary word nearest to X, of density f_w(x) = μ(x)·exp(-ε |x - v(w)|/2) / Z(w) on R^d.

    μ is a kernel density of the public vocabulary, ``μ(x) = sum over words v of exp(-|x - v|²/(2h²))``: this is
    `DensityPrior` before the projection, not after it. A small h makes M `Exponential` (but for equal vectors, of which
    the projection gives one), an h far larger than the vocabulary `MultivariateLaplace` of ε/2.

    Claim: for all words w, w' and every set S of words,
    ``P[M(w) in S] <= exp(ε |v(w) - v(w')|) * P[M(w') in S]``, |.| Euclidean; δ = 0.

    Proof sketch: μ depends on the public vocabulary alone, not on w, is above 0 everywhere, and its integral is finite,
    so that 0 < Z(w) < ∞. At every x it cancels in f_w(x) / f_w'(x), which by the triangle inequality is at most
    exp(ε |v(w) - v(w')|/2)·Z(w')/Z(w); and the integrand of Z(w') is at most exp(ε |v(w) - v(w')|/2) times that of
    Z(w), the other half. The projection sees X alone: post-processing.

    The draw is exact, by rejection (`density_points`): rounds go on until a proposal is accepted, and what is accepted
    has the density f_w. A chain that is cut after n rounds would miss it by a total variation of up to (1 - 1/M)^n
    =: τ, M being the bound of the target over its proposal, and would have to claim δ = (1 + exp(ε d))·τ.
    Noise and sum are rounded to float32, as those of `MultivariateLaplace`, which says what this means.

    Source: noise that follows a prior density of the embedding is a proposal of Feyisetan, Aggarwal, Xu, Teissier,
    "Research Challenges in Designing Differentially Private Text Generation Mechanisms", FLAIRS 2021 (arXiv
    2012.05403). The law, its proof and its sampler are ours.

    Attributes:
        epsilon: ε, in units of 1/distance, 1e-12 to 1e12.
        bandwidth: h, a distance, from 1e-12 to 600/ε; None for m/√d or what of these bounds is next to it, m being
            the median distance of a word to its nearest other word: X lies about m away from the word it lies around.
    """

    epsilon: float
    bandwidth: float | None = None
    name: ClassVar[str] = "density_laplace"

    def __post_init__(self) -> None:
        object.__setattr__(self, "epsilon", require_epsilon(self.epsilon))
        if self.bandwidth is None:
            return
        bandwidth = require_positive("bandwidth", self.bandwidth)
        if not _LEAST_BANDWIDTH <= bandwidth <= self._largest:
            raise ArgumentError(
                f"bandwidth must be from {_LEAST_BANDWIDTH:g} to 600/epsilon = {self._largest!r}, not {bandwidth!r}"
            )
        object.__setattr__(self, "bandwidth", bandwidth)

    @property
    def _largest(self) -> float:
        return 2 * _LARGEST_SHARPNESS / self.epsilon

    def guarantee(self, space: WordSpace) -> MetricGuarantee:
        """(ε, 0) in the metric of ``space``, which must be Euclidean, by the proof above.

        Raises:
            ArgumentError: as `bind`.
        """
        require_euclidean(space)
        # Without equal vectors there is a median above 0, and no need to look for it where a pipeline is made.
        if self.bandwidth is None and space.min_distance == 0:
            median_neighbour_distance(space)
        return proved(self.epsilon, space)

    def bind(self, space: WordSpace) -> BoundDensityLaplace:
        """The mechanism on the vectors of ``space``, whose metric must be Euclidean.

        Raises:
            ArgumentError: no bandwidth was given, and most words have the same vector as another.
        """
        require_euclidean(space)
        bandwidth = self.bandwidth
        if bandwidth is None:
            usual = median_neighbour_distance(space) / math.sqrt(space.dimension)
            bandwidth = min(max(usual, _LEAST_BANDWIDTH), self._largest)
        return BoundDensityLaplace(self.epsilon, bandwidth, space)


class BoundDensityLaplace:
    """`DensityLaplace` on one space.

    Args:
        epsilon: ε.
        bandwidth: h.
        space: whose vectors are the centres of μ.
    """

    def __init__(self, epsilon: float, bandwidth: float, space: WordSpace) -> None:
        self._space = space
        self._envelope = envelope(epsilon / 2, bandwidth, space.dimension, float(space.diameter))
        self._centres = bind_rows(space, Weights(epsilon / 2, knots=self._envelope.knots))

    def law_digest(self) -> None:
        """None: parameters and index say it all."""

    def sample(self, ids: WordIds, rng: np.random.Generator) -> WordIds:
        """See `beam_dp.mechanisms.base.BoundMechanism.sample`."""
        out = np.empty(len(ids), dtype=np.int32)
        for start in range(0, len(ids), BLOCK_ROWS):
            block = slice(start, start + BLOCK_ROWS)
            out[block] = self._space.nearest(
                density_points(self._space, self._envelope, self._centres, ids[block], rng)
            )
        return out


class Envelope(NamedTuple):
    """Upper bounds of f_w by lines, see `envelope`; the arrays are (K,) float64, one number a line.

    Attributes:
        rate: κ.
        bandwidth: h.
        along, across: a and b.
        steps: the rates of the Gamma laws.
        breaks: (K - 1,), the distances at which the next line becomes the better one.
        knots: of the costs of centres, see `beam_dp.mechanisms.row_laws.Weights`.
    """

    rate: float
    bandwidth: float
    along: Doubles
    across: Doubles
    steps: Doubles
    breaks: Doubles
    knots: tuple[Doubles, Doubles]


@lru_cache(maxsize=64)
def envelope(rate: float, bandwidth: float, dimension: int, diameter: float) -> Envelope:
    """What f_w is bounded by, so that centres and points around them can be proposed; no vocabulary is needed.

    Let κ = ε/2, λ = κh, n = d - 1. X is drawn together with a centre v, the pair having the density
    exp(-|x - v|²/(2h²) - κ |x - v(w)|): summed over v this is f_w. With D = |v - v(w)|, let h·t be the part of x - v
    along v - v(w), and h·s >= 0 the length of what is left, in a uniform direction across; then
    |x - v(w)| = h·|(D/h + t, s)|, t has the weight exp(-t²/2), and s has s^(n-1)·exp(-s²/2).

    For a = sin θ, b = cos θ, 0 <= θ <= π/2, and any m, |(D/h + t, s)| >= a(D/h + t) + bs and s²/2 >= ms - m²/2. So the
    density of (t, s) is at most exp(-κaD) times that of a normal law of mean -λa times that of a Gamma law of shape n
    and rate r = λb + m, with the factors exp(λ²a²/2), exp(m²/2) and r^-n; all three are exact. The product of the
    factors is least at m = n/r, that is r = √n·(u + √(1 + u²)) with u = λb/(2√n), where m²/2 - n·ln r becomes
    a constant less n·(asinh u + u/(u + √(1 + u²))).

    The logarithm of the bound is -κaD plus a convex function of a, so that of K lines (angles equally far apart) each
    is the best for D between two breaks, in turn. Centres have the cost of the best line, max over a; so it is convex
    in D, with slopes of κa <= κ.

    Args:
        rate: κ.
        bandwidth: h.
        dimension: d.
        diameter: an upper bound of D.
    """
    sharpness, across_dimensions = rate * bandwidth, dimension - 1
    angles = np.linspace(0, math.pi / 2, _LINES + math.ceil(2 * sharpness))
    along, across = np.sin(angles), np.cos(angles)
    along[-1], across[-1] = 1, 0
    heights = -((sharpness * along) ** 2) / 2
    steps = np.ones_like(along)
    if across_dimensions:
        u = sharpness * across / (2 * math.sqrt(across_dimensions))
        root = np.sqrt(1 + u * u)
        heights += across_dimensions * (np.arcsinh(u) + u / (u + root))
        steps = math.sqrt(across_dimensions) * (u + root)
    breaks = np.diff(-heights) / (rate * np.diff(along))
    ends = np.concatenate([[0.0], breaks, [max(2 * breaks[-1], 2 * diameter)]])
    lines = np.append(np.arange(len(along)), len(along) - 1)
    costs = along[lines] * ends + (heights[lines] - heights[0]) / rate
    return Envelope(rate, bandwidth, along, across, steps, breaks, (ends, costs))


def density_points(
    space: WordSpace, bounds: Envelope, centres: BoundRows, ids: WordIds, rng: np.random.Generator
) -> Floats:
    """One point X of density f_w for each w of ``ids`` (n,): (n, d) float32.

    Round by round, for those that are not done: a centre, t and s are proposed from the laws of `envelope`, and
    accepted with probability exp(-(s - m)²/2 - λ·(|(D/h + t, s)| - a(D/h + t) - bs)), what the bound has too much.
    Tests find, for κh up to 300 in 1 to 300 dimensions, that a round accepts more than 0.3·√d/(κh + √d) of the
    proposals for centres near and far.

    Args:
        space: gives vectors and distances.
        bounds: of f_w.
        centres: rows of their knots.
        ids: the words.
        rng: see `beam_dp.mechanisms.base.BoundMechanism.sample`.
    """
    chosen = np.empty(len(ids), np.int32)
    lengths = np.empty((2, len(ids)))
    waiting = np.arange(len(ids))
    while len(waiting):
        proposed = centres.sample(ids[waiting], rng)
        distances = space.pair_distances(ids[waiting], proposed)
        parts, accepted = _propose(bounds, distances, space.dimension - 1, rng)
        done = waiting[accepted]
        chosen[done], lengths[:, done] = proposed[accepted], parts[:, accepted]
        waiting = waiting[~accepted]
    along, across = lengths * bounds.bandwidth
    points = space.vectors[chosen]
    points += _offsets(points - space.vectors[ids], along, across, rng)
    return points


def _propose(
    bounds: Envelope, distances: Doubles, across_dimensions: int, rng: np.random.Generator
) -> tuple[Doubles, npt.NDArray[np.bool_]]:
    """(t, s) for centres at ``distances`` (n,), as (2, n), and whether they are accepted."""
    n, sharpness = len(distances), bounds.rate * bounds.bandwidth
    line = np.searchsorted(bounds.breaks, distances)
    a, b, step = bounds.along[line], bounds.across[line], bounds.steps[line]
    t = rng.standard_normal(n) - sharpness * a
    s = rng.standard_gamma(across_dimensions, n) / step
    x = distances / bounds.bandwidth + t
    excess = (s - across_dimensions / step) ** 2 / 2 + sharpness * (np.hypot(x, s) - a * x - b * s)
    return np.stack([t, s]), rng.random(n) < np.exp(-excess)


def _offsets(axes: Floats, along: Doubles, across: Doubles, rng: np.random.Generator) -> Floats:
    """Vectors of length ``along`` (n,) along ``axes`` (n, d) plus ``across`` in a uniform direction across: (n, d).

    Drawn across the first axis, and mirrored so that this becomes the given one, or its opposite: a mirror keeps right
    angles without cancelling anything. A centre that is the word itself has no axis, and its law is the same for any.
    """
    n, dimension = axes.shape
    norms = np.sqrt(np.einsum("ij,ij->i", axes, axes, dtype=np.float64))
    axes[norms == 0, 0] = norms[norms == 0] = 1
    axes /= norms.astype(np.float32)[:, None]
    offsets = np.zeros((n, dimension), np.float32)
    if dimension > 1:
        offsets[:, 1:] = with_lengths(normal_vectors(n, dimension - 1, rng), across)
    mirrors = axes.copy()
    mirrors[:, 0] += np.where(axes[:, 0] < 0, np.float32(-1), np.float32(1))
    overlaps = np.einsum("ij,ij->i", mirrors, offsets) / np.abs(mirrors[:, 0])
    offsets -= overlaps[:, None] * mirrors
    offsets += along.astype(np.float32)[:, None] * axes
    return offsets
