"""Exact integer noise: the discrete Laplace and the discrete Gaussian law, sampled by the million.

Noise for a sum of integers is an integer, drawn exactly: textbook floating-point Laplace noise leaves gaps in what it
can return that give the true value away (Mironov 2012). Every probability here is an exact real number
(`beam_dp.mechanisms.coins`), every operation on the noise exact integer arithmetic. Scales are floats and mean the
rational number that they hold.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.special import erf

from beam_dp.errors import ArgumentError, describe_kind, require_positive
from beam_dp.mechanisms.coins import Coin, Enclosure, exp_enclosure, flip_exp, logistic_enclosure

Integers: TypeAlias = npt.NDArray[np.int64]

# Draws at a time: the words of a block stay in the cache of one core.
_BLOCK = 1 << 14
SMALLEST_SCALE = 1e-3
LARGEST_SCALE = 2.0**40
_LARGEST_SIGMA = 2.0**39
# A coin for the k-th digit costs a word a draw; beyond eight scales the rare rest is cheaper one unit at a time.
_SCALES_BY_DIGITS = 8
_SIGMAS = 12
# Up to here the law is summed; beyond, what replaces the sum is exact to the last digits of float64.
_SUMMED_SIGMA = 2.0**12


class IntegerNoise(Protocol):
    """A symmetric law on the integers; a value."""

    def __hash__(self) -> int:
        """Equal laws have equal hashes."""

    @property
    def stddev(self) -> float:
        """The standard deviation."""

    def sample(self, n: int, rng: np.random.Generator) -> Integers:
        """n independent draws, (n,) int64; ``rng`` is the current generator of a `SecureSource`."""

    def half_width(self, confidence: float) -> int:
        """The smallest t with P[|X| <= t] >= confidence, which is in (0, 1)."""

    def at_most(self, k: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """P[X <= k] for whole numbers k, as float64, same shape."""

    @property
    def largest_exponent(self) -> float:
        """Where `log_mgf` ends."""

    def log_mgf(self, t: float) -> float:
        """ln E[exp(t·X)], or an upper bound, for |t| below `largest_exponent`."""


@dataclass(frozen=True)
class DiscreteLaplace:
    """P[X = k] = (1-α)/(1+α) · α^|k| with α = exp(-1/scale), for every integer k.

    Privacy: let f be a vector of integers that one privacy unit changes by at most Δ in the L1 norm, and X independent
    draws. P[f+X = y] / P[f'+X = y] = Π α^(|y_i-f_i| - |y_i-f'_i|) <= α^-|f-f'|_1 <= exp(Δ/scale), so releasing f+X is
    (Δ/scale)-differentially private (Ghosh, Roughgarden, Sundararajan 2009; Dwork et al. 2006 for the real line).

    The sampler: X = G - G' for two independent geometric variables, P[G = k] = (1-α)·α^k, has this law, since
    Σ_j P[G = k+j]·P[G' = j] = (1-α)²·α^k / (1-α²). For any m, write G = L + 2^m·H with 0 <= L < 2^m: as
    P[G = k] = (1-α)·Π_i (α^(2^i))^(k_i) · (α^(2^m))^H over the binary digits k_i of L, digits and H are independent,
    digit i is 1 with probability α^(2^i)/(1+α^(2^i)) = 1/(1+exp(2^i/scale)), and H is geometric with α^(2^m): heads in
    a row of a coin of probability exp(-2^m/scale). Each of them is a `Coin` of exact probability. int64 overflows only
    if H exceeds 2^(62-m), which has probability below exp(-2^20) at the largest scale.

    Attributes:
        scale: b, in integer units; from 0.001 to 2^40.
    """

    scale: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", _within("scale", self.scale, SMALLEST_SCALE, LARGEST_SCALE))

    @property
    def stddev(self) -> float:
        """sqrt(2α)/(1-α) = 1/(sqrt(2)·sinh(1/(2·scale)))."""
        return 1 / (math.sqrt(2) * math.sinh(1 / (2 * self.scale)))

    def half_width(self, confidence: float) -> int:
        """The smallest t with P[|X| <= t] = 1 - 2·α^(t+1)/(1+α) >= confidence, which is in (0, 1)."""
        _require_confidence(confidence)
        alpha = math.exp(-1 / self.scale)

        def outside(t: int) -> float:
            return 2 * math.exp(-(t + 1) / self.scale) / (1 + alpha)

        t = max(0, math.ceil(self.scale * math.log(2 / ((1 + alpha) * (1 - confidence)))) - 2)
        while outside(t) > 1 - confidence:
            t += 1
        return t

    def at_most(self, k: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """α^-k/(1+α) below 0, else 1 - α^(k+1)/(1+α)."""
        alpha = math.exp(-1 / self.scale)
        below = np.exp(-np.abs(np.minimum(k, 0)) / self.scale) / (1 + alpha)
        above = 1 - np.exp(-(np.maximum(k, -1) + 1) / self.scale) / (1 + alpha)
        return np.where(k < 0, below, above)

    @property
    def largest_exponent(self) -> float:
        """1/scale."""
        return 1 / self.scale

    def log_mgf(self, t: float) -> float:
        """ln of (1-α)²/((1-α·e^t)·(1-α·e^-t))."""
        rate = 1 / self.scale
        return 2 * math.log1p(-math.exp(-rate)) - math.log1p(-math.exp(t - rate)) - math.log1p(-math.exp(-t - rate))

    def sample(self, n: int, rng: np.random.Generator) -> Integers:
        """See `IntegerNoise.sample`."""
        digits, rest = _geometric_coins(self.scale)
        out = np.empty(n, np.int64)
        for start in range(0, n, _BLOCK):
            size = min(_BLOCK, n - start)
            pair = _geometric(2 * size, digits, rest, rng)
            np.subtract(pair[:size], pair[size:], out=out[start : start + size])
        return out


@lru_cache(maxsize=64)
def _geometric_coins(scale: float) -> tuple[tuple[Coin, ...], Coin]:
    """The coins of the low digits and of the rest; see `DiscreteLaplace`."""
    exact = Fraction(scale)
    count = max(0, math.ceil(math.log2(_SCALES_BY_DIGITS * scale)))
    digits = tuple(Coin(logistic_enclosure((1 << i) / exact)) for i in range(count))
    return digits, Coin(exp_enclosure(-(1 << count) / exact))


def _geometric(n: int, digits: tuple[Coin, ...], rest: Coin, rng: np.random.Generator) -> Integers:
    drawn = np.zeros(n, np.int64)
    for place, coin in enumerate(digits):
        drawn |= coin.flip(n, rng).astype(np.int64) << place
    more = np.flatnonzero(rest.flip(n, rng))
    while len(more):
        drawn[more] += 1 << len(digits)
        more = more[rest.flip(len(more), rng)]
    return drawn


@dataclass(frozen=True)
class DiscreteGaussian:
    """P[X = k] proportional to exp(-k²/(2·sigma²)), for every integer k.

    Privacy: for integers that one unit changes by at most Δ in the L2 norm it is Δ²/(2·sigma²)-concentrated
    differentially private (Canonne, Kamath, Steinke 2020, Theorem 4); the (ε, δ) that the ledger states is computed by
    `beam_dp.accounting.loss`.

    The sampler is their Algorithm 3: draw Y from the discrete Laplace law of scale t = floor(sigma) + 1 and accept it
    with probability exp(-(|Y| - sigma²/t)²/(2·sigma²)), since
    exp(-|Y|/t)·exp(-(|Y| - sigma²/t)²/(2·sigma²)) = exp(-Y²/(2·sigma²))·exp(-sigma²/(2·t²)). Both steps are exact.

    Attributes:
        sigma: in integer units; from 0.001 to 2^39. The standard deviation is sigma or, below about 1, less.
    """

    sigma: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigma", _within("sigma", self.sigma, SMALLEST_SCALE, _LARGEST_SIGMA))

    @property
    def stddev(self) -> float:
        """Summed over the support up to 12 sigma; sigma itself where the sum is equal to it in float64."""
        if self.sigma > _SUMMED_SIGMA:
            return self.sigma
        support, weights = self._half_law()
        return math.sqrt(2 * float(support @ (support * weights)) / (2 * weights.sum() - 1))

    def half_width(self, confidence: float) -> int:
        """The smallest t with P[|X| <= t] >= confidence, which is in (0, 1)."""
        _require_confidence(confidence)
        if self.sigma > _SUMMED_SIGMA:
            reach = range(math.ceil(_SIGMAS * self.sigma))
            return bisect.bisect_left(reach, confidence, key=lambda t: float(self._inside(t)))
        inside = self._summed()
        return min(int(np.searchsorted(inside, confidence)), len(inside) - 1)

    def _inside(self, t: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """P[|X| <= t] by the midpoint rule with its first correction; the next one is below 1e-2/sigma^4."""
        z = (np.asarray(t, np.float64) + 0.5) / self.sigma
        correction = z * np.exp(-np.square(z) / 2) / (12 * math.sqrt(2 * math.pi) * self.sigma**2)
        return erf(z / math.sqrt(2)) + correction

    def _summed(self) -> npt.NDArray[np.float64]:
        """P[|X| <= t] for t = 0, 1, ... up to 12 sigma."""
        _, weights = self._half_law()
        both_sides = 2 * np.cumsum(weights) - 1
        return both_sides / both_sides[-1]

    def at_most(self, k: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """From the law itself; see `half_width`."""
        reach = np.minimum(np.where(k < 0, -k - 1, k), math.ceil(_SIGMAS * self.sigma))
        large = self.sigma > _SUMMED_SIGMA
        inside = self._inside(reach) if large else self._summed()[reach.astype(np.int64)]
        return np.where(k < 0, (1 - inside) / 2, (1 + inside) / 2)

    @property
    def largest_exponent(self) -> float:
        """Infinite."""
        return math.inf

    def log_mgf(self, t: float) -> float:
        """At most t²·sigma²/2 (Canonne, Kamath, Steinke 2020, Lemma 6)."""
        return (t * self.sigma) ** 2 / 2

    def _half_law(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """k = 0, 1, ... and exp(-k²/(2·sigma²))."""
        support = np.arange(math.ceil(_SIGMAS * self.sigma) + 2, dtype=np.float64)
        return support, np.exp(-np.square(support / self.sigma) / 2)

    def sample(self, n: int, rng: np.random.Generator) -> Integers:
        """See `IntegerNoise.sample`."""
        t = math.floor(self.sigma) + 1
        proposal = DiscreteLaplace(float(t))
        variance = Fraction(self.sigma) ** 2
        out = np.empty(n, np.int64)
        done = 0
        while done < n:
            size = min(_BLOCK, 2 * (n - done) + 8)
            drawn = proposal.sample(size, rng)
            gamma = np.square(np.abs(drawn) - float(variance / t)) / (2 * float(variance))

            def exact(i: int, drawn: Integers = drawn) -> Enclosure:
                return exp_enclosure(-((abs(int(drawn[i])) - variance / t) ** 2) / (2 * variance))

            accepted = drawn[flip_exp(gamma, exact, rng)][: n - done]
            out[done : done + len(accepted)] = accepted
            done += len(accepted)
        return out


def _within(name: str, value: object, least: float, most: float) -> float:
    number = require_positive(name, value)
    if not least <= number <= most:
        raise ArgumentError(f"{name} must be from {least:g} to {most:g}, not {number:g}")
    return number


def _require_confidence(value: float) -> None:
    if not 0 < value < 1:
        raise ArgumentError(f"confidence must be a number between 0 and 1, not {describe_kind(value)}")
