"""What one application of a central mechanism loses at most, as a pair of laws that a composition can use exactly.

A pair of laws (P, Q) dominates a mechanism M if for every ε in R and all neighbouring data sets D, D' the hockey-stick
divergence sup_S P[M(D) in S] - e^ε·P[M(D') in S] is at most H(ε) = sup_S P(S) - e^ε·Q(S). The curve H says all that
composition needs: if (P, Q) dominates M and (P', Q') dominates M', also where M' is chosen after M's output was seen,
then (P x P', Q x Q') dominates both together (Zhu, Dong and Wang 2022, "Optimal accounting of differential privacy via
characteristic function", theorem on adaptive composition).

**Additive noise.** Let p be a log-concave law on the integers with distribution function F, Δ >= 0, and let a unit
change the integer under the noise by a <= Δ. p(x)/p(x - a) does not increase in x, so half-lines are optimal sets and
the divergence of the noise from its own shift is max_x F(x) - e^ε·F(x - a). Every term grows with a, so the pair
(noise, noise + Δ) dominates every smaller change, and, the noise being symmetric, every change in the other direction.
A unit that changes at most ``times`` independent coordinates is dominated by the ``times``-fold product, which is
reached where she changes that many by Δ each.

**On a grid.** H is convex in e^ε, so the chords between its values at the points of a grid lie above it, and they are
the curve of a pair whose losses are the grid's points (Doroshenko, Ghazi, Kamath, Kumar and Manurangsi 2022, "Connect
the dots"). That pair dominates too, whatever the grid. No support is enumerated: H is evaluated in closed form at the
points of the grid, however large sensitivity and scale are.

All pairs here are symmetric, (Q, P) being (P, Q) relabelled: H(-ε) = 1 - e^(-ε)·(1 - H(ε)), and ε >= 0 says it all.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from scipy import special

from beam_dp.errors import ArgumentError, InputError, describe_kind, require_count, require_positive

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

# Two limbs of 63 bits: no sum that this package adds noise to is larger.
_MAX_SENSITIVITY = 2**126
# Beyond so many standard deviations a Gaussian tail weighs less than 1e-23 and is charged to delta.
_GAUSSIAN_REACH = 10.0
# Where `_discrete_gaussian_log_cdf` goes over from a table to a series, and how many sigmas below 0 the series serves.
_SERIES_SIGMA = 256.0
_SERIES_REACH = 64.0
_LEAST_MASS = 1e-280
# dp_accounting's bounds on the support of a self-composition are tight up to some hundred factors.
_SELF_COMPOSE_AT_ONCE = 256


class PrivacyLoss(ABC):
    """The dominating pair of one application; use one of the three below.

    Attributes:
        times: how many independent coordinates of that kind one application has at most for one privacy unit.
        kind: names the class in JSON.
    """

    times: int
    kind: ClassVar[str] = ""

    @property
    @abstractmethod
    def reach(self) -> float:
        """Largest loss of one coordinate, where there is one; else the loss beyond which a tail below 1e-23 remains."""

    @property
    @abstractmethod
    def deviation(self) -> float:
        """An upper bound, or nearly so, on the standard deviation of the loss of one coordinate: it sizes grids."""

    @abstractmethod
    def divergence(self, epsilons: np.ndarray) -> np.ndarray:
        """The curve H of one coordinate.

        Args:
            epsilons: any shape, float64, at least 0.

        Returns:
            H at each of them, in [0, 1], same shape; exact to about (4 + epsilon)·1e-16.
        """

    def distribution(self, interval: float, applications: int = 1) -> PrivacyLossDistribution:
        """The privacy loss distribution of so many applications, each of ``times`` coordinates.

        Args:
            interval: distance of the grid's points, above 0; a power of two makes all losses exact floats.
            applications: at least 1.

        Returns:
            dp_accounting's distribution, an upper bound up to the rounding of floats.
        """
        # Imports about a second of scipy that only a total needs.
        from dp_accounting.pld import pld_pmf, privacy_loss_distribution  # noqa: PLC0415

        masses, infinite = self._masses(interval)
        pmf = pld_pmf.DensePLDPmf(interval, -(len(masses) // 2), masses, infinite, pessimistic_estimate=True)
        one = privacy_loss_distribution.PrivacyLossDistribution(pmf)
        return _self_composed(one, self.times * applications)

    def _masses(self, interval: float) -> tuple[np.ndarray, float]:
        """The pair of the chords: P's masses at the losses -top, ..., top times ``interval``, and at infinity.

        The slope of a pair's curve in e^t is minus the mass that Q has at losses above t, and P's mass at t is e^t
        times Q's. So P's mass at t_i is e^t_i times the change there of the chords' slope: if H falls by f_i from t_i
        to t_(i+1), f_(i-1)·e^h/(e^h - 1) - f_i/(e^h - 1). At -t_i it is e^(-t_i) times as much, by symmetry.
        """
        top = max(math.ceil(self.reach / interval), 1)
        curve = self.divergence(np.arange(top + 1) * interval)
        # It falls, which rounding can break in the last digit: upwards.
        curve = np.maximum.accumulate(curve[::-1])[::-1]
        falls = np.append(curve[:-1] - curve[1:], 0.0)
        above = np.maximum(falls[:-1] + (falls[:-1] - falls[1:]) / math.expm1(interval), 0)
        below = above * np.exp(-interval * np.arange(1, top + 1))
        # dp_accounting divides by masses. What is dropped goes to the middle: upwards, or less than any rounding.
        above[above < _LEAST_MASS], below[below < _LEAST_MASS] = 0, 0
        middle = max(1 - curve[-1] - above.sum() - below.sum(), 0.0)
        return np.concatenate([below[::-1], [middle], above]), float(curve[-1])

    def to_json(self) -> dict[str, Any]:
        """The loss as JSON values: its ``kind`` and its fields."""
        return {"kind": self.kind} | asdict(self)  # type: ignore[call-overload]


@dataclass(frozen=True)
class DiscreteLaplaceLoss(PrivacyLoss):
    """Integers with discrete Laplace noise: P[X = k] proportional to exp(-abs(k)/scale).

    Attributes:
        scale: above 0, in units of the noised integer.
        sensitivity: how much one privacy unit changes one coordinate at most; a whole number of at least 1.
        times: how many coordinates she changes at most in one application.

    With a = exp(-1/scale), the loss at x is (Δ - 2x)/scale between 0 and Δ and constant outside. So for ε < Δ/scale the
    best half-line ends at x = floor((Δ - ε·scale)/2), 0 <= x < Δ, and F(x) - e^ε·F(x - Δ) is
    1 - (a^(x+1) + e^ε·a^(Δ-x))/(1 + a) = ((1 - a^(x+1)) + a·(1 - e^ε·a^(Δ-x-1)))/(1 + a).
    """

    scale: float
    sensitivity: int
    times: int = 1
    kind: ClassVar[str] = "discrete_laplace"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", require_positive("scale", self.scale))
        object.__setattr__(self, "sensitivity", _require_sensitivity(self.sensitivity))
        object.__setattr__(self, "times", require_count("times", self.times))

    @property
    def reach(self) -> float:
        """sensitivity/scale."""
        return self.sensitivity / self.scale

    @property
    def deviation(self) -> float:
        """sensitivity/scale: no loss is larger."""
        return self.reach

    def divergence(self, epsilons: np.ndarray) -> np.ndarray:
        """See `PrivacyLoss.divergence`."""
        shift = float(self.sensitivity)
        t = np.minimum(epsilons, self.reach)
        x = np.clip(np.floor((shift - t * self.scale) / 2), 0, shift - 1)
        kept = -np.expm1(-(x + 1) / self.scale)
        kept -= math.exp(-1 / self.scale) * np.expm1(t - (shift - x - 1) / self.scale)
        return np.where(t < self.reach, np.clip(kept / (1 + math.exp(-1 / self.scale)), 0, 1), 0.0)


@dataclass(frozen=True)
class DiscreteGaussianLoss(PrivacyLoss):
    """Integers with discrete Gaussian noise: P[X = k] proportional to exp(-k²/(2·sigma²)).

    Attributes:
        sigma: above 0, in units of the noised integer.
        sensitivity: how much one privacy unit changes one coordinate at most; a whole number of at least 1.
        times: how many coordinates she changes at most in one application.

    The loss at x is Δ·(Δ - 2x)/(2·sigma²), so the best half-line ends at x = floor(Δ/2 - ε·sigma²/Δ), and
    H(ε) = F(x) - e^ε·F(x - Δ) (Canonne, Kamath and Steinke 2020, "The discrete Gaussian for differential privacy",
    Theorem 7).
    """

    sigma: float
    sensitivity: int
    times: int = 1
    kind: ClassVar[str] = "discrete_gaussian"

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigma", require_positive("sigma", self.sigma))
        object.__setattr__(self, "sensitivity", _require_sensitivity(self.sensitivity))
        object.__setattr__(self, "times", require_count("times", self.times))

    @property
    def reach(self) -> float:
        """The mean loss and ten standard deviations."""
        return self.deviation * (self.deviation / 2 + _GAUSSIAN_REACH)

    @property
    def deviation(self) -> float:
        """sensitivity/sigma, that of the continuous Gaussian."""
        return self.sensitivity / self.sigma

    def divergence(self, epsilons: np.ndarray) -> np.ndarray:
        """See `PrivacyLoss.divergence`."""
        t, shift = np.asarray(epsilons, dtype=np.float64), float(self.sensitivity)
        x = np.floor(shift / 2 - t * (self.sigma / shift) * self.sigma)
        gained = np.exp(_discrete_gaussian_log_cdf(x, self.sigma))
        return np.clip(gained - np.exp(t + _discrete_gaussian_log_cdf(x - shift, self.sigma)), 0, 1)


@dataclass(frozen=True)
class ParametersLoss(PrivacyLoss):
    """Mechanisms of which (epsilon, delta) is all that is known.

    Attributes:
        epsilon: finite and above 0.
        delta: in [0, 1).
        times: how many such mechanisms one application has.

    Every (epsilon, delta) mechanism is dominated by the pair with P = (δ; (1-δ)·e^ε/(1+e^ε), (1-δ)/(1+e^ε); 0) on four
    points and Q the same read backwards (Kairouz, Oh and Viswanath 2015, "The composition theorem for differential
    privacy"): its losses are infinite, ε and -ε.
    """

    epsilon: float
    delta: float = 0.0
    times: int = 1
    kind: ClassVar[str] = "parameters"

    def __post_init__(self) -> None:
        object.__setattr__(self, "epsilon", require_positive("epsilon", self.epsilon))
        if not isinstance(self.delta, (int, float)) or isinstance(self.delta, bool) or not 0 <= self.delta < 1:
            raise ArgumentError(f"delta must be a number in [0, 1), not {describe_kind(self.delta)}")
        object.__setattr__(self, "delta", float(self.delta))
        object.__setattr__(self, "times", require_count("times", self.times))

    @property
    def reach(self) -> float:
        """epsilon; the infinite loss is charged to delta as such."""
        return self.epsilon

    @property
    def deviation(self) -> float:
        """epsilon: no finite loss is larger."""
        return self.epsilon

    def divergence(self, epsilons: np.ndarray) -> np.ndarray:
        """See `PrivacyLoss.divergence`."""
        kept = -np.expm1(np.minimum(np.asarray(epsilons) - self.epsilon, 0)) / (1 + math.exp(-self.epsilon))
        return self.delta + (1 - self.delta) * np.clip(kept, 0, 1)


_KINDS: dict[str, type[PrivacyLoss]] = {
    cls.kind: cls for cls in (DiscreteLaplaceLoss, DiscreteGaussianLoss, ParametersLoss)
}


def loss_from_json(fields: Mapping[str, Any]) -> PrivacyLoss:
    """The loss that `PrivacyLoss.to_json` wrote.

    Raises:
        InputError: a field is missing, unknown or of another kind.
    """
    try:
        arguments = dict(fields)
        return _KINDS[arguments.pop("kind")](**arguments)
    except (KeyError, TypeError, ValueError):
        raise InputError("a privacy loss is incomplete or holds a field of the wrong kind") from None


def _require_sensitivity(value: object) -> int:
    sensitivity = require_count("sensitivity", value)
    if sensitivity > _MAX_SENSITIVITY:
        raise ArgumentError("sensitivity must be at most 2**126")
    return sensitivity


def _discrete_gaussian_log_cdf(x: np.ndarray, sigma: float) -> np.ndarray:
    """log P[X <= x] of the discrete Gaussian at whole numbers ``x`` (float64, any shape).

    Small sigmas by sums over a table of all that is above 1e-297, large ones by the midpoint form of the
    Euler-Maclaurin formula: with f the Gaussian density, z = (x + 1/2)/sigma and He the Hermite polynomials, the sum of
    f over k <= x is

        Φ - f⁽¹⁾/24 + 7·f⁽³⁾/5760 - 31·f⁽⁵⁾/967680 + ...
          = Φ(z) + φ(z)·(He₁(z)/(24·sigma²) - 7·He₃(z)/(5760·sigma⁴) + 31·He₅(z)/(967680·sigma⁶) - ...),

    and the sum over all integers is 1 + 2·exp(-2π²sigma²) + ..., which is 1. The next term is about 1e-6·(z/sigma)⁸ of
    the first. Where table or series end the result is -inf, which is too small and can only raise a divergence.
    """
    with np.errstate(divide="ignore"):
        if sigma < _SERIES_SIGMA:
            k = np.arange(1, math.ceil(37 * sigma) + 2)
            # above[j] is proportional to P[X > j]; summed from the small end.
            above = np.append(np.cumsum(np.exp(-k * k / (2 * sigma**2))[::-1])[::-1], 0.0)
            above = above / (1 + 2 * above[0])
            lower = above[np.clip(-x - 1, 0, len(k)).astype(np.int64)]
            upper = above[np.clip(x, 0, len(k)).astype(np.int64)]
            return np.where(x < 0, np.log(lower), np.log1p(-upper))
    z = np.clip((x + 0.5) / sigma, -2 * _SERIES_REACH, 2 * _SERIES_REACH)
    log_phi, log_cdf = -z * z / 2 - math.log(2 * math.pi) / 2, special.log_ndtr(z)
    he3, he5 = z**3 - 3 * z, z**5 - 10 * z**3 + 15 * z
    terms = z / (24 * sigma**2) - 7 * he3 / (5760 * sigma**4) + 31 * he5 / (967680 * sigma**6)
    return np.where(z < -_SERIES_REACH, -np.inf, log_cdf + np.log1p(np.exp(log_phi - log_cdf) * terms))


def _self_composed(one: PrivacyLossDistribution, count: int) -> PrivacyLossDistribution:
    """``count`` independent copies, in stages, each of which cuts the tails that grew in it."""
    if count <= _SELF_COMPOSE_AT_ONCE:
        return one if count == 1 else one.self_compose(count)
    stages, rest = divmod(count, _SELF_COMPOSE_AT_ONCE)
    composed = _self_composed(one.self_compose(_SELF_COMPOSE_AT_ONCE), stages)
    return composed.compose(_self_composed(one, rest)) if rest else composed
